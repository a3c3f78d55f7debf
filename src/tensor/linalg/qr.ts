/**
 * QR by Householder reflections.
 *
 * Golub and Van Loan, "Matrix Computations", 4th edition, section 5.2.
 */
import { ShapeError } from "../../errors.ts";
import { checkFinite, type Matrix, matrix, scaled } from "./matrix.ts";

export interface Qr {
  /** (m, min(m, n)), columns orthonormal. */
  readonly q: Matrix;
  /** (min(m, n), n), zeros below the diagonal, which is not negative. */
  readonly r: Matrix;
}

/** A = Q R, thin. A matrix of any shape; signs are such that the diagonal of R is not negative. */
export function qr(a: Matrix): Qr {
  checkFinite("qr", a);
  const { rows, columns } = a;
  const size = Math.min(rows, columns);
  const { scale, inner } = scaled(a);
  const work = inner.data;
  const reflectors: { readonly v: Float64Array; readonly factor: number }[] = [];
  const dots = new Float64Array(columns);
  for (let k = 0; k < size; k++) {
    let square = 0;
    for (let i = k; i < rows; i++) square += work[i * columns + k]! ** 2;
    const v = new Float64Array(rows);
    const head = work[k * columns + k]!;
    const norm = Math.sqrt(square);
    // So far below 1 is nothing, and its square has no digits.
    if (norm > 1e-150) {
      // The sign that adds up, so that nothing cancels.
      v[k] = head + (head < 0 ? -norm : norm);
      for (let i = k + 1; i < rows; i++) v[i] = work[i * columns + k]!;
    }
    const factor = v[k] === 0 ? 0 : 2 / (square - head * head + v[k]! ** 2);
    reflectors.push({ v, factor });
    reflect(work, columns, v, factor, k, k, dots);
  }
  const q = matrix(rows, size);
  for (let i = 0; i < size; i++) q.data[i * size + i] = 1;
  for (let k = size - 1; k >= 0; k--) {
    const { v, factor } = reflectors[k]!;
    reflect(q.data, size, v, factor, k, k, dots);
  }
  const r = matrix(size, columns);
  for (let i = 0; i < size; i++) {
    const sign = work[i * columns + i]! < 0 ? -1 : 1;
    for (let j = i; j < columns; j++)
      r.data[i * columns + j] = sign * scale * work[i * columns + j]!;
    if (sign < 0) for (let j = 0; j < rows; j++) q.data[j * size + i]! *= -1;
  }
  return { q, r };
}

/** Rows from `top` on and columns from `left` on: less factor · v (vᵀ A). */
function reflect(
  data: Float64Array,
  columns: number,
  v: Float64Array,
  factor: number,
  top: number,
  left: number,
  dots: Float64Array,
): void {
  if (factor === 0) return;
  dots.fill(0);
  for (let i = top; i < v.length; i++) {
    const x = v[i]!;
    if (x === 0) continue;
    const row = i * columns;
    for (let j = left; j < columns; j++) dots[j]! += x * data[row + j]!;
  }
  for (let i = top; i < v.length; i++) {
    const x = factor * v[i]!;
    if (x === 0) continue;
    const row = i * columns;
    for (let j = left; j < columns; j++) data[row + j]! -= x * dots[j]!;
  }
}

/**
 * The X that makes |A X − B| least, for A with at least as many rows as columns, all independent.
 * @throws ShapeError for other shapes, or columns that depend on each other.
 */
export function leastSquares(a: Matrix, b: Matrix): Matrix {
  if (a.rows < a.columns || a.rows !== b.rows) {
    throw new ShapeError(
      `leastSquares: needs at least as many rows as columns, and as many in B, got (${a.rows}, ${a.columns}) and (${b.rows}, ${b.columns}).`,
    );
  }
  const { q, r } = qr(a);
  const size = a.columns;
  const x = matrix(size, b.columns);
  const largest = Math.max(0, ...Array.from({ length: size }, (_, i) => r.data[i * size + i]!));
  for (let i = size - 1; i >= 0; i--) {
    const diagonal = r.data[i * size + i]!;
    if (!(diagonal > largest * size * Number.EPSILON)) {
      throw new ShapeError(
        `leastSquares: column ${i} of A depends on those before it — leave it out, or add a ridge.`,
      );
    }
    for (let j = 0; j < b.columns; j++) {
      let sum = 0;
      for (let k = 0; k < a.rows; k++) sum += q.data[k * size + i]! * b.data[k * b.columns + j]!;
      for (let k = i + 1; k < size; k++) {
        sum -= r.data[i * size + k]! * x.data[k * b.columns + j]!;
      }
      x.data[i * b.columns + j] = sum / diagonal;
    }
  }
  return x;
}
