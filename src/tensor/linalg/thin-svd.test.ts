import { describe, expect, it } from "vitest";
import { OptionError } from "../../errors.ts";
import { Rng } from "../rng.ts";
import { frobenius, type Matrix, matrix, multiply, productSvd, randomSvd, svd } from "./index.ts";

const drawn = (rows: number, columns: number, seed: number): Matrix =>
  matrix(rows, columns, Float64Array.from(new Rng(seed).normals(rows * columns, 1)));

/** U diag(s) Vᵀ */
function whole({ u, s, vt }: ReturnType<typeof svd>): Matrix {
  const scaled = matrix(
    u.rows,
    u.columns,
    u.data.map((x, i) => x * s[i % u.columns]!),
  );
  return multiply(scaled, vt);
}

const apart = (a: Matrix, b: Matrix): number =>
  frobenius(
    matrix(
      a.rows,
      a.columns,
      a.data.map((x, i) => x - b.data[i]!),
    ),
  );

describe("productSvd", () => {
  it.each([
    [9, 3, 7],
    [2, 5, 7],
    [8, 4, 1],
  ])("is the decomposition of a (%i, %i) by (%i, …) product", (m, r, n) => {
    const [b, a] = [drawn(m, r, 1), drawn(r, n, 2)];
    const [found, judge] = [productSvd(b, a), svd(multiply(b, a))];
    const k = Math.min(m, r, n);
    expect([found.u.columns, found.s.length, found.vt.rows]).toEqual([k, k, k]);
    for (let i = 0; i < k; i++) expect(found.s[i]).toBeCloseTo(judge.s[i]!, 10);
    expect(apart(whole(found), multiply(b, a))).toBeLessThan(1e-10);
    const unit = multiply(found.u, found.u, { transA: true });
    unit.data.forEach((x, i) => {
      expect(x).toBeCloseTo(i % (k + 1) === 0 ? 1 : 0, 10);
    });
  });

  it("has zeros where the product has fewer directions than the factors", () => {
    const a = drawn(3, 6, 4);
    a.data.copyWithin(6, 0, 6);
    const { s } = productSvd(drawn(5, 3, 3), a);
    expect(s[2]).toBeLessThan(1e-12);
    expect(s[1]).toBeGreaterThan(0.1);
  });
});

describe("randomSvd", () => {
  it("is exact where the subspace is the whole space", () => {
    const a = drawn(12, 9, 5);
    const [found, judge] = [randomSvd(a, 3, 0, new Rng(1)), svd(a)];
    for (let i = 0; i < 3; i++) expect(found.s[i]).toBeCloseTo(judge.s[i]!, 10);
    for (let i = 0; i < 27; i++) expect(found.vt.data[i]).toBeCloseTo(judge.vt.data[i]!, 8);
  });

  it("comes nearer the best approximation with every turn, on a flat spectrum too", () => {
    const a = drawn(60, 50, 6);
    const best = Math.sqrt(
      svd(a)
        .s.slice(4)
        .reduce((sum, x) => sum + x * x, 0),
    );
    const errors = [0, 2, 8].map((turns) => apart(whole(randomSvd(a, 4, turns, new Rng(2))), a));
    expect(errors[0]).toBeGreaterThan(errors[1]!);
    expect(errors[1]).toBeGreaterThan(errors[2]!);
    expect(errors[2]).toBeLessThan(1.01 * best);
  });

  it("refuses more directions than there are", () => {
    expect(() => randomSvd(drawn(4, 3, 1), 4, 1, new Rng(0))).toThrow(
      new OptionError("randomSvd: k must be a whole number from 1 to 3, got 4."),
    );
  });
});
