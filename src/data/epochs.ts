/** The order of an epoch. */
import { OptionError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";

/**
 * Indices of batches for an epoch: near lengths together, batches in random order. It depends on the
 * lengths and the stream alone, so a stream folded by epoch gives the same order on resume.
 * @param lengths tokens of each example.
 * @throws OptionError when batchSize is no whole number from 1.
 */
export function epochBatches(
  lengths: ArrayLike<number>,
  batchSize: number,
  rng: Rng,
): (readonly number[])[] {
  if (!Number.isInteger(batchSize) || batchSize < 1) {
    throw new OptionError(
      `epochBatches: batchSize must be a whole number from 1, got ${batchSize}.`,
    );
  }
  const order = rng.fold("order").permutation(lengths.length);
  const batches: (readonly number[])[] = [];
  const chunk = batchSize * 16;
  for (let start = 0; start < order.length; start += chunk) {
    const part = [...order.subarray(start, start + chunk)];
    part.sort((a, b) => lengths[a]! - lengths[b]!);
    for (let i = 0; i < part.length; i += batchSize) batches.push(part.slice(i, i + batchSize));
  }
  return [...rng.fold("batches").permutation(batches.length)].map((i) => batches[i]!);
}
