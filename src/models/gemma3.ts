/**
 * Gemma 3, the language model: norms before and after each layer, normalised queries and keys, a gated GELU,
 * and layers that see a window of the text between layers that see all of it, with a rotary base of their own.
 *
 * Gemma Team, "Gemma 3 Technical Report", 2025, arXiv:2503.19786. Parameter names are those of the released
 * checkpoints (Gemma3ForCausalLM); projections are stored (out, in), the weights of norms as the difference
 * from 1. Embeddings are multiplied by √dModel, and are the output layer too.
 */
import { OptionError } from "../errors.ts";
import { add, div, mul, tanh } from "../ir/elementwise.ts";
import { gelu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal, zeros } from "../nn/init.ts";
import { Linear, type LinearOptions } from "../nn/linear.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { Network } from "../nn/network.ts";
import { RmsNorm } from "../nn/norm.ts";
import { type RopeScaling, type Rotation, rotate } from "../nn/rope.ts";
import { type BlockSites, blockSites } from "./blocks.ts";
import { attend, type BatchSize, linearsOf, Rotations, runBlocks, splitHeads } from "./causal.ts";
import {
  flag,
  layerCount,
  oneOf,
  positive,
  positiveReal,
  readConfig,
  readLayerTypes,
  refuseQuantized,
} from "./config.ts";
import type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
  LayerPast,
} from "./model.ts";
import { readScaling, scalingToJson } from "./rope-config.ts";

type Json = Readonly<Record<string, unknown>>;

export interface Gemma3Config {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly dFeedForward: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  /** 256 in the released models. */
  readonly headDim: number;
  readonly maxPositions: number;
  /** Positions that a local layer sees, the token's own included; 512 or 1024 in the released models. */
  readonly slidingWindow: number;
  /** Which layers are local; five of six in the released models. */
  readonly slidingLayers: readonly boolean[];
  /** Scores are divided by its root; default 256. */
  readonly queryPreAttnScalar?: number;
  /** Base of the rotary wavelengths of global and of local layers; default 1e6 and 1e4. */
  readonly ropeTheta?: number;
  readonly localRopeTheta?: number;
  /** Of the global layers. */
  readonly ropeScaling?: RopeScaling;
  /** Logits are bent to c tanh(x / c); default: they are not. */
  readonly logitSoftcap?: number;
  readonly attentionBias?: boolean;
  /** Added under the root of RMSNorm; default 1e-6. */
  readonly epsilon?: number;
  /** Deviation of new weights; default 0.02. */
  readonly initializerRange?: number;
}

function linearOptions({ initializerRange }: Gemma3Config, bias = false): LinearOptions {
  const matrices = normal(initializerRange ?? 0.02);
  return { bias, init: (rng, shape) => (shape.length === 1 ? zeros : matrices)(rng, shape) };
}

function normOf({ epsilon }: Gemma3Config, features: number): RmsNorm {
  return new RmsNorm(features, { epsilon: epsilon ?? 1e-6, offset: 1 });
}

class Attention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly o_proj: Linear;
  readonly q_norm: RmsNorm;
  readonly k_norm: RmsNorm;
  readonly #config: Gemma3Config;
  readonly #isLocal: boolean;

  constructor(config: Gemma3Config, isLocal: boolean) {
    super();
    this.#config = config;
    this.#isLocal = isLocal;
    const { dModel, nHeads, nKvHeads, headDim } = config;
    const options = linearOptions(config, config.attentionBias);
    this.q_proj = this.child("q_proj", new Linear(dModel, nHeads * headDim, options));
    this.k_proj = this.child("k_proj", new Linear(dModel, nKvHeads * headDim, options));
    this.v_proj = this.child("v_proj", new Linear(dModel, nKvHeads * headDim, options));
    this.o_proj = this.child("o_proj", new Linear(nHeads * headDim, dModel, options));
    this.q_norm = this.child("q_norm", normOf(config, headDim));
    this.k_norm = this.child("k_norm", normOf(config, headDim));
  }

  forward(
    context: Context,
    x: Value,
    size: BatchSize,
    rotation: Rotation,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [output: Value, present: LayerPast, probabilities: () => Value] {
    const { nHeads, nKvHeads, headDim, slidingWindow, queryPreAttnScalar } = this.#config;
    const heads = (layer: Linear, count: number): Value =>
      splitHeads(layer.forward(context, x), size, count, headDim);
    const turned = (norm: RmsNorm, split: Value): Value =>
      rotate(norm.forward(context, split), rotation);
    const q = turned(this.q_norm, heads(this.q_proj, nHeads));
    const present = {
      keys: turned(this.k_norm, heads(this.k_proj, nKvHeads)),
      values: heads(this.v_proj, nKvHeads),
    };
    const { mixed, probabilities } = attend(q, present, options, past, {
      scale: 1 / Math.sqrt(queryPreAttnScalar ?? 256),
      ...(this.#isLocal && { window: slidingWindow }),
    });
    return [this.o_proj.forward(context, mixed), present, probabilities];
  }
}

class Mlp extends Module {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;

  constructor(config: Gemma3Config) {
    super();
    const { dModel, dFeedForward } = config;
    const options = linearOptions(config);
    this.gate_proj = this.child("gate_proj", new Linear(dModel, dFeedForward, options));
    this.up_proj = this.child("up_proj", new Linear(dModel, dFeedForward, options));
    this.down_proj = this.child("down_proj", new Linear(dFeedForward, dModel, options));
  }

  forward(context: Context, x: Value): Value {
    const gate = gelu(this.gate_proj.forward(context, x), "tanh");
    return this.down_proj.forward(context, mul(gate, this.up_proj.forward(context, x)));
  }
}

class Block extends Module {
  readonly self_attn: Attention;
  readonly mlp: Mlp;
  readonly input_layernorm: RmsNorm;
  readonly post_attention_layernorm: RmsNorm;
  readonly pre_feedforward_layernorm: RmsNorm;
  readonly post_feedforward_layernorm: RmsNorm;

  constructor(config: Gemma3Config, isLocal: boolean) {
    super();
    const norm = (name: string): RmsNorm => this.child(name, normOf(config, config.dModel));
    this.self_attn = this.child("self_attn", new Attention(config, isLocal));
    this.mlp = this.child("mlp", new Mlp(config));
    this.input_layernorm = norm("input_layernorm");
    this.post_attention_layernorm = norm("post_attention_layernorm");
    this.pre_feedforward_layernorm = norm("pre_feedforward_layernorm");
    this.post_feedforward_layernorm = norm("post_feedforward_layernorm");
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
    const [raw, present, attention] = this.self_attn.forward(
      context,
      normed,
      size,
      rotation,
      options,
      past,
    );
    // Sites see what is added to the stream: after the norm.
    const mixed = this.post_attention_layernorm.forward(context, raw);
    const y = add(x, context.site(this.self_attn, normed, mixed, { stream: x, size, attention }));
    const after = this.pre_feedforward_layernorm.forward(context, y);
    const inner = this.post_feedforward_layernorm.forward(
      context,
      this.mlp.forward(context, after),
    );
    return [add(y, context.site(this.mlp, after, inner, { stream: y, size })), present];
  }
}

class Decoder extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: ModuleList<Block>;
  readonly norm: RmsNorm;

  constructor(config: Gemma3Config) {
    super();
    const { vocabSize, dModel, initializerRange } = config;
    const init = normal(initializerRange ?? 0.02);
    this.embed_tokens = this.child("embed_tokens", new Embedding(vocabSize, dModel, { init }));
    const blocks = config.slidingLayers.map((isLocal) => new Block(config, isLocal));
    this.layers = this.child("layers", new ModuleList(blocks));
    this.norm = this.child("norm", normOf(config, dModel));
  }
}

export class Gemma3 extends Network<Value, ForwardOptions, ForwardResult> implements LanguageModel {
  readonly kind = "causal-lm";
  readonly family = "gemma3_text";
  readonly model: Decoder;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>> = {
    "lm_head.weight": "model.embed_tokens.weight",
  };
  readonly defaultTargets: readonly string[] = ["q_proj", "v_proj"];
  readonly blocks: readonly BlockSites[];
  readonly #config: Gemma3Config;
  readonly #local: Rotations;
  readonly #global: Rotations;

  /** @throws OptionError for sizes that do not fit each other. */
  constructor(config: Gemma3Config) {
    super();
    const { nHeads, nKvHeads, nLayers, headDim, maxPositions, slidingLayers } = config;
    if (nHeads % nKvHeads !== 0) {
      throw new OptionError(`gemma3: nHeads ${nHeads} must be a multiple of nKvHeads ${nKvHeads}.`);
    }
    if (slidingLayers.length !== nLayers) {
      throw new OptionError(
        `gemma3: slidingLayers must name ${nLayers} layers, got ${slidingLayers.length}.`,
      );
    }
    this.#config = config;
    this.sizes = {
      vocabSize: config.vocabSize,
      dModel: config.dModel,
      nLayers,
      nHeads,
      nKvHeads,
      headDim,
      maxPositions,
    };
    this.model = this.child("model", new Decoder(config));
    this.targets = linearsOf(this);
    const { items } = this.model.layers;
    this.blocks = blockSites(this, items, config.dModel, ({ self_attn, mlp }) => ({
      attention: self_attn,
      feedForward: mlp,
    }));
    this.config = toJson(config);
    const { ropeTheta, localRopeTheta, ropeScaling } = config;
    this.#local = new Rotations("gemma3", { headDim, maxPositions, theta: localRopeTheta ?? 1e4 });
    this.#global = new Rotations("gemma3", {
      headDim,
      maxPositions,
      theta: ropeTheta ?? 1e6,
      ...(ropeScaling && { scaling: ropeScaling }),
    });
  }

  get embeddingScale(): number {
    return Math.sqrt(this.sizes.dModel);
  }

  /** See `LanguageModel`. */
  get cacheLimit(): number | undefined {
    return this.#global.cacheLimit;
  }

  get embedding(): Slot {
    return this.model.embed_tokens.weight;
  }

  protected override pass(context: Context, ids: Value, options: ForwardOptions): ForwardResult {
    const { embed_tokens, layers, norm } = this.model;
    const { slidingLayers, logitSoftcap } = this.#config;
    const { dModel } = this.sizes;
    const size = ids.shape as BatchSize;
    const local = this.#local.of(ids, options.positions);
    const global = this.#global.of(ids, options.positions);
    const embedded = reshape(embed_tokens.forward(context, ids), [-1, dModel]);
    const scaled = mul(embedded, this.embeddingScale);
    const { x, present } = runBlocks(
      context,
      scaled,
      size,
      layers.items,
      options,
      (block, y, past, index) =>
        block.forward(context, y, size, slidingLayers[index] ? local : global, options, past),
    );
    const hidden = norm.forward(context, options.rows ? gather(x, options.rows) : x);
    const raw = dot(hidden, context.get(this.embedding), { transB: true });
    const logits = logitSoftcap ? mul(tanh(div(raw, logitSoftcap)), logitSoftcap) : raw;
    return { logits, hidden, present };
  }
}

function toJson(config: Gemma3Config): Json {
  return {
    architectures: ["Gemma3ForCausalLM"],
    model_type: "gemma3_text",
    vocab_size: config.vocabSize,
    hidden_size: config.dModel,
    intermediate_size: config.dFeedForward,
    num_hidden_layers: config.nLayers,
    num_attention_heads: config.nHeads,
    num_key_value_heads: config.nKvHeads,
    head_dim: config.headDim,
    max_position_embeddings: config.maxPositions,
    hidden_activation: "gelu_pytorch_tanh",
    rms_norm_eps: config.epsilon ?? 1e-6,
    query_pre_attn_scalar: config.queryPreAttnScalar ?? 256,
    sliding_window: config.slidingWindow,
    layer_types: config.slidingLayers.map((isLocal) =>
      isLocal ? "sliding_attention" : "full_attention",
    ),
    rope_theta: config.ropeTheta ?? 1e6,
    rope_local_base_freq: config.localRopeTheta ?? 1e4,
    rope_scaling: scalingToJson(config.ropeScaling),
    final_logit_softcapping: config.logitSoftcap ?? null,
    attn_logit_softcapping: null,
    attention_bias: config.attentionBias ?? false,
    tie_word_embeddings: true,
    initializer_range: config.initializerRange ?? 0.02,
  };
}

/** Bases and scaling: of older files at the top, of newer ones by type of layer in `rope_parameters`. */
function readRopes(
  json: Json,
  originalMaxPositions: number,
): Pick<Gemma3Config, "ropeTheta" | "localRopeTheta" | "ropeScaling"> {
  const parameters = (json["rope_parameters"] ?? {}) as Json;
  const of = (type: string): Json => (parameters[type] ?? {}) as Json;
  const [full, sliding] = [of("full_attention"), of("sliding_attention")];
  const number = (key: string, value: unknown, missing: number): number =>
    readConfig("gemma3", { [key]: value ?? missing })(key, positiveReal);
  const scaled = { ...full, ...((json["rope_scaling"] ?? {}) as Json) };
  const scaling = readScaling("gemma3", scaled, { originalMaxPositions });
  if (readScaling("gemma3", sliding, { originalMaxPositions })) {
    throw new OptionError("gemma3: a rope scaling of sliding_attention is not supported.");
  }
  return {
    ropeTheta: number("rope_theta", full["rope_theta"] ?? json["rope_theta"], 1e6),
    localRopeTheta: number(
      "rope_local_base_freq",
      sliding["rope_theta"] ?? json["rope_local_base_freq"],
      1e4,
    ),
    ...(scaling && { ropeScaling: scaling }),
  };
}

/**
 * A Gemma 3 from the contents of its config.json.
 * @throws FormatError for what is missing or out of range, OptionError for what is not computed.
 */
export function gemma3FromConfig(json: Json): Gemma3 {
  const where = "gemma3";
  const read = readConfig(where, json);
  refuseQuantized(where, json);
  oneOf(where, json, "hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh");
  for (const key of ["use_bidirectional_attention", "attn_logit_softcapping"]) {
    if (json[key]) throw new OptionError(`${where}: ${key} is not supported.`);
  }
  if (json["tie_word_embeddings"] === false) {
    throw new OptionError(`${where}: tie_word_embeddings false is not supported.`);
  }
  const nLayers = read("num_hidden_layers", layerCount);
  const every = read("sliding_window_pattern", positive, 6);
  const maxPositions = read("max_position_embeddings", positive, 131072);
  const softcap = json["final_logit_softcapping"];
  return new Gemma3({
    vocabSize: read("vocab_size", positive, 262208),
    dModel: read("hidden_size", positive, 2304),
    dFeedForward: read("intermediate_size", positive, 9216),
    nLayers,
    nHeads: read("num_attention_heads", positive, 8),
    nKvHeads: read("num_key_value_heads", positive, 4),
    headDim: read("head_dim", positive, 256),
    maxPositions,
    slidingWindow: read("sliding_window", positive, 4096),
    slidingLayers:
      readLayerTypes(where, json, nLayers) ??
      Array.from({ length: nLayers }, (_, i) => (i + 1) % every !== 0),
    queryPreAttnScalar: read("query_pre_attn_scalar", positiveReal, 256),
    ...readRopes(json, maxPositions),
    ...(softcap !== undefined &&
      softcap !== null && { logitSoftcap: read("final_logit_softcapping", positiveReal) }),
    attentionBias: flag(json["attention_bias"]),
    epsilon: read("rms_norm_eps", positiveReal, 1e-6),
    initializerRange: read("initializer_range", positiveReal, 0.02),
  });
}
