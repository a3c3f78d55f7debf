import { describe, expect, it } from "vitest";
import { StateError } from "../errors.ts";
import type { LanguageModelSizes } from "../models/model.ts";
import { masked } from "../nn/attention.ts";
import { Tensor } from "../tensor/tensor.ts";
import { cacheCapacity, KvCache } from "./cache.ts";

const sizes: LanguageModelSizes = {
  vocabSize: 10,
  dModel: 8,
  nLayers: 2,
  nHeads: 4,
  nKvHeads: 2,
  headDim: 3,
  maxPositions: 128,
};
const { nLayers, nKvHeads, headDim } = sizes;

/** Says where it stands: layer, row, head, token, dimension; values are the keys' negatives. */
const mark = (layer: number, row: number, head: number, token: number, d: number): number =>
  1 + d + 10 * (token + 100 * (head + 10 * (row + 10 * layer)));

/** New keys and values of T tokens for every row, of which the first is `first[row]`. */
function present(rows: number, length: number, first: readonly number[]) {
  return Array.from({ length: nLayers }, (_, layer) => {
    const keys: number[] = [];
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < nKvHeads; head++) {
        for (let t = 0; t < length; t++) {
          for (let d = 0; d < headDim; d++) keys.push(mark(layer, row, head, first[row]! + t, d));
        }
      }
    }
    const shape = [rows, nKvHeads, length, headDim];
    return {
      keys: Tensor.from(keys, shape),
      values: Tensor.from(
        keys.map((x) => -x),
        shape,
      ),
    };
  });
}

/** Asserts that every row holds its tokens in order, that the mask shows them, and nothing else. */
function expectHolds(cache: KvCache, lengths: readonly number[]): void {
  const { capacity, rows } = cache;
  expect([...cache.lengths]).toEqual(lengths);
  expect(cache.mask.shape).toEqual([rows, 1, 1, capacity]);
  const mask = lengths.flatMap((length) =>
    Array.from({ length: capacity }, (_, t) => (t < length ? 0 : Math.fround(masked))),
  );
  expect([...cache.mask.data]).toEqual(mask);
  cache.layers.forEach(({ keys, values }, layer) => {
    expect(keys.shape).toEqual([rows, nKvHeads, capacity, headDim]);
    expect(values.shape).toEqual(keys.shape);
    const expected: number[] = [];
    for (let row = 0; row < rows; row++) {
      for (let head = 0; head < nKvHeads; head++) {
        for (let t = 0; t < capacity; t++) {
          for (let d = 0; d < headDim; d++) {
            expected.push(t < lengths[row]! ? mark(layer, row, head, t, d) : 0);
          }
        }
      }
    }
    expect([...(keys.numbers() as Float32Array)]).toEqual(expected);
    expect([...(values.numbers() as Float32Array)]).toEqual(
      expected.map((x) => (x === 0 ? 0 : -x)),
    );
  });
}

describe("cacheCapacity", () => {
  it("doubles from 32", () => {
    expect([0, 1, 32, 33, 64, 65, 1000].map(cacheCapacity)).toEqual([
      32, 32, 32, 64, 64, 128, 1024,
    ]);
  });
});

describe("KvCache", () => {
  it("is empty at first, every position masked", () => {
    const cache = new KvCache(sizes, 3, 20);
    expect([cache.rows, cache.capacity, cache.layers.length]).toEqual([3, 32, 2]);
    expectHolds(cache, [0, 0, 0]);
  });

  it("appends as many tokens to each row as are its own, and leaves the padding out", () => {
    const cache = new KvCache(sizes, 3, 20);
    cache.append(present(3, 4, [0, 0, 0]), [4, 1, 0]);
    expectHolds(cache, [4, 1, 0]);
    cache.append(present(3, 2, [4, 1, 0]), [1, 2, 2]);
    expectHolds(cache, [5, 3, 2]);
  });

  it("keeps what it holds when it grows, and takes more", () => {
    const cache = new KvCache(sizes, 2, 20);
    cache.append(present(2, 30, [0, 0]), [30, 7]);
    cache.reserve(33);
    expect(cache.capacity).toBe(64);
    expectHolds(cache, [30, 7]);
    cache.append(present(2, 5, [30, 7]), [5, 5]);
    cache.reserve(100);
    expect(cache.capacity).toBe(128);
    expectHolds(cache, [35, 12]);
  });

  it("keeps its tensors when there is room already, so that engines can reuse them", () => {
    const cache = new KvCache(sizes, 2, 40);
    const [{ keys }] = cache.layers as [(typeof cache.layers)[0]];
    const { mask } = cache;
    cache.reserve(10);
    cache.reserve(64);
    cache.append(present(2, 1, [0, 0]), [1, 1]);
    expect(cache.layers[0]!.keys).toBe(keys);
    expect(cache.mask).toBe(mask);
  });

  it("forgets tokens from a position on and takes others there", () => {
    const cache = new KvCache(sizes, 2, 20);
    cache.append(present(2, 9, [0, 0]), [9, 4]);
    cache.truncate(6);
    expect([...cache.lengths]).toEqual([6, 4]);
    cache.append(present(2, 3, [6, 4]), [3, 1]);
    expectHolds(cache, [9, 5]);
    cache.truncate(0);
    expect(cache.mask.data.every((x) => x === Math.fround(masked))).toBe(true);
    expect([...cache.lengths]).toEqual([0, 0]);
  });

  it("appends a branch of a tree: the tokens at some places, in order, to rows of any length", () => {
    const cache = new KvCache(sizes, 2, 32);
    cache.append(present(2, 5, [0, 0]), [5, 3]);
    // Places 1, 2 and 5 of six new tokens hold what follows: at the others stands what must not be kept.
    const outputs = present(2, 6, [100, 100]).flatMap(({ keys, values }) => [keys, values]);
    const wanted = present(2, 3, [5, 3]).flatMap(({ keys, values }) => [keys, values]);
    outputs.forEach((tensor, i) => {
      for (let at = 0; at < 2 * nKvHeads; at++) {
        [1, 2, 5].forEach((place, k) => {
          const from = (wanted[i]!.data as Float32Array).subarray((at * 3 + k) * headDim);
          (tensor.data as Float32Array).set(from.subarray(0, headDim), (at * 6 + place) * headDim);
        });
      }
    });
    cache.commitAt(outputs, [1, 2, 5]);
    expectHolds(cache, [8, 6]);
    cache.commitAt(outputs, []);
    expectHolds(cache, [8, 6]);
    expect(() => cache.commitAt(outputs, new Array<number>(25).fill(0))).toThrow(
      new StateError("cache: row 0 holds 8 of 32 tokens, 25 more do not fit."),
    );
    expectHolds(cache, [8, 6]);
  });

  it("refuses tokens beyond its capacity, and is unchanged then", () => {
    const cache = new KvCache(sizes, 2, 32);
    cache.append(present(2, 30, [0, 0]), [3, 30]);
    expect(() => cache.append(present(2, 3, [3, 30]), [3, 3])).toThrow(
      new StateError("cache: row 1 holds 30 of 32 tokens, 3 more do not fit."),
    );
    expectHolds(cache, [3, 30]);
    cache.append(present(2, 3, [3, 30]), [3, 2]);
    expectHolds(cache, [6, 32]);
  });
});
