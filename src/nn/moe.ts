/**
 * Mixture of experts with sparse dispatch.
 *
 * Shazeer et al. 2017, arXiv:1701.06538; Lepikhin et al., "GShard", 2021, arXiv:2006.16668 (capacity);
 * Fedus et al., "Switch Transformers", 2022, arXiv:2101.03961 (balance loss); experts as in Mixtral
 * (Jiang et al. 2024, arXiv:2401.04088).
 *
 * Each token goes to its best K experts. Its place in an expert's buffer of C rows is the number of
 * earlier assignments to that expert. What does not fit is dropped and counted: the host repeats the
 * step with a larger C, so that nothing is dropped in what it keeps.
 */
import { OptionError, ShapeError } from "../errors.ts";
import { add, cast, div, equal, less, mul, not, where } from "../ir/elementwise.ts";
import { softmax } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import {
  gather,
  gatherElements,
  iota,
  repeatInterleave,
  scatterElements,
  scatterNd,
} from "../ir/indexing.ts";
import { expand, reshape, slice, transpose, unsqueeze } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { cumSum, max, mean, sum, topK } from "../ir/reduce.ts";
import { showShape } from "../tensor/shape.ts";
import { swiglu } from "./activation.ts";
import { uniform } from "./init.ts";
import { Linear } from "./linear.ts";
import { type Context, Module, type Slot } from "./module.ts";

/** Which experts each token takes, and how much of each. */
export interface Routing {
  /** Softmax over the experts, (N, E). */
  readonly probabilities: Value;
  /** Weight of each chosen expert, (N, K). */
  readonly weights: Value;
  /** (N, K) int32 */
  readonly experts: Value;
}

/**
 * The best K experts of each token.
 * @param logits (N, E)
 * @param normalize weights of a token sum to 1 (Mixtral); else they are the probabilities (Switch)
 */
export function route(logits: Value, k: number, normalize = true): Routing {
  const probabilities = softmax(logits, -1);
  const { values, indices } = topK(probabilities, k, -1);
  const weights = normalize ? div(values, sum(values, -1, { keepDims: true })) : values;
  return { probabilities, weights, experts: indices };
}

/**
 * E Σ_e f_e P_e, f_e the assignments to expert e per token and P_e its mean probability: K when
 * balanced (Switch, equation 4, summed over the K choices).
 */
export function loadBalancingLoss({ probabilities, experts }: Routing): Value {
  const nExperts = probabilities.shape[1] as number;
  const share = div(sum(chosen(experts, nExperts, probabilities), 0), experts.shape[0] as number);
  return mul(sum(mul(share, mean(probabilities, 0))), nExperts);
}

/** 1 where an assignment (row) is to an expert (column), (N·K, E). */
function chosen(experts: Value, nExperts: number, like: Value): Value {
  return cast(equal(reshape(experts, [-1, 1]), iota(nExperts)), like.dtype);
}

/** Rows of a buffer that hold `factor` times an even share: a power of two, at most all tokens'. */
export function capacityFor(tokens: number, nExperts: number, k: number, factor = 1.25): number {
  const wanted = Math.min(tokens, Math.max(1, Math.ceil((tokens * k * factor) / nExperts)));
  return 2 ** Math.ceil(Math.log2(wanted));
}

export interface Dispatch {
  /** Rows for the experts, (E, C, D); unused ones are 0. */
  readonly rows: Value;
  /** Where each assignment went, (N·K,) int32 into E·C, and whether it fitted, bool. */
  readonly places: Value;
  readonly kept: Value;
  /** Assignments to each expert, (E,) int32. */
  readonly load: Value;
  /** Assignments that did not fit, () int32. */
  readonly overflow: Value;
}

/**
 * Puts each token into the buffers of its experts.
 * @param x (N, D)
 * @param experts (N, K) int32
 */
export function dispatch(x: Value, experts: Value, nExperts: number, capacity: number): Dispatch {
  const features = x.shape[1] as number;
  const k = experts.shape[1] as number;
  if (!Number.isInteger(capacity) || capacity < 1) {
    throw new OptionError(`moe: capacity must be a whole number from 1, got ${capacity}.`);
  }
  const flat = reshape(experts, [-1]);
  const hits = cast(equal(unsqueeze(flat, 1), iota(nExperts)), "int32");
  const earlier = cumSum(hits, 0, { exclusive: true });
  const position = reshape(gatherElements(earlier, unsqueeze(flat, 1), 1), [-1]);
  const kept = less(position, capacity);
  const place = add(mul(flat, capacity), position);
  // Assignments that do not fit go to one more row, which is cut off.
  const size = nExperts * capacity;
  const buffer = expand(x.graph.lift(0, x.dtype), [size + 1, features]);
  const written = scatterNd(
    buffer,
    unsqueeze(where(kept, place, size), 1),
    repeatInterleave(x, k, 0),
  );
  return {
    rows: reshape(slice(written, 0, 0, size), [nExperts, capacity, features]),
    places: where(kept, place, 0),
    kept,
    load: sum(hits, 0),
    overflow: sum(cast(not(kept), "int32")),
  };
}

/**
 * Brings the experts' rows back to their tokens, weighed and summed; dropped ones add nothing.
 * @param rows (E, C, D)
 * @param weights (N, K)
 * @returns (N, D)
 */
export function combine(rows: Value, { places, kept }: Dispatch, weights: Value): Value {
  const [nTokens, k] = weights.shape as readonly [number, number];
  const features = rows.shape[2] as number;
  const back = gather(reshape(rows, [-1, features]), places);
  const share = mul(reshape(weights, [-1]), cast(kept, weights.dtype));
  return sum(reshape(mul(back, unsqueeze(share, 1)), [nTokens, k, features]), 1);
}

/** SwiGLU feed-forward layers, one per expert. */
export class Experts extends Module {
  readonly count: number;
  readonly gateUp: Slot;
  readonly down: Slot;

  constructor(count: number, dModel: number, dFeedForward: number) {
    super();
    this.count = count;
    const [wide, narrow] = [1 / Math.sqrt(dModel), 1 / Math.sqrt(dFeedForward)];
    this.gateUp = this.parameter("gate_up_proj", [count, 2 * dFeedForward, dModel], uniform(wide));
    this.down = this.parameter("down_proj", [count, dModel, dFeedForward], uniform(narrow));
  }

  /** (E, C, D) → (E, C, D) */
  forward(context: Context, rows: Value): Value {
    const inner = swiglu(dot(rows, context.get(this.gateUp), { transB: true }));
    return dot(inner, context.get(this.down), { transB: true });
  }
}

export interface MoeOptions {
  readonly nExperts: number;
  /** Experts of a token; default 2. */
  readonly topK?: number;
  readonly dFeedForward: number;
  /** Weights of a token sum to 1; default true. */
  readonly normalize?: boolean;
}

export interface MoeResult {
  /** (N, D) */
  readonly output: Value;
  readonly routing: Routing;
  /** Assignments to each expert, (E,) int32. */
  readonly load: Value;
  /** Assignments dropped, () int32: when positive, repeat with at least `needed` rows. */
  readonly overflow: Value;
  /** The largest load, () int32. */
  readonly needed: Value;
}

/**
 * A mixture of SwiGLU experts: (N, D) → (N, D). Parameters: gate.weight (E, D),
 * experts.gate_up_proj (E, 2F, D), experts.down_proj (E, D, F).
 * @throws OptionError when topK is not in [1, nExperts].
 */
export class Moe extends Module {
  readonly gate: Linear;
  readonly experts: Experts;
  readonly topK: number;
  readonly #normalize: boolean;

  constructor(dModel: number, options: MoeOptions) {
    super();
    const { nExperts, dFeedForward } = options;
    this.topK = options.topK ?? 2;
    if (!Number.isInteger(this.topK) || this.topK < 1 || this.topK > nExperts) {
      throw new OptionError(`moe: topK must be in [1, ${nExperts}], got ${this.topK}.`);
    }
    this.#normalize = options.normalize ?? true;
    this.gate = this.child("gate", new Linear(dModel, nExperts, { bias: false }));
    this.experts = this.child("experts", new Experts(nExperts, dModel, dFeedForward));
  }

  /**
   * @param capacity rows of each expert's buffer; `capacityFor` gives a usual one
   * @throws ShapeError when x is not (N, D).
   */
  forward(context: Context, x: Value, capacity: number): MoeResult {
    const routing = this.#route(context, x);
    const sent = dispatch(x, routing.experts, this.experts.count, capacity);
    const output = combine(this.experts.forward(context, sent.rows), sent, routing.weights);
    const { load, overflow } = sent;
    return { output, routing, load, overflow, needed: max(load) };
  }

  /** The same by running every expert on every token: slow, for comparison. */
  dense(context: Context, x: Value): { output: Value; routing: Routing } {
    const routing = this.#route(context, x);
    const { count } = this.experts;
    const all = this.experts.forward(context, expand(unsqueeze(x, 0), [count, ...x.shape]));
    const none = expand(x.graph.lift(0, x.dtype), [x.shape[0]!, count]);
    const spread = scatterElements(none, routing.experts, routing.weights, 1);
    // (E, N, D) weighed by (E, N, 1)
    const output = sum(mul(all, unsqueeze(transpose(spread), 2)), 0);
    return { output, routing };
  }

  #route(context: Context, x: Value): Routing {
    if (x.rank !== 2) throw new ShapeError(`moe: needs (N, D), got ${showShape(x.shape)}.`);
    return route(this.gate.forward(context, x), this.topK, this.#normalize);
  }
}
