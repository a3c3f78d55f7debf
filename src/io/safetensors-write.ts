/** Writes safetensors files: whole, tensor by tensor, or as shards with an index. */
import { OptionError, ShapeError, StateError } from "../errors.ts";
import type { Files, FileWriter } from "../host/host.ts";
import type { StaticShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  bitsOf,
  dtypeOrder,
  fileDtype,
  maxHeaderBytes,
  metadataKey,
  type SafetensorsDtype,
  show,
} from "./safetensors-types.ts";

type NamedTensor = readonly [name: string, tensor: Tensor];

/** What a header says of a tensor before its numbers are there. */
export interface TensorPlan {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: StaticShape;
}

/** By code points, which is the order of the UTF-8 bytes. JavaScript's `<` orders UTF-16 units. */
function compareNames(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    let x = a.charCodeAt(i);
    let y = b.charCodeAt(i);
    if (x === y) continue;
    // Surrogates stand for code points above every other unit.
    if (x >= 0xd800 && y >= 0xd800) {
      x = x >= 0xe000 ? x - 0x800 : x + 0x2000;
      y = y >= 0xe000 ? y - 0x800 : y + 0x2000;
    }
    return x - y;
  }
  return a.length - b.length;
}

function checkText(what: string, text: string): void {
  // JSON.stringify escapes exactly the halves of surrogate pairs that stand alone.
  if (/\\ud[89a-f]/.test(JSON.stringify(text).replaceAll("\\\\", ""))) {
    throw new OptionError(
      `safetensors: ${what} ${show(text)} has half of a surrogate pair — it has no UTF-8 form.`,
    );
  }
}

function planOf([name, { dtype, shape }]: NamedTensor): TensorPlan {
  return { name, dtype: fileDtype[dtype], shape };
}

/** @throws OptionError for a size that is no whole number of bytes. */
function bytesOfPlan({ name, dtype, shape }: TensorPlan): number {
  const bits = shape.reduce((total, dim) => total * dim, bitsOf[dtype]);
  if (Number.isSafeInteger(bits) && bits % 8 === 0) return bits / 8;
  throw new OptionError(
    `safetensors: tensor ${show(name)} of shape ${show(shape)} and dtype ${dtype} takes no whole number of bytes below 2^53.`,
  );
}

interface Layout {
  /** Length, JSON and padding. */
  readonly head: Uint8Array<ArrayBuffer>;
  readonly ordered: readonly (TensorPlan & { readonly bytes: number })[];
  readonly totalBytes: number;
}

/** The reference writer's layout: wide types first, then by name; data begins at a multiple of 8. */
function layOut(tensors: Iterable<TensorPlan>, metadata: Readonly<Record<string, string>>): Layout {
  const rank = (plan: TensorPlan): number => dtypeOrder.indexOf(plan.dtype);
  const ordered = [...tensors]
    .sort((a, b) => rank(b) - rank(a) || compareNames(a.name, b.name))
    .map((plan) => ({ ...plan, bytes: bytesOfPlan(plan) }));
  const fields: string[] = [];
  const texts = Object.entries(metadata);
  for (const [key, text] of texts) {
    checkText("metadata key", key);
    if (typeof text !== "string") {
      throw new OptionError(
        `safetensors: metadata must be texts, ${show(key)} is ${show(text)} — write it as text.`,
      );
    }
    checkText("metadata", text);
  }
  // An empty table is left out: some readers fail on it.
  if (texts.length > 0) fields.push(`${JSON.stringify(metadataKey)}:${JSON.stringify(metadata)}`);
  const names = new Set<string>();
  let end = 0;
  for (const { name, dtype, shape, bytes } of ordered) {
    checkText("tensor name", name);
    if (name === metadataKey || names.has(name)) {
      const why = name === metadataKey ? "is kept for metadata" : "stands twice";
      throw new OptionError(`safetensors: tensor name ${show(name)} ${why} — rename it.`);
    }
    names.add(name);
    const start = end;
    end += bytes;
    fields.push(
      `${JSON.stringify(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${start},${end}]}`,
    );
  }
  const json = new TextEncoder().encode(`{${fields.join(",")}}`);
  const padded = Math.ceil(json.length / 8) * 8;
  if (padded > maxHeaderBytes) {
    throw new OptionError(
      `safetensors: the header takes ${padded} bytes, at most ${maxHeaderBytes} are allowed — write fewer tensors or less metadata.`,
    );
  }
  const head = new Uint8Array(8 + padded).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(padded), true);
  head.set(json, 8);
  return { head, ordered, totalBytes: head.length + end };
}

function bytesOf(tensor: Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = tensor.data;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** A file whose header is written and whose numbers follow, one tensor at a time. */
export interface SafetensorsWriter {
  /** The tensors in the order in which their numbers must come. */
  readonly order: readonly TensorPlan[];
  /**
   * The numbers of the next tensor of `order`.
   * @param numbers a tensor of the planned type and shape, or its bytes (little-endian, row-major)
   * @throws StateError when all are written; ShapeError when the size is another.
   */
  write(numbers: Tensor | Uint8Array): Promise<void>;
  /** Gives the file its name. @throws StateError while tensors are missing. */
  commit(): Promise<void>;
  abort(): Promise<void>;
}

/**
 * Begins a file whose tensors are written one by one, so that only one needs to be in memory. It is
 * written beside its final name and takes it at `commit`.
 * @param tensors names, types and shapes, in any order; `order` of the result says which comes first.
 * @throws OptionError for names, metadata or sizes that the format does not hold.
 */
export async function createSafetensors(
  files: Files,
  path: string,
  tensors: Iterable<TensorPlan>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<SafetensorsWriter> {
  const { head, ordered } = layOut(tensors, metadata);
  const writer: FileWriter = await files.create(path);
  let next = 0;
  const orAbort = async (work: () => Promise<void>): Promise<void> => {
    try {
      await work();
    } catch (error) {
      await writer.abort();
      throw error;
    }
  };
  await orAbort(() => writer.write(head));
  return {
    order: ordered.map(({ name, dtype, shape }) => ({ name, dtype, shape })),
    write: (numbers) =>
      orAbort(async () => {
        const plan = ordered[next++];
        if (!plan) {
          throw new StateError(`${path}: all ${ordered.length} tensors are written already.`);
        }
        const bytes = numbers instanceof Uint8Array ? numbers : bytesOf(numbers);
        const isOther = !(numbers instanceof Uint8Array) && fileDtype[numbers.dtype] !== plan.dtype;
        if (bytes.length !== plan.bytes || isOther) {
          const got = isOther ? `${fileDtype[(numbers as Tensor).dtype]}, ` : "";
          throw new ShapeError(
            `${path}: tensor ${show(plan.name)} is ${plan.dtype} of ${plan.bytes} bytes, got ${got}${bytes.length} bytes — tensors must come in the order of the header.`,
            { path, name: plan.name },
          );
        }
        await writer.write(bytes);
      }),
    commit: () =>
      orAbort(async () => {
        if (next < ordered.length) {
          throw new StateError(
            `${path}: ${ordered.length - next} tensors are missing, the next is ${show(ordered[next]!.name)} — write them first.`,
          );
        }
        await writer.commit();
      }),
    abort: () => writer.abort(),
  };
}

/**
 * Writes a file beside its final name and renames it, so that an existing file, even one that is
 * being read from, stays whole until the new one is.
 */
export async function writeSafetensors(
  files: Files,
  path: string,
  tensors: Iterable<NamedTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  const named = [...tensors];
  const writer = await createSafetensors(files, path, named.map(planOf), metadata);
  const byName = new Map(named);
  for (const { name } of writer.order) await writer.write(byName.get(name)!);
  await writer.commit();
}

/** The whole file in memory, for places without files. */
export function encodeSafetensors(
  tensors: Iterable<NamedTensor>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array<ArrayBuffer> {
  const named = [...tensors];
  const { head, ordered, totalBytes } = layOut(named.map(planOf), metadata);
  const byName = new Map(named);
  const file = new Uint8Array(totalBytes);
  file.set(head);
  let at = head.length;
  for (const { name, bytes } of ordered) {
    file.set(bytesOf(byName.get(name)!), at);
    at += bytes;
  }
  return file;
}

/** Bytes of tensors that one file of a sharded model holds, as in `transformers`. */
export const defaultShardBytes = 5_000_000_000;

/**
 * The files of a model: in the given order, a file is full before the next tensor would pass the
 * limit; a tensor above the limit has a file of its own (huggingface_hub's
 * `split_state_dict_into_shards`).
 * @throws OptionError for a limit below 1.
 */
export function planShards(
  tensors: readonly TensorPlan[],
  maxBytes: number = defaultShardBytes,
): { readonly shards: readonly (readonly TensorPlan[])[]; readonly totalBytes: number } {
  if (!(maxBytes >= 1)) {
    throw new OptionError(`maxShardBytes must be a number from 1, got ${maxBytes}.`);
  }
  const shards: TensorPlan[][] = [];
  let current: TensorPlan[] = [];
  let size = 0;
  let totalBytes = 0;
  for (const plan of tensors) {
    const bytes = bytesOfPlan(plan);
    totalBytes += bytes;
    if (bytes > maxBytes) {
      shards.push([plan]);
      continue;
    }
    if (size + bytes > maxBytes) {
      shards.push(current);
      current = [];
      size = 0;
    }
    current.push(plan);
    size += bytes;
  }
  if (current.length > 0 || shards.length === 0) shards.push(current);
  return { shards, totalBytes };
}

export interface ShardOptions {
  /** Most bytes of tensors in a file; default 5e9, as in `transformers`. */
  readonly maxShardBytes?: number;
  /** Default `{ format: "pt" }`, which `transformers` asks for. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/**
 * Writes the weights of a model folder: `model.safetensors`, or several files and their index. The
 * index, or the only file, comes last, so that a folder cut off in the middle does not load.
 * @param tensors in the order in which they fill the files
 * @param read called once per tensor, in the order of the files
 * @returns names of the files written
 */
export async function writeShards(
  files: Files,
  folder: string,
  tensors: readonly TensorPlan[],
  read: (plan: TensorPlan) => Promise<Tensor | Uint8Array>,
  options: ShardOptions = {},
): Promise<readonly string[]> {
  const { shards, totalBytes } = planShards(tensors, options.maxShardBytes);
  const number = (n: number): string => String(n).padStart(5, "0");
  const names = shards.map((_, i) =>
    shards.length === 1
      ? "model.safetensors"
      : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`,
  );
  const indexName = "model.safetensors.index.json";
  // Files of an older set may bear the same names: without its index they do not load as one.
  if (shards.length > 1) await files.remove(files.join(folder, indexName));
  const weightMap: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const path = files.join(folder, names[i]!);
    const writer = await createSafetensors(
      files,
      path,
      shard,
      options.metadata ?? { format: "pt" },
    );
    try {
      for (const plan of writer.order) await writer.write(await read(plan));
    } catch (error) {
      await writer.abort();
      throw error;
    }
    await writer.commit();
    for (const { name } of shard) weightMap[name] = names[i]!;
  }
  const written = [...names];
  if (shards.length > 1) {
    const sorted = Object.fromEntries(
      Object.entries(weightMap).sort(([a], [b]) => compareNames(a, b)),
    );
    const index = { metadata: { total_size: totalBytes }, weight_map: sorted };
    await files.writeText(files.join(folder, indexName), `${JSON.stringify(index, null, 2)}\n`);
    written.push(indexName);
  }
  // What is left of an older set: a single file would be read before the index.
  for (const { path } of await files.list(folder)) {
    const name = path.split(/[\\/]/).at(-1)!;
    const isOurs = /^model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?$/.test(name);
    if (isOurs && !written.includes(name)) await files.remove(path);
  }
  return written;
}
