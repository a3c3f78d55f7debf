/** Settings of a Llama and of the families that are settings of it; reading and writing config.json. */
import { FormatError, OptionError } from "../errors.ts";
import type { RopeScaling } from "../nn/rope.ts";
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
import type { LanguageModelSizes } from "./model.ts";
import { readRope, scalingToJson } from "./rope-config.ts";

type Json = Readonly<Record<string, unknown>>;

/** What tells the families apart; defaults are those of their configuration classes. */
interface LlamaVariant {
  readonly architecture: string;
  /** Projections of queries, keys and values have a bias. */
  readonly qkvBias: boolean;
  /** Queries and keys are normalised, head by head. */
  readonly qkNorm: boolean;
  /** Settings that this family may have. */
  readonly has: readonly ("attentionBias" | "mlpBias" | "slidingWindow" | "slidingLayers")[];
  /** Where config.json names none. */
  readonly nKvHeads?: number;
  readonly headDim?: number;
  readonly maxPositions: number;
}

export type LlamaFamily = "llama" | "mistral" | "qwen2" | "qwen3";

export const llamaVariants: Readonly<Record<LlamaFamily, LlamaVariant>> = {
  llama: {
    architecture: "LlamaForCausalLM",
    qkvBias: false,
    qkNorm: false,
    has: ["attentionBias", "mlpBias"],
    maxPositions: 2048,
  },
  mistral: {
    architecture: "MistralForCausalLM",
    qkvBias: false,
    qkNorm: false,
    has: ["slidingWindow"],
    nKvHeads: 8,
    maxPositions: 4096 * 32,
  },
  qwen2: {
    architecture: "Qwen2ForCausalLM",
    qkvBias: true,
    qkNorm: false,
    has: ["slidingWindow", "slidingLayers"],
    nKvHeads: 32,
    maxPositions: 32768,
  },
  qwen3: {
    architecture: "Qwen3ForCausalLM",
    qkvBias: false,
    qkNorm: true,
    has: ["attentionBias", "slidingWindow", "slidingLayers"],
    nKvHeads: 32,
    headDim: 128,
    maxPositions: 32768,
  },
};

export interface LlamaConfig {
  /** Default "llama". Qwen2 has biases of queries, keys and values; Qwen3 normalises queries and keys. */
  readonly family?: LlamaFamily;
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
  /** Biases of all four projections of attention; Llama and Qwen3. */
  readonly attentionBias?: boolean;
  /** Biases of the feed-forward layer; Llama. */
  readonly mlpBias?: boolean;
  /** A token sees this many positions, itself included; Mistral and Qwen. Default: all before it. */
  readonly slidingWindow?: number;
  /** Which layers have the window; Qwen. Default all. */
  readonly slidingLayers?: readonly boolean[];
  /** Deviation of new weights; default 0.02. */
  readonly initializerRange?: number;
}

/** @throws OptionError for a setting that the family does not have. */
export function checkLlamaConfig(config: LlamaConfig): void {
  const family = config.family ?? "llama";
  const { has } = llamaVariants[family];
  for (const name of ["attentionBias", "mlpBias", "slidingWindow", "slidingLayers"] as const) {
    if (!config[name] || has.includes(name)) continue;
    throw new OptionError(`${family}: has no ${name}, got ${JSON.stringify(config[name])}.`);
  }
  const layers = config.slidingLayers?.length ?? config.nLayers;
  if (layers !== config.nLayers) {
    throw new OptionError(
      `${family}: slidingLayers must name ${config.nLayers} layers, got ${layers}.`,
    );
  }
}

/** Settings that only some families have, by their names in config.json. */
function ownJson(config: LlamaConfig, { has }: LlamaVariant): Json {
  const { nLayers, slidingWindow, slidingLayers } = config;
  const sliding = slidingLayers ?? Array.from({ length: nLayers }, () => true);
  return {
    ...(has.includes("attentionBias") && { attention_bias: config.attentionBias ?? false }),
    ...(has.includes("mlpBias") && { mlp_bias: config.mlpBias ?? false }),
    ...(has.includes("slidingWindow") && { sliding_window: slidingWindow ?? null }),
    ...(has.includes("slidingLayers") && {
      use_sliding_window: slidingWindow !== undefined,
      max_window_layers: Math.max(0, sliding.indexOf(true)),
      layer_types: sliding.map((isSliding) =>
        isSliding && slidingWindow !== undefined ? "sliding_attention" : "full_attention",
      ),
    }),
  };
}

/** The contents of config.json. */
export function llamaToJson(config: LlamaConfig, sizes: LanguageModelSizes): Json {
  const family = config.family ?? "llama";
  const variant = llamaVariants[family];
  return {
    architectures: [variant.architecture],
    model_type: family,
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
    rope_scaling: scalingToJson(config.ropeScaling),
    tie_word_embeddings: config.tieEmbeddings ?? false,
    initializer_range: config.initializerRange ?? 0.02,
    ...ownJson(config, variant),
  };
}

/** The window of a family that has one, and the layers that it holds for. */
function readWindow(
  where: string,
  json: Json,
  nLayers: number,
  { has }: LlamaVariant,
): Pick<LlamaConfig, "slidingWindow" | "slidingLayers"> {
  if (!has.includes("slidingWindow")) return {};
  const read = readConfig(where, json);
  const byLayer = has.includes("slidingLayers");
  const isOff = byLayer ? !flag(json["use_sliding_window"]) : json["sliding_window"] === null;
  const sliding = byLayer ? readLayerTypes(where, json, nLayers) : undefined;
  if (isOff || json["sliding_window"] === null) {
    if (!sliding?.includes(true)) return {};
    throw new FormatError(
      `${where}: "layer_types" names sliding_attention, but there is no sliding window — set use_sliding_window and sliding_window.`,
    );
  }
  const slidingWindow = read("sliding_window", positive, 4096);
  if (!byLayer) return { slidingWindow };
  // Zero is a number of layers too.
  const first = json["max_window_layers"] === 0 ? 0 : read("max_window_layers", positive, 28);
  const slidingLayers = sliding ?? Array.from({ length: nLayers }, (_, i) => i >= first);
  return slidingLayers.includes(true) ? { slidingWindow, slidingLayers } : {};
}

/**
 * The settings in a config.json of any of the families.
 * @throws FormatError for what is missing or out of range, OptionError for what is not computed.
 */
export function readLlamaConfig(json: Json): LlamaConfig {
  const family = oneOf(
    "llama",
    json,
    "model_type",
    Object.keys(llamaVariants) as LlamaFamily[],
    "llama",
  );
  const variant = llamaVariants[family];
  const read = readConfig(family, json);
  refuseQuantized(family, json);
  oneOf(family, json, "hidden_act", ["silu"], "silu");
  for (const [name, key] of [
    ["attentionBias", "attention_bias"],
    ["mlpBias", "mlp_bias"],
  ] as const) {
    if (flag(json[key]) && !variant.has.includes(name)) {
      throw new OptionError(`${family}: ${key} is not supported.`);
    }
  }
  if (!variant.has.includes("slidingLayers") && Array.isArray(json["layer_types"])) {
    throw new OptionError(`${family}: layer_types is not supported.`);
  }
  const nHeads = read("num_attention_heads", positive);
  const nLayers = read("num_hidden_layers", layerCount);
  const maxPositions = read("max_position_embeddings", positive, variant.maxPositions);
  const { theta, partial, scaling } = readRope(family, json, maxPositions);
  if (partial !== 1) throw new OptionError(`${family}: partial_rotary_factor is not supported.`);
  const headDim = json["head_dim"] ?? variant.headDim;
  return {
    family,
    vocabSize: read("vocab_size", positive),
    dModel: read("hidden_size", positive),
    dFeedForward: read("intermediate_size", positive),
    nLayers,
    nHeads,
    nKvHeads:
      json["num_key_value_heads"] === null
        ? nHeads
        : read("num_key_value_heads", positive, variant.nKvHeads ?? nHeads),
    ...(headDim !== undefined &&
      headDim !== null && { headDim: read("head_dim", positive, variant.headDim) }),
    maxPositions,
    epsilon: read("rms_norm_eps", positiveReal, 1e-6),
    ropeTheta: theta,
    ...(scaling && { ropeScaling: scaling }),
    tieEmbeddings: flag(json["tie_word_embeddings"]),
    attentionBias: flag(json["attention_bias"]),
    mlpBias: flag(json["mlp_bias"]),
    ...readWindow(family, json, nLayers, variant),
    initializerRange: read("initializer_range", positiveReal, 0.02),
  };
}
