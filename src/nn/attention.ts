/** Scaled dot-product attention: causal, sliding, masked, biased, with grouped heads and a past. */
import { OptionError, ShapeError } from "../errors.ts";
import {
  add,
  and,
  cast,
  div,
  exp,
  greater,
  less,
  lessOrEqual,
  maximum,
  sub,
  where,
} from "../ir/elementwise.ts";
import { softmax } from "../ir/fused.ts";
import type { Graph, Value } from "../ir/graph.ts";
import { iota } from "../ir/indexing.ts";
import { concat, expand, reshape } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { cumSum, max, sum } from "../ir/reduce.ts";
import type { Dtype } from "../tensor/dtype.ts";
import { type Dim, type Shape, sameShape, showShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Masked scores; finite, so that a row with nothing to see gives numbers and not NaN. */
export const masked = -3e4;

export interface AttentionOptions {
  /** Position t sees positions up to t (counted from the end when there are more keys). */
  readonly causal?: boolean;
  /**
   * With `causal`: only the last `window` positions, itself included. Of a past, the n-th token that its
   * mask holds counts as position n.
   */
  readonly window?: number;
  /** Position ids of the queries and of the new keys, (B, T) int32: what a window over a past needs. */
  readonly positions?: Value;
  /** Which pairs may attend: bool, broadcastable to (B, H, T, S). */
  readonly mask?: Value;
  /** Added to the scores (ALiBi, relative positions): broadcastable to (B, H, T, S). */
  readonly bias?: Value | Tensor;
  /** Default 1 / √headDim. */
  readonly scale?: number;
  /** Earlier keys and values, (B, Hkv, P, D) each; `mask` (B, 1, 1, P) says which are there. */
  readonly past?: { readonly keys: Value; readonly values: Value; readonly mask: Value };
}

/** 0 where a pair may attend, else `masked`: (T, S). */
export function causalBias(
  queries: number,
  keys: number,
  window: number = Infinity,
  dtype: Dtype = "float32",
): Tensor {
  const offset = keys - queries;
  const bias = Float32Array.from({ length: queries * keys }, (_, i) => {
    const distance = Math.floor(i / keys) + offset - (i % keys);
    return distance >= 0 && distance < window ? 0 : masked;
  });
  return Tensor.from(bias, [queries, keys], dtype);
}

/** Slopes of Press et al. 2022 (arXiv:2108.12409) for a number of heads, a power of two or not. */
export function alibiSlopes(nHeads: number): number[] {
  const powers = (n: number): number[] =>
    Array.from({ length: n }, (_, i) => 2 ** ((-8 / n) * (i + 1)));
  const whole = 2 ** Math.floor(Math.log2(nHeads));
  const extra = powers(2 * whole).filter((_, i) => i % 2 === 0);
  return [...powers(whole), ...extra.slice(0, nHeads - whole)];
}

/** -slope · distance for each head, (1, H, T, S). */
export function alibiBias(nHeads: number, queries: number, keys: number): Tensor {
  const slopes = alibiSlopes(nHeads);
  const offset = keys - queries;
  const plane = queries * keys;
  const bias = Float32Array.from({ length: nHeads * plane }, (_, i) => {
    const row = Math.floor((i % plane) / keys);
    return -slopes[Math.floor(i / plane)]! * Math.abs(row + offset - (i % keys));
  });
  return new Tensor("float32", [1, nHeads, queries, keys], bias);
}

const biases = new Map<string, Tensor>();

/** One tensor per shape, so that equal masks are one constant. */
function sharedCausalBias(queries: number, keys: number, window: number, dtype: Dtype): Tensor {
  const key = `${queries},${keys},${window},${dtype}`;
  const known = biases.get(key);
  if (known) return known;
  const bias = causalBias(queries, keys, window, dtype);
  if (biases.size >= 64) biases.delete(biases.keys().next().value!);
  biases.set(key, bias);
  return bias;
}

/** (B, H, T, D) × (B, Hkv, S, D) → (B, H, T, S); heads of one group share their keys. */
function grouped(a: Value, b: Value, transB: boolean, alpha: number): Value {
  const [batch, heads, rows, inner] = a.shape;
  const groups = b.shape[1]!;
  if (heads === groups) return dot(a, b, { transB, alpha });
  if (typeof heads !== "number" || typeof groups !== "number" || heads % groups !== 0) {
    throw new ShapeError(`attention: ${heads} heads do not divide into ${groups} groups of keys.`);
  }
  const perGroup = heads / groups;
  const flat = reshape(a, [
    batch!,
    groups,
    typeof rows === "number" ? perGroup * rows : -1,
    inner!,
  ]);
  const product = dot(flat, b, { transB, alpha });
  return reshape(product, [batch!, heads, rows!, product.shape[3]!]);
}

/**
 * softmax(q kᵀ · scale + bias) v.
 * @param q (B, H, T, D)
 * @param k (B, Hkv, S, D), Hkv divides H
 * @param v (B, Hkv, S, Dv)
 * @returns (B, H, T, Dv)
 * @throws ShapeError when heads or sizes do not fit.
 * @throws OptionError for a window over a past without `positions`.
 */
export function attention(q: Value, k: Value, v: Value, options: AttentionOptions = {}): Value {
  if (
    q.rank !== 4 ||
    k.rank !== 4 ||
    v.rank !== 4 ||
    !sameShape(k.shape.slice(0, 3), v.shape.slice(0, 3))
  ) {
    throw new ShapeError(
      `attention: needs q (B, H, T, D), k and v (B, Hkv, S, D), got ${[q, k, v].map((x) => showShape(x.shape)).join(", ")}.`,
    );
  }
  const scores = scoresOf(q, k, options);
  if (!options.past) return grouped(softmax(scores, -1), v, false, 1);
  const { now, before, total } = overPast(q, scores, options.past, options);
  const mixed = add(grouped(now, v, false, 1), grouped(before, options.past.values, false, 1));
  return div(mixed, total);
}

/**
 * What `attention` weighs values with, as the same nodes of the graph.
 * @returns (B, H, T, S); with a past (B, H, T, P + S), the past first
 */
export function attentionProbabilities(q: Value, k: Value, options: AttentionOptions = {}): Value {
  const scores = scoresOf(q, k, options);
  if (!options.past) return softmax(scores, -1);
  const { now, before, total } = overPast(q, scores, options.past, options);
  return div(concat([before, now], -1), total);
}

function scaleOf(q: Value, { scale }: AttentionOptions): number {
  return scale ?? 1 / Math.sqrt(q.shape[3] as number);
}

/** q kᵀ · scale with all that is added to it or hidden: (B, H, T, S). */
function scoresOf(q: Value, k: Value, options: AttentionOptions): Value {
  let scores = grouped(q, k, true, scaleOf(q, options));
  if (options.causal) scores = causalScores(scores, options);
  if (options.bias) scores = add(scores, options.bias);
  if (options.mask) scores = where(options.mask, scores, masked);
  return scores;
}

/** Scores (B, H, T, S) of new keys, by the causal rule and the window. */
function causalScores(scores: Value, { window, positions, past }: AttentionOptions): Value {
  if (window !== undefined && past && !positions) {
    throw new OptionError(
      "attention: a window over a past needs positions — give those of the queries.",
    );
  }
  const [queries, keys] = scores.shape.slice(2) as [Dim, Dim];
  // By index, since the ids of padding may repeat; the window by ids where they are given.
  const span = positions ? Infinity : (window ?? Infinity);
  let seen = scores;
  if (typeof queries === "string" || typeof keys === "string") {
    const pairs = symbolicCausalMask(scores.graph, queries, keys, span);
    seen = where(pairs, seen, masked);
  } else if (queries !== 1 || span !== Infinity) {
    seen = add(seen, sharedCausalBias(queries, keys, span, scores.dtype));
  }
  if (window === undefined || !positions || queries === 1) return seen;
  return where(within(positions, unsqueezePositions(positions, 2), window), seen, masked);
}

/** Query positions (B, T) at less than `window` from key positions (B, 1, 1, S): (B, 1, T, S). */
function within(positions: Value, keys: Value, window: number): Value {
  return less(sub(unsqueezePositions(positions, 3), keys), window);
}

/** 0 … length - 1 for a length that may be a symbol. */
export function indicesTo(graph: Graph, length: Dim): Value {
  if (typeof length === "number") return iota(length);
  const ones = expand(graph.constant(Tensor.from([1], [1], "int32")), [length]);
  return sub(cumSum(ones, 0), 1);
}

/** As `causalBias`, in the graph: bool (T, S). */
function symbolicCausalMask(graph: Graph, queries: Dim, keys: Dim, window: number): Value {
  const at = (length: Dim, shape: Shape): Value => reshape(indicesTo(graph, length), shape);
  if (queries !== keys) {
    throw new ShapeError(
      `attention: a causal rule over lengths that are symbols needs as many keys as queries, got ${queries} and ${keys}.`,
    );
  }
  const distance = sub(at(queries, [queries, 1]), at(keys, [1, keys]));
  const causal = lessOrEqual(0, distance);
  return window === Infinity ? causal : and(causal, less(distance, window));
}

/** One softmax over two parts, past and new, without joining them: its numerators, and their sum. */
function overPast(
  q: Value,
  scores: Value,
  past: NonNullable<AttentionOptions["past"]>,
  options: AttentionOptions,
): { readonly now: Value; readonly before: Value; readonly total: Value } {
  const { causal, window, positions } = options;
  let pastScores = add(grouped(q, past.keys, true, scaleOf(q, options)), pastBias(past.mask));
  if (causal && window !== undefined) {
    const held = past.mask.dtype === "bool" ? past.mask : greater(past.mask, masked / 2);
    const at = sub(cumSum(cast(held, "int32"), -1), 1);
    pastScores = where(within(positions!, at, window), pastScores, masked);
  }
  const keep = { keepDims: true };
  const top = maximum(max(scores, -1, keep), max(pastScores, -1, keep));
  const [now, before] = [exp(sub(scores, top)), exp(sub(pastScores, top))];
  return { now, before, total: add(sum(now, -1, keep), sum(before, -1, keep)) };
}

function pastBias(mask: Value): Value {
  return mask.dtype === "bool" ? where(mask, 0, masked) : mask;
}

/** Key positions that a query position may see, (B, 1, T, S) bool, from position ids of both. */
export function positionMask(queries: Value, keys: Value, window?: number): Value {
  const [q, k] = [unsqueezePositions(queries, 3), unsqueezePositions(keys, 2)];
  const causal = lessOrEqual(k, q);
  return window === undefined ? causal : and(causal, less(sub(q, k), window));
}

/** (B, T) → (B, 1, T, 1) or (B, 1, 1, T). */
function unsqueezePositions(positions: Value, axis: 2 | 3): Value {
  const [batch, length] = positions.shape as Shape & [number, number];
  return reshape(positions, axis === 3 ? [batch, 1, length, 1] : [batch, 1, 1, length]);
}
