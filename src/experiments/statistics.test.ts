import { describe, expect, it } from "vitest";
import {
  incompleteBeta,
  mean,
  pairedT,
  standardDeviation,
  standardError,
  upperTail,
} from "./statistics.ts";

describe("mean and spread", () => {
  it("divide by n - 1, worked by hand", () => {
    // Mean 5; squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32; 32 / 7.
    const values = [2, 4, 4, 4, 5, 5, 7, 9];
    expect(mean(values)).toBe(5);
    expect(standardDeviation(values)).toBeCloseTo(Math.sqrt(32 / 7), 14);
    expect(standardError(values)).toBeCloseTo(Math.sqrt(32 / 7 / 8), 14);
    expect(standardDeviation([1])).toBeNaN();
  });
});

describe("the t distribution", () => {
  // scipy 1.17.1: special.betainc(a, b, x).
  it.each([
    [0.3, 2, 5, 0.5798250000000003],
    [0.9, 0.5, 0.5, 0.7951672353008665],
    [0.01, 20, 3.5, 6.474106607751258e-38],
  ])("has scipy's incomplete beta at x = %d, a = %d, b = %d", (x, a, b, expected) => {
    expect(incompleteBeta(x, a, b) / expected).toBeCloseTo(1, 10);
  });

  // scipy 1.17.1: stats.t.sf(t, df).
  it.each([
    [1, 1, 0.25],
    [2.5, 4, 0.03338327240599407],
    [-1.3, 7, 0.8826160823038114],
    [12.7, 2, 0.0030714707997978887],
    [0.3, 63, 0.382582403506942],
  ])("has scipy's tail at t = %d with %d degrees of freedom", (t, df, expected) => {
    expect(upperTail(t, df)).toBeCloseTo(expected, 12);
  });
});

describe("the paired t test", () => {
  it("agrees with scipy's ttest_rel, alternative greater", () => {
    const left = [0.81, 0.79, 0.84, 0.8, 0.83];
    const right = [0.78, 0.8, 0.8, 0.77, 0.79];
    const { t, p, degreesOfFreedom } = pairedT(left.map((x, i) => x - right[i]!));
    expect(t).toBeCloseTo(2.803652103289399, 10);
    expect(p).toBeCloseTo(0.024315116928653124, 10);
    expect(degreesOfFreedom).toBe(4);
  });

  it("needs two pairs, and knows differences without spread", () => {
    expect(() => pairedT([1])).toThrow("paired t test: needs 2 or more pairs, got 1");
    expect(pairedT([1, 1, 1]).p).toBe(0);
    expect(pairedT([0, 0]).p).toBe(1);
    expect(pairedT([-1, -1]).p).toBe(1);
  });
});
