/**
 * Differences of few entries from a base: what a sparse fine-tuning leaves, and how such differences add up.
 *
 * In a file each changed parameter `<path>` has two tensors of one length: `<path>.sft_index`, int32, places in
 * row-major order, rising; `<path>.sft_value`, float32, what is added there. Shapes are the base's. Whole
 * parameters, as a head's, stand beside them under their own names.
 */
import { FormatError, OptionError } from "../../../errors.ts";
import { encodeSafetensors } from "../../../io/safetensors-write.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import { Tensor } from "../../../tensor/tensor.ts";

/** Changed entries of one parameter. */
export interface SparseEntries {
  /** Row-major places, rising. */
  readonly indices: Int32Array<ArrayBuffer>;
  readonly values: Float32Array<ArrayBuffer>;
}

const indexEnd = ".sft_index";
const valueEnd = ".sft_value";

export class SparseDelta {
  /** By the parameter's path. */
  readonly entries: ReadonlyMap<string, SparseEntries>;

  /** @throws OptionError for places that do not rise, or as many values as places. */
  constructor(entries: ReadonlyMap<string, SparseEntries>) {
    for (const [path, { indices, values }] of entries) {
      if (indices.length !== values.length) {
        throw new OptionError(
          `sparse delta: "${path}" has ${indices.length} places and ${values.length} values.`,
        );
      }
      checkRising(indices, (what) => new OptionError(`sparse delta: "${path}" ${what}.`));
    }
    this.entries = entries;
  }

  /** Entries that change. */
  get count(): number {
    let count = 0;
    for (const { indices } of this.entries.values()) count += indices.length;
    return count;
  }

  /** What a mask marks of dense differences. @param masks 0 and 1, by path, of the same sizes */
  static of(
    dense: Readonly<Record<string, Tensor>>,
    masks: Readonly<Record<string, ArrayLike<number>>>,
  ): SparseDelta {
    const entries = new Map<string, SparseEntries>();
    for (const [path, tensor] of Object.entries(dense)) {
      const mask = masks[path]!;
      const numbers = tensor.numbers();
      const indices: number[] = [];
      for (let i = 0; i < numbers.length; i++) if (mask[i] === 1) indices.push(i);
      if (indices.length === 0) continue;
      entries.set(path, {
        indices: Int32Array.from(indices),
        values: Float32Array.from(indices, (i) => numbers[i]!),
      });
    }
    return new SparseDelta(entries);
  }

  /**
   * The parameters that change, with the difference added; the base stays.
   * @throws OptionError for a path that the base lacks, or a place outside it.
   */
  apply(base: Readonly<Record<string, Tensor>>): TensorRecord {
    const made: TensorRecord = {};
    for (const [path, { indices, values }] of this.entries) {
      const tensor = Object.hasOwn(base, path) ? base[path]! : undefined;
      if (!tensor || (indices.at(-1) ?? -1) >= tensor.size) {
        throw new OptionError(
          tensor
            ? `sparse delta: "${path}" has ${tensor.size} numbers, the difference changes place ${indices.at(-1)} — was it made for another model?`
            : `sparse delta: the model has no parameter "${path}" — was it made for another model?`,
        );
      }
      const data = Float32Array.from(tensor.numbers());
      for (let i = 0; i < indices.length; i++) data[indices[i]!]! += values[i]!;
      made[path] = new Tensor("float32", tensor.shape, data);
    }
    return made;
  }

  /** Both differences together. */
  add(other: SparseDelta): SparseDelta {
    const entries = new Map(this.entries);
    for (const [path, more] of other.entries) {
      const own = entries.get(path);
      entries.set(path, own ? sum(own, more) : more);
    }
    return new SparseDelta(entries);
  }

  /** Share of this difference's entries that the other changes too: |μ ∩ μ'| / |μ|. */
  overlap(other: SparseDelta): number {
    let both = 0;
    for (const [path, { indices }] of this.entries) {
      const more = other.entries.get(path)?.indices;
      if (!more) continue;
      let j = 0;
      for (const place of indices) {
        while (j < more.length && more[j]! < place) j++;
        if (more[j] === place) both++;
      }
    }
    return this.count === 0 ? 0 : both / this.count;
  }

  /** Tensors as a file has them. @param prefix before every name */
  pack(prefix = ""): TensorRecord {
    const stored: TensorRecord = {};
    for (const [path, { indices, values }] of this.entries) {
      stored[`${prefix}${path}${indexEnd}`] = new Tensor("int32", [indices.length], indices);
      stored[`${prefix}${path}${valueEnd}`] = new Tensor("float32", [values.length], values);
    }
    return stored;
  }

  /** The bytes of a safetensors file. */
  toBytes(): Uint8Array {
    return encodeSafetensors(Object.entries(this.pack()), { format: "pt" });
  }

  /**
   * Differences from a file's tensors, checked; tensors of other names are given back.
   * @param where begins an error
   * @param sizeOfPath numbers in a parameter; undefined where the model has none of this path
   * @throws FormatError for a path that is unknown, half a pair, places that do not rise or lie outside.
   */
  static unpack(
    stored: Readonly<TensorRecord>,
    where: string,
    sizeOfPath: (path: string) => number | undefined,
    prefix = "",
  ): { readonly delta: SparseDelta; readonly rest: TensorRecord } {
    const rest: TensorRecord = {};
    const entries = new Map<string, SparseEntries>();
    for (const [name, tensor] of Object.entries(stored)) {
      const end = [indexEnd, valueEnd].find((part) => name.endsWith(part));
      if (end === undefined || !name.startsWith(prefix)) {
        rest[name] = tensor;
        continue;
      }
      const path = name.slice(prefix.length, -end.length);
      if (entries.has(path)) continue;
      const pair = [indexEnd, valueEnd].map((part) => stored[`${prefix}${path}${part}`]);
      const size = sizeOfPath(path);
      const wrong = (what: string): FormatError => new FormatError(`${where}: "${path}" ${what}.`);
      if (size === undefined) throw wrong("is no parameter that this model may change");
      const [index, value] = pair;
      if (!index || !value) throw wrong(`has no ${index ? valueEnd : indexEnd}`);
      const isFit =
        index.dtype === "int32" && value.dtype === "float32" && index.size === value.size;
      if (!isFit) {
        throw wrong(
          `needs as many int32 places as float32 values, got ${index.size} ${index.dtype} and ${value.size} ${value.dtype}`,
        );
      }
      const indices = Int32Array.from(index.numbers());
      checkRising(indices, wrong);
      if (indices.length > 0 && indices.at(-1)! >= size) {
        throw wrong(`has ${size} numbers, place ${indices.at(-1)} lies outside`);
      }
      entries.set(path, { indices, values: Float32Array.from(value.numbers()) });
    }
    return { delta: new SparseDelta(entries), rest };
  }
}

function checkRising(indices: Int32Array, wrong: (what: string) => Error): void {
  for (let i = 0; i < indices.length; i++) {
    const least = i === 0 ? 0 : indices[i - 1]! + 1;
    if (indices[i]! < least) {
      throw wrong(`has place ${indices[i]} at ${i}, where at least ${least} must stand`);
    }
  }
}

function sum(a: SparseEntries, b: SparseEntries): SparseEntries {
  const indices: number[] = [];
  const values: number[] = [];
  let [i, j] = [0, 0];
  while (i < a.indices.length || j < b.indices.length) {
    const [left, right] = [a.indices[i] ?? Infinity, b.indices[j] ?? Infinity];
    const place = Math.min(left, right);
    indices.push(place);
    values.push((left === place ? a.values[i++]! : 0) + (right === place ? b.values[j++]! : 0));
  }
  return { indices: Int32Array.from(indices), values: Float32Array.from(values) };
}

/**
 * A model's weights with several differences added, in order: θ₀ + φ_task + φ_language.
 * @param heads whole parameters by path, as a task's head
 * @returns all parameters: those that nothing changes are the base's own
 */
export function compose(
  base: Readonly<TensorRecord>,
  deltas: readonly SparseDelta[],
  heads: Readonly<TensorRecord> = {},
): TensorRecord {
  const together = deltas.reduce((total, delta) => total.add(delta), new SparseDelta(new Map()));
  return { ...base, ...together.apply(base), ...heads };
}
