import { describe, expect, it } from "vitest";
import { OptionError } from "../../errors.ts";
import { Rng } from "../../tensor/rng.ts";
import { bootstrapRatio } from "./bootstrap.ts";

const ones = (size: number): number[] => new Array<number>(size).fill(1);

describe("bootstrapRatio", () => {
  it("comes near the normal interval of a mean", () => {
    const rng = new Rng(1);
    const values = Array.from({ length: 400 }, () => rng.normal());
    const mean = values.reduce((a, b) => a + b) / 400;
    const deviation = Math.sqrt(values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / 400);
    const { low, high } = bootstrapRatio(values, ones(400), new Rng(2), { resamples: 4000 });
    const half = (1.96 * deviation) / 20;
    expect(Math.abs(low - (mean - half))).toBeLessThan(0.15 * half);
    expect(Math.abs(high - (mean + half))).toBeLessThan(0.15 * half);
  });

  it("is a point where all examples are alike, and of a ratio where their ratios are", () => {
    expect(bootstrapRatio([2, 2, 2], ones(3), new Rng(1))).toEqual({ low: 2, high: 2 });
    expect(bootstrapRatio([2, 4, 10], [1, 2, 5], new Rng(1))).toEqual({ low: 2, high: 2 });
  });

  it("weighs examples by their denominators", () => {
    // All of one example: 0 / 1 or 30 / 10; with both 30 / 11.
    const { low, high } = bootstrapRatio([0, 30], [1, 10], new Rng(3));
    expect([low, high]).toEqual([0, 3]);
  });

  it("is the same for the same seed, and narrower at a lower level", () => {
    const values = [1, 5, 2, 8, 3, 9, 4];
    const at = (seed: number, level: number): [number, number] => {
      const { low, high } = bootstrapRatio(values, ones(7), new Rng(seed), { level });
      return [low, high];
    };
    expect(at(1, 0.95)).toEqual(at(1, 0.95));
    expect(at(1, 0.95)).not.toEqual(at(2, 0.95));
    const [wide, narrow] = [at(1, 0.95), at(1, 0.5)];
    expect(narrow[0]).toBeGreaterThan(wide[0]);
    expect(narrow[1]).toBeLessThan(wide[1]);
  });

  it.each<[() => unknown, string]>([
    [() => bootstrapRatio([], [], new Rng(1)), "bootstrap: there are no examples."],
    [() => bootstrapRatio([1], [], new Rng(1)), "bootstrap: 1 numerators, but 0 denominators."],
    [
      () => bootstrapRatio([1], [1], new Rng(1), { resamples: 5 }),
      "bootstrap: resamples must be a whole number from 100 to 100000, got 5.",
    ],
    [
      () => bootstrapRatio([1], [1], new Rng(1), { level: 1 }),
      "bootstrap: level must be in (0, 1), got 1.",
    ],
  ])("refuses what has no interval", (make, sentence) => {
    expect(make).toThrow(new OptionError(sentence));
  });
});
