/** Losses. Each returns one number, or one per row with `reduction: "none"`. */
import { OptionError } from "../errors.ts";
import {
  abs,
  add,
  cast,
  div,
  equal,
  exp,
  less,
  maximum,
  mul,
  neg,
  not,
  softplus,
  square,
  sub,
  where,
} from "../ir/elementwise.ts";
import { crossEntropyRows, logSoftmax } from "../ir/fused.ts";
import type { Operand, Value } from "../ir/graph.ts";
import { mean, norm, sum } from "../ir/reduce.ts";

export type Reduction = "mean" | "sum" | "none";

function reduce(rows: Value, reduction: Reduction): Value {
  if (reduction === "none") return rows;
  return reduction === "sum" ? sum(rows) : mean(rows);
}

export interface CrossEntropyOptions {
  /** Rows with this target carry no loss; default -100. */
  readonly ignoreIndex?: number;
  /** Share of the target spread evenly over all classes, in [0, 1); default 0. */
  readonly labelSmoothing?: number;
  /** "mean" is over the rows that carry loss; default "mean". */
  readonly reduction?: Reduction;
  /** Weight of each row, (N,): replaces counting by a weighted mean. */
  readonly weights?: Value;
}

/** Cross-entropy of logits (N, V) and class indices (N,) int32. */
export function crossEntropy(
  logits: Value,
  targets: Value,
  options: CrossEntropyOptions = {},
): Value {
  const { ignoreIndex = -100, labelSmoothing = 0, reduction = "mean" } = options;
  if (!(labelSmoothing >= 0 && labelSmoothing < 1)) {
    throw new OptionError(`labelSmoothing must be in [0, 1), got ${labelSmoothing}.`);
  }
  let weights = cast(not(equal(targets, ignoreIndex)), logits.dtype);
  if (options.weights) weights = mul(weights, options.weights);
  let rows = crossEntropyRows(logits, targets, ignoreIndex);
  if (labelSmoothing > 0) {
    const uniform = neg(mean(logSoftmax(logits, 1), 1));
    rows = add(mul(rows, 1 - labelSmoothing), mul(uniform, labelSmoothing));
  }
  rows = mul(rows, weights);
  if (reduction !== "mean") return reduce(rows, reduction);
  // No row that carries loss gives 0, not 0 / 0.
  return div(sum(rows), maximum(sum(weights), 1e-12));
}

export function mseLoss(x: Operand, target: Operand, reduction: Reduction = "mean"): Value {
  return reduce(square(sub(x, target)), reduction);
}

export function l1Loss(x: Operand, target: Operand, reduction: Reduction = "mean"): Value {
  return reduce(abs(sub(x, target)), reduction);
}

/** Quadratic within `delta` of the target, linear beyond (Huber 1964). */
export function huberLoss(
  x: Operand,
  target: Operand,
  delta = 1,
  reduction: Reduction = "mean",
): Value {
  const distance = abs(sub(x, target));
  const inside = mul(square(distance), 0.5);
  const outside = mul(sub(distance, 0.5 * delta), delta);
  return reduce(where(less(distance, delta), inside, outside), reduction);
}

/** Binary cross-entropy of logits, without overflow: max(x, 0) - x t + log(1 + e^-|x|). */
export function bceWithLogits(
  logits: Operand,
  target: Operand,
  reduction: Reduction = "mean",
): Value {
  const stable = add(sub(maximum(logits, 0), mul(logits, target)), softplus(neg(abs(logits))));
  return reduce(stable, reduction);
}

/** Σ p (log p - log q) along the last axis, from log-probabilities; "mean" is over the rows. */
export function klDivergence(logP: Value, logQ: Value, reduction: Reduction = "mean"): Value {
  return reduce(sum(mul(exp(logP), sub(logP, logQ)), -1), reduction);
}

/** a · b / (|a| |b|) along the last axis. */
export function cosineSimilarity(a: Value, b: Value, epsilon = 1e-8): Value {
  const sizes = mul(maximum(norm(a, -1), epsilon), maximum(norm(b, -1), epsilon));
  return div(sum(mul(a, b), -1), sizes);
}
