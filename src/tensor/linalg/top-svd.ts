/**
 * The largest singular values and their vectors. Where one side is short, from the eigenvectors of the product
 * with the transpose, which serves as long as the values wanted lie close to the largest; else from a block
 * Krylov space.
 *
 * Musco and Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate Singular Value
 * Decomposition", NeurIPS 2015, arXiv:1504.05477, algorithm 2; the space grows until the values rest.
 */
import { OptionError } from "../../errors.ts";
import { Rng } from "../rng.ts";
import { eigenSymmetric } from "./eigen.ts";
import {
  checkFinite,
  columnsOf,
  type Matrix,
  matrix,
  multiply,
  rowsOf,
  scaled,
  transpose,
} from "./matrix.ts";
import { qr } from "./qr.ts";
import { type Svd, svd, withSigns } from "./svd.ts";

export interface TopSvdOptions {
  /** Largest change of a singular value by another block, as a share of it; default 1e-10. */
  readonly tolerance?: number;
  /** Where the first block is drawn from; default a fixed stream. */
  readonly rng?: Rng;
}

/** Shorter sides up to which the product with the transpose is quicker. */
const productBelow = 512;
/** Values wanted that are smaller than this share of the first lose too many digits in the product. */
const leastShare = 1e-3;

/**
 * The first k of `svd`, with its signs.
 * @param k from 1 to min(m, n)
 * @throws OptionError for another k.
 */
export function topSvd(a: Matrix, k: number, options: TopSvdOptions = {}): Svd {
  const side = Math.min(a.rows, a.columns);
  checkFinite("topSvd", a);
  if (!(Number.isInteger(k) && k >= 1 && k <= side)) {
    throw new OptionError(`topSvd: k must be a whole number from 1 to ${side}, got ${k}.`);
  }
  if (side <= productBelow) {
    const found = a.rows < a.columns ? turned(ofProduct(transpose(a), k)) : ofProduct(a, k);
    if (found) return withSigns(found);
  }
  if (k * 4 >= side || side <= productBelow / 4) return first(svd(a), k);
  const { tolerance = 1e-10, rng = new Rng(0) } = options;
  const block = k + 8;
  const start = Float64Array.from({ length: a.columns * block }, () => rng.normal());
  const flipped = transpose(a);
  // Columns of `basis` span A Ω, (A Aᵀ) A Ω, …: each block orthogonal to those before it.
  let latest = qr(multiply(a, matrix(a.columns, block, start))).q;
  let basis = latest;
  let inside = multiply(latest, a, { transA: true });
  let last: Float64Array | undefined;
  while (true) {
    const { values, vectors } = eigenSymmetric(multiply(inside, inside, { transB: true }));
    const s = values.slice(0, k).map((x) => Math.sqrt(Math.max(0, x)));
    // Squares lose the digits of what is so much smaller than the first.
    if (!(s[k - 1]! > 1e-6 * s[0]!)) return first(svd(a), k);
    if (last && s.every((x, i) => Math.abs(x - last![i]!) <= tolerance * x)) {
      const main = columnsOf(vectors, 0, k);
      const vt = multiply(main, inside, { transA: true });
      for (let i = 0; i < k; i++) {
        for (let j = 0; j < vt.columns; j++) vt.data[i * vt.columns + j]! /= s[i]!;
      }
      return withSigns({ u: multiply(basis, main), s, vt });
    }
    last = s;
    if (basis.columns + block > side / 2) return first(svd(a), k);
    const next = multiply(a, multiply(flipped, latest));
    // Twice, so that the basis stays orthogonal in double precision.
    latest = qr(less(less(next, basis), basis)).q;
    basis = beside(basis, latest);
    inside = below(inside, multiply(latest, a, { transA: true }));
  }
}

/** Of a matrix with at least as many rows as columns, by AᵀA; undefined where digits would be lost. */
function ofProduct(a: Matrix, k: number): Svd | undefined {
  const { scale, inner } = scaled(a);
  const { values, vectors } = eigenSymmetric(multiply(inner, inner, { transA: true }));
  const s = values.slice(0, k).map((x) => Math.sqrt(Math.max(0, x)));
  if (!(s[k - 1]! > leastShare * s[0]!)) return undefined;
  const v = columnsOf(vectors, 0, k);
  const u = multiply(inner, v);
  for (let i = 0; i < u.rows; i++) for (let j = 0; j < k; j++) u.data[i * k + j]! /= s[j]!;
  return { u, s: s.map((x) => x * scale), vt: transpose(v) };
}

/** The decomposition of the transpose. */
function turned(found: Svd | undefined): Svd | undefined {
  return found && { u: transpose(found.vt), s: found.s, vt: transpose(found.u) };
}

/** B less its part in the space of the columns of Q. */
function less(b: Matrix, q: Matrix): Matrix {
  const inside = multiply(q, multiply(q, b, { transA: true }));
  return matrix(
    b.rows,
    b.columns,
    b.data.map((x, i) => x - inside.data[i]!),
  );
}

function beside(a: Matrix, b: Matrix): Matrix {
  const result = matrix(a.rows, a.columns + b.columns);
  for (let i = 0; i < a.rows; i++) {
    const at = i * result.columns;
    result.data.set(a.data.subarray(i * a.columns, (i + 1) * a.columns), at);
    result.data.set(b.data.subarray(i * b.columns, (i + 1) * b.columns), at + a.columns);
  }
  return result;
}

function below(a: Matrix, b: Matrix): Matrix {
  const result = matrix(a.rows + b.rows, a.columns);
  result.data.set(a.data);
  result.data.set(b.data, a.data.length);
  return result;
}

function first({ u, s, vt }: Svd, k: number): Svd {
  return { u: columnsOf(u, 0, k), s: s.slice(0, k), vt: rowsOf(vt, 0, k) };
}
