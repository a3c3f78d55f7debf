import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Rng } from "../rng.ts";
import { Tensor } from "../tensor.ts";
import {
  cholesky,
  choleskySolve,
  eigenSymmetric,
  frobenius,
  identity,
  inverse,
  leastSquares,
  type Matrix,
  matrix,
  matrixOf,
  multiply,
  qr,
  type Svd,
  solve,
  svd,
  topSvd,
  transpose,
} from "./index.ts";

const of = (rows: readonly (readonly number[])[]): Matrix =>
  matrix(rows.length, rows[0]!.length, Float64Array.from(rows.flat()));

const random = (rows: number, columns: number, seed = 1): Matrix => {
  const rng = new Rng(seed);
  return matrix(
    rows,
    columns,
    Float64Array.from({ length: rows * columns }, () => rng.normal()),
  );
};

/** The largest difference of two entries. */
function apart(a: Matrix, b: Matrix): number {
  expect([a.rows, a.columns]).toEqual([b.rows, b.columns]);
  return a.data.reduce((most, x, i) => Math.max(most, Math.abs(x - b.data[i]!)), 0);
}

const scaled = ({ u, s, vt }: Svd): Matrix => {
  const right = matrix(vt.rows, vt.columns, vt.data.slice());
  for (let i = 0; i < vt.rows; i++) {
    for (let j = 0; j < vt.columns; j++) right.data[i * vt.columns + j]! *= s[i]!;
  }
  return multiply(u, right);
};

function expectSvd(a: Matrix, found: Svd): void {
  const k = Math.min(a.rows, a.columns);
  const size = Math.max(1, frobenius(a));
  expect(apart(scaled(found), a)).toBeLessThan(1e-13 * size);
  expect(apart(multiply(found.u, found.u, { transA: true }), identity(k))).toBeLessThan(1e-12);
  expect(apart(multiply(found.vt, found.vt, { transB: true }), identity(k))).toBeLessThan(1e-12);
  expect([...found.s]).toEqual([...found.s].sort((x, y) => y - x));
}

describe("multiply", () => {
  it("multiplies as by hand, also by transposes", () => {
    const a = of([
      [1, 2, 3],
      [4, 5, 6],
    ]);
    const b = of([
      [1, 0],
      [2, 1],
      [0, 3],
    ]);
    // Row 1: 1·1 + 2·2 + 3·0 = 5 and 1·0 + 2·1 + 3·3 = 11.
    const product = of([
      [5, 11],
      [14, 23],
    ]);
    expect(multiply(a, b)).toEqual(product);
    expect(multiply(transpose(a), b, { transA: true })).toEqual(product);
    expect(multiply(a, transpose(b), { transB: true })).toEqual(product);
  });

  it("says which sizes differ", () => {
    expect(() => multiply(random(2, 3), random(2, 3))).toThrow(
      "multiply: inner sizes differ, (2, 3) × (2, 3).",
    );
    expect(() => matrixOf(Tensor.zeros([3], "float32"))).toThrow("needs two axes, got shape (3,)");
  });
});

describe("qr", () => {
  it("gives the textbook's triangle", () => {
    const { q, r } = qr(
      of([
        [12, -51, 4],
        [6, 167, -68],
        [-4, 24, -41],
      ]),
    );
    const known = of([
      [14, 21, -14],
      [0, 175, -70],
      [0, 0, 35],
    ]);
    expect(apart(r, known)).toBeLessThan(1e-12);
    expect(q.data[0]).toBeCloseTo(6 / 7, 14);
  });

  it.each([
    [7, 4],
    [4, 7],
    [5, 5],
    [1, 3],
    [3, 1],
  ])("restores (%i, %i)", (rows, columns) => {
    const a = random(rows, columns);
    const { q, r } = qr(a);
    expect(apart(multiply(q, r), a)).toBeLessThan(1e-14 * 10);
    expect(apart(multiply(q, q, { transA: true }), identity(q.columns))).toBeLessThan(1e-14);
    for (let i = 0; i < r.rows; i++) expect(r.data[i * r.columns + i]).toBeGreaterThanOrEqual(0);
  });

  it("finds the line through points, and refuses dependent columns", () => {
    // y = 1 + 2x at x = 0, 1, 2, moved by (1, −2, 1), which is orthogonal to both columns.
    const a = of([
      [1, 0],
      [1, 1],
      [1, 2],
    ]);
    expect(apart(leastSquares(a, of([[2], [1], [6]])), of([[1], [2]]))).toBeLessThan(1e-13);
    expect(() =>
      leastSquares(
        of([
          [1, 2],
          [2, 4],
        ]),
        of([[1], [2]]),
      ),
    ).toThrow("leastSquares: column 1 of A depends on those before it");
  });
});

describe("svd", () => {
  it("gives singular values worked by hand", () => {
    // AᵀA = [[25, 20], [20, 25]] has eigenvalues 45 and 5.
    const { s, vt } = svd(
      of([
        [3, 0],
        [4, 5],
      ]),
    );
    expect(s[0]).toBeCloseTo(Math.sqrt(45), 14);
    expect(s[1]).toBeCloseTo(Math.sqrt(5), 14);
    expect(vt.data[0]).toBeCloseTo(Math.SQRT1_2, 14);
    expect(vt.data[1]).toBeCloseTo(Math.SQRT1_2, 14);
  });

  it("keeps the digits of the small singular values of Hilbert's matrix", () => {
    const hilbert = matrix(8, 8);
    for (let i = 0; i < 8; i++)
      for (let j = 0; j < 8; j++) hilbert.data[i * 8 + j] = 1 / (i + j + 1);
    // Eigenvalues in 40 digits by mpmath.
    const known = [
      1.69593899692195, 0.298125211316931, 0.026212843578119, 0.00146768811774187,
      5.43694336974994e-5, 1.29433209187281e-6, 1.79887374581758e-8, 1.11153896637244e-10,
    ];
    const { s } = svd(hilbert);
    known.forEach((value, i) => {
      expect(Math.abs(s[i]! - value) / value).toBeLessThan(1e-6);
      expect(Math.abs(s[i]! - value)).toBeLessThan(3e-15);
    });
  });

  it.each([
    [9, 4],
    [4, 9],
    [6, 6],
    [1, 5],
    [5, 1],
    [40, 40],
    [64, 100],
    [150, 90],
  ])("restores (%i, %i)", (rows, columns) => {
    const a = random(rows, columns);
    expectSvd(a, svd(a));
  });

  it("completes the vectors of a matrix without full rank", () => {
    const low = multiply(random(9, 2), random(2, 6, 2));
    const found = svd(low);
    expectSvd(low, found);
    expect(found.s[2]).toBeLessThan(1e-14);
    expectSvd(matrix(4, 3), svd(matrix(4, 3)));
  });

  it("has no other signs for a negated matrix's right vectors", () => {
    const a = random(8, 5);
    const negated = matrix(
      8,
      5,
      a.data.map((x) => -x),
    );
    expect(apart(svd(a).vt, svd(negated).vt)).toBeLessThan(1e-12);
  });

  it("restores any small matrix", () => {
    const entry = fc.double({ min: -1e3, max: 1e3, noNaN: true });
    const sizes = fc.tuple(fc.integer({ min: 1, max: 6 }), fc.integer({ min: 1, max: 6 }));
    const matrices = sizes.chain(([rows, columns]) =>
      fc
        .array(entry, { minLength: rows * columns, maxLength: rows * columns })
        .map((data) => matrix(rows, columns, Float64Array.from(data))),
    );
    fc.assert(
      fc.property(matrices, (a) => expectSvd(a, svd(a))),
      { seed: 1, numRuns: 200 },
    );
  });

  it("refuses what is not finite", () => {
    expect(() => svd(of([[1, Number.NaN]]))).toThrow("svd: entry (0, 1) is NaN");
  });
});

describe("topSvd", () => {
  it.each([
    ["a short side", 160, 130, 1],
    ["a short side, turned", 60, 200, 1],
    ["long sides", 560, 530, 1],
    ["values that fall far", 200, 150, 4],
  ])("equals the first part of the whole decomposition: %s", (_, rows, columns, power) => {
    // Singular values that fall slowly: 1, 1/2, 1/3 …, or their fourth powers.
    const side = Math.min(rows, columns);
    const u = qr(random(rows, side)).q;
    const v = qr(random(columns, side, 2)).q;
    const s = Float64Array.from({ length: side }, (_v, i) => (i + 1) ** -power);
    const found = topSvd(scaled({ u, s, vt: transpose(v) }), 6);
    for (let i = 0; i < 6; i++) {
      expect(Math.abs(found.s[i]! - s[i]!)).toBeLessThan(1e-10);
      let [right, left] = [0, 0];
      for (let j = 0; j < columns; j++) {
        right += found.vt.data[i * columns + j]! * v.data[j * side + i]!;
      }
      for (let j = 0; j < rows; j++) left += found.u.data[j * 6 + i]! * u.data[j * side + i]!;
      // Signs are free, but the same on both sides.
      expect(Math.abs(right)).toBeGreaterThan(1 - 1e-8);
      expect(right * left).toBeGreaterThan(1 - 1e-8);
    }
  });

  it("refuses more than there is", () => {
    expect(() => topSvd(random(3, 5), 4)).toThrow(
      "topSvd: k must be a whole number from 1 to 3, got 4.",
    );
  });
});

describe("eigenSymmetric", () => {
  it("gives eigenvalues worked by hand", () => {
    const { values, vectors } = eigenSymmetric(
      of([
        [2, 1],
        [1, 2],
      ]),
    );
    expect(values[0]).toBeCloseTo(3, 14);
    expect(values[1]).toBeCloseTo(1, 14);
    expect(vectors.data[0]).toBeCloseTo(Math.SQRT1_2, 14);
  });

  it.each([1, 2, 3, 8, 33])("restores matrices of side %i", (size) => {
    const half = random(size, size);
    const a = multiply(half, half, { transB: true });
    const { values, vectors } = eigenSymmetric(a);
    const restored = scaled({ u: vectors, s: values, vt: transpose(vectors) });
    expect(apart(restored, a)).toBeLessThan(1e-13 * frobenius(a));
    expect(apart(multiply(vectors, vectors, { transA: true }), identity(size))).toBeLessThan(1e-13);
  });

  it("comes to rest on products that are singular", () => {
    for (const size of [1, 1e-3]) {
      const half = random(40, 96);
      half.data.forEach((x, i) => {
        half.data[i] = size * x;
      });
      const a = multiply(half, half, { transA: true });
      const { values, vectors } = eigenSymmetric(a);
      const restored = scaled({ u: vectors, s: values, vt: transpose(vectors) });
      expect(apart(restored, a)).toBeLessThan(1e-12 * frobenius(a));
      expect(Math.abs(values[40]!)).toBeLessThan(1e-12 * values[0]!);
      const { s } = topSvd(half, 40);
      s.forEach((x, i) => {
        expect(x ** 2 / values[i]!).toBeCloseTo(1, 8);
      });
    }
  });

  it("takes equal and diagonal eigenvalues", () => {
    expect([...eigenSymmetric(identity(4)).values]).toEqual([1, 1, 1, 1]);
    expect([
      ...eigenSymmetric(
        of([
          [1, 0],
          [0, -5],
        ]),
      ).values,
    ]).toEqual([1, -5]);
  });
});

describe("solve", () => {
  it("gives the textbook's Cholesky factor", () => {
    const a = of([
      [4, 12, -16],
      [12, 37, -43],
      [-16, -43, 98],
    ]);
    const l = cholesky(a);
    expect(l).toEqual(
      of([
        [2, 0, 0],
        [6, 1, 0],
        [-8, 5, 3],
      ]),
    );
    const b = of([[1], [2], [3]]);
    expect(apart(multiply(a, choleskySolve(l, b)), b)).toBeLessThan(1e-9);
    expect(() =>
      cholesky(
        of([
          [1, 2],
          [2, 1],
        ]),
      ),
    ).toThrow(
      "cholesky: the matrix is not positive definite, pivot 1 is -3 — add to its diagonal.",
    );
  });

  it("solves systems that need pivots, and refuses singular ones", () => {
    const a = of([
      [0, 2],
      [3, 1],
    ]);
    // 2y = 4 and 3x + y = 5: y = 2, x = 1.
    expect(apart(solve(a, of([[4], [5]])), of([[1], [2]]))).toBeLessThan(1e-15);
    const b = random(12, 12);
    expect(apart(multiply(b, inverse(b)), identity(12))).toBeLessThan(1e-12);
    expect(() =>
      solve(
        of([
          [1, 2],
          [2, 4],
        ]),
        of([[1], [1]]),
      ),
    ).toThrow("solve: the matrix is singular");
    expect(() => solve(random(2, 3), random(2, 1))).toThrow("needs a square matrix, got (2, 3)");
  });
});
