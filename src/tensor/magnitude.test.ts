import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { markBand, ranksOf } from "./magnitude.ts";
import { Rng } from "./rng.ts";

/** The same by a stable sort. */
function bySorting(values: Float32Array, from: number, to: number): Uint8Array {
  const order = Array.from(values, (_, i) => i).sort(
    (a, b) => Math.abs(values[b]!) - Math.abs(values[a]!) || a - b,
  );
  const mask = new Uint8Array(values.length);
  for (const i of order.slice(from, Math.max(from, to))) mask[i] = 1;
  return mask;
}

const marked = (values: Float32Array, from: number, to: number): Uint8Array => {
  const mask = new Uint8Array(values.length).fill(7);
  markBand({ model: values, base: undefined }, from, to, mask);
  return mask;
};

describe("markBand", () => {
  it("keeps exactly k entries when magnitudes tie, the earlier ones", () => {
    const values = Float32Array.of(1, -1, 0.5, 1, -1, 0);
    expect([...marked(values, 0, 3)]).toEqual([1, 1, 0, 1, 0, 0]);
    expect([...marked(values, 1, 3)]).toEqual([0, 1, 0, 1, 0, 0]);
    expect([...marked(values, 2, 6)]).toEqual([0, 0, 1, 1, 1, 1]);
  });

  it("agrees with sorting for any numbers and any band", () => {
    fc.assert(
      fc.property(
        fc.array(fc.constantFrom(0, -0, 0.25, -0.25, 1, -1, 3e-39, 1e30, 0.3), { maxLength: 40 }),
        fc.nat(45),
        fc.nat(45),
        (numbers, from, to) => {
          const values = Float32Array.from(numbers);
          expect(marked(values, from, to)).toEqual(bySorting(values, from, to));
        },
      ),
      { seed: 1 },
    );
  });

  it("agrees with sorting for arrays that are counted and not sorted", () => {
    const rng = new Rng(3);
    // Few distinct values, so that whole buckets tie.
    for (const levels of [3, 1e6]) {
      const values = Float32Array.from({ length: 10_000 }, () => (rng.integer(levels) - 1) / 7);
      for (const [from, to] of [
        [0, 2000],
        [100, 1000],
        [9000, 10_000],
        [0, 1],
        [9999, 10_000],
      ] as const) {
        expect(marked(values, from, to)).toEqual(bySorting(values, from, to));
      }
    }
  });
});

describe("ranksOf", () => {
  it("gives the smallest magnitude 0 and the earlier of equal ones the higher rank", () => {
    const ranks = new Uint32Array(5);
    ranksOf(Float32Array.of(-3, 0.5, 3, 0, -1), ranks);
    expect([...ranks]).toEqual([4, 1, 3, 0, 2]);
  });
});
