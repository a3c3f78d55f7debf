/**
 * Phi-3: a Llama whose projections of queries, keys and values are one matrix, and those of gate and inner
 * layer another; with a window in some releases, and long contexts by divisors of the rotary frequencies.
 *
 * Abdin et al., "Phi-3 Technical Report", 2024, arXiv:2404.14219. Parameter names are those of the released
 * checkpoints; projections are stored (out, in), rows of queries first, then keys, then values.
 */
import { OptionError } from "../errors.ts";
import { add, mul } from "../ir/elementwise.ts";
import { silu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { chunk, reshape, split } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal } from "../nn/init.ts";
import { Linear, type LinearOptions } from "../nn/linear.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { RmsNorm } from "../nn/norm.ts";
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

export interface Phi3Config {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly dFeedForward: number;
  readonly nLayers: number;
  readonly nHeads: number;
  /** Heads of keys and values; default nHeads. */
  readonly nKvHeads?: number;
  readonly maxPositions: number;
  /** A token sees this many positions, itself included. Default: all before it. */
  readonly slidingWindow?: number;
  /** Default: base 10000, all dimensions, no scaling. */
  readonly rope?: RopeConfig;
  /** The output layer is the embedding; default false. */
  readonly tieEmbeddings?: boolean;
  /** Added under the root of RMSNorm; default 1e-5. */
  readonly epsilon?: number;
  /** Deviation of new weights; default 0.02. */
  readonly initializerRange?: number;
}

function linearOptions({ initializerRange }: Phi3Config): LinearOptions {
  return { bias: false, init: normal(initializerRange ?? 0.02) };
}

class Attention extends Module {
  readonly qkv_proj: Linear;
  readonly o_proj: Linear;
  readonly #sizes: LanguageModelSizes;
  readonly #window: number | undefined;

  constructor(config: Phi3Config, sizes: LanguageModelSizes) {
    super();
    this.#sizes = sizes;
    this.#window = config.slidingWindow;
    const { dModel, nHeads, nKvHeads, headDim } = sizes;
    const options = linearOptions(config);
    const width = (nHeads + 2 * nKvHeads) * headDim;
    this.qkv_proj = this.child("qkv_proj", new Linear(dModel, width, options));
    this.o_proj = this.child("o_proj", new Linear(nHeads * headDim, dModel, options));
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
    const [width, kvWidth] = [nHeads * headDim, nKvHeads * headDim];
    const parts = split(this.qkv_proj.forward(context, x), [width, kvWidth, kvWidth], -1);
    const [q, keys, values] = parts.map((part, i) =>
      splitHeads(part, size, i === 0 ? nHeads : nKvHeads, headDim),
    ) as [Value, Value, Value];
    const present = { keys: rotate(keys, rotation), values };
    const window = this.#window === undefined ? {} : { window: this.#window };
    const turned = rotate(q, rotation);
    const { mixed, probabilities } = attend(turned, present, options, past, window);
    return [this.o_proj.forward(context, mixed), present, probabilities];
  }
}

class Mlp extends Module {
  readonly gate_up_proj: Linear;
  readonly down_proj: Linear;

  constructor(config: Phi3Config) {
    super();
    const { dModel, dFeedForward } = config;
    const options = linearOptions(config);
    this.gate_up_proj = this.child("gate_up_proj", new Linear(dModel, 2 * dFeedForward, options));
    this.down_proj = this.child("down_proj", new Linear(dFeedForward, dModel, options));
  }

  forward(context: Context, x: Value): Value {
    const [gate, up] = chunk(this.gate_up_proj.forward(context, x), 2, -1);
    return this.down_proj.forward(context, mul(silu(gate!), up!));
  }
}

class Block extends Module {
  readonly self_attn: Attention;
  readonly mlp: Mlp;
  readonly input_layernorm: RmsNorm;
  readonly post_attention_layernorm: RmsNorm;

  constructor(config: Phi3Config, sizes: LanguageModelSizes) {
    super();
    const norm = (name: string): RmsNorm =>
      this.child(name, new RmsNorm(config.dModel, { epsilon: config.epsilon ?? 1e-5 }));
    this.self_attn = this.child("self_attn", new Attention(config, sizes));
    this.mlp = this.child("mlp", new Mlp(config));
    this.input_layernorm = norm("input_layernorm");
    this.post_attention_layernorm = norm("post_attention_layernorm");
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

  constructor(config: Phi3Config, sizes: LanguageModelSizes) {
    super();
    const { vocabSize, dModel, nLayers, initializerRange, epsilon } = config;
    const init = normal(initializerRange ?? 0.02);
    this.embed_tokens = this.child("embed_tokens", new Embedding(vocabSize, dModel, { init }));
    const blocks = Array.from({ length: nLayers }, () => new Block(config, sizes));
    this.layers = this.child("layers", new ModuleList(blocks));
    this.norm = this.child("norm", new RmsNorm(dModel, { epsilon: epsilon ?? 1e-5 }));
  }
}

export class Phi3 extends Network<Value, ForwardOptions, ForwardResult> implements LanguageModel {
  readonly kind = "causal-lm";
  readonly family = "phi3";
  readonly model: Decoder;
  readonly lm_head: Linear | undefined;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["qkv_proj"];
  readonly blocks: readonly BlockSites[];
  readonly #rotations: Rotations;

  /** @throws OptionError for sizes that do not fit each other. */
  constructor(config: Phi3Config) {
    super();
    const { vocabSize, dModel, nLayers, nHeads, maxPositions, tieEmbeddings } = config;
    const nKvHeads = config.nKvHeads ?? nHeads;
    const headDim = dModel / nHeads;
    if (!Number.isInteger(headDim) || nHeads % nKvHeads !== 0) {
      throw new OptionError(
        `phi3: nHeads ${nHeads} must divide dModel ${dModel} and be a multiple of nKvHeads ${nKvHeads}.`,
      );
    }
    this.sizes = { vocabSize, dModel, nLayers, nHeads, nKvHeads, headDim, maxPositions };
    this.model = this.child("model", new Decoder(config, this.sizes));
    this.targets = linearsOf(this);
    this.blocks = blockSites(this, this.model.layers.items, dModel, ({ self_attn, mlp }) => ({
      attention: self_attn,
      feedForward: mlp,
    }));
    this.lm_head = tieEmbeddings
      ? undefined
      : this.child("lm_head", new Linear(dModel, vocabSize, linearOptions(config)));
    this.tied = tieEmbeddings ? { "lm_head.weight": "model.embed_tokens.weight" } : {};
    const rope = config.rope ?? { theta: 10000, partial: 1 };
    this.config = toJson(config, this.sizes, rope);
    this.#rotations = new Rotations("phi3", ropeOptions(rope, headDim, maxPositions));
  }

  get embedding(): Slot {
    return this.model.embed_tokens.weight;
  }

  /** See `LanguageModel`. */
  get cacheLimit(): number | undefined {
    return this.#rotations.cacheLimit;
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

function toJson(config: Phi3Config, sizes: LanguageModelSizes, rope: RopeConfig): Json {
  const { scaling } = rope;
  // Older readers want these three names and no other, and the original length at the top.
  const { rope_type, original_max_position_embeddings, ...factors } = scalingToJson(scaling) ?? {};
  return {
    architectures: ["Phi3ForCausalLM"],
    model_type: "phi3",
    vocab_size: sizes.vocabSize,
    hidden_size: sizes.dModel,
    intermediate_size: config.dFeedForward,
    num_hidden_layers: sizes.nLayers,
    num_attention_heads: sizes.nHeads,
    num_key_value_heads: sizes.nKvHeads,
    max_position_embeddings: sizes.maxPositions,
    original_max_position_embeddings: original_max_position_embeddings ?? sizes.maxPositions,
    hidden_act: "silu",
    rms_norm_eps: config.epsilon ?? 1e-5,
    rope_theta: rope.theta,
    partial_rotary_factor: rope.partial,
    rope_scaling: scaling ? { type: rope_type, ...factors } : null,
    sliding_window: config.slidingWindow ?? null,
    tie_word_embeddings: config.tieEmbeddings ?? false,
    attention_bias: false,
    initializer_range: config.initializerRange ?? 0.02,
    // Else those of the released models, which lie outside a smaller vocabulary.
    bos_token_id: null,
    eos_token_id: null,
    pad_token_id: null,
  };
}

/**
 * A Phi-3 from the contents of its config.json.
 * @throws FormatError for what is missing or out of range, OptionError for what is not computed.
 */
export function phi3FromConfig(json: Json): Phi3 {
  const where = "phi3";
  const read = readConfig(where, json);
  refuseQuantized(where, json);
  oneOf(where, json, "hidden_act", ["silu"], "silu");
  const [dModel, nHeads] = [read("hidden_size", positive), read("num_attention_heads", positive)];
  if (flag(json["attention_bias"]))
    throw new OptionError(`${where}: attention_bias is not supported.`);
  const headDim = json["head_dim"] ?? dModel / nHeads;
  if (headDim !== dModel / nHeads) {
    throw new OptionError(
      `${where}: head_dim ${JSON.stringify(headDim)} is not supported — it must be hidden_size / num_attention_heads, ${dModel / nHeads}.`,
    );
  }
  const maxPositions = read("max_position_embeddings", positive, 4096);
  const rope = readRope(where, json, maxPositions, {
    originalMaxPositions: read("original_max_position_embeddings", positive, 4096),
    longRopeNames: ["su", "yarn"],
  });
  if (rope.scaling && rope.scaling.type !== "longrope") {
    throw new OptionError(
      `${where}: rope scaling "${rope.scaling.type}" is not supported — known is longrope.`,
    );
  }
  const nKvHeads = json["num_key_value_heads"] ?? undefined;
  const window = json["sliding_window"] ?? undefined;
  return new Phi3({
    vocabSize: read("vocab_size", positive),
    dModel,
    dFeedForward: read("intermediate_size", positive),
    nLayers: read("num_hidden_layers", layerCount),
    nHeads,
    ...(nKvHeads !== undefined && { nKvHeads: read("num_key_value_heads", positive) }),
    maxPositions,
    ...(window !== undefined && { slidingWindow: read("sliding_window", positive) }),
    rope,
    tieEmbeddings: flag(json["tie_word_embeddings"]),
    epsilon: read("rms_norm_eps", positiveReal, 1e-5),
    initializerRange: read("initializer_range", positiveReal, 0.02),
  });
}
