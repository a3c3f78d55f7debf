import { describe, expect, test } from "vitest";
import { Rng } from "../tensor/rng.ts";
import {
  constant,
  fans,
  kaimingNormal,
  kaimingUniform,
  normal,
  orthogonal,
  uniform,
  xavierUniform,
} from "./init.ts";

const rng = (): Rng => new Rng(1);

const deviation = (numbers: Float32Array): number =>
  Math.sqrt(numbers.reduce((total, x) => total + x * x, 0) / numbers.length);

describe("initialisers", () => {
  test("count a kernel's field in both fans", () => {
    expect(fans([8, 4])).toEqual({ fanIn: 4, fanOut: 8 });
    expect(fans([8, 4, 3, 2])).toEqual({ fanIn: 24, fanOut: 48 });
  });

  test("have the deviation of their formula", () => {
    const shape = [200, 100];
    expect(deviation(normal(0.02)(rng(), shape))).toBeCloseTo(0.02, 3);
    expect(deviation(kaimingNormal(rng(), shape))).toBeCloseTo(Math.sqrt(2 / 100), 2);
    // Uniform in ±b has deviation b / √3.
    expect(deviation(kaimingUniform(rng(), shape))).toBeCloseTo(0.1 / Math.sqrt(3), 3);
    expect(deviation(xavierUniform(rng(), shape))).toBeCloseTo(Math.sqrt(6 / 300 / 3), 3);
    expect(deviation(uniform(2)(rng(), shape))).toBeCloseTo(2 / Math.sqrt(3), 1);
    expect([...constant(3)(rng(), [2])]).toEqual([3, 3]);
  });

  test.each([
    [4, 6],
    [6, 4],
    [5, 5],
  ])("orthogonal gives orthonormal rows or columns, (%i, %i)", (rows, columns) => {
    const q = orthogonal(rng(), [rows, columns]);
    const count = Math.min(rows, columns);
    const at = (vector: number, i: number): number =>
      rows <= columns ? q[vector * columns + i]! : q[i * columns + vector]!;
    for (let a = 0; a < count; a++) {
      for (let b = 0; b < count; b++) {
        let product = 0;
        for (let i = 0; i < Math.max(rows, columns); i++) product += at(a, i) * at(b, i);
        expect(product).toBeCloseTo(a === b ? 1 : 0, 5);
      }
    }
  });
});
