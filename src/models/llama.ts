/**
 * Llama: a decoder with rotary positions, grouped keys, RMSNorm and a gated feed-forward layer; and the
 * families that are settings of it (Mistral, Qwen2, Qwen3).
 *
 * Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023, arXiv:2307.09288; Jiang et
 * al., "Mistral 7B", 2023, arXiv:2310.06825; Qwen Team, arXiv:2412.15115 and arXiv:2505.09388.
 * Parameter names are those of the released checkpoints; projections are stored (out, in).
 */
import { OptionError } from "../errors.ts";
import { add, mul } from "../ir/elementwise.ts";
import { silu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal, zeros } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, type Initializer, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { RmsNorm } from "../nn/norm.ts";
import { type RopeOptions, type Rotation, rotate } from "../nn/rope.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import { attend, type BatchSize, linearsOf, Rotations, runBlocks, splitHeads } from "./causal.ts";
import {
  checkLlamaConfig,
  type LlamaConfig,
  llamaToJson,
  llamaVariants,
  readLlamaConfig,
} from "./llama-config.ts";
import type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
  LayerPast,
} from "./model.ts";

/** Matrices normal, biases zero. */
function initOf({ initializerRange }: LlamaConfig): Initializer {
  const matrices = normal(initializerRange ?? 0.02);
  return (rng, shape) => (shape.length === 1 ? zeros : matrices)(rng, shape);
}

class Attention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly o_proj: Linear;
  readonly q_norm: RmsNorm | undefined;
  readonly k_norm: RmsNorm | undefined;
  readonly #sizes: LanguageModelSizes;
  readonly #window: number | undefined;

  constructor(config: LlamaConfig, sizes: LanguageModelSizes, layer: number) {
    super();
    this.#sizes = sizes;
    this.#window = (config.slidingLayers?.[layer] ?? true) ? config.slidingWindow : undefined;
    const { dModel, attentionBias = false } = config;
    const { qkvBias, qkNorm } = llamaVariants[config.family ?? "llama"];
    const init = initOf(config);
    const into = { bias: attentionBias || qkvBias, init };
    const width = sizes.nHeads * sizes.headDim;
    const kvWidth = sizes.nKvHeads * sizes.headDim;
    this.q_proj = this.child("q_proj", new Linear(dModel, width, into));
    this.k_proj = this.child("k_proj", new Linear(dModel, kvWidth, into));
    this.v_proj = this.child("v_proj", new Linear(dModel, kvWidth, into));
    this.o_proj = this.child("o_proj", new Linear(width, dModel, { bias: attentionBias, init }));
    const norm = (name: string): RmsNorm | undefined =>
      qkNorm
        ? this.child(name, new RmsNorm(sizes.headDim, { epsilon: config.epsilon ?? 1e-5 }))
        : undefined;
    this.q_norm = norm("q_norm");
    this.k_norm = norm("k_norm");
  }

  forward(
    context: Context,
    x: Value,
    size: BatchSize,
    rotation: Rotation,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [output: Value, present: LayerPast, probabilities: () => Value] {
    const { nHeads, nKvHeads, headDim } = this.#sizes;
    const heads = (layer: Linear, count: number, norm?: RmsNorm): Value => {
      const split = splitHeads(layer.forward(context, x), size, count, headDim);
      return norm ? norm.forward(context, split) : split;
    };
    const q = rotate(heads(this.q_proj, nHeads, this.q_norm), rotation);
    const present = {
      keys: rotate(heads(this.k_proj, nKvHeads, this.k_norm), rotation),
      values: heads(this.v_proj, nKvHeads),
    };
    const window = this.#window;
    const limits = window === undefined ? {} : { window };
    const { mixed, probabilities } = attend(q, present, options, past, limits);
    return [this.o_proj.forward(context, mixed), present, probabilities];
  }
}

class Mlp extends Module {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;

  constructor(config: LlamaConfig) {
    super();
    const { dModel, dFeedForward, mlpBias = false } = config;
    const options = { bias: mlpBias, init: initOf(config) };
    this.gate_proj = this.child("gate_proj", new Linear(dModel, dFeedForward, options));
    this.up_proj = this.child("up_proj", new Linear(dModel, dFeedForward, options));
    this.down_proj = this.child("down_proj", new Linear(dFeedForward, dModel, options));
  }

  forward(context: Context, x: Value): Value {
    const gate = silu(this.gate_proj.forward(context, x));
    return this.down_proj.forward(context, mul(gate, this.up_proj.forward(context, x)));
  }
}

class Block extends Module {
  readonly input_layernorm: RmsNorm;
  readonly self_attn: Attention;
  readonly post_attention_layernorm: RmsNorm;
  readonly mlp: Mlp;

  constructor(config: LlamaConfig, sizes: LanguageModelSizes, layer: number) {
    super();
    const norm = { epsilon: config.epsilon ?? 1e-5 };
    this.self_attn = this.child("self_attn", new Attention(config, sizes, layer));
    this.mlp = this.child("mlp", new Mlp(config));
    this.input_layernorm = this.child("input_layernorm", new RmsNorm(config.dModel, norm));
    this.post_attention_layernorm = this.child(
      "post_attention_layernorm",
      new RmsNorm(config.dModel, norm),
    );
  }

  forward(
    context: Context,
    x: Value,
    size: BatchSize,
    rotation: Rotation,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [Value, LayerPast] {
    const normed = this.input_layernorm.forward(context, x);
    const [mixed, present, attention] = this.self_attn.forward(
      context,
      normed,
      size,
      rotation,
      options,
      past,
    );
    const y = add(x, context.site(this.self_attn, normed, mixed, { stream: x, size, attention }));
    const after = this.post_attention_layernorm.forward(context, y);
    const inner = this.mlp.forward(context, after);
    return [add(y, context.site(this.mlp, after, inner, { stream: y, size })), present];
  }
}

class Decoder extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: ModuleList<Block>;
  readonly norm: RmsNorm;

  constructor(config: LlamaConfig, sizes: LanguageModelSizes) {
    super();
    const init = initOf(config);
    this.embed_tokens = this.child(
      "embed_tokens",
      new Embedding(config.vocabSize, config.dModel, { init }),
    );
    const blocks = Array.from({ length: config.nLayers }, (_, i) => new Block(config, sizes, i));
    this.layers = this.child("layers", new ModuleList(blocks));
    this.norm = this.child("norm", new RmsNorm(config.dModel, { epsilon: config.epsilon ?? 1e-5 }));
  }
}

export class Llama extends Network<Value, ForwardOptions, ForwardResult> implements LanguageModel {
  readonly kind = "causal-lm";
  readonly family: string;
  readonly model: Decoder;
  readonly lm_head: Linear | undefined;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["q_proj", "v_proj"];
  readonly blocks: readonly BlockSites[];
  readonly #rotations: Rotations;

  /** @throws OptionError for sizes that do not fit, and settings that the family does not have. */
  constructor(config: LlamaConfig) {
    super();
    this.family = config.family ?? "llama";
    const nKvHeads = config.nKvHeads ?? config.nHeads;
    if (config.nHeads % nKvHeads !== 0) {
      throw new OptionError(
        `${this.family}: nHeads ${config.nHeads} must be a multiple of nKvHeads ${nKvHeads}.`,
      );
    }
    const headDim = config.headDim ?? config.dModel / config.nHeads;
    if (!Number.isInteger(headDim)) {
      throw new OptionError(
        `${this.family}: dModel ${config.dModel} must be a multiple of nHeads ${config.nHeads}.`,
      );
    }
    checkLlamaConfig(config);
    const { vocabSize, dModel, nLayers, nHeads, maxPositions } = config;
    this.sizes = { vocabSize, dModel, nLayers, nHeads, nKvHeads, headDim, maxPositions };
    this.model = this.child("model", new Decoder(config, this.sizes));
    this.targets = linearsOf(this);
    this.blocks = blockSites(this, this.model.layers.items, dModel, ({ self_attn, mlp }) => ({
      attention: self_attn,
      feedForward: mlp,
    }));
    const init = initOf(config);
    this.lm_head = config.tieEmbeddings
      ? undefined
      : this.child("lm_head", new Linear(dModel, vocabSize, { bias: false, init }));
    this.tied = config.tieEmbeddings ? { "lm_head.weight": "model.embed_tokens.weight" } : {};
    this.config = llamaToJson(config, this.sizes);
    const { ropeTheta, ropeScaling } = config;
    this.#rotations = new Rotations(this.family, {
      headDim,
      theta: ropeTheta ?? 10000,
      maxPositions,
      ...(ropeScaling && { scaling: ropeScaling }),
    });
  }

  /** Positions' rotation. */
  get rope(): RopeOptions {
    return this.#rotations.options;
  }

  /** See `LanguageModel`. */
  get cacheLimit(): number | undefined {
    return this.#rotations.cacheLimit;
  }

  get embedding(): Slot {
    return this.model.embed_tokens.weight;
  }

  protected override pass(context: Context, ids: Value, options: ForwardOptions): ForwardResult {
    const { embed_tokens, layers, norm } = this.model;
    const size = ids.shape as BatchSize;
    const rotation = this.#rotations.of(ids, options.positions);
    const embedded = reshape(embed_tokens.forward(context, ids), [-1, this.sizes.dModel]);
    const { x, present } = runBlocks(
      context,
      embedded,
      size,
      layers.items,
      options,
      (block, y, past) => block.forward(context, y, size, rotation, options, past),
    );
    const hidden = norm.forward(context, options.rows ? gather(x, options.rows) : x);
    const logits = this.lm_head
      ? this.lm_head.forward(context, hidden)
      : dot(hidden, context.get(this.embedding), { transB: true });
    return { logits, hidden, present };
  }
}

/** A Llama, Mistral, Qwen2 or Qwen3 from the contents of its config.json. */
export function llamaFromConfig(json: Readonly<Record<string, unknown>>): Llama {
  return new Llama(readLlamaConfig(json));
}
