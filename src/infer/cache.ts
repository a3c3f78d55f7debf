import { StateError } from "../errors.ts";
import type { LanguageModelSizes } from "../models/model.ts";
import { masked } from "../nn/attention.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Capacities that a cache takes: few, so that its tensors are rarely made anew. */
export function cacheCapacity(length: number): number {
  let capacity = 32;
  while (capacity < length) capacity *= 2;
  return capacity;
}

/**
 * Keys and values of past tokens, owned by the host: an input of the graph and never an output.
 * Per layer (rows, Hkv, capacity, D); a mask says which positions of a row hold tokens. Keys and values that
 * an adapter puts before every sequence stand at the front of each row and are not counted among its tokens.
 */
export class KvCache {
  readonly rows: number;
  readonly lengths: Int32Array<ArrayBuffer>;
  /** Of layer after layer what stands before every row, (1, Hkv, P, D) each; none without an adapter's. */
  readonly front: readonly Tensor[];
  /** P: where a row's tokens begin. */
  readonly #start: number;
  readonly #sizes: LanguageModelSizes;
  #capacity = 0;
  #layers: { keys: Tensor<"float32">; values: Tensor<"float32"> }[] = [];
  #mask: Tensor<"float32">;

  constructor(
    sizes: LanguageModelSizes,
    rows: number,
    capacity: number,
    front: readonly Tensor[] = [],
  ) {
    this.#sizes = sizes;
    this.front = front;
    this.#start = front[0]?.shape[2] ?? 0;
    this.rows = rows;
    this.lengths = new Int32Array(rows);
    this.#mask = Tensor.zeros([rows, 1, 1, 0], "float32");
    this.reserve(capacity);
    this.#fillFront();
  }

  #fillFront(): void {
    const { nKvHeads, headDim } = this.#sizes;
    const size = this.#start * headDim;
    this.front.forEach((from, i) => {
      const { keys, values } = this.#layers[i >> 1]!;
      const to = i % 2 === 0 ? keys : values;
      const source = from.data as Float32Array;
      for (let at = 0; at < this.rows * nKvHeads; at++) {
        const head = at % nKvHeads;
        to.data.set(source.subarray(head * size, (head + 1) * size), at * this.#capacity * headDim);
      }
    });
  }

  get capacity(): number {
    return this.#capacity;
  }

  get layers(): readonly { readonly keys: Tensor; readonly values: Tensor }[] {
    return this.#layers;
  }

  /** 0 where a position holds a token, else a large negative number: (rows, 1, 1, capacity). */
  get mask(): Tensor<"float32"> {
    return this.#mask;
  }

  /** Keys and values of each layer, then the mask. */
  get inputs(): readonly Tensor[] {
    return [...this.#layers.flatMap(({ keys, values }) => [keys, values]), this.#mask];
  }

  /** Makes room for at least `length` tokens a row, keeping what is there. */
  reserve(length: number): void {
    const capacity = cacheCapacity(this.#start + length);
    if (capacity <= this.#capacity) return;
    const { nKvHeads, headDim, nLayers } = this.#sizes;
    const old = this.#capacity;
    const grow = (from: Tensor<"float32"> | undefined): Tensor<"float32"> => {
      const to = Tensor.zeros([this.rows, nKvHeads, capacity, headDim], "float32");
      for (let i = 0; from && i < this.rows * nKvHeads; i++) {
        to.data.set(
          from.data.subarray(i * old * headDim, (i + 1) * old * headDim),
          i * capacity * headDim,
        );
      }
      return to;
    };
    this.#layers = Array.from({ length: nLayers }, (_, i) => ({
      keys: grow(this.#layers[i]?.keys),
      values: grow(this.#layers[i]?.values),
    }));
    this.#capacity = capacity;
    const mask = new Float32Array(this.rows * capacity).fill(masked);
    for (let row = 0; row < this.rows; row++) {
      mask.fill(0, row * capacity, row * capacity + this.#start + this.lengths[row]!);
    }
    this.#mask = new Tensor("float32", [this.rows, 1, 1, capacity], mask);
  }

  /** Forgets every row's tokens from position `length` on; shorter rows stay as they are. */
  truncate(length: number): void {
    for (let row = 0; row < this.rows; row++) {
      if (this.lengths[row]! <= length) continue;
      const start = row * this.#capacity + this.#start;
      this.#mask.data.fill(masked, start + length, start + this.lengths[row]!);
      this.lengths[row] = length;
    }
  }

  /** Each row `i` takes what row `from[i]` holds. */
  select(from: ArrayLike<number>): void {
    if (Array.from(from).every((source, row) => source === row)) return;
    const pick = (tensor: Tensor<"float32">): Tensor<"float32"> => {
      const size = tensor.size / this.rows;
      const data = new Float32Array(tensor.size);
      for (let row = 0; row < this.rows; row++) {
        data.set(tensor.data.subarray(from[row]! * size, (from[row]! + 1) * size), row * size);
      }
      return new Tensor("float32", tensor.shape, data);
    };
    this.#layers = this.#layers.map(({ keys, values }) => ({
      keys: pick(keys),
      values: pick(values),
    }));
    this.#mask = pick(this.#mask);
    const lengths = this.lengths.slice();
    for (let row = 0; row < this.rows; row++) this.lengths[row] = lengths[from[row]!]!;
  }

  /**
   * Appends the first `counts[row]` of T new tokens of each row: `present` per layer is
   * (rows, Hkv, T, D).
   */
  append(
    present: readonly { readonly keys: Tensor; readonly values: Tensor }[],
    counts: ArrayLike<number>,
  ): void {
    const { nKvHeads, headDim } = this.#sizes;
    const length = present[0]!.keys.shape[2]!;
    this.#checkRoom(counts);
    present.forEach(({ keys, values }, layer) => {
      const into = this.#layers[layer]!;
      for (const [from, to] of [
        [keys, into.keys],
        [values, into.values],
      ] as const) {
        const source = from.data as Float32Array;
        for (let row = 0; row < this.rows; row++) {
          for (let head = 0; head < nKvHeads; head++) {
            const at = row * nKvHeads + head;
            const start = at * length * headDim;
            to.data.set(
              source.subarray(start, start + counts[row]! * headDim),
              (at * this.#capacity + this.#start + this.lengths[row]!) * headDim,
            );
          }
        }
      }
    });
    this.#lengthen(counts);
  }

  #checkRoom(counts: ArrayLike<number>): void {
    for (let row = 0; row < this.rows; row++) {
      if (this.#start + this.lengths[row]! + counts[row]! > this.#capacity) {
        throw new StateError(
          `cache: row ${row} holds ${this.lengths[row]} of ${this.#capacity - this.#start} tokens, ${counts[row]} more do not fit.`,
        );
      }
    }
  }

  #lengthen(counts: ArrayLike<number>): void {
    for (let row = 0; row < this.rows; row++) {
      const start = row * this.#capacity + this.#start + this.lengths[row]!;
      this.#mask.data.fill(0, start, start + counts[row]!);
      this.lengths[row]! += counts[row]!;
    }
  }

  /**
   * Appends those of T new tokens that stand at `places`, in this order, to every row: a branch of a tree.
   * @param outputs keys and values of one layer after another, (rows, Hkv, T, D) each
   */
  commitAt(outputs: readonly Tensor[], places: readonly number[]): void {
    const counts = new Int32Array(this.rows).fill(places.length);
    this.#checkRoom(counts);
    const { nKvHeads, headDim } = this.#sizes;
    outputs.forEach((from, i) => {
      const { keys, values } = this.#layers[i >> 1]!;
      const to = i % 2 === 0 ? keys : values;
      const source = from.data as Float32Array;
      const length = from.shape[2]!;
      for (let at = 0; at < this.rows * nKvHeads; at++) {
        const end = at * this.#capacity + this.#start + this.lengths[Math.floor(at / nKvHeads)]!;
        places.forEach((place, k) => {
          const start = (at * length + place) * headDim;
          to.data.set(source.subarray(start, start + headDim), (end + k) * headDim);
        });
      }
    });
    this.#lengthen(counts);
  }

  /** As `append`, of keys and values of one layer after another. */
  commit(outputs: readonly Tensor[], counts: ArrayLike<number>): void {
    const present = Array.from({ length: outputs.length / 2 }, (_, i) => ({
      keys: outputs[2 * i]!,
      values: outputs[2 * i + 1]!,
    }));
    this.append(present, counts);
  }
}
