/** Systems of linear equations: Cholesky for positive definite matrices, LU with pivots for any. */
import { ShapeError } from "../../errors.ts";
import { checkFinite, identity, type Matrix, matrix } from "./matrix.ts";

function checkSquare(where: string, { rows, columns }: Matrix): void {
  if (rows === columns) return;
  throw new ShapeError(`${where}: needs a square matrix, got (${rows}, ${columns}).`);
}

function checkSides(where: string, a: Matrix, b: Matrix): void {
  checkSquare(where, a);
  if (a.rows === b.rows) return;
  throw new ShapeError(`${where}: A has ${a.rows} rows and B ${b.rows}, they must have as many.`);
}

/**
 * A = L Lᵀ, L with zeros above its diagonal; the upper triangle of A is not read.
 * @throws ShapeError for a matrix that is not positive definite.
 */
export function cholesky(a: Matrix): Matrix {
  checkSquare("cholesky", a);
  checkFinite("cholesky", a);
  const n = a.rows;
  const l = matrix(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = a.data[i * n + j]!;
      for (let k = 0; k < j; k++) sum -= l.data[i * n + k]! * l.data[j * n + k]!;
      if (i > j) {
        l.data[i * n + j] = sum / l.data[j * n + j]!;
      } else if (sum > 0) {
        l.data[i * n + i] = Math.sqrt(sum);
      } else {
        throw new ShapeError(
          `cholesky: the matrix is not positive definite, pivot ${i} is ${sum} — add to its diagonal.`,
        );
      }
    }
  }
  return l;
}

/** X with L Lᵀ X = B, for L of `cholesky`. */
export function choleskySolve(l: Matrix, b: Matrix): Matrix {
  checkSides("choleskySolve", l, b);
  const [n, columns] = [l.rows, b.columns];
  const x = Float64Array.from(b.data);
  const take = (to: number, from: number, factor: number): void => {
    for (let j = 0; j < columns; j++) x[to * columns + j]! -= factor * x[from * columns + j]!;
  };
  const divide = (row: number): void => {
    for (let j = 0; j < columns; j++) x[row * columns + j]! /= l.data[row * n + row]!;
  };
  for (let i = 0; i < n; i++) {
    for (let k = 0; k < i; k++) take(i, k, l.data[i * n + k]!);
    divide(i);
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) take(i, k, l.data[k * n + i]!);
    divide(i);
  }
  return matrix(n, columns, x);
}

/**
 * X with A X = B.
 * @throws ShapeError for a singular matrix.
 */
export function solve(a: Matrix, b: Matrix): Matrix {
  checkSides("solve", a, b);
  checkFinite("solve", a);
  const [n, columns] = [a.rows, b.columns];
  const lu = Float64Array.from(a.data);
  const x = Float64Array.from(b.data);
  const scale = lu.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const swap = (data: Float64Array, width: number, i: number, k: number): void => {
    for (let j = 0; j < width; j++) {
      const held = data[i * width + j]!;
      data[i * width + j] = data[k * width + j]!;
      data[k * width + j] = held;
    }
  };
  for (let k = 0; k < n; k++) {
    let pivot = k;
    for (let i = k + 1; i < n; i++) {
      if (Math.abs(lu[i * n + k]!) > Math.abs(lu[pivot * n + k]!)) pivot = i;
    }
    if (!(Math.abs(lu[pivot * n + k]!) > scale * n * Number.EPSILON)) {
      throw new ShapeError(`solve: the matrix is singular, pivot ${k} is ${lu[pivot * n + k]}.`);
    }
    if (pivot !== k) {
      swap(lu, n, k, pivot);
      swap(x, columns, k, pivot);
    }
    for (let i = k + 1; i < n; i++) {
      const factor = lu[i * n + k]! / lu[k * n + k]!;
      if (factor === 0) continue;
      for (let j = k + 1; j < n; j++) lu[i * n + j]! -= factor * lu[k * n + j]!;
      for (let j = 0; j < columns; j++) x[i * columns + j]! -= factor * x[k * columns + j]!;
    }
  }
  for (let i = n - 1; i >= 0; i--) {
    for (let k = i + 1; k < n; k++) {
      const factor = lu[i * n + k]!;
      for (let j = 0; j < columns; j++) x[i * columns + j]! -= factor * x[k * columns + j]!;
    }
    for (let j = 0; j < columns; j++) x[i * columns + j]! /= lu[i * n + i]!;
  }
  return matrix(n, columns, x);
}

/** A⁻¹. @throws ShapeError for a singular matrix. */
export function inverse(a: Matrix): Matrix {
  return solve(a, identity(a.rows));
}

/**
 * U with A⁻¹ = Uᵀ U, upper triangular, for a positive definite A: what GPTQ calls the Cholesky factor of the
 * inverse. From A = R Rᵀ with R upper triangular, U = R⁻¹; the inverse itself is never made.
 * @throws ShapeError for a matrix that is not positive definite.
 */
export function inverseFactor(a: Matrix): Matrix {
  checkSquare("inverseFactor", a);
  const n = a.rows;
  // Turned about both axes, lower triangles become upper ones.
  const turned = cholesky(matrix(n, n, a.data.slice().reverse()));
  const r = turned.data.slice().reverse();
  const u = matrix(n, n);
  for (let i = n - 1; i >= 0; i--) {
    const own = u.data.subarray(i * n, (i + 1) * n);
    const pivot = r[i * n + i]!;
    own[i] = 1 / pivot;
    for (let k = i + 1; k < n; k++) {
      const factor = r[i * n + k]! / pivot;
      if (factor === 0) continue;
      for (let j = k; j < n; j++) own[j]! -= factor * u.data[k * n + j]!;
    }
  }
  return u;
}
