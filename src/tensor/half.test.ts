import { describe, expect, it } from "vitest";
import { bfloatToFloat, floatToBfloat, floatToHalf, halfToFloat } from "./half.ts";

const isHalfNan = (bits: number): boolean => (bits & 0x7c00) === 0x7c00 && (bits & 0x3ff) !== 0;
const isBfloatNan = (bits: number): boolean => (bits & 0x7f80) === 0x7f80 && (bits & 0x7f) !== 0;

describe("float16", () => {
  it("round-trips every one of the 65536 patterns", () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = halfToFloat(bits);
      if (isHalfNan(bits)) {
        expect(value).toBeNaN();
        expect(isHalfNan(floatToHalf(value))).toBe(true);
      } else if (floatToHalf(value) !== bits) expect(floatToHalf(value)).toBe(bits);
    }
  });

  it("has the values of IEEE 754", () => {
    const cases: [number, number][] = [
      [0x0000, 0],
      [0x8000, -0],
      [0x0001, 2 ** -24],
      [0x03ff, 1023 * 2 ** -24],
      [0x0400, 2 ** -14],
      [0x3c00, 1],
      [0x3555, 0.333251953125],
      [0xc000, -2],
      [0x7bff, 65504],
      [0x7c00, Number.POSITIVE_INFINITY],
      [0xfc00, Number.NEGATIVE_INFINITY],
    ];
    for (const [bits, value] of cases) {
      expect(halfToFloat(bits)).toBe(value);
      expect(floatToHalf(value)).toBe(bits);
    }
  });

  it("rounds ties to even, in normal and in small numbers", () => {
    // One step above 1 is 2^-10; halfway lies 1 + 2^-11.
    expect(floatToHalf(1 + 2 ** -11)).toBe(0x3c00);
    expect(floatToHalf(1 + 3 * 2 ** -11)).toBe(0x3c02);
    expect(floatToHalf(1 + 2 ** -11 + 2 ** -20)).toBe(0x3c01);
    // Below 2^-14 a step is 2^-24.
    expect(floatToHalf(2 ** -25)).toBe(0x0000);
    expect(floatToHalf(3 * 2 ** -25)).toBe(0x0002);
    expect(floatToHalf(2 ** -25 + 2 ** -40)).toBe(0x0001);
    // The largest small number rounds up into the normal ones.
    expect(floatToHalf(1023.5 * 2 ** -24)).toBe(0x0400);
  });

  it("becomes infinite from halfway past 65504", () => {
    expect(floatToHalf(65519.99609375)).toBe(0x7bff);
    expect(floatToHalf(65520)).toBe(0x7c00);
    expect(floatToHalf(-65520)).toBe(0xfc00);
    expect(floatToHalf(1e30)).toBe(0x7c00);
    expect(isHalfNan(floatToHalf(Number.NaN))).toBe(true);
  });

  it("is the nearest of its neighbours", () => {
    for (let bits = 0x0001; bits < 0x7bff; bits += 7) {
      const middle = (halfToFloat(bits) + halfToFloat(bits + 1)) / 2;
      const even = bits % 2 === 0 ? bits : bits + 1;
      if (floatToHalf(middle) !== even) expect([bits, floatToHalf(middle)]).toEqual([bits, even]);
    }
  });
});

describe("bfloat16", () => {
  it("round-trips every one of the 65536 patterns", () => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = bfloatToFloat(bits);
      if (isBfloatNan(bits)) {
        expect(value).toBeNaN();
        expect(isBfloatNan(floatToBfloat(value))).toBe(true);
      } else if (floatToBfloat(value) !== bits) expect(floatToBfloat(value)).toBe(bits);
    }
  });

  it("rounds ties to even", () => {
    // One step above 1 is 2^-7; halfway lies 1 + 2^-8.
    expect(floatToBfloat(1)).toBe(0x3f80);
    expect(floatToBfloat(1 + 2 ** -8)).toBe(0x3f80);
    expect(floatToBfloat(1 + 3 * 2 ** -8)).toBe(0x3f82);
    expect(floatToBfloat(1 + 2 ** -8 + 2 ** -20)).toBe(0x3f81);
    expect(floatToBfloat(-0)).toBe(0x8000);
    // float32's largest lies past halfway to 2^128.
    expect(floatToBfloat(3.4028234663852886e38)).toBe(0x7f80);
  });

  it("keeps NaN that has only low bits", () => {
    const bits = new Uint32Array([0x7f800001, 0xffffffff]);
    for (const value of new Float32Array(bits.buffer)) {
      expect(isBfloatNan(floatToBfloat(value))).toBe(true);
    }
  });
});
