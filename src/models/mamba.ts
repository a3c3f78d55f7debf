/**
 * Mamba: blocks of one selective state-space mixer each, without attention.
 *
 * Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752.
 * Parameter names and settings are those of transformers' MambaForCausalLM.
 */
import { MambaMixer } from "../nn/mamba.ts";
import { layerCount, positive, positiveReal, readConfig } from "./config.ts";
import { checkStateSpace, kernelWidth, mostTokens, StateSpaceModel } from "./state-space.ts";

export interface MambaConfig {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  /** States of a channel; default 16. */
  readonly stateSize?: number;
  /** Inner channels over dModel; default 2. */
  readonly expand?: number;
  /** Width of the convolution, from 2; default 4. */
  readonly kernel?: number;
  /** Rank of the step sizes; default ⌈dModel / 16⌉. */
  readonly rank?: number;
  /** Biases of in_proj and out_proj; default false. */
  readonly bias?: boolean;
  /** Default true. */
  readonly convBias?: boolean;
  /** Added under the root of RMSNorm; default 1e-5. */
  readonly epsilon?: number;
  /** The output layer is the embedding; default true. */
  readonly tieEmbeddings?: boolean;
  /** Deviation of new embeddings; default 0.1. */
  readonly initializerRange?: number;
}

type Settled = Required<MambaConfig>;

function settle(config: MambaConfig): Settled {
  return {
    stateSize: 16,
    expand: 2,
    kernel: 4,
    rank: Math.ceil(config.dModel / 16),
    bias: false,
    convBias: true,
    epsilon: 1e-5,
    tieEmbeddings: true,
    initializerRange: 0.1,
    ...config,
  };
}

export class Mamba extends StateSpaceModel {
  constructor(config: MambaConfig) {
    const settled = settle(config);
    const { vocabSize, dModel, nLayers, stateSize, expand, kernel, bias, convBias, rank } = settled;
    const inner = dModel * expand;
    super({
      family: "mamba",
      config: toJson(settled),
      // Each channel is a head of width 1, all with the same B and C.
      sizes: {
        vocabSize,
        dModel,
        nLayers,
        nHeads: inner,
        nKvHeads: 1,
        headDim: 1,
        maxPositions: mostTokens,
      },
      epsilon: settled.epsilon,
      initializerRange: settled.initializerRange,
      tieEmbeddings: settled.tieEmbeddings,
      mixer: () => new MambaMixer(dModel, { stateSize, expand, kernel, rank, bias, convBias }),
      state: { conv: [inner, kernel - 1], ssm: [inner, stateSize] },
      defaultTargets: ["in_proj", "x_proj"],
    });
  }
}

function toJson(config: Settled): Record<string, unknown> {
  return {
    architectures: ["MambaForCausalLM"],
    model_type: "mamba",
    vocab_size: config.vocabSize,
    hidden_size: config.dModel,
    num_hidden_layers: config.nLayers,
    state_size: config.stateSize,
    expand: config.expand,
    intermediate_size: config.dModel * config.expand,
    conv_kernel: config.kernel,
    time_step_rank: config.rank,
    use_bias: config.bias,
    use_conv_bias: config.convBias,
    hidden_act: "silu",
    layer_norm_epsilon: config.epsilon,
    initializer_range: config.initializerRange,
    tie_word_embeddings: config.tieEmbeddings,
  };
}

/** A Mamba from the contents of its config.json. */
export function mambaFromConfig(json: Readonly<Record<string, unknown>>): Mamba {
  checkStateSpace("mamba", json);
  const read = readConfig("mamba", json);
  const dModel = read("hidden_size", positive, 768);
  const automatic = (json["time_step_rank"] ?? "auto") === "auto";
  return new Mamba({
    vocabSize: read("vocab_size", positive, 50280),
    dModel,
    nLayers: read("num_hidden_layers", layerCount, 32),
    stateSize: read("state_size", positive, 16),
    expand: read("expand", positive, 2),
    kernel: read("conv_kernel", kernelWidth, 4),
    ...(!automatic && { rank: read("time_step_rank", positive) }),
    bias: json["use_bias"] === true,
    convBias: json["use_conv_bias"] !== false,
    epsilon: read("layer_norm_epsilon", positiveReal, 1e-5),
    tieEmbeddings: json["tie_word_embeddings"] !== false,
    initializerRange: read("initializer_range", positiveReal, 0.1),
  });
}
