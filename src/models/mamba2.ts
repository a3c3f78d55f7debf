/**
 * Mamba-2: Mamba with one decay per head, so that steps are products of matrices.
 *
 * Dao and Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State
 * Space Duality", 2024, arXiv:2405.21060. Parameter names and settings are those of transformers'
 * Mamba2ForCausalLM.
 */
import { OptionError } from "../errors.ts";
import { Mamba2Mixer } from "../nn/mamba.ts";
import { infinity, layerCount, positive, positiveReal, readConfig } from "./config.ts";
import { checkStateSpace, kernelWidth, mostTokens, StateSpaceModel } from "./state-space.ts";

export interface Mamba2Config {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly headDim: number;
  /** States of a head; default 128. */
  readonly stateSize?: number;
  /** Groups of heads that share B and C; default 1. */
  readonly groups?: number;
  /** Inner channels over dModel, heads times headDim; default 2. */
  readonly expand?: number;
  /** Width of the convolution, from 2; default 4. */
  readonly kernel?: number;
  /** Biases of in_proj and out_proj; default false. */
  readonly bias?: boolean;
  /** Default true. */
  readonly convBias?: boolean;
  /** Added under the root of the norms; default 1e-5. */
  readonly epsilon?: number;
  /** Least and largest step size; default [0, Infinity]. */
  readonly stepLimit?: readonly [number, number];
  /** The output layer is the embedding; default false. */
  readonly tieEmbeddings?: boolean;
  /** Deviation of new embeddings; default 0.1. */
  readonly initializerRange?: number;
}

type Settled = Required<Mamba2Config>;

function settle(config: Mamba2Config): Settled {
  return {
    stateSize: 128,
    groups: 1,
    expand: 2,
    kernel: 4,
    bias: false,
    convBias: true,
    epsilon: 1e-5,
    stepLimit: [0, Infinity],
    tieEmbeddings: false,
    initializerRange: 0.1,
    ...config,
  };
}

export class Mamba2 extends StateSpaceModel {
  /** @throws OptionError when heads do not divide the inner channels, or groups the heads. */
  constructor(config: Mamba2Config) {
    const settled = settle(config);
    const { vocabSize, dModel, nLayers, stateSize, headDim, groups, expand, kernel } = settled;
    const { bias, convBias, epsilon, stepLimit } = settled;
    const inner = dModel * expand;
    const heads = inner / headDim;
    const isLimited = stepLimit[0] > 0 || stepLimit[1] < Infinity;
    super({
      family: "mamba2",
      config: toJson(settled),
      sizes: {
        vocabSize,
        dModel,
        nLayers,
        nHeads: heads,
        nKvHeads: groups,
        headDim,
        maxPositions: mostTokens,
      },
      epsilon,
      initializerRange: settled.initializerRange,
      tieEmbeddings: settled.tieEmbeddings,
      mixer: () =>
        new Mamba2Mixer(dModel, {
          stateSize,
          headDim,
          expand,
          groups,
          kernel,
          bias,
          convBias,
          epsilon,
          ...(isLimited && { stepLimit: [stepLimit[0], Math.min(stepLimit[1], largest)] }),
        }),
      state: {
        conv: [inner + 2 * groups * stateSize, kernel - 1],
        ssm: [heads, headDim, stateSize],
      },
      defaultTargets: ["in_proj"],
    });
  }
}

/** Of float32. */
const largest = (2 - 2 ** -23) * 2 ** 127;

function toJson(config: Settled): Record<string, unknown> {
  const [low, high] = config.stepLimit;
  return {
    architectures: ["Mamba2ForCausalLM"],
    model_type: "mamba2",
    vocab_size: config.vocabSize,
    hidden_size: config.dModel,
    num_hidden_layers: config.nLayers,
    num_heads: (config.dModel * config.expand) / config.headDim,
    head_dim: config.headDim,
    state_size: config.stateSize,
    n_groups: config.groups,
    expand: config.expand,
    conv_kernel: config.kernel,
    use_bias: config.bias,
    use_conv_bias: config.convBias,
    hidden_act: "silu",
    layer_norm_epsilon: config.epsilon,
    initializer_range: config.initializerRange,
    ...((low > 0 || high < Infinity) && {
      time_step_limit: [low, high === Infinity ? infinity : high],
    }),
    tie_word_embeddings: config.tieEmbeddings,
  };
}

/** @throws OptionError when it is no pair of numbers, the first from 0 and the second above it. */
function readStepLimit(value: unknown): readonly [number, number] {
  if (value === undefined || value === null) return [0, Infinity];
  const [low, high] = Array.isArray(value) && value.length === 2 ? value.map(asNumber) : [];
  if (low !== undefined && high !== undefined && low >= 0 && low < Infinity && high > low) {
    return [low, high];
  }
  throw new OptionError(
    `mamba2: time_step_limit must be two numbers, the first from 0 and the second above it, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

function asNumber(value: unknown): number | undefined {
  if (typeof value === "number") return value;
  const isInfinite = typeof value === "object" && value !== null && "__float__" in value;
  return isInfinite && value.__float__ === infinity.__float__ ? Infinity : undefined;
}

/** A Mamba-2 from the contents of its config.json. */
export function mamba2FromConfig(json: Readonly<Record<string, unknown>>): Mamba2 {
  checkStateSpace("mamba2", json);
  const read = readConfig("mamba2", json);
  const dModel = read("hidden_size", positive, 4096);
  const expand = read("expand", positive, 2);
  const heads = read("num_heads", positive, 128);
  const headDim = read("head_dim", positive, 64);
  if (heads * headDim !== dModel * expand) {
    throw new OptionError(
      `mamba2: num_heads ${heads} times head_dim ${headDim} must be hidden_size ${dModel} times expand ${expand}.`,
    );
  }
  return new Mamba2({
    vocabSize: read("vocab_size", positive, 32768),
    dModel,
    nLayers: read("num_hidden_layers", layerCount, 64),
    headDim,
    stateSize: read("state_size", positive, 128),
    groups: read("n_groups", positive, 8),
    expand,
    kernel: read("conv_kernel", kernelWidth, 4),
    bias: json["use_bias"] === true,
    convBias: json["use_conv_bias"] !== false,
    epsilon: read("layer_norm_epsilon", positiveReal, 1e-5),
    stepLimit: readStepLimit(json["time_step_limit"]),
    tieEmbeddings: json["tie_word_embeddings"] === true,
    initializerRange: read("initializer_range", positiveReal, 0.1),
  });
}
