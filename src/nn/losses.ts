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
import { gather, iota } from "../ir/indexing.ts";
import { transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { mean, norm, sum } from "../ir/reduce.ts";
import { toStatic } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";

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
  /** Weight of each class, (V,): rows count by that of their target. */
  readonly classWeights?: Value | Tensor;
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
  const { classWeights } = options;
  const kept = not(equal(targets, ignoreIndex));
  const counted = cast(kept, logits.dtype);
  const given = options.weights ? mul(counted, options.weights) : counted;
  // An ignored target may lie outside the classes: read class 0 instead.
  const weights = classWeights
    ? mul(given, gather(classWeights, mul(targets, cast(kept, "int32"))))
    : given;
  let rows = mul(crossEntropyRows(logits, targets, ignoreIndex), weights);
  if (labelSmoothing > 0) {
    const logProbs = logSoftmax(logits, 1);
    const spread = mean(classWeights ? mul(logProbs, classWeights) : logProbs, 1);
    rows = sub(mul(rows, 1 - labelSmoothing), mul(mul(spread, given), labelSmoothing));
  }
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

/** Huber's loss over `beta`: quadratic within beta of the target, of slope 1 beyond (Girshick 2015). */
export function smoothL1Loss(
  x: Operand,
  target: Operand,
  beta = 1,
  reduction: Reduction = "mean",
): Value {
  return mul(huberLoss(x, target, beta, reduction), 1 / beta);
}

/**
 * Binary cross-entropy of logits, without overflow: max(x, 0) - x t + log(1 + e^-|x|).
 * @param positiveWeight factor on the loss of positive targets, broadcast to the logits
 */
export function bceWithLogits(
  logits: Operand,
  target: Operand,
  reduction: Reduction = "mean",
  positiveWeight?: Operand,
): Value {
  if (positiveWeight === undefined) {
    const stable = add(sub(maximum(logits, 0), mul(logits, target)), softplus(neg(abs(logits))));
    return reduce(stable, reduction);
  }
  // (1 - t) x + (1 + (w - 1) t) log(1 + e^-x)
  const tail = add(softplus(neg(abs(logits))), maximum(neg(logits), 0));
  const extra = typeof positiveWeight === "number" ? positiveWeight - 1 : sub(positiveWeight, 1);
  const factor = add(mul(target, extra), 1);
  return reduce(add(mul(sub(1, target), logits), mul(factor, tail)), reduction);
}

/** Cross-entropy of logits (N, V) and a distribution for each row (N, V). */
export function softCrossEntropy(
  logits: Value,
  target: Operand,
  reduction: Reduction = "mean",
): Value {
  return reduce(neg(sum(mul(logSoftmax(logits, -1), target), -1)), reduction);
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

/**
 * 1 - cos(a, b) for pairs that belong together (label 1), max(0, cos(a, b) - margin) for others (-1).
 * @param labels (N,) of the vectors' type
 */
export function cosineEmbeddingLoss(
  a: Value,
  b: Value,
  labels: Value,
  margin = 0,
  reduction: Reduction = "mean",
): Value {
  const cosine = cosineSimilarity(a, b);
  const rows = where(less(0, labels), sub(1, cosine), maximum(sub(cosine, margin), 0));
  return reduce(rows, reduction);
}

/**
 * Contrastive loss over a batch in which row i of one side belongs to row i of the other
 * (InfoNCE, van den Oord et al. 2018; both directions as in CLIP, Radford et al. 2021).
 * @param a (N, D), of unit length
 * @param b (N, D), of unit length
 * @param scale 1 / temperature
 */
export function contrastiveLoss(a: Value, b: Value, scale: Operand): Value {
  const logits = mul(dot(a, b, { transB: true }), scale);
  const targets = iota(toStatic(a.shape, "contrastiveLoss")[0]!);
  const back = transpose(logits);
  return mul(add(crossEntropy(logits, targets), crossEntropy(back, targets)), 0.5);
}
