import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { markLargest } from "./largest.ts";

describe("markLargest", () => {
  const of = (...tensors: readonly (readonly number[])[]) =>
    new Map(tensors.map((values, i) => [`${i}`, { values: Float32Array.from(values) }]));

  it("takes the largest over all tensors, worked by hand", () => {
    const found = markLargest(of([0.1, -5, 2], [-3, 0.2]), 3);
    expect([...found.get("0")!]).toEqual([0, 1, 1]);
    expect([...found.get("1")!]).toEqual([1, 0]);
  });

  it("keeps exactly k entries when magnitudes tie", () => {
    const found = markLargest(of([1, -1, 1], [1, 0]), 2);
    expect([...found.get("0")!, ...found.get("1")!]).toEqual([1, 1, 0, 0, 0]);
  });

  it("equals sorting, whatever the numbers", () => {
    const tensor = fc.array(
      fc.integer({ min: -6, max: 6 }).map((x) => x / 4),
      { maxLength: 30 },
    );
    fc.assert(
      fc.property(fc.array(tensor, { minLength: 1, maxLength: 4 }), fc.nat(), (tensors, seed) => {
        const all = tensors.flat();
        const k = seed % (all.length + 1);
        const order = [...all.keys()].sort(
          (i, j) => Math.abs(all[j]!) - Math.abs(all[i]!) || i - j,
        );
        const expected = all.map((_, i) => (order.indexOf(i) < k ? 1 : 0));
        const found = [...markLargest(of(...tensors), k).values()].flatMap((mask) => [...mask]);
        expect(found).toEqual(expected);
      }),
      { seed: 3, numRuns: 200 },
    );
  });

  it("leaves out what is out, and says how many are left", () => {
    const candidates = { values: Float32Array.of(9, 1, 2), out: Uint8Array.of(1, 0, 0) };
    expect([...markLargest(new Map([["a", candidates]]), 1).get("a")!]).toEqual([0, 0, 1]);
    expect(() => markLargest(new Map([["a", candidates]]), 3)).toThrow(
      "largest: k must be a whole number from 0 to 2, got 3.",
    );
  });
});
