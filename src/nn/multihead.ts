/** Attention with its projections. */
import { OptionError, ShapeError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { type Shape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type AttentionOptions, alibiBias, attention } from "./attention.ts";
import { xavierUniform, zeros } from "./init.ts";
import { Linear } from "./linear.ts";
import { type Context, type Initializer, Module } from "./module.ts";
import { type Rotation, rotate } from "./rope.ts";

export interface MultiHeadOptions {
  /** Features of keys and values where they come from elsewhere; default dModel. */
  readonly kvFeatures?: number;
  /** Heads of keys and values; default nHeads. */
  readonly nKvHeads?: number;
  /** Default dModel / nHeads. */
  readonly headDim?: number;
  /** Default true. */
  readonly bias?: boolean;
  /** Position t sees positions up to t. */
  readonly causal?: boolean;
  /** With `causal`: only the last `window` positions. */
  readonly window?: number;
  /** Scores fall with distance, by a slope of each head (Press et al. 2022). */
  readonly alibi?: boolean;
  readonly init?: Initializer;
}

export interface MultiHeadInputs {
  /** Where keys and values come from, (B, S, kvFeatures); default x itself. */
  readonly memory?: Value;
  /** Which pairs may attend: bool, broadcastable to (B, H, T, S). */
  readonly mask?: Value;
  /** Added to the scores, broadcastable to (B, H, T, S). */
  readonly bias?: Value | Tensor;
  /** Rotary positions of queries and keys. */
  readonly rotation?: Rotation;
}

const matrices: Initializer = (rng, shape) =>
  (shape.length === 1 ? zeros : xavierUniform)(rng, shape);

/**
 * Vaswani et al. 2017, with grouped keys: (B, T, dModel) → (B, T, dModel).
 * Parameters: q_proj, k_proj, v_proj, out_proj, each weight (out, in) and bias (out,).
 * @throws OptionError when heads do not divide the features, or the groups the heads.
 */
export class MultiHeadAttention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly out_proj: Linear;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly #options: MultiHeadOptions;

  constructor(dModel: number, nHeads: number, options: MultiHeadOptions = {}) {
    super();
    this.nHeads = nHeads;
    this.nKvHeads = options.nKvHeads ?? nHeads;
    this.headDim = options.headDim ?? dModel / nHeads;
    if (!Number.isInteger(this.headDim)) {
      throw new OptionError(
        `multiHeadAttention: dModel ${dModel} must be a multiple of nHeads ${nHeads}.`,
      );
    }
    if (nHeads % this.nKvHeads !== 0) {
      throw new OptionError(
        `multiHeadAttention: nHeads ${nHeads} must be a multiple of nKvHeads ${this.nKvHeads}.`,
      );
    }
    this.#options = options;
    const kvFeatures = options.kvFeatures ?? dModel;
    const [width, kvWidth] = [nHeads * this.headDim, this.nKvHeads * this.headDim];
    const linear = { bias: options.bias ?? true, init: options.init ?? matrices };
    this.q_proj = this.child("q_proj", new Linear(dModel, width, linear));
    this.k_proj = this.child("k_proj", new Linear(kvFeatures, kvWidth, linear));
    this.v_proj = this.child("v_proj", new Linear(kvFeatures, kvWidth, linear));
    this.out_proj = this.child("out_proj", new Linear(width, dModel, linear));
  }

  /** @throws ShapeError when x or memory is not (B, T, features). */
  forward(context: Context, x: Value, inputs: MultiHeadInputs = {}): Value {
    const memory = inputs.memory ?? x;
    if (x.rank !== 3 || memory.rank !== 3) {
      throw new ShapeError(
        `multiHeadAttention: needs (B, T, features), got ${showShape(x.shape)} and ${showShape(memory.shape)}.`,
      );
    }
    const { causal, window, alibi } = this.#options;
    const turn = (heads: Value): Value =>
      inputs.rotation ? rotate(heads, inputs.rotation) : heads;
    const q = turn(this.#heads(this.q_proj.forward(context, x), this.nHeads));
    const k = turn(this.#heads(this.k_proj.forward(context, memory), this.nKvHeads));
    const v = this.#heads(this.v_proj.forward(context, memory), this.nKvHeads);
    const [queries, keys] = [x.shape[1] as number, memory.shape[1] as number];
    if (alibi && inputs.bias) {
      throw new OptionError("multiHeadAttention: give a bias or alibi, not both.");
    }
    const bias = alibi ? alibiBias(this.nHeads, queries, keys) : inputs.bias;
    const options: AttentionOptions = {
      causal: causal ?? false,
      ...(window !== undefined && { window }),
      ...(inputs.mask && { mask: inputs.mask }),
      ...(bias && { bias }),
    };
    const mixed = transpose(attention(q, k, v, options), [0, 2, 1, 3]);
    const merged = reshape(mixed, [...(x.shape.slice(0, 2) as Shape), this.out_proj.inFeatures]);
    return this.out_proj.forward(context, merged);
  }

  /** (B, T, H·D) → (B, H, T, D) */
  #heads(x: Value, count: number): Value {
    const split = reshape(x, [x.shape[0]!, x.shape[1]!, count, this.headDim]);
    return transpose(split, [0, 2, 1, 3]);
  }
}
