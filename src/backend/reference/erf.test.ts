import { describe, expect, it } from "vitest";
import { erf } from "./erf.ts";

describe("erf", () => {
  it("has the tabulated values (Abramowitz and Stegun, table 7.1; DLMF 7.2)", () => {
    const table: [number, number][] = [
      [0.1, 0.1124629160182849],
      [0.5, 0.5204998778130465],
      [1, 0.8427007929497149],
      [2, 0.9953222650189527],
      [3, 0.9999779095030014],
      [4, 0.9999999845827421],
    ];
    for (const [x, y] of table) {
      expect(Math.abs(erf(x) - y)).toBeLessThan(1e-15);
      expect(erf(-x)).toBe(-erf(x));
    }
  });

  it("is continuous where the series gives way to the fraction", () => {
    // erf'(3) = 2/√π e^-9 = 1.4e-4, so over 2e-9 it grows by 2.8e-13.
    const grown = erf(3 + 1e-9) - erf(3 - 1e-9);
    expect(Math.abs(grown - (4e-9 / Math.sqrt(Math.PI)) * Math.exp(-9))).toBeLessThan(1e-15);
  });

  it("keeps small numbers, signs, infinities and NaN", () => {
    expect(erf(1e-300)).toBeCloseTo((2 / Math.sqrt(Math.PI)) * 1e-300, 310);
    expect(erf(-0)).toBe(-0);
    expect([erf(7), erf(Infinity), erf(-Infinity), erf(Number.NaN)]).toEqual([
      1,
      1,
      -1,
      Number.NaN,
    ]);
  });
});
