/**
 * Llama: a decoder with rotary positions, grouped keys, RMSNorm and a gated feed-forward layer.
 *
 * Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023, arXiv:2307.09288.
 * Parameter names are those of the released checkpoints; projections are stored (out, in).
 */
import { FormatError, OptionError, UnsupportedError } from "../errors.ts";
import { add, mul } from "../ir/elementwise.ts";
import { silu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { attention } from "../nn/attention.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { Embedding } from "../nn/embedding.ts";
import { normal } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import { type Context, Module, ModuleList, type Slot } from "../nn/module.ts";
import { RmsNorm } from "../nn/norm.ts";
import {
  type RopeOptions,
  type RopeScaling,
  type Rotation,
  ropeTable,
  rotate,
  rotationAt,
} from "../nn/rope.ts";
import { flag, layerCount, positive, positiveReal, readConfig } from "./config.ts";
import type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LanguageModelSizes,
  LayerPast,
} from "./model.ts";

export interface LlamaConfig {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly dFeedForward: number;
  readonly nLayers: number;
  readonly nHeads: number;
  /** Heads of keys and values; default nHeads. */
  readonly nKvHeads?: number;
  /** Default dModel / nHeads. */
  readonly headDim?: number;
  readonly maxPositions: number;
  /** Added under the root of RMSNorm; 1e-5 in Llama 2. */
  readonly epsilon?: number;
  /** Base of the rotary wavelengths; 10000 in Llama 2. */
  readonly ropeTheta?: number;
  readonly ropeScaling?: RopeScaling;
  /** The output layer is the embedding; default false. */
  readonly tieEmbeddings?: boolean;
  readonly attentionBias?: boolean;
  /** Deviation of new weights. */
  readonly initializerRange?: number;
}

/** Of the table of rotations: a million positions of heads of 128 just fit. */
const maxTableBytes = 2 ** 29;

class Attention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly o_proj: Linear;
  readonly #sizes: LanguageModelSizes;

  constructor(config: LlamaConfig, sizes: LanguageModelSizes) {
    super();
    this.#sizes = sizes;
    const { dModel } = config;
    const options = {
      bias: config.attentionBias ?? false,
      init: normal(config.initializerRange ?? 0.02),
    };
    const width = sizes.nHeads * sizes.headDim;
    const kvWidth = sizes.nKvHeads * sizes.headDim;
    this.q_proj = this.child("q_proj", new Linear(dModel, width, options));
    this.k_proj = this.child("k_proj", new Linear(dModel, kvWidth, options));
    this.v_proj = this.child("v_proj", new Linear(dModel, kvWidth, options));
    this.o_proj = this.child("o_proj", new Linear(width, dModel, options));
  }

  forward(
    context: Context,
    x: Value,
    [batch, length]: readonly [number | string, number],
    rotation: Rotation,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [Value, LayerPast] {
    const { nHeads, nKvHeads, headDim } = this.#sizes;
    // (B·T, H·D) → (B, H, T, D)
    const heads = (layer: Linear, count: number): Value =>
      transpose(reshape(layer.forward(context, x), [batch, length, count, headDim]), [0, 2, 1, 3]);
    const q = rotate(heads(this.q_proj, nHeads), rotation);
    const keys = rotate(heads(this.k_proj, nKvHeads), rotation);
    const values = heads(this.v_proj, nKvHeads);
    const mixed = attention(q, keys, values, {
      causal: true,
      ...(options.mask && { mask: options.mask }),
      ...(past && { past: { ...past, mask: options.past!.mask } }),
    });
    const merged = reshape(transpose(mixed, [0, 2, 1, 3]), [x.shape[0]!, nHeads * headDim]);
    return [this.o_proj.forward(context, merged), { keys, values }];
  }
}

class Mlp extends Module {
  readonly gate_proj: Linear;
  readonly up_proj: Linear;
  readonly down_proj: Linear;

  constructor({ dModel, dFeedForward, initializerRange }: LlamaConfig) {
    super();
    const options = { bias: false, init: normal(initializerRange ?? 0.02) };
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

  constructor(config: LlamaConfig, sizes: LanguageModelSizes) {
    super();
    const norm = { epsilon: config.epsilon ?? 1e-5 };
    this.self_attn = this.child("self_attn", new Attention(config, sizes));
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
    size: readonly [number | string, number],
    rotation: Rotation,
    options: ForwardOptions,
    past: LayerPast | undefined,
  ): [Value, LayerPast] {
    const normed = this.input_layernorm.forward(context, x);
    const [mixed, present] = this.self_attn.forward(context, normed, size, rotation, options, past);
    const y = add(x, mixed);
    const inner = this.mlp.forward(context, this.post_attention_layernorm.forward(context, y));
    return [add(y, inner), present];
  }
}

class Decoder extends Module {
  readonly embed_tokens: Embedding;
  readonly layers: ModuleList<Block>;
  readonly norm: RmsNorm;

  constructor(config: LlamaConfig, sizes: LanguageModelSizes) {
    super();
    const init = normal(config.initializerRange ?? 0.02);
    this.embed_tokens = this.child(
      "embed_tokens",
      new Embedding(config.vocabSize, config.dModel, { init }),
    );
    const blocks = Array.from({ length: config.nLayers }, () => new Block(config, sizes));
    this.layers = this.child("layers", new ModuleList(blocks));
    this.norm = this.child("norm", new RmsNorm(config.dModel, { epsilon: config.epsilon ?? 1e-5 }));
  }
}

export class Llama extends Module implements LanguageModel {
  readonly kind = "causal-lm";
  readonly family = "llama";
  readonly model: Decoder;
  readonly lm_head: Linear | undefined;
  readonly sizes: LanguageModelSizes;
  readonly config: Readonly<Record<string, unknown>>;
  readonly targets: ReadonlyMap<string, Linear>;
  readonly tied: Readonly<Record<string, string>>;
  readonly defaultTargets: readonly string[] = ["q_proj", "v_proj"];
  readonly #config: LlamaConfig;
  readonly #tables: Map<number, ReturnType<typeof ropeTable>> = new Map();

  constructor(config: LlamaConfig) {
    super();
    this.#config = config;
    const nKvHeads = config.nKvHeads ?? config.nHeads;
    if (config.nHeads % nKvHeads !== 0) {
      throw new OptionError(
        `llama: nHeads ${config.nHeads} must be a multiple of nKvHeads ${nKvHeads}.`,
      );
    }
    const headDim = config.headDim ?? config.dModel / config.nHeads;
    if (!Number.isInteger(headDim)) {
      throw new OptionError(
        `llama: dModel ${config.dModel} must be a multiple of nHeads ${config.nHeads}.`,
      );
    }
    const { vocabSize, dModel, nLayers, nHeads, maxPositions } = config;
    this.sizes = { vocabSize, dModel, nLayers, nHeads, nKvHeads, headDim, maxPositions };
    this.model = this.child("model", new Decoder(config, this.sizes));
    const blocks = [...this.modules()].flatMap(([path, module]): [string, Linear][] =>
      module instanceof Linear ? [[path, module]] : [],
    );
    this.targets = new Map(blocks);
    this.lm_head = config.tieEmbeddings
      ? undefined
      : this.child(
          "lm_head",
          new Linear(dModel, vocabSize, {
            bias: false,
            init: normal(config.initializerRange ?? 0.02),
          }),
        );
    this.tied = config.tieEmbeddings ? { "lm_head.weight": "model.embed_tokens.weight" } : {};
    this.config = toJson(config, this.sizes);
  }

  /** Positions' rotation. */
  get rope(): RopeOptions {
    const { ropeTheta, ropeScaling } = this.#config;
    return {
      headDim: this.sizes.headDim,
      theta: ropeTheta ?? 10000,
      maxPositions: this.sizes.maxPositions,
      ...(ropeScaling && { scaling: ropeScaling }),
    };
  }

  get embedding(): Slot {
    return this.model.embed_tokens.weight;
  }

  forward(context: Context, ids: Value, options: ForwardOptions = {}): ForwardResult {
    const [batch, length] = ids.shape as [number | string, number];
    const { dModel } = this.sizes;
    const { embed_tokens, layers, norm } = this.model;
    const rotation = options.positions
      ? rotationAt(this.#table(this.sizes.maxPositions), options.positions)
      : this.#table(length);
    const rows = typeof batch === "number" ? batch * length : -1;
    let x = reshape(embed_tokens.forward(context, ids), [rows, dModel]);
    const present: LayerPast[] = [];
    for (const [i, block] of layers.items.entries()) {
      const past = options.past?.layers[i];
      const [y, kv] = checkpointed(context, x, (input) =>
        block.forward(context, input, [batch, length], rotation, options, past),
      );
      x = y;
      present.push(kv);
    }
    const hidden = norm.forward(context, options.rows ? gather(x, options.rows) : x);
    const logits = this.lm_head
      ? this.lm_head.forward(context, hidden)
      : dot(hidden, context.get(this.embedding), { transB: true });
    return { logits, hidden, present };
  }

  /** One table per length, so that equal tables are one constant. */
  #table(positions: number): ReturnType<typeof ropeTable> {
    let table = this.#tables.get(positions);
    if (!table) {
      const bytes = positions * this.sizes.headDim * 4;
      if (bytes > maxTableBytes) {
        throw new UnsupportedError(
          `llama: the rotations of ${positions} positions take ${bytes} bytes, at most ${maxTableBytes} are made — set a smaller max_position_embeddings in config.json.`,
        );
      }
      table = ropeTable(this.rope, positions);
      this.#tables.set(positions, table);
    }
    return table;
  }
}

function toJson(config: LlamaConfig, sizes: LanguageModelSizes): Record<string, unknown> {
  const scaling = config.ropeScaling;
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: sizes.vocabSize,
    hidden_size: sizes.dModel,
    intermediate_size: config.dFeedForward,
    num_hidden_layers: sizes.nLayers,
    num_attention_heads: sizes.nHeads,
    num_key_value_heads: sizes.nKvHeads,
    head_dim: sizes.headDim,
    max_position_embeddings: sizes.maxPositions,
    hidden_act: "silu",
    rms_norm_eps: config.epsilon ?? 1e-5,
    rope_theta: config.ropeTheta ?? 10000,
    rope_scaling: scaling
      ? {
          rope_type: scaling.type,
          factor: scaling.factor,
          ...(scaling.type === "llama3" && {
            low_freq_factor: scaling.lowFreqFactor ?? 1,
            high_freq_factor: scaling.highFreqFactor ?? 4,
            original_max_position_embeddings: scaling.originalMaxPositions ?? 8192,
          }),
        }
      : null,
    tie_word_embeddings: config.tieEmbeddings ?? false,
    attention_bias: config.attentionBias ?? false,
    mlp_bias: false,
    initializer_range: config.initializerRange ?? 0.02,
  };
}

function readScaling(json: Readonly<Record<string, unknown>>): RopeScaling | undefined {
  // Newer configs keep everything about positions in `rope_parameters`.
  const raw = (json["rope_scaling"] ?? json["rope_parameters"]) as
    | Record<string, unknown>
    | null
    | undefined;
  if (raw !== undefined && raw !== null && (typeof raw !== "object" || Array.isArray(raw))) {
    throw new FormatError(`llama: rope scaling must be an object, got ${JSON.stringify(raw)}.`);
  }
  const type = raw?.["rope_type"] ?? raw?.["type"] ?? "default";
  if (!raw || type === "default") return undefined;
  if (type !== "linear" && type !== "llama3") {
    throw new OptionError(`llama: rope scaling ${JSON.stringify(type)} is not supported.`);
  }
  const read = readConfig("llama: rope_scaling", raw);
  if (type === "linear") return { type, factor: read("factor", positiveReal) };
  return {
    type,
    factor: read("factor", positiveReal),
    lowFreqFactor: read("low_freq_factor", positiveReal),
    highFreqFactor: read("high_freq_factor", positiveReal),
    originalMaxPositions: read("original_max_position_embeddings", positive),
  };
}

/** A Llama from the contents of its config.json. */
export function llamaFromConfig(json: Readonly<Record<string, unknown>>): Llama {
  const read = readConfig("llama", json);
  if ((json["hidden_act"] ?? "silu") !== "silu") {
    throw new OptionError(
      `llama: hidden_act ${JSON.stringify(json["hidden_act"])} is not supported.`,
    );
  }
  if (flag(json["mlp_bias"])) throw new OptionError("llama: mlp_bias is not supported.");
  const nHeads = read("num_attention_heads", positive);
  const scaling = readScaling(json);
  const parameters = json["rope_parameters"] as Record<string, unknown> | null | undefined;
  const theta = json["rope_theta"] ?? parameters?.["rope_theta"] ?? 10000;
  return new Llama({
    vocabSize: read("vocab_size", positive),
    dModel: read("hidden_size", positive),
    dFeedForward: read("intermediate_size", positive),
    nLayers: read("num_hidden_layers", layerCount),
    nHeads,
    nKvHeads: read("num_key_value_heads", positive, nHeads),
    ...(typeof json["head_dim"] === "number" && { headDim: read("head_dim", positive) }),
    maxPositions: read("max_position_embeddings", positive, 2048),
    epsilon: read("rms_norm_eps", positiveReal, 1e-6),
    ropeTheta: readConfig("llama", { rope_theta: theta })("rope_theta", positiveReal),
    ...(scaling && { ropeScaling: scaling }),
    tieEmbeddings: flag(json["tie_word_embeddings"]),
    attentionBias: flag(json["attention_bias"]),
  });
}
