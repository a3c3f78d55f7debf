/**
 * Singular values and vectors by one-sided Jacobi rotations on the triangle of a QR decomposition. Of small
 * matrices, the small singular values keep their digits; of larger ones they are right to the rounding of
 * the largest, and the rotations start near their end, from the eigenvectors of R Rᵀ.
 *
 * Hestenes, "Inversion of Matrices by Biorthogonalization", J. SIAM 1958; Drmač and Veselić, "New Fast and
 * Accurate Jacobi SVD Algorithm I", SIAM J. Matrix Anal. Appl. 2008.
 *
 * Cost: about 30 n³ products for the smaller side n.
 */
import { StateError } from "../../errors.ts";
import { eigenSymmetric } from "./eigen.ts";
import {
  checkFinite,
  identity,
  type Matrix,
  matrix,
  multiply,
  scaled,
  transpose,
} from "./matrix.ts";
import { qr } from "./qr.ts";

export interface Svd {
  /** (m, k), columns orthonormal. */
  readonly u: Matrix;
  /** Singular values, the largest first, k of them. */
  readonly s: Float64Array;
  /** (k, n), rows orthonormal. */
  readonly vt: Matrix;
}

const maxSweeps = 60;
/** Sides up to which rotations start from the triangle itself. */
const smallSide = 64;

/**
 * A = U diag(s) Vᵀ, thin: k = min(m, n). In each row of Vᵀ the entry of largest magnitude is positive, so
 * that signs do not depend on how the decomposition was found.
 */
export function svd(a: Matrix): Svd {
  checkFinite("svd", a);
  if (a.rows < a.columns) {
    const { u, s, vt } = tall(transpose(a));
    return withSigns({ u: transpose(vt), s, vt: transpose(u) });
  }
  return withSigns(tall(a));
}

/** Of a matrix with at least as many rows as columns. */
function tall(a: Matrix): Svd {
  const n = a.columns;
  const { scale, inner } = scaled(a);
  const { q, r } = qr(inner);
  // Rows of R are turned until they are orthogonal: then R = Jᵀ diag(s) Vᵀ.
  const turns =
    n > smallSide
      ? transpose(eigenSymmetric(multiply(r, r, { transB: true })).vectors)
      : identity(n);
  const work = n > smallSide ? multiply(turns, r).data : r.data;
  rotateRows(work, turns.data, n);
  const norms = Float64Array.from({ length: n }, (_, i) => normOf(work, i * n, n));
  const order = [...norms.keys()].sort((i, j) => norms[j]! - norms[i]! || i - j);
  const s = Float64Array.from(order, (i) => norms[i]!);
  const vt = matrix(n, n);
  const left = matrix(n, n);
  order.forEach((from, to) => {
    left.data.set(turns.data.subarray(from * n, (from + 1) * n), to * n);
    for (let j = 0; j < n; j++) vt.data[to * n + j] = work[from * n + j]! / norms[from]!;
  });
  // Vectors of singular values that are zero in double precision are any that complete the rest.
  const rank = s.filter((x) => x > s[0]! * n * Number.EPSILON * 4 && x > 0).length;
  if (rank < n) complete(vt, rank);
  return { u: multiply(q, left, { transB: true }), s: s.map((x) => x * scale), vt };
}

function normOf(data: Float64Array, start: number, length: number): number {
  let sum = 0;
  for (let j = start; j < start + length; j++) sum += data[j]! * data[j]!;
  return Math.sqrt(sum);
}

/** Turns pairs of rows until all are orthogonal; the same turns are made on `turns`. */
function rotateRows(work: Float64Array, turns: Float64Array, n: number): void {
  const squares = new Float64Array(n);
  const total = normOf(work, 0, work.length);
  // Rows this small are zeros that rounding left.
  const floor = (total * Number.EPSILON) ** 2;
  for (let sweep = 0; sweep < maxSweeps; sweep++) {
    for (let i = 0; i < n; i++) squares[i] = normOf(work, i * n, n) ** 2;
    let isTurned = false;
    for (let p = 0; p < n - 1; p++) {
      for (let q = p + 1; q < n; q++) {
        const [alpha, beta] = [squares[p]!, squares[q]!];
        if (alpha <= floor || beta <= floor) continue;
        const [rowP, rowQ] = [p * n, q * n];
        let gamma = 0;
        for (let j = 0; j < n; j++) gamma += work[rowP + j]! * work[rowQ + j]!;
        if (Math.abs(gamma) <= Number.EPSILON * Math.sqrt(n * alpha * beta)) continue;
        isTurned = true;
        const zeta = (beta - alpha) / (2 * gamma);
        const t = (zeta < 0 ? -1 : 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
        const cosine = 1 / Math.sqrt(1 + t * t);
        const sine = cosine * t;
        turn(work, rowP, rowQ, n, cosine, sine);
        turn(turns, rowP, rowQ, n, cosine, sine);
        squares[p] = alpha - t * gamma;
        squares[q] = beta + t * gamma;
      }
    }
    if (!isTurned) return;
  }
  throw new StateError(`svd: rotations did not come to an end in ${maxSweeps} sweeps.`);
}

function turn(
  data: Float64Array,
  p: number,
  q: number,
  n: number,
  cosine: number,
  sine: number,
): void {
  for (let j = 0; j < n; j++) {
    const [x, y] = [data[p + j]!, data[q + j]!];
    data[p + j] = cosine * x - sine * y;
    data[q + j] = sine * x + cosine * y;
  }
}

/** Replaces rows from `rank` on by unit vectors that are orthogonal to all before them. */
function complete({ rows, columns, data }: Matrix, rank: number): void {
  let unit = 0;
  for (let i = rank; i < rows; i++) {
    for (; ; unit++) {
      const row = new Float64Array(columns);
      row[unit] = 1;
      // Twice, so that rounding leaves nothing.
      for (let pass = 0; pass < 2; pass++) {
        for (let k = 0; k < i; k++) {
          let dot = 0;
          for (let j = 0; j < columns; j++) dot += row[j]! * data[k * columns + j]!;
          for (let j = 0; j < columns; j++) row[j]! -= dot * data[k * columns + j]!;
        }
      }
      const norm = normOf(row, 0, columns);
      if (norm < 0.5 / Math.sqrt(columns)) continue;
      for (let j = 0; j < columns; j++) data[i * columns + j] = row[j]! / norm;
      unit++;
      break;
    }
  }
}

/** The same with the largest entry of each row of Vᵀ positive. */
export function withSigns({ u, s, vt }: Svd): Svd {
  const size = s.length;
  for (let i = 0; i < size; i++) {
    let largest = 0;
    for (let j = 0; j < vt.columns; j++) {
      const x = vt.data[i * vt.columns + j]!;
      if (Math.abs(x) > Math.abs(largest)) largest = x;
    }
    if (largest >= 0) continue;
    for (let j = 0; j < vt.columns; j++) vt.data[i * vt.columns + j]! *= -1;
    for (let j = 0; j < u.rows; j++) u.data[j * u.columns + i]! *= -1;
  }
  return { u, s, vt };
}
