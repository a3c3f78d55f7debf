/**
 * Eigenvalues and eigenvectors of symmetric matrices: Householder's reduction to three diagonals, then QL
 * with implicit shifts.
 *
 * Bowdler, Martin, Reinsch and Wilkinson, "The QR and QL Algorithms for Symmetric Matrices", Numer. Math.
 * 1968; Golub and Van Loan, "Matrix Computations", sections 8.3.1 and 8.3.3.
 */
import { ShapeError, StateError } from "../../errors.ts";
import { checkFinite, identity, type Matrix, matrix, scaled, transpose } from "./matrix.ts";

export interface Eigen {
  /** The largest first. */
  readonly values: Float64Array;
  /** (n, n): column i belongs to values[i]; columns orthonormal, the largest entry of each positive. */
  readonly vectors: Matrix;
}

const maxTurns = 60;
/** From this turn on, what is nothing beside the whole matrix counts as nothing. */
const patience = 20;

/**
 * A = V diag(values) Vᵀ of a symmetric matrix; what differs across the diagonal is averaged.
 * @throws ShapeError for a matrix that is not square.
 */
export function eigenSymmetric(a: Matrix): Eigen {
  checkFinite("eigenSymmetric", a);
  const n = a.rows;
  if (a.columns !== n) {
    throw new ShapeError(`eigenSymmetric: needs a square matrix, got (${n}, ${a.columns}).`);
  }
  const { scale, inner } = scaled(a);
  const work = matrix(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      work.data[i * n + j] = (inner.data[i * n + j]! + inner.data[j * n + i]!) / 2;
    }
  }
  const { diagonal, below, rows } = tridiagonal(work);
  rotateToDiagonal(diagonal, below, rows.data, n);
  const order = [...diagonal.keys()].sort((i, j) => diagonal[j]! - diagonal[i]! || i - j);
  const sorted = matrix(n, n);
  order.forEach((from, to) => {
    const row = rows.data.subarray(from * n, (from + 1) * n);
    const largest = row.reduce((most, x) => (Math.abs(x) > Math.abs(most) ? x : most), 0);
    for (let j = 0; j < n; j++) sorted.data[to * n + j] = largest < 0 ? -row[j]! : row[j]!;
  });
  return {
    values: Float64Array.from(order, (i) => scale * diagonal[i]!),
    vectors: transpose(sorted),
  };
}

/** T = Q A Qᵀ with three diagonals; `rows` is Q. */
function tridiagonal({ rows: n, data }: Matrix): {
  readonly diagonal: Float64Array;
  readonly below: Float64Array;
  readonly rows: Matrix;
} {
  const q = identity(n);
  const dots = new Float64Array(n);
  const reflectors: { readonly v: Float64Array; readonly factor: number }[] = [];
  for (let k = 0; k < n - 2; k++) {
    const v = new Float64Array(n);
    let square = 0;
    for (let i = k + 1; i < n; i++) square += data[k * n + i]! ** 2;
    const head = data[k * n + k + 1]!;
    const norm = Math.sqrt(square);
    const isDone = square - head * head <= 0 || norm < 1e-150;
    v[k + 1] = head + (head < 0 ? -norm : norm);
    for (let i = k + 2; i < n; i++) v[i] = data[k * n + i]!;
    const length = square - head * head + v[k + 1]! ** 2;
    const factor = isDone || length === 0 ? 0 : 2 / length;
    reflectors.push({ v, factor });
    if (factor === 0) continue;
    // A − v wᵀ − w vᵀ with w = f A v − (f² vᵀ A v / 2) v.
    let inner = 0;
    for (let i = k; i < n; i++) {
      let sum = 0;
      for (let j = k + 1; j < n; j++) sum += data[i * n + j]! * v[j]!;
      dots[i] = factor * sum;
      inner += dots[i]! * v[i]!;
    }
    for (let i = k; i < n; i++) dots[i]! -= (factor * inner * v[i]!) / 2;
    for (let i = k; i < n; i++) {
      const [x, y] = [v[i]!, dots[i]!];
      for (let j = k; j < n; j++) data[i * n + j]! -= x * dots[j]! + y * v[j]!;
    }
  }
  // Q = H(n−3) … H(0): applied from the left, the last one last.
  for (const { v, factor } of reflectors) {
    if (factor === 0) continue;
    dots.fill(0);
    for (let i = 0; i < n; i++) {
      if (v[i] === 0) continue;
      for (let j = 0; j < n; j++) dots[j]! += v[i]! * q.data[i * n + j]!;
    }
    for (let i = 0; i < n; i++) {
      const x = factor * v[i]!;
      if (x === 0) continue;
      for (let j = 0; j < n; j++) q.data[i * n + j]! -= x * dots[j]!;
    }
  }
  return {
    diagonal: Float64Array.from({ length: n }, (_, i) => data[i * n + i]!),
    below: Float64Array.from({ length: n }, (_, i) => (i + 1 < n ? data[(i + 1) * n + i]! : 0)),
    rows: q,
  };
}

/** QL with implicit shifts; turns of neighbours are made on the rows of `q` as well. */
function rotateToDiagonal(d: Float64Array, e: Float64Array, q: Float64Array, n: number): void {
  const largest = [...d, ...e].reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  for (let low = 0; low < n; low++) {
    for (let turn = 0; ; turn++) {
      // Where the matrix is singular, rounding of its large entries keeps the small ones from resting.
      const floor = turn < patience ? 0 : largest;
      let high = low;
      while (high < n - 1) {
        const scale = Math.max(floor, Math.abs(d[high]!) + Math.abs(d[high + 1]!));
        if (Math.abs(e[high]!) <= Number.EPSILON * scale) break;
        high++;
      }
      if (high === low) break;
      if (turn === maxTurns) {
        throw new StateError(`eigenSymmetric: eigenvalue ${low} did not come to rest.`);
      }
      let g = (d[low + 1]! - d[low]!) / (2 * e[low]!);
      const r = Math.hypot(g, 1);
      g = d[high]! - d[low]! + e[low]! / (g + (g < 0 ? -r : r));
      let [s, c, p] = [1, 1, 0];
      let i = high - 1;
      for (; i >= low; i--) {
        const f = s * e[i]!;
        const b = c * e[i]!;
        const length = Math.hypot(f, g);
        e[i + 1] = length;
        if (length === 0) {
          d[i + 1]! -= p;
          e[high] = 0;
          break;
        }
        s = f / length;
        c = g / length;
        g = d[i + 1]! - p;
        const t = (d[i]! - g) * s + 2 * c * b;
        p = s * t;
        d[i + 1] = g + p;
        g = c * t - b;
        const [upper, lower] = [i * n, (i + 1) * n];
        for (let j = 0; j < n; j++) {
          const [x, y] = [q[upper + j]!, q[lower + j]!];
          q[lower + j] = s * x + c * y;
          q[upper + j] = c * x - s * y;
        }
      }
      if (i >= low) continue;
      d[low]! -= p;
      e[low] = g;
      e[high] = 0;
    }
  }
}
