/** One vector for a text from the vectors of its tokens. */
import { OptionError } from "../errors.ts";
import { add, cast, div, equal, maximum, mul, sqrt, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice } from "../ir/layout.ts";
import { cumSum, max, sum } from "../ir/reduce.ts";

/** Of all tokens the mean, their sum over the root of their number, or the largest; the first; the last. */
export const poolings = ["mean", "mean-sqrt-len", "max", "cls", "last"] as const;
export type Pooling = (typeof poolings)[number];

/** @throws OptionError for a name that is none. */
export function poolingNamed(name: string): Pooling {
  if ((poolings as readonly string[]).includes(name)) return name as Pooling;
  throw new OptionError(`pooling must be one of ${poolings.join(", ")}, got "${name}".`);
}

/**
 * (B·T, D) and which tokens are there, (B, T) int32 of 0 and 1 → (B, D). Padding counts nothing.
 * Means as in sentence-transformers: over at least 1e-9 tokens.
 */
export function poolTokens(hidden: Value, mask: Value, pooling: Pooling): Value {
  const [batch, length] = mask.shape as [number | string, number];
  const width = hidden.shape[1] as number;
  const tokens = reshape(hidden, [batch, length, width]);
  if (pooling === "cls") {
    return slice(reshape(hidden, [batch, length * width]), 1, 0, width);
  }
  const kept = reshape(cast(mask, hidden.dtype), [batch, length, 1]);
  if (pooling === "max") {
    return max(add(tokens, mul(sub(kept, 1), 1e9)), 1);
  }
  if (pooling === "last") {
    const count = sum(mask, 1, { keepDims: true });
    const isLast = mul(cast(equal(cumSum(mask, 1), count), "int32"), mask);
    return sum(mul(tokens, reshape(cast(isLast, hidden.dtype), [batch, length, 1])), 1);
  }
  const count = maximum(sum(kept, 1), 1e-9);
  return div(sum(mul(tokens, kept), 1), pooling === "mean" ? count : sqrt(count));
}

/** Vectors of length 1 along the last axis; those shorter than 1e-12 stay short. */
export function normalized(x: Value): Value {
  // The root of a bounded sum: the derivative of a vector of zeros is zero and not none.
  return div(x, sqrt(maximum(sum(mul(x, x), -1, { keepDims: true }), 1e-24)));
}
