/**
 * A second, plain reading of GGUF for the fuzzer, by its specification and in BigInt throughout: what is
 * valid, and where tensors lie. Slow, and shares nothing with the reader but the limits that are asked of it.
 */

/** Elements and bytes of a block by the number of a type, from ggml.h. */
const blocks: Readonly<Record<number, readonly [bigint, bigint]>> = {
  ...{ 0: [1n, 4n], 1: [1n, 2n], 24: [1n, 1n], 25: [1n, 2n], 26: [1n, 4n], 27: [1n, 8n] },
  ...{ 28: [1n, 8n], 30: [1n, 2n], 2: [32n, 18n], 3: [32n, 20n], 6: [32n, 22n], 7: [32n, 24n] },
  ...{ 8: [32n, 34n], 9: [32n, 36n], 20: [32n, 18n], 39: [32n, 17n], 40: [64n, 36n] },
  ...{ 41: [128n, 18n], 10: [256n, 84n], 11: [256n, 110n], 12: [256n, 144n], 13: [256n, 176n] },
  ...{ 14: [256n, 210n], 15: [256n, 292n], 16: [256n, 66n], 17: [256n, 74n], 18: [256n, 98n] },
  ...{ 19: [256n, 50n], 21: [256n, 110n], 22: [256n, 82n], 23: [256n, 136n], 29: [256n, 56n] },
  ...{ 34: [256n, 54n], 35: [256n, 66n] },
};

const scalarBytes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];

export interface ModelTensor {
  readonly shape: readonly bigint[];
  readonly type: number;
  readonly start: bigint;
  readonly bytes: bigint | undefined;
}

/** Tensors by name, and the keys of the metadata. @throws Error for a file that breaks the format. */
export function readGgufModel(file: Uint8Array): {
  readonly keys: readonly string[];
  readonly tensors: ReadonlyMap<string, ModelTensor>;
} {
  const view = new DataView(file.buffer, file.byteOffset, file.length);
  const size = BigInt(file.length);
  let at = 0n;
  let items = 0n;
  const bad = (what: string): never => {
    throw new Error(`${what} at ${at}`);
  };
  const take = (count: bigint): number => {
    if (at + count > size) bad("end of the file");
    at += count;
    return Number(at - count);
  };
  const u32 = (): number => view.getUint32(take(4n), true);
  const u64 = (): bigint => view.getBigUint64(take(8n), true);
  const text = (most: bigint): string => {
    const length = u64();
    if (length > most) bad("long text");
    const start = take(length);
    const bytes = file.subarray(start, start + Number(length));
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  };
  const scalar = (type: number): bigint => {
    if (type === 8) {
      text(size);
      return -1n;
    }
    const start = take(BigInt(scalarBytes[type]!));
    if (type === 7 && file[start]! > 1) bad("bool");
    return type === 4 ? BigInt(view.getUint32(start, true)) : -1n;
  };
  const value = (type: number, depth: number): bigint => {
    if (type > 12) bad("type of a value");
    if (type !== 9) return scalar(type);
    if (depth > 4) bad("depth");
    const inner = u32();
    if (inner > 12) bad("type of a value");
    const count = u64();
    items += count;
    if (items > 2n ** 24n) bad("items");
    for (let i = 0n; i < count; i++) {
      if (inner === 9) value(9, depth + 1);
      else scalar(inner);
    }
    return -1n;
  };
  if (u32() !== 0x46554747) bad("magic");
  const version = u32();
  if (version !== 2 && version !== 3) bad("version");
  const [nTensors, nEntries] = [u64(), u64()];
  if (nTensors > 2n ** 20n || nEntries > 2n ** 16n) bad("count");
  const keys: string[] = [];
  let alignment = 32n;
  for (let i = 0n; i < nEntries; i++) {
    const key = text(65535n);
    if (key === "" || keys.includes(key)) bad("key");
    keys.push(key);
    const type = u32();
    const found = value(type, 1);
    if (key !== "general.alignment") continue;
    // Whatever its type, it must be a number; the fuzzer's files have uint32 there.
    if (type !== 4) throw new Error("alignment of another type");
    alignment = found;
  }
  if (alignment < 1n || alignment > 65536n || (alignment & (alignment - 1n)) !== 0n) {
    bad("alignment");
  }
  const tensors = new Map<string, Omit<ModelTensor, "start"> & { offset: bigint }>();
  for (let i = 0n; i < nTensors; i++) {
    const name = text(64n);
    if (tensors.has(name)) bad("tensor twice");
    const rank = u32();
    if (rank > 4) bad("rank");
    const shape = Array.from({ length: rank }, u64).reverse();
    const type = u32();
    const offset = u64();
    if (type > 255 || offset > size || offset % alignment !== 0n) bad("tensor");
    const count = shape.reduce((a, b) => a * b, 1n);
    if (shape.some((dim) => dim > size * 8n) || count > size * 8n) bad("size");
    const block = blocks[type];
    if (block && (shape.at(-1) ?? 1n) % block[0] !== 0n) bad("block");
    tensors.set(name, { shape, type, offset, bytes: block && (count / block[0]) * block[1] });
  }
  const data = ((at + alignment - 1n) / alignment) * alignment;
  const placed = new Map<string, ModelTensor>();
  const spans: (readonly [bigint, bigint])[] = [];
  for (const [name, { offset, ...rest }] of tensors) {
    const [start, end] = [data + offset, data + offset + (rest.bytes ?? 0n)];
    if (end > size) bad("outside");
    if (end > start) spans.push([start, end]);
    placed.set(name, { ...rest, start });
  }
  spans.sort(([a], [b]) => Number(a - b));
  spans.forEach(([start], i) => {
    if (i > 0 && start < spans[i - 1]![1]) bad("overlap");
  });
  return { keys, tensors: placed };
}
