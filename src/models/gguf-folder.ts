/**
 * A GGUF file seen as a model folder: config.json, tokenizer files and model.safetensors are made from it
 * when they are read, so that everything that takes a folder takes such a file. Weights are made tensor by
 * tensor; nothing is written.
 */
import { FormatError, MissingError } from "../errors.ts";
import type { FileInfo, Files, OpenFile } from "../host/host.ts";
import { dequantizeInto } from "../io/gguf-quants.ts";
import { GgufFile, type GgufTensor } from "../io/gguf-read.ts";
import { Tensor } from "../tensor/tensor.ts";
import { configOfFile, familyOfFile, ropeTensors } from "./gguf-config.ts";
import { type HeadCounts, isPlain, type Placement, placeHere, relaid } from "./gguf-names.ts";
import { tokenizerOfFile } from "./gguf-tokenizer.ts";

const weightsName = "model.safetensors";
const utf8 = new TextEncoder();

/** Types that a tensor keeps; all others become float32. */
const keptTypes: Readonly<Record<string, readonly ["F16" | "BF16", "float16" | "bfloat16"]>> = {
  F16: ["F16", "float16"],
  BF16: ["BF16", "bfloat16"],
};

/** One tensor as a folder has it. */
interface Entry {
  readonly source: GgufTensor;
  readonly name: string;
  readonly shape: readonly number[];
  readonly how: Placement | undefined;
  /** Where its bytes lie in the safetensors file that is made. */
  readonly start: number;
  readonly bytes: number;
}

/** What the files of the folder hold. */
interface View {
  readonly path: string;
  /** By name. */
  readonly texts: ReadonlyMap<string, Uint8Array<ArrayBuffer>>;
  readonly header: Uint8Array<ArrayBuffer>;
  readonly entries: readonly Entry[];
  readonly heads: HeadCounts;
  /** Of model.safetensors. */
  readonly bytes: number;
}

async function makeView(files: Files, path: string): Promise<View> {
  const file = await GgufFile.open(files, path);
  try {
    const family = familyOfFile(file);
    const config = await configOfFile(file, family);
    const texts = new Map([["config.json", `${JSON.stringify(config, null, 2)}\n`]]);
    const tokenizer = tokenizerOfFile(file.metadata, path);
    if (tokenizer) {
      texts.set("tokenizer.json", tokenizer.tokenizer);
      texts.set("tokenizer_config.json", tokenizer.config);
    }
    // Without a prototype, so that any name is a key.
    const json = Object.create(null) as Record<string, object>;
    const entries: Omit<Entry, "start">[] = [];
    let end = 0;
    for (const source of file.tensors.values()) {
      if (ropeTensors.includes(source.name)) continue;
      const how = placeHere(family, source.name);
      const isTurned = how?.isTurned === true && source.shape.length === 2;
      const shape = isTurned ? [...source.shape].reverse() : source.shape;
      const dtype: string = keptTypes[source.type]?.[0] ?? "F32";
      const bytes = shape.reduce((a, b) => a * b, 1) * (dtype === "F32" ? 4 : 2);
      // A name without a place stays, and the loader says that it is not expected.
      const name = how?.name ?? source.name;
      json[name] = { dtype, shape, data_offsets: [end, end + bytes] };
      entries.push({ source, name, shape, how, bytes });
      end += bytes;
    }
    const text = utf8.encode(JSON.stringify(json));
    const header = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20);
    new DataView(header.buffer).setBigUint64(0, BigInt(header.length - 8), true);
    header.set(text, 8);
    let start = header.length;
    const placed = entries.map((entry): Entry => {
      const own = { ...entry, start };
      start += entry.bytes;
      return own;
    });
    const nHeads = Number(config["num_attention_heads"] ?? config["n_head"] ?? 1);
    return {
      path,
      texts: new Map([...texts].map(([name, content]) => [name, utf8.encode(content)])),
      header,
      entries: placed,
      heads: { nHeads, nKvHeads: Number(config["num_key_value_heads"] ?? nHeads) },
      bytes: header.length + end,
    };
  } finally {
    await file.close();
  }
}

/** model.safetensors of a view, made as it is read. */
class Weights implements OpenFile {
  readonly path: string;
  readonly bytes: number;
  readonly #view: View;
  readonly #file: OpenFile;
  /** The last tensor made, since one may be read in parts. */
  #last: { readonly entry: Entry; readonly bytes: Uint8Array } | undefined;

  constructor(view: View, file: OpenFile, path: string) {
    this.#view = view;
    this.#file = file;
    this.path = path;
    this.bytes = view.bytes;
  }

  async read(into: Uint8Array, offset: number): Promise<void> {
    const { header, entries } = this.#view;
    const end = offset + into.length;
    if (!Number.isSafeInteger(offset) || offset < 0 || end > this.bytes) {
      throw new MissingError(`${this.path}: has no bytes ${offset} to ${end}.`);
    }
    if (offset < header.length) into.set(header.subarray(offset, end));
    for (const entry of entries) {
      const stop = entry.start + entry.bytes;
      if (entry.bytes === 0 || stop <= offset || entry.start >= end) continue;
      if (entry.start === offset && stop === end && (await this.#makeInto(entry, into))) return;
      if (this.#last?.entry !== entry) this.#last = { entry, bytes: await this.#make(entry) };
      const from = Math.max(offset, entry.start);
      const part = this.#last.bytes.subarray(from - entry.start, Math.min(end, stop) - entry.start);
      into.set(part, from - offset);
    }
  }

  async #source({ source }: Entry): Promise<Uint8Array> {
    // A type whose size is not known is refused by its name.
    const bytes = new Uint8Array(source.bytes ?? 0);
    await this.#file.read(bytes, source.offset);
    return bytes;
  }

  /** Straight to its place, where the numbers need no second one. */
  async #makeInto(entry: Entry, into: Uint8Array): Promise<boolean> {
    const { source, how, shape } = entry;
    if (keptTypes[source.type] || into.byteOffset % 4 !== 0) return false;
    if (how && !isPlain(how, shape.length)) return false;
    const out = new Float32Array(into.buffer as ArrayBuffer, into.byteOffset, into.length / 4);
    dequantizeInto(source.type, await this.#source(entry), out, this.#where(source));
    return true;
  }

  #where(source: GgufTensor): string {
    return `${this.#view.path}: tensor "${source.name}"`;
  }

  async #make(entry: Entry): Promise<Uint8Array> {
    const { source, how } = entry;
    const numbers = new Float32Array(source.shape.reduce((a, b) => a * b, 1));
    dequantizeInto(source.type, await this.#source(entry), numbers, this.#where(source));
    const made = how
      ? relaid(numbers, source.shape, how, this.#view.heads, "here").numbers
      : numbers;
    const kept = keptTypes[source.type];
    const { data } = kept ? new Tensor("float32", [made.length], made).to(kept[1]) : { data: made };
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  }

  async close(): Promise<void> {
    this.#last = undefined;
    await this.#file.close();
  }
}

/** A file in memory. */
function memory(path: string, content: Uint8Array): OpenFile {
  return {
    path,
    bytes: content.length,
    async read(into, offset) {
      if (offset < 0 || offset + into.length > content.length) {
        throw new MissingError(`${path}: has no bytes ${offset} to ${offset + into.length}.`);
      }
      into.set(content.subarray(offset, offset + into.length));
    },
    async close() {},
  };
}

const names = ["config.json", "tokenizer.json", "tokenizer_config.json", weightsName];
const inside = /^(.+)[\\/]([^\\/]+)$/;

async function isGguf(files: Files, path: string): Promise<boolean> {
  const found = await files.info(path);
  if (!found || found.isDirectory || found.bytes < 4) return false;
  const file = await files.open(path);
  try {
    const start = new Uint8Array(4);
    await file.read(start, 0);
    return String.fromCharCode(...start) === "GGUF";
  } finally {
    await file.close();
  }
}

const made = new WeakSet<Files>();

/**
 * The same files, with every GGUF file also a folder with the files of a model: `loadModel`,
 * `loadTokenizer` and `loadChatTemplate` then take its path. A file is known by its first bytes.
 */
export function withGguf(files: Files): Files {
  if (made.has(files)) return files;
  let last:
    | { readonly path: string; readonly bytes: number; readonly view: Promise<View> }
    | undefined;

  /** The view of a GGUF file; undefined for all else. */
  async function viewOf(path: string): Promise<View | undefined> {
    if (!(await isGguf(files, path))) return undefined;
    const { bytes } = (await files.info(path))!;
    if (last?.path !== path || last.bytes !== bytes) {
      last = { path, bytes, view: makeView(files, path) };
    }
    try {
      return await last.view;
    } catch (error) {
      last = undefined;
      throw error;
    }
  }

  /** The file that a path inside a GGUF file names: the view, and its name there. */
  async function find(path: string): Promise<readonly [View, string] | undefined> {
    const [, parent, name] = inside.exec(path) ?? [];
    if (parent === undefined || !names.includes(name!)) return undefined;
    const view = await viewOf(parent);
    if (!view) return undefined;
    return name === weightsName || view.texts.has(name!) ? [view, name!] : undefined;
  }

  const infoOf = (view: View, name: string): FileInfo => ({
    path: files.join(view.path, name),
    bytes: view.texts.get(name)?.length ?? view.bytes,
    isDirectory: false,
  });

  async function open(path: string): Promise<OpenFile> {
    const found = await find(path);
    if (!found) return files.open(path);
    const [view, name] = found;
    const content = view.texts.get(name);
    return content ? memory(path, content) : new Weights(view, await files.open(view.path), path);
  }

  async function readBytes(path: string, limit?: number): Promise<Uint8Array<ArrayBuffer>> {
    const content = await textOf(path, limit);
    return content ? Uint8Array.from(content) : files.readBytes(path, limit);
  }

  async function textOf(path: string, limit = Infinity): Promise<Uint8Array | undefined> {
    const found = await find(path);
    const content = found?.[0].texts.get(found[1]);
    if (content && content.length > limit) {
      throw new FormatError(`${path}: has ${content.length} bytes, at most ${limit} are read.`, {
        path,
      });
    }
    return content;
  }

  const layered: Files = {
    writeText: (path, text) => files.writeText(path, text),
    writeBytes: (path, bytes) => files.writeBytes(path, bytes),
    append: (path, content) => files.append(path, content),
    create: (path) => files.create(path),
    makeDirectory: (path) => files.makeDirectory(path),
    remove: (path) => files.remove(path),
    lock: (path) => files.lock(path),
    join: (...parts) => files.join(...parts),
    async info(path) {
      const found = await find(path);
      return found ? infoOf(...found) : files.info(path);
    },
    async list(path) {
      const view = await viewOf(path);
      if (!view) return files.list(path);
      return [...view.texts.keys(), weightsName].sort().map((name) => infoOf(view, name));
    },
    open,
    async *stream(path) {
      const found = await find(path);
      if (!found) {
        yield* files.stream(path);
        return;
      }
      const file = await open(path);
      try {
        for (let at = 0; at < file.bytes; at += 2 ** 20) {
          const chunk = new Uint8Array(Math.min(2 ** 20, file.bytes - at));
          await file.read(chunk, at);
          yield chunk;
        }
      } finally {
        await file.close();
      }
    },
    readBytes,
    async readText(path, limit) {
      const content = await textOf(path, limit);
      return content ? new TextDecoder().decode(content) : files.readText(path, limit);
    },
  };
  made.add(layered);
  return layered;
}
