/**
 * Writes GGUF files, version 3 (ggml-org/ggml, `docs/gguf.md`): metadata and tensors in one file.
 *
 *   "GGUF", u32 version, u64 tensors, u64 metadata entries, the entries, tensor infos, padding, data
 *
 * Little-endian.
 */
import { OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { Tensor } from "../tensor/tensor.ts";

export const magic = 0x46554747;
const version = 3;
export const defaultAlignment = 32;

/** Types of metadata values, by their number in the file. */
export const valueTypes = [
  "uint8",
  "int8",
  "uint16",
  "int16",
  "uint32",
  "int32",
  "float32",
  "bool",
  "string",
  "array",
  "uint64",
  "int64",
  "float64",
] as const;

export type ValueType = (typeof valueTypes)[number];

/** 64-bit numbers beyond 2^53 lose their last digits. */
export type GgufScalar = number | boolean | string;

/** A scalar, or an array of one type. In an array of arrays every item says what it holds. */
export type GgufValue =
  | {
      readonly type: Exclude<ValueType, "array">;
      readonly value: GgufScalar | readonly GgufScalar[];
    }
  | { readonly type: "array"; readonly value: readonly GgufValue[] };

/** Name, elements and bytes of a block, of the types in use (ggml's `ggml_type`). */
export const tensorTypes: ReadonlyMap<
  number,
  readonly [name: string, block: number, bytes: number]
> = new Map([
  [0, ["F32", 1, 4]],
  [1, ["F16", 1, 2]],
  [2, ["Q4_0", 32, 18]],
  [3, ["Q4_1", 32, 20]],
  [6, ["Q5_0", 32, 22]],
  [7, ["Q5_1", 32, 24]],
  [8, ["Q8_0", 32, 34]],
  [9, ["Q8_1", 32, 36]],
  [10, ["Q2_K", 256, 84]],
  [11, ["Q3_K", 256, 110]],
  [12, ["Q4_K", 256, 144]],
  [13, ["Q5_K", 256, 176]],
  [14, ["Q6_K", 256, 210]],
  [15, ["Q8_K", 256, 292]],
  [16, ["IQ2_XXS", 256, 66]],
  [17, ["IQ2_XS", 256, 74]],
  [18, ["IQ3_XXS", 256, 98]],
  [19, ["IQ1_S", 256, 50]],
  [20, ["IQ4_NL", 32, 18]],
  [21, ["IQ3_S", 256, 110]],
  [22, ["IQ2_S", 256, 82]],
  [23, ["IQ4_XS", 256, 136]],
  [24, ["I8", 1, 1]],
  [25, ["I16", 1, 2]],
  [26, ["I32", 1, 4]],
  [27, ["I64", 1, 8]],
  [28, ["F64", 1, 8]],
  [29, ["IQ1_M", 256, 56]],
  [30, ["BF16", 1, 2]],
  [34, ["TQ1_0", 256, 54]],
  [35, ["TQ2_0", 256, 66]],
  [39, ["MXFP4", 32, 17]],
  [40, ["NVFP4", 64, 36]],
  [41, ["Q1_0", 128, 18]],
]);

const dtypeNames = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
  float64: "F64",
  int8: "I8",
  int32: "I32",
} as const;

const idOf: ReadonlyMap<string, number> = new Map(
  [...tensorTypes].map(([id, [name]]) => [name, id]),
);

export const maxName = 63;
export const maxKey = 65535;
export const maxDims = 4;

class Bytes {
  #bytes = new Uint8Array(1024);
  #view = new DataView(this.#bytes.buffer);
  size = 0;

  get bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.size);
  }

  #take(size: number): number {
    const at = this.size;
    this.size += size;
    if (this.size > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(2 * this.#bytes.length, this.size));
      grown.set(this.#bytes.subarray(0, at));
      this.#bytes = grown;
      this.#view = new DataView(grown.buffer);
    }
    return at;
  }

  u32(value: number): void {
    const at = this.#take(4);
    this.#view.setUint32(at, value, true);
  }

  u64(value: number): void {
    const at = this.#take(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    const encoded = new TextEncoder().encode(text);
    this.u64(encoded.length);
    const at = this.#take(encoded.length);
    this.#bytes.set(encoded, at);
  }

  scalar(type: ValueType, value: GgufScalar): void {
    if (type === "string") {
      this.string(String(value));
      return;
    }
    const at = this.#take(sizes[type]!);
    const number = Number(value);
    if (type === "uint8" || type === "bool") this.#view.setUint8(at, number);
    else if (type === "int8") this.#view.setInt8(at, number);
    else if (type === "uint16") this.#view.setUint16(at, number, true);
    else if (type === "int16") this.#view.setInt16(at, number, true);
    else if (type === "uint32") this.#view.setUint32(at, number, true);
    else if (type === "int32") this.#view.setInt32(at, number, true);
    else if (type === "float32") this.#view.setFloat32(at, number, true);
    else if (type === "float64") this.#view.setFloat64(at, number, true);
    else this.#view.setBigInt64(at, BigInt(number), true);
  }

  /** Type and contents of a metadata value. */
  value({ type, value }: GgufValue): void {
    if (typeof value !== "object") {
      this.u32(valueTypes.indexOf(type));
      this.scalar(type, value);
      return;
    }
    this.u32(valueTypes.indexOf("array"));
    this.items({ type, value } as GgufValue & { readonly value: readonly unknown[] });
  }

  items({ type, value }: GgufValue & { readonly value: readonly unknown[] }): void {
    this.u32(valueTypes.indexOf(type));
    this.u64(value.length);
    for (const item of value) {
      if (type !== "array") this.scalar(type, item as GgufScalar);
      else if (typeof (item as GgufValue).value === "object") this.items(item as never);
      else throw new OptionError("gguf: an array of arrays holds a single value among them.");
    }
  }

  pad(to: number): void {
    this.#take((to - (this.size % to)) % to);
  }
}

export const sizes: Readonly<Record<ValueType, number>> = {
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  uint32: 4,
  int32: 4,
  float32: 4,
  bool: 1,
  string: 8,
  array: 12,
  uint64: 8,
  int64: 8,
  float64: 8,
};

/** A tensor that is written: its shape rows first, its type as `Q8_0`. */
export interface GgufPlan {
  readonly name: string;
  readonly type: string;
  readonly shape: readonly number[];
}

function sizeInFile({ name, type, shape }: GgufPlan): number {
  const found = tensorTypes.get(idOf.get(type) ?? -1);
  if (!found) throw new UnsupportedError(`gguf: tensor "${name}" is ${type}, which is no type.`);
  const [, block, bytes] = found;
  const size = shape.reduce((a, b) => a * b, 1);
  if ((shape.at(-1) ?? 1) % block !== 0) {
    throw new OptionError(
      `gguf: tensor "${name}" of shape [${shape.join(", ")}] has rows that are no whole blocks of ${block}, as ${type} needs.`,
    );
  }
  return (size / block) * bytes;
}

/**
 * Writes a file beside its final name and renames it; the data of one tensor at a time is in memory.
 * @param metadata in order; `general.architecture` is expected first by convention
 * @param read the bytes of a tensor, in the order of the plans
 * @throws OptionError for names, keys or shapes that the format does not hold
 * @throws UnsupportedError for other types of numbers
 */
export async function createGguf(
  files: Files,
  path: string,
  metadata: readonly (readonly [key: string, value: GgufValue])[],
  plans: readonly GgufPlan[],
  read: (plan: GgufPlan, index: number) => Uint8Array | Promise<Uint8Array>,
): Promise<void> {
  const head = new Bytes();
  head.u32(magic);
  head.u32(version);
  head.u64(plans.length);
  head.u64(metadata.length);
  const keys = new Set<string>();
  for (const [key, value] of metadata) {
    if (!/^[a-z0-9_]+(\.[a-z0-9_-]+)*$/.test(key) || key.length > maxKey || keys.has(key)) {
      throw new OptionError(
        `gguf: "${key}" is no key, or stands twice — keys are lower_snake words with dots between.`,
      );
    }
    keys.add(key);
    head.string(key);
    head.value(value);
  }
  const names = new Set<string>();
  let offset = 0;
  for (const plan of plans) {
    const { name, shape } = plan;
    const bytes = new TextEncoder().encode(name).length;
    if (bytes > maxName || names.has(name) || shape.length < 1 || shape.length > maxDims) {
      throw new OptionError(
        `gguf: tensor "${name}" of shape [${shape.join(", ")}] — names are unique and of ${maxName} bytes at most, shapes have 1 to ${maxDims} dimensions.`,
      );
    }
    names.add(name);
    head.string(name);
    head.u32(shape.length);
    for (const dim of [...shape].reverse()) head.u64(dim);
    const size = sizeInFile(plan);
    head.u32(idOf.get(plan.type)!);
    head.u64(offset);
    offset += Math.ceil(size / defaultAlignment) * defaultAlignment;
  }
  head.pad(defaultAlignment);
  const writer = await files.create(path);
  try {
    await writer.write(head.bytes);
    for (const [i, plan] of plans.entries()) {
      const data = await read(plan, i);
      if (data.length !== sizeInFile(plan)) {
        throw new OptionError(
          `gguf: tensor "${plan.name}" takes ${sizeInFile(plan)} bytes, got ${data.length}.`,
        );
      }
      await writer.write(data);
      const rest = (defaultAlignment - (data.length % defaultAlignment)) % defaultAlignment;
      await writer.write(new Uint8Array(rest));
    }
    await writer.commit();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

/**
 * Writes tensors as they are.
 * @param tensors float32, float16, bfloat16, float64, int8 or int32, at most 4 dimensions
 * @throws as `createGguf`
 */
export async function writeGguf(
  files: Files,
  path: string,
  metadata: readonly (readonly [key: string, value: GgufValue])[],
  tensors: readonly (readonly [name: string, tensor: Tensor])[],
): Promise<void> {
  const plans = tensors.map(([name, { dtype, shape }]): GgufPlan => {
    const type = (dtypeNames as Readonly<Record<string, string>>)[dtype];
    if (type === undefined) throw new UnsupportedError(`gguf: tensor "${name}" is ${dtype}.`);
    return { name, type, shape };
  });
  await createGguf(files, path, metadata, plans, (_, i) => {
    const { data } = tensors[i]![1];
    return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  });
}
