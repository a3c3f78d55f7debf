import { describe, expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import { selectPrefix } from "./select.ts";

describe("selectPrefix", () => {
  it("finds the prefix that a whole sort finds, with many ties", () => {
    const rng = new Rng(5);
    for (let round = 0; round < 300; round++) {
      const size = 1 + rng.integer(60);
      const keys = Array.from({ length: size }, () => rng.integer(round % 2 ? 5 : 1000));
      const weights = Array.from({ length: size }, () => rng.integer(4));
      const compare = (a: number, b: number): number => keys[a]! - keys[b]! || a - b;
      const sorted = [...keys.keys()].sort(compare);
      const total = weights.reduce((a, b) => a + b, 0);
      const target = 1 + rng.integer(total + 1);
      let [mass, expected] = [0, 0];
      while (expected < size && mass < target) mass += weights[sorted[expected++]!]!;
      const ids = Int32Array.from(rng.permutation(size));
      const count = selectPrefix(ids, compare, (id) => weights[id]!, target);
      expect(count).toBe(expected);
      const bySize = (a: number, b: number): number => a - b;
      expect([...ids.subarray(0, count)].sort(bySize)).toEqual(sorted.slice(0, count).sort(bySize));
      expect([...ids].sort(bySize)).toEqual([...keys.keys()]);
    }
  });

  it("is not slow on sorted, reversed and equal keys", () => {
    const size = 50_000;
    let steps = 0;
    for (const key of [(id: number) => id, (id: number) => -id, () => 0]) {
      const compare = (a: number, b: number): number => {
        steps++;
        return key(a) - key(b) || a - b;
      };
      const ids = Int32Array.from({ length: size }, (_, i) => i);
      expect(selectPrefix(ids, compare, () => 1, 100)).toBe(100);
    }
    expect(steps).toBeLessThan(3 * 8 * size);
  });

  it("gives nothing of nothing", () => {
    expect(
      selectPrefix(
        new Int32Array(0),
        (a, b) => a - b,
        () => 1,
        3,
      ),
    ).toBe(0);
  });
});
