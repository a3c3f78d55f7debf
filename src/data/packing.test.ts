import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import type { Example } from "./example.ts";
import { fillRate, packBins, packExamples, packedSet, packRow, positionsOf } from "./packing.ts";
import { memorySet } from "./set.ts";

const example = (ids: readonly number[], mask: readonly number[]): Example => ({
  ids: Int32Array.from(ids),
  mask: Uint8Array.from(mask),
});

describe("packExamples", () => {
  it("has each example in one row that holds it", () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 1, max: 16 }), { maxLength: 80 }),
        fc.nat(1000),
        (lengths, seed) => {
          const bins = packExamples(lengths, 16, new Rng(seed));
          expect(bins.flat().toSorted((a, b) => a - b)).toEqual(lengths.map((_, i) => i));
          const sizes = bins.map((bin) => bin.reduce((sum, i) => sum + lengths[i]!, 0));
          expect(sizes.every((size) => size > 0 && size <= 16)).toBe(true);
          // First-fit leaves at most one row half empty.
          expect(sizes.filter((size) => size <= 8).length).toBeLessThanOrEqual(1);
        },
      ),
      { seed: 3, numRuns: 300 },
    );
  });

  it("finds the rows worked by hand", () => {
    // Decreasing: 6 opens a row, 5 a second; 4 fits the first (6 + 4 = 10), 3 the second (8), and
    // 2 fits the second (10): two rows, full.
    const bins = packExamples([2, 3, 4, 5, 6], 10, new Rng(0));
    expect(bins.map((bin) => bin.toSorted((a, b) => a - b).join()).toSorted()).toEqual([
      "0,1,3",
      "2,4",
    ]);
    expect(fillRate([2, 3, 4, 5, 6], bins, 10)).toBe(1);
  });

  it("repeats with the stream, and differs with another", () => {
    const rng = new Rng(5);
    const lengths = Array.from({ length: 9000 }, () => 1 + rng.integer(100));
    const bins = packExamples(lengths, 128, rng.fold("epoch", 0));
    expect(packExamples(lengths, 128, rng.fold("epoch", 0))).toEqual(bins);
    expect(packExamples(lengths, 128, rng.fold("epoch", 1))).not.toEqual(bins);
    expect(fillRate(lengths, bins, 128)).toBeGreaterThan(0.97);
  });

  it("refuses what fits no row", () => {
    expect(() => packExamples([3, 9], 8, new Rng(0))).toThrow(
      "packing: example 1 has 9 tokens, a row holds 8 — cut examples to the row, or make it longer.",
    );
    expect(() => packExamples([3], 0, new Rng(0))).toThrow(
      "packing: maxLength must be a whole number from 1, got 0.",
    );
    expect(packExamples([], 8, new Rng(0))).toEqual([]);
  });
});

describe("packRow", () => {
  const [a, b] = [example([1, 2, 3], [0, 1, 1]), example([4, 5], [1, 1])];

  it("keeps examples apart", () => {
    const row = packRow([a, b]);
    expect([...row.ids]).toEqual([1, 2, 3, 4, 5]);
    // The first token of the second is predicted from nothing of its own.
    expect([...row.mask]).toEqual([0, 1, 1, 0, 1]);
    expect([...row.segments!]).toEqual([0, 0, 0, 1, 1]);
    expect([...positionsOf(row.segments!)]).toEqual([0, 1, 2, 0, 1]);
    expect([...positionsOf(Int32Array.of(0, 1, 2, 2))]).toEqual([0, 0, 0, 1]);
    expect(positionsOf(new Int32Array(0))).toHaveLength(0);
  });

  it("gives the same rows from a set as from a list", async () => {
    const bins = [[1], [1, 0]];
    const set = packedSet(memorySet([a, b]), bins);
    expect([...set.lengths]).toEqual([2, 5]);
    expect(set.tokens).toBe(7);
    expect(await set.get([1, 0])).toEqual(packBins([a, b], bins).toReversed());
    expect(set.dataHash).not.toBe(packedSet(memorySet([a, b]), [[1, 0], [1]]).dataHash);
    await expect(set.get([2])).rejects.toThrow("examples: index 2 is outside the set of 2.");
    expect(() => packedSet(memorySet([a]), [[1]])).toThrow("index 1 is outside the set of 1.");
  });
});
