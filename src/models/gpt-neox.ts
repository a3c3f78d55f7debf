/**
 * GPT-NeoX (Pythia, Dolly): LayerNorm, one matrix for queries, keys and values, rotary positions of the first
 * dimensions of a head, and a feed-forward layer beside attention.
 *
 * Black et al., "GPT-NeoX-20B", 2022, arXiv:2204.06745. Parameter names are those of the released
 * checkpoints; projections are stored (out, in), rows of a head's queries, keys and values together.
 */
import { OptionError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import { gelu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, split } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal, zeros } from "../nn/init.ts";
import { Linear, type LinearOptions } from "../nn/linear.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { LayerNorm } from "../nn/norm.ts";
import { type Rotation, rotate } from "../nn/rope.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import { attend, type BatchSize, linearsOf, Rotations, runBlocks, splitHeads } from "./causal.ts";
import {
  flag,
  layerCount,
  oneOf,
  positive,
  positiveReal,
  readConfig,
  refuseQuantized,
} from "./config.ts";
import type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
  LayerPast,
} from "./model.ts";
import { type RopeConfig, readRope, ropeOptions, scalingToJson } from "./rope-config.ts";

type Json = Readonly<Record<string, unknown>>;

export interface GptNeoxConfig {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly dFeedForward: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly maxPositions: number;
  /** Default: base 10000, a quarter of the dimensions, no scaling. */
  readonly rope?: RopeConfig;
  /** Attention and feed-forward layer read the same input; default true. */
  readonly parallelResidual?: boolean;
  /** Default "gelu", the exact one; the others are its form by tanh. */
  readonly activation?: (typeof activations)[number];
  /** Of the projections of attention; default true. */
  readonly attentionBias?: boolean;
  /** The output layer is the embedding; default false. */
  readonly tieEmbeddings?: boolean;
  /** Under the root of LayerNorm; default 1e-5. */
  readonly epsilon?: number;
  /** Deviation of new weights; default 0.02. */
  readonly initializerRange?: number;
}

const activations = ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"] as const;

function linearOptions({ initializerRange }: GptNeoxConfig, bias = true): LinearOptions {
  const matrices = normal(initializerRange ?? 0.02);
  return { bias, init: (rng, shape) => (shape.length === 1 ? zeros : matrices)(rng, shape) };
}

class Attention extends Module {
  readonly query_key_value: Linear;
  readonly dense: Linear;
  readonly #nHeads: number;

  constructor(config: GptNeoxConfig) {
    super();
    const { dModel, nHeads, attentionBias } = config;
    this.#nHeads = nHeads;
    const options = linearOptions(config, attentionBias);
    this.query_key_value = this.child("query_key_value", new Linear(dModel, 3 * dModel, options));
    this.dense = this.child("dense", new Linear(dModel, dModel, options));
  }

  forward(
    context: Context,
    x: Value,
    size: BatchSize,
    rotation: Rotation,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [output: Value, present: LayerPast, probabilities: () => Value] {
    const headDim = this.dense.inFeatures / this.#nHeads;
    const joined = this.query_key_value.forward(context, x);
    const heads = splitHeads(joined, size, this.#nHeads, 3 * headDim);
    const [q, keys, values] = split(heads, [headDim, headDim, headDim], -1) as [
      Value,
      Value,
      Value,
    ];
    const present = { keys: rotate(keys, rotation), values };
    const { mixed, probabilities } = attend(rotate(q, rotation), present, options, past);
    return [this.dense.forward(context, mixed), present, probabilities];
  }
}

class Mlp extends Module {
  readonly dense_h_to_4h: Linear;
  readonly dense_4h_to_h: Linear;
  readonly #form: "none" | "tanh";

  constructor(config: GptNeoxConfig) {
    super();
    const { dModel, dFeedForward, activation = "gelu" } = config;
    this.#form = activation === "gelu" ? "none" : "tanh";
    const options = linearOptions(config);
    this.dense_h_to_4h = this.child("dense_h_to_4h", new Linear(dModel, dFeedForward, options));
    this.dense_4h_to_h = this.child("dense_4h_to_h", new Linear(dFeedForward, dModel, options));
  }

  forward(context: Context, x: Value): Value {
    const inner = gelu(this.dense_h_to_4h.forward(context, x), this.#form);
    return this.dense_4h_to_h.forward(context, inner);
  }
}

class Block extends Module {
  readonly input_layernorm: LayerNorm;
  readonly post_attention_layernorm: LayerNorm;
  readonly attention: Attention;
  readonly mlp: Mlp;
  readonly #isParallel: boolean;

  constructor(config: GptNeoxConfig) {
    super();
    this.#isParallel = config.parallelResidual ?? true;
    const norm = (name: string): LayerNorm =>
      this.child(name, new LayerNorm(config.dModel, { epsilon: config.epsilon ?? 1e-5 }));
    this.input_layernorm = norm("input_layernorm");
    this.post_attention_layernorm = norm("post_attention_layernorm");
    this.attention = this.child("attention", new Attention(config));
    this.mlp = this.child("mlp", new Mlp(config));
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
    const [mixed, present, attention] = this.attention.forward(
      context,
      normed,
      size,
      rotation,
      options,
      past,
    );
    const y = add(x, context.site(this.attention, normed, mixed, { stream: x, size, attention }));
    const after = this.post_attention_layernorm.forward(context, this.#isParallel ? x : y);
    const inner = this.mlp.forward(context, after);
    return [add(y, context.site(this.mlp, after, inner, { stream: y, size })), present];
  }
}

class Decoder extends Module {
  readonly embed_in: Embedding;
  readonly layers: ModuleList<Block>;
  readonly final_layer_norm: LayerNorm;

  constructor(config: GptNeoxConfig) {
    super();
    const { vocabSize, dModel, nLayers, initializerRange, epsilon } = config;
    const init = normal(initializerRange ?? 0.02);
    this.embed_in = this.child("embed_in", new Embedding(vocabSize, dModel, { init }));
    const blocks = Array.from({ length: nLayers }, () => new Block(config));
    this.layers = this.child("layers", new ModuleList(blocks));
    const norm = new LayerNorm(dModel, { epsilon: epsilon ?? 1e-5 });
    this.final_layer_norm = this.child("final_layer_norm", norm);
  }
}

export class GptNeox
  extends Network<Value, ForwardOptions, ForwardResult>
  implements LanguageModel
{
  readonly kind = "causal-lm";
  readonly family = "gpt_neox";
  readonly gpt_neox: Decoder;
  readonly embed_out: Linear | undefined;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["query_key_value"];
  readonly blocks: readonly BlockSites[];
  /** Masks and tables that older checkpoints hold. */
  readonly ignored: RegExp = /\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$/;
  readonly #rotations: Rotations;

  /** @throws OptionError when the heads do not divide the width. */
  constructor(config: GptNeoxConfig) {
    super();
    const { vocabSize, dModel, nLayers, nHeads, maxPositions, tieEmbeddings } = config;
    const headDim = dModel / nHeads;
    if (!Number.isInteger(headDim)) {
      throw new OptionError(`gpt_neox: dModel ${dModel} must be a multiple of nHeads ${nHeads}.`);
    }
    this.sizes = { vocabSize, dModel, nLayers, nHeads, nKvHeads: nHeads, headDim, maxPositions };
    this.gpt_neox = this.child("gpt_neox", new Decoder(config));
    this.targets = linearsOf(this);
    this.blocks = blockSites(this, this.gpt_neox.layers.items, dModel, ({ attention, mlp }) => ({
      attention,
      feedForward: mlp,
    }));
    this.embed_out = tieEmbeddings
      ? undefined
      : this.child("embed_out", new Linear(dModel, vocabSize, linearOptions(config, false)));
    const embedding = "gpt_neox.embed_in.weight";
    this.tied = tieEmbeddings ? { "embed_out.weight": embedding, "lm_head.weight": embedding } : {};
    const rope = config.rope ?? { theta: 10000, partial: 0.25 };
    this.config = toJson(config, rope);
    this.#rotations = new Rotations("gpt_neox", ropeOptions(rope, headDim, maxPositions));
  }

  /** See `LanguageModel`. */
  get cacheLimit(): number | undefined {
    return this.#rotations.cacheLimit;
  }

  get embedding(): Slot {
    return this.gpt_neox.embed_in.weight;
  }

  protected override pass(context: Context, ids: Value, options: ForwardOptions): ForwardResult {
    const { embed_in, layers, final_layer_norm } = this.gpt_neox;
    const size = ids.shape as BatchSize;
    const rotation = this.#rotations.of(ids, options.positions);
    const embedded = reshape(embed_in.forward(context, ids), [-1, this.sizes.dModel]);
    const { x, present } = runBlocks(
      context,
      embedded,
      size,
      layers.items,
      options,
      (block, y, past) => block.forward(context, y, size, rotation, options, past),
    );
    const hidden = final_layer_norm.forward(context, options.rows ? gather(x, options.rows) : x);
    const logits = this.embed_out
      ? this.embed_out.forward(context, hidden)
      : dot(hidden, context.get(this.embedding), { transB: true });
    return { logits, hidden, present };
  }
}

function toJson(config: GptNeoxConfig, rope: RopeConfig): Json {
  return {
    architectures: ["GPTNeoXForCausalLM"],
    model_type: "gpt_neox",
    vocab_size: config.vocabSize,
    hidden_size: config.dModel,
    intermediate_size: config.dFeedForward,
    num_hidden_layers: config.nLayers,
    num_attention_heads: config.nHeads,
    max_position_embeddings: config.maxPositions,
    hidden_act: config.activation ?? "gelu",
    layer_norm_eps: config.epsilon ?? 1e-5,
    rotary_emb_base: rope.theta,
    rotary_pct: rope.partial,
    rope_scaling: scalingToJson(rope.scaling),
    use_parallel_residual: config.parallelResidual ?? true,
    attention_bias: config.attentionBias ?? true,
    tie_word_embeddings: config.tieEmbeddings ?? false,
    initializer_range: config.initializerRange ?? 0.02,
  };
}

/**
 * A GPT-NeoX from the contents of its config.json.
 * @throws FormatError for what is missing or out of range, OptionError for what is not computed.
 */
export function gptNeoxFromConfig(json: Json): GptNeox {
  const where = "gpt_neox";
  const read = readConfig(where, json);
  refuseQuantized(where, json);
  const maxPositions = read("max_position_embeddings", positive, 2048);
  // Names of their own for the base and the share of dimensions.
  const base = read("rotary_emb_base", positiveReal, 10000);
  const rope = readRope(where, json, maxPositions, {
    theta: base,
    partial: read("rotary_pct", positiveReal, 0.25),
  });
  return new GptNeox({
    vocabSize: read("vocab_size", positive),
    dModel: read("hidden_size", positive),
    dFeedForward: read("intermediate_size", positive),
    nLayers: read("num_hidden_layers", layerCount),
    nHeads: read("num_attention_heads", positive),
    maxPositions,
    rope,
    parallelResidual: json["use_parallel_residual"] !== false,
    activation: oneOf(where, json, "hidden_act", activations, "gelu"),
    attentionBias: json["attention_bias"] !== false,
    tieEmbeddings: flag(json["tie_word_embeddings"]),
    epsilon: read("layer_norm_eps", positiveReal, 1e-5),
    initializerRange: read("initializer_range", positiveReal, 0.02),
  });
}
