/**
 * The largest singular values and their vectors, roughly and at a known cost: a drawn subspace, turned towards
 * them a fixed number of times.
 *
 * Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 2011, arXiv:0909.4061,
 * algorithms 4.4 and 5.1, as `torch.svd_lowrank` has them.
 */
import { OptionError } from "../../errors.ts";
import type { Rng } from "../rng.ts";
import { columnsOf, type Matrix, matrix, multiply, rowsOf, transpose } from "./matrix.ts";
import { qr } from "./qr.ts";
import { type Svd, svd } from "./svd.ts";

/** Directions beyond those that are wanted. */
const spare = 8;

/**
 * About the first k of `svd`, with its signs.
 * @param k from 1 to min(m, n)
 * @param turns products with A and its transpose; more of them give truer directions
 * @throws OptionError for another k.
 */
export function randomSvd(a: Matrix, k: number, turns: number, rng: Rng): Svd {
  const side = Math.min(a.rows, a.columns);
  if (!(Number.isInteger(k) && k >= 1 && k <= side)) {
    throw new OptionError(`randomSvd: k must be a whole number from 1 to ${side}, got ${k}.`);
  }
  const block = Math.min(side, k + spare);
  const start = Float64Array.from({ length: a.columns * block }, () => rng.normal());
  const flipped = transpose(a);
  let q = qr(multiply(a, matrix(a.columns, block, start))).q;
  for (let turn = 0; turn < turns; turn++) {
    q = qr(multiply(a, qr(multiply(flipped, q)).q)).q;
  }
  const { u, s, vt } = svd(multiply(q, a, { transA: true }));
  return { u: columnsOf(multiply(q, u), 0, k), s: s.slice(0, k), vt: rowsOf(vt, 0, k) };
}
