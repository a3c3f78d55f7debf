/** How two lists of numbers go together. */
import { OptionError } from "../../errors.ts";

function check(a: ArrayLike<number>, b: ArrayLike<number>): void {
  if (a.length === b.length && a.length >= 2) return;
  throw new OptionError(
    `correlation: needs two lists of one length from 2, got ${a.length} and ${b.length}.`,
  );
}

/** Pearson's coefficient, NaN where a list is constant. */
export function pearson(a: ArrayLike<number>, b: ArrayLike<number>): number {
  check(a, b);
  const mean = (x: ArrayLike<number>): number =>
    Array.from(x).reduce((s, v) => s + v, 0) / x.length;
  const [meanA, meanB] = [mean(a), mean(b)];
  let [both, squareA, squareB] = [0, 0, 0];
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i]! - meanA, b[i]! - meanB];
    both += x * y;
    squareA += x * x;
    squareB += y * y;
  }
  return both / Math.sqrt(squareA * squareB);
}

/** Ranks from 1; equal numbers share the mean of theirs. */
export function ranks(values: ArrayLike<number>): Float64Array {
  const order = Array.from(values, (_, i) => i).sort((i, j) => values[i]! - values[j]!);
  const result = new Float64Array(values.length);
  for (let start = 0; start < order.length; ) {
    let end = start + 1;
    while (end < order.length && values[order[end]!] === values[order[start]!]) end++;
    for (let i = start; i < end; i++) result[order[i]!] = (start + 1 + end) / 2;
    start = end;
  }
  return result;
}

/** Spearman's coefficient: Pearson's of the ranks. */
export function spearman(a: ArrayLike<number>, b: ArrayLike<number>): number {
  check(a, b);
  return pearson(ranks(a), ranks(b));
}
