/** The parts of T5: attention with biases by relative position, feed-forward layers, the stack of blocks. */
import { add, minimum, mul, relu } from "../ir/elementwise.ts";
import { gelu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, transpose, unsqueeze } from "../ir/layout.ts";
import { attention } from "../nn/attention.ts";
import { dropout } from "../nn/dropout.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, ModuleList } from "../nn/module.ts";
import { RmsNorm } from "../nn/norm.ts";
import { Tensor } from "../tensor/tensor.ts";
import { splitHeads } from "./bert-layers.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import type { LayerPast } from "./model.ts";

export interface T5Config {
  /** Default "t5". */
  readonly family?: "t5" | "mt5";
  readonly vocabSize: number;
  readonly dModel: number;
  /** Width of a head; it need not be dModel / nHeads. */
  readonly headDim: number;
  readonly dFeedForward: number;
  /** Blocks of the encoder. */
  readonly nLayers: number;
  /** Default nLayers. */
  readonly nDecoderLayers?: number;
  readonly nHeads: number;
  /** Kinds of distance that have a bias of their own; default 32. */
  readonly buckets?: number;
  /** Distances from here on share one; default 128. */
  readonly maxDistance?: number;
  /** Default 1e-6. */
  readonly epsilon?: number;
  /** "relu", or the gated form of v1.1. */
  readonly feedForward?: "relu" | "gated-gelu";
  /** Output layer is the embedding; default true. */
  readonly tieEmbeddings?: boolean;
  /** Hidden states are multiplied by dModel^-0.5 before the output layer; default as tied. */
  readonly scaleOutputs?: boolean;
  /** Share of each layer's output zeroed in training; default 0. */
  readonly dropout?: number;
  /** Longest source and answer; the model itself has no limit. Default 512. */
  readonly maxPositions?: number;
  readonly padId?: number;
  readonly endId?: number;
  readonly startId?: number;
}

/**
 * The bias that a distance takes (section 2.1): near ones have their own, farther ones share one by the
 * logarithm of the distance, in float32 as the released models were trained.
 * @param offset place of the key less place of the query
 */
export function relativeBucket(
  offset: number,
  isBothWays: boolean,
  buckets: number,
  maxDistance: number,
): number {
  const count = isBothWays ? Math.floor(buckets / 2) : buckets;
  const start = isBothWays && offset > 0 ? count : 0;
  const distance = isBothWays ? Math.abs(offset) : Math.max(0, -offset);
  const exact = Math.floor(count / 2);
  if (distance < exact) return start + distance;
  const f = Math.fround;
  const share = f(f(Math.log(f(distance / exact))) / f(Math.log(maxDistance / exact)));
  const far = exact + Math.floor(f(share * (count - exact)));
  return start + Math.min(far, count - 1);
}

type Size = readonly [batch: number | string, length: number | string];

class Attention extends Module {
  readonly q: Linear;
  readonly k: Linear;
  readonly v: Linear;
  readonly o: Linear;
  readonly relative_attention_bias: Embedding | undefined;
  readonly #nHeads: number;
  readonly #headDim: number;

  constructor(config: T5Config, hasBias: boolean) {
    super();
    const { dModel, nHeads, headDim } = config;
    this.#nHeads = nHeads;
    this.#headDim = headDim;
    const width = nHeads * headDim;
    const into = (deviation: number): object => ({ bias: false, init: normal(deviation) });
    this.q = this.child("q", new Linear(dModel, width, into((dModel * headDim) ** -0.5)));
    this.k = this.child("k", new Linear(dModel, width, into(dModel ** -0.5)));
    this.v = this.child("v", new Linear(dModel, width, into(dModel ** -0.5)));
    this.o = this.child("o", new Linear(width, dModel, into(width ** -0.5)));
    this.relative_attention_bias = hasBias
      ? this.child(
          "relative_attention_bias",
          new Embedding(config.buckets ?? 32, nHeads, { init: normal(dModel ** -0.5) }),
        )
      : undefined;
  }

  heads(context: Context, layer: Linear, x: Value, [batch, length]: Size): Value {
    return splitHeads(layer.forward(context, x), batch, length, this.#nHeads, this.#headDim);
  }

  pairs(context: Context, x: Value, size: Size): LayerPast {
    return {
      keys: this.heads(context, this.k, x, size),
      values: this.heads(context, this.v, x, size),
    };
  }

  /** @param x (B·T, D), of B rows of T */
  mix(
    context: Context,
    x: Value,
    size: Size,
    { keys, values }: LayerPast,
    options: Omit<Parameters<typeof attention>[3], "scale">,
  ): Value {
    const q = this.heads(context, this.q, x, size);
    const mixed = attention(q, keys, values, { ...options, scale: 1 });
    const width = this.#nHeads * this.#headDim;
    const merged = reshape(transpose(mixed, [0, 2, 1, 3]), [x.shape[0]!, width]);
    return this.o.forward(context, merged);
  }
}

class FeedForward extends Module {
  readonly wi: Linear | undefined;
  readonly wi_0: Linear | undefined;
  readonly wi_1: Linear | undefined;
  readonly wo: Linear;
  readonly #dropout: number;

  constructor({ dModel, dFeedForward, feedForward, dropout: rate = 0 }: T5Config) {
    super();
    this.#dropout = rate;
    const layer = (from: number, to: number): Linear =>
      new Linear(from, to, { bias: false, init: normal(from ** -0.5) });
    const isGated = feedForward === "gated-gelu";
    this.wi = isGated ? undefined : this.child("wi", layer(dModel, dFeedForward));
    this.wi_0 = isGated ? this.child("wi_0", layer(dModel, dFeedForward)) : undefined;
    this.wi_1 = isGated ? this.child("wi_1", layer(dModel, dFeedForward)) : undefined;
    this.wo = this.child("wo", layer(dFeedForward, dModel));
  }

  forward(context: Context, x: Value): Value {
    const inner = this.wi
      ? relu(this.wi.forward(context, x))
      : mul(gelu(this.wi_0!.forward(context, x), "tanh"), this.wi_1!.forward(context, x));
    return this.wo.forward(context, dropout(context, inner, this.#dropout, this));
  }
}

/** One of a block's parts: what comes in is normalised, and what comes out is added to it. */
class Sublayer<M extends Module> extends Module {
  readonly inner: M;
  readonly layer_norm: RmsNorm;
  readonly #dropout: number;

  constructor(name: string, inner: M, { dModel, epsilon = 1e-6, dropout: rate = 0 }: T5Config) {
    super();
    this.#dropout = rate;
    this.inner = this.child(name, inner);
    this.layer_norm = this.child("layer_norm", new RmsNorm(dModel, { epsilon }));
  }

  forward(context: Context, x: Value, size: Size, run: (inner: M, normed: Value) => Value): Value {
    const normed = this.layer_norm.forward(context, x);
    const y = dropout(context, run(this.inner, normed), this.#dropout, this);
    return add(x, context.site(this.inner, normed, y, { stream: x, size }));
  }
}

class Block extends Module {
  readonly self: Sublayer<Attention>;
  readonly cross: Sublayer<Attention> | undefined;
  readonly feedForward: Sublayer<FeedForward>;

  constructor(config: T5Config, isDecoder: boolean, hasBias: boolean) {
    super();
    this.self = new Sublayer("SelfAttention", new Attention(config, hasBias), config);
    this.cross = isDecoder
      ? new Sublayer("EncDecAttention", new Attention(config, false), config)
      : undefined;
    this.feedForward = new Sublayer("DenseReluDense", new FeedForward(config), config);
    const parts: Module[] = [this.self, ...(this.cross ? [this.cross] : []), this.feedForward];
    this.child("layer", new ModuleList(parts));
  }
}

/** One side of the model. */
export class Stack extends Module {
  readonly block: ModuleList<Block>;
  readonly final_layer_norm: RmsNorm;
  readonly #config: T5Config;
  readonly #isDecoder: boolean;

  constructor(config: T5Config, isDecoder: boolean) {
    super();
    this.#config = config;
    this.#isDecoder = isDecoder;
    const count = isDecoder ? (config.nDecoderLayers ?? config.nLayers) : config.nLayers;
    const blocks = Array.from({ length: count }, (_, i) => new Block(config, isDecoder, i === 0));
    this.block = this.child("block", new ModuleList(blocks));
    const { dModel, epsilon = 1e-6 } = config;
    this.final_layer_norm = this.child("final_layer_norm", new RmsNorm(dModel, { epsilon }));
  }

  /** @param model in whose tree this stack stands */
  blockSites(model: Module): BlockSites[] {
    return blockSites(model, this.block.items, this.#config.dModel, ({ self, feedForward }) => ({
      attention: self.inner,
      feedForward: feedForward.inner,
    }));
  }

  /** Table of biases, (buckets, H). */
  #table(context: Context): Value {
    return context.get(this.block.items[0]!.self.inner.relative_attention_bias!.weight);
  }

  bucket(offset: number): number {
    const { buckets = 32, maxDistance = 128 } = this.#config;
    return relativeBucket(offset, !this.#isDecoder, buckets, maxDistance);
  }

  /** Biases of T places among themselves, (1, H, T, T). */
  bias(context: Context, length: number): Value {
    const rows = Int32Array.from({ length: length * length }, (_, i) =>
      this.bucket((i % length) - Math.floor(i / length)),
    );
    const found = gather(this.#table(context), Tensor.from(rows, [length, length], "int32"));
    return unsqueeze(transpose(found, [2, 0, 1]), 0);
  }

  /** Biases of one place and P earlier ones, (1, H, 1, P), by their distances (1, P). */
  pastBias(context: Context, distances: Value): Value {
    const { maxDistance = 128 } = this.#config;
    const rows = Int32Array.from({ length: maxDistance + 1 }, (_, i) => this.bucket(-i));
    const near = minimum(distances, Tensor.scalar(maxDistance, "int32"));
    const found = gather(
      this.#table(context),
      gather(Tensor.from(rows, [rows.length], "int32"), near),
    );
    return unsqueeze(transpose(found, [2, 0, 1]), 0);
  }
}
