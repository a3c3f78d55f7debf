/**
 * Reads GGUF files, versions 2 and 3, little-endian. Every count and length is checked against the bytes
 * that are there before anything is made from it; every error names the file and the byte.
 */
import { FormatError, MissingError, UnsupportedError } from "../errors.ts";
import type { Files, OpenFile } from "../host/host.ts";
import { decodeUtf8 } from "../host/utf8.ts";
import { Tensor } from "../tensor/tensor.ts";
import {
  defaultAlignment,
  type GgufScalar,
  type GgufValue,
  magic,
  maxDims,
  maxKey,
  sizes,
  tensorTypes,
  type ValueType,
  valueTypes,
} from "./gguf.ts";
import { dequantizeInto } from "./gguf-quants.ts";

export interface GgufTensor {
  readonly name: string;
  /** `F16`, `Q4_K`, or `type 99`. */
  readonly type: string;
  /** As in safetensors: rows first. The file has them the other way round. */
  readonly shape: readonly number[];
  /** First byte in the file. */
  readonly offset: number;
  /** Undefined for types whose size is not known here. */
  readonly bytes: number | undefined;
}

export interface GgufHeader {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

const maxTensors = 2 ** 20;
const maxEntries = 2 ** 16;
/** Metadata with a large vocabulary takes about 10 MB. */
const maxHeaderBytes = 2 ** 28;
/** Items of all arrays together; a vocabulary of 2^18 with scores, types and merges has 2^20. */
const maxItems = 2 ** 24;
/** Arrays within arrays. */
const maxDepth = 4;
/** With the 0 at its end that ggml keeps. */
const maxNameRead = 64;
const maxAlignment = 2 ** 16;
/** A byte holds at most 8 numbers. */
const perByte = 8;

/** The bytes read so far end in the middle of the header. */
class Short extends Error {}

const show = (text: string): string =>
  JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);

class Cursor {
  readonly #path: string;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #isAll: boolean;
  #items = 0;
  at = 0;

  constructor(path: string, bytes: Uint8Array, isAll: boolean) {
    this.#path = path;
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#isAll = isAll;
  }

  wrong(what: string, at: number = this.at): FormatError {
    return new FormatError(`${this.#path}: byte ${at}: ${what}`, { path: this.#path, offset: at });
  }

  take(size: number): number {
    if (this.at + size > this.#bytes.length) {
      if (!this.#isAll) throw new Short();
      throw this.wrong(
        `${size} bytes are announced, the ${this.#bytes.length === maxHeaderBytes ? `header may have ${maxHeaderBytes} in all` : "file ends before"} — the file is cut short.`,
      );
    }
    const at = this.at;
    this.at += size;
    return at;
  }

  u32(): number {
    return this.#view.getUint32(this.take(4), true);
  }

  /** A count or offset. */
  u64(what: string, most: number): number {
    const value = this.#view.getBigUint64(this.take(8), true);
    if (value <= BigInt(most)) return Number(value);
    this.at -= 8;
    throw this.wrong(`${what} is ${value}, at most ${most} is allowed.`);
  }

  string(most: number, what = "a text's length"): string {
    const size = this.u64(what, most);
    const at = this.take(size);
    return decodeUtf8(this.#bytes.subarray(at, at + size), `${this.#path}: byte ${at}`, {
      path: this.#path,
      offset: at,
    });
  }

  scalar(type: ValueType): GgufScalar {
    if (type === "string") return this.string(maxHeaderBytes);
    const at = this.take(sizes[type]!);
    const view = this.#view;
    switch (type) {
      case "uint8":
        return view.getUint8(at);
      case "int8":
        return view.getInt8(at);
      case "uint16":
        return view.getUint16(at, true);
      case "int16":
        return view.getInt16(at, true);
      case "uint32":
        return view.getUint32(at, true);
      case "int32":
        return view.getInt32(at, true);
      case "float32":
        return view.getFloat32(at, true);
      case "float64":
        return view.getFloat64(at, true);
      case "uint64":
        return Number(view.getBigUint64(at, true));
      case "int64":
        return Number(view.getBigInt64(at, true));
      default: {
        const byte = view.getUint8(at);
        if (byte <= 1) return byte === 1;
        throw this.wrong(`a bool is ${byte}, only 0 and 1 are allowed.`, at);
      }
    }
  }

  valueType(): ValueType {
    const id = this.u32();
    const type = valueTypes[id];
    if (type !== undefined) return type;
    this.at -= 4;
    throw this.wrong(`value type ${id} is not known.`);
  }

  value(): GgufValue {
    const type = this.valueType();
    return type === "array" ? this.items(1) : { type, value: this.scalar(type) };
  }

  items(depth: number): GgufValue {
    const start = this.at;
    if (depth > maxDepth) throw this.wrong(`arrays lie deeper than ${maxDepth} in each other.`);
    const type = this.valueType();
    const count = this.u64("an array's length", maxItems - this.#items);
    this.#items += count;
    // The least that they take must be there before room is made for them.
    this.take(count * sizes[type]);
    this.at = start + 12;
    if (type === "array") {
      return { type, value: Array.from({ length: count }, () => this.items(depth + 1)) };
    }
    return { type, value: Array.from({ length: count }, () => this.scalar(type)) };
  }
}

interface Info extends GgufTensor {
  /** Where the header says so. */
  readonly at: number;
}

/** A tensor's line in the header; offsets still count from the start of the data. */
function readInfo(cursor: Cursor, fileBytes: number, alignment: number): Info {
  const at = cursor.at;
  const name = cursor.string(maxNameRead, "the length of a tensor's name");
  const called = `tensor ${show(name)}`;
  const rank = cursor.u32();
  if (rank > maxDims) {
    throw cursor.wrong(`${called} has ${rank} dimensions, ${maxDims} are allowed.`, at);
  }
  const most = fileBytes * perByte;
  const shape = Array.from({ length: rank }, () =>
    cursor.u64(`a size of ${called}`, most),
  ).reverse();
  const id = cursor.u32();
  if (id > 255) throw cursor.wrong(`${called} has type ${id}, which is no type.`, at);
  const offset = cursor.u64(`the offset of ${called}`, fileBytes);
  if (offset % alignment !== 0) {
    throw cursor.wrong(`${called} lies at ${offset}, no multiple of ${alignment}.`, at);
  }
  let size = 1;
  for (const dim of shape) size *= dim;
  if (!(size <= most)) {
    throw cursor.wrong(
      `${called} of shape [${shape.join(", ")}] has more numbers than a file of ${fileBytes} bytes.`,
      at,
    );
  }
  const known = tensorTypes.get(id);
  const type = known?.[0] ?? `type ${id}`;
  if (known && (shape.at(-1) ?? 1) % known[1] !== 0) {
    throw cursor.wrong(
      `${called} of shape [${shape.join(", ")}] has rows that are no whole blocks of ${known[1]}, as ${type} has.`,
      at,
    );
  }
  const bytes = known && (size / known[1]) * known[2];
  return { name, type, shape, offset, bytes, at };
}

/** @throws FormatError where two tensors share bytes, or one ends beyond the file. */
function checkPlaces(infos: readonly Info[], cursor: Cursor, start: number, bytes: number): void {
  const sorted = [...infos].sort((a, b) => a.offset - b.offset || (a.bytes ?? 0) - (b.bytes ?? 0));
  let last: Info | undefined;
  for (const info of sorted) {
    const { name, type, shape, at } = info;
    const end = start + info.offset + (info.bytes ?? 0);
    if (end > bytes) {
      throw cursor.wrong(
        `tensor ${show(name)} of shape [${shape.join(", ")}] and type ${type} ends at byte ${end}, the file at ${bytes} — it is cut short.`,
        at,
      );
    }
    // What takes no bytes may lie anywhere.
    if ((info.bytes ?? 0) === 0) continue;
    if (last && info.offset < last.offset + (last.bytes ?? 0)) {
      throw cursor.wrong(
        `tensor ${show(name)} begins at ${info.offset} of the data, inside ${show(last.name)}, which ends at ${last.offset + last.bytes!}.`,
        at,
      );
    }
    last = info;
  }
}

const isAlignment = (value: number): boolean =>
  value >= 1 && value <= maxAlignment && (value & (value - 1)) === 0;

function parseHeader(path: string, window: Uint8Array, isAll: boolean, bytes: number): GgufHeader {
  const cursor = new Cursor(path, window, isAll);
  if (cursor.u32() !== magic) {
    throw new FormatError(`${path}: does not begin with "GGUF" — is this a GGUF file?`, {
      path,
      offset: 0,
    });
  }
  const found = cursor.u32();
  if (found === 0x02000000 || found === 0x03000000) {
    throw new UnsupportedError(
      `${path}: byte 4: is a big-endian file, little-endian ones are read — convert it with gguf_convert_endian.py.`,
      { path, offset: 4 },
    );
  }
  if (found !== 2 && found !== 3) {
    throw new FormatError(
      `${path}: has GGUF version ${found}, versions 2 and 3 are read — convert it anew.`,
      { path, offset: 4 },
    );
  }
  const nTensors = cursor.u64("the number of tensors", maxTensors);
  const nEntries = cursor.u64("the number of metadata entries", maxEntries);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < nEntries; i++) {
    const at = cursor.at;
    const key = cursor.string(maxKey, "the length of a key");
    if (key === "") throw cursor.wrong("a key is empty.", at);
    if (metadata.has(key)) throw cursor.wrong(`the key ${show(key)} stands twice.`, at);
    metadata.set(key, cursor.value());
  }
  const stated = metadata.get("general.alignment") ?? { type: "uint32", value: defaultAlignment };
  const alignment = stated.value as number;
  if (stated.type !== "uint32" || typeof alignment !== "number" || !isAlignment(alignment)) {
    throw cursor.wrong(
      `general.alignment must be a uint32, a power of two to ${maxAlignment}, got ${show(String(stated.value))}.`,
    );
  }
  const infos: Info[] = [];
  const seen = new Set<string>();
  for (let i = 0; i < nTensors; i++) {
    const info = readInfo(cursor, bytes, alignment);
    if (seen.has(info.name)) {
      throw cursor.wrong(`the tensor ${show(info.name)} stands twice.`, info.at);
    }
    seen.add(info.name);
    infos.push(info);
  }
  const start = Math.ceil(cursor.at / alignment) * alignment;
  checkPlaces(infos, cursor, start, bytes);
  const tensors = new Map<string, GgufTensor>();
  for (const { name, type, shape, offset, bytes: own } of infos) {
    tensors.set(name, { name, type, shape, offset: start + offset, bytes: own });
  }
  return { version: found, metadata, tensors };
}

async function readHeader(file: OpenFile, path: string): Promise<GgufHeader> {
  for (let size = 2 ** 20; ; size *= 4) {
    const window = new Uint8Array(Math.min(size, file.bytes, maxHeaderBytes));
    await file.read(window, 0);
    const isAll = window.length === file.bytes || window.length === maxHeaderBytes;
    try {
      return parseHeader(path, window, isAll, file.bytes);
    } catch (error) {
      if (!(error instanceof Short)) throw error;
    }
  }
}

/**
 * Reads metadata and tensor infos, and no numbers.
 * @throws MissingError when there is no such file; FormatError with the offset when it breaks the format.
 */
export async function readGgufHeader(files: Files, path: string): Promise<GgufHeader> {
  const file = await files.open(path);
  try {
    return await readHeader(file, path);
  } finally {
    await file.close();
  }
}

/** The tensors of one file, read one by one where they lie. */
export class GgufFile implements GgufHeader {
  readonly path: string;
  readonly version: number;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
  readonly #file: OpenFile;

  private constructor(file: OpenFile, path: string, header: GgufHeader) {
    this.#file = file;
    this.path = path;
    this.version = header.version;
    this.metadata = header.metadata;
    this.tensors = header.tensors;
  }

  /** Reads and checks the header, and nothing else. @throws as `readGgufHeader`. */
  static async open(files: Files, path: string): Promise<GgufFile> {
    const file = await files.open(path);
    try {
      return new GgufFile(file, path, await readHeader(file, path));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * The bytes of one tensor, as the file has them.
   * @throws MissingError when there is none; UnsupportedError when its type is not known.
   */
  async readBytes(name: string): Promise<Uint8Array<ArrayBuffer>> {
    const tensor = this.tensors.get(name);
    if (!tensor) {
      throw new MissingError(`${this.path}: has no tensor ${show(name)}.`, {
        path: this.path,
        name,
      });
    }
    if (tensor.bytes === undefined) {
      throw new UnsupportedError(
        `${this.path}: tensor ${show(name)} is of ${tensor.type}, whose size is not known.`,
        { path: this.path, name },
      );
    }
    const bytes = new Uint8Array(tensor.bytes);
    await this.#file.read(bytes, tensor.offset);
    return bytes;
  }

  /**
   * One tensor as float32, whatever its type in the file.
   * @throws UnsupportedError for types that are not read.
   */
  async read(name: string): Promise<Tensor<"float32">> {
    const bytes = await this.readBytes(name);
    const { type, shape } = this.tensors.get(name)!;
    const out = new Float32Array(shape.reduce((a, b) => a * b, 1));
    dequantizeInto(type, bytes, out, `${this.path}: tensor ${show(name)}`);
    return new Tensor("float32", shape, out);
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}
