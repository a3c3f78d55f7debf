/**
 * Prefix tuning: keys and values of virtual tokens that every layer of a frozen model attends to.
 *
 * Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021, arXiv:2101.00190,
 * sections 4.2 and 4.3.
 *
 *   h_i = P_θ[i]  for i < P                       keys and values of layer l: P_θ[i, l, K], P_θ[i, l, V]
 *   P_θ[i] = P[i]                                 trained as they are
 *   P_θ[i] = W₂ tanh(W₁ E[i] + b₁) + b₂           or through an MLP, which is let go after training
 *
 *   P → prompt_embeddings (tokens, 2 · layers · width)        of each layer keys, then values
 *   E → prompt_encoder.embedding.weight (tokens, width)       width: heads of keys × their size
 *   W₁ → prompt_encoder.transform.0 (encoderWidth, width)     W₂ → prompt_encoder.transform.2 (2 · layers · width, encoderWidth)
 *
 * As in PEFT: keys are trained as they lie in a cache, after the rotation of positions; the words' positions
 * begin behind the virtual tokens; files hold P_θ alone, also where an MLP was trained, so that what is read
 * back trains P_θ itself. Cost: 2 · tokens · layers · width numbers, and that many keys and values more to
 * attend to.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { numberIn } from "../../adapters/peft-config.ts";
import { FormatError } from "../../errors.ts";
import { add, tanh } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape, slice, transpose } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import type { LanguageModelSizes, PretrainedModel } from "../../models/model.ts";
import { kaimingUniform, normal, uniform, zeros } from "../../nn/init.ts";
import type { Initializer, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import type { Rng } from "../../tensor/rng.ts";
import type { StaticShape } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  embeddingsName,
  promptConfig,
  promptModel,
  readEmbeddings,
  readPromptConfig,
  refuseMerge,
} from "./shared/virtual-tokens.ts";

export interface PrefixTuningOptions {
  /** Virtual tokens before every sequence; the paper takes 10 for tables and 200 for summaries. */
  readonly tokens?: number;
  /** Trains an MLP that gives the prefix, which the paper finds steadier. */
  readonly projection?: boolean;
  /** Inner width of that MLP; default the width of a layer's keys. */
  readonly encoderWidth?: number;
  /** First keys and values: normal, or all zero. */
  readonly start?: "random" | "zero";
}

const options = {
  tokens: {
    type: "integer",
    default: 20,
    range: [1, 4096],
    about: "virtual tokens before every sequence; the paper takes 10 to 200",
  },
  projection: { type: "flag", default: false, about: "train an MLP that gives the prefix" },
  encoderWidth: {
    type: "integer",
    range: [1, 65536],
    about: "inner width of the MLP; as wide as a layer's keys where it is not given",
  },
  start: {
    type: "text",
    default: "random",
    choices: ["random", "zero"],
    about: "first keys and values",
  },
} as const satisfies OptionSpecs<PrefixTuningOptions>;

/** Options as a folder gives them: the MLP that was trained is not there any more. */
interface StoredOptions extends PrefixTuningOptions {
  readonly isFolded?: boolean;
}

const encoder = "prompt_encoder";
const names = {
  embedding: `${encoder}.embedding.weight`,
  weight1: `${encoder}.transform.0.weight`,
  bias1: `${encoder}.transform.0.bias`,
  weight2: `${encoder}.transform.2.weight`,
  bias2: `${encoder}.transform.2.bias`,
};

function widthOf({ nKvHeads, headDim }: LanguageModelSizes): number {
  return nKvHeads * headDim;
}

/** Parameters and their first numbers, as PyTorch begins embeddings and linear layers. */
function partsOf(
  tokens: number,
  width: number,
  layers: number,
  encoderWidth: number | undefined,
  isZero: boolean,
): readonly (readonly [name: string, shape: StaticShape, init: Initializer])[] {
  const all = 2 * layers * width;
  if (encoderWidth === undefined) {
    return [[embeddingsName, [tokens, all], isZero ? zeros : normal(1)]];
  }
  const bound = (inputs: number): Initializer => uniform(1 / Math.sqrt(inputs));
  return [
    [names.embedding, [tokens, width], normal(1)],
    [names.weight1, [encoderWidth, width], kaimingUniform],
    [names.bias1, [encoderWidth], bound(width)],
    [names.weight2, [all, encoderWidth], isZero ? zeros : kaimingUniform],
    [names.bias2, [all], isZero ? zeros : bound(encoderWidth)],
  ];
}

/** P_θ, (tokens, 2 · layers · width). */
function prefixValue(values: ValueRecord, isProjected: boolean): Value {
  if (!isProjected) return values[embeddingsName]!;
  const layer = (x: Value, weight: string, bias: string): Value =>
    add(dot(x, values[weight]!, { transB: true }), values[bias]!);
  const inner = tanh(layer(values[names.embedding]!, names.weight1, names.bias1));
  return layer(inner, names.weight2, names.bias2);
}

/** The same from numbers, summed in double precision: what is written. */
function folded(params: Readonly<TensorRecord>): Tensor<"float32"> {
  const numbers = (name: string): ArrayLike<number> => params[name]!.numbers();
  const layer = (x: Float64Array, weight: string, bias: string): Float64Array => {
    const [out, inputs] = params[weight]!.shape as [number, number];
    const [w, b] = [numbers(weight), numbers(bias)];
    const y = new Float64Array((x.length / inputs) * out);
    for (let i = 0; i < y.length; i++) {
      const [row, o] = [Math.floor(i / out), i % out];
      let total = b[o]!;
      for (let k = 0; k < inputs; k++) total += x[row * inputs + k]! * w[o * inputs + k]!;
      y[i] = total;
    }
    return y;
  };
  const start = Float64Array.from(numbers(names.embedding));
  const inner = layer(start, names.weight1, names.bias1).map(Math.tanh);
  const all = layer(inner, names.weight2, names.bias2);
  const tokens = params[names.embedding]!.shape[0]!;
  return new Tensor("float32", [tokens, all.length / tokens], Float32Array.from(all));
}

/**
 * Binds prefix tuning to a model.
 * @throws OptionError for options outside their range, or more tokens than the model has positions.
 * @throws UnsupportedError for a model that is no causal language model with keys and values.
 */
export function bindPrefixTuning(model: PretrainedModel, given: StoredOptions = {}): Adapter {
  const { isFolded = false, ...own } = given;
  const read = readOptions<PrefixTuningOptions, typeof options>("prefix-tuning", options, own);
  const { tokens, projection, start } = read;
  const causal = promptModel("prefix-tuning", model, tokens);
  const { nLayers, nKvHeads, headDim } = causal.sizes;
  const width = widthOf(causal.sizes);
  const encoderWidth = read.encoderWidth ?? width;
  const isProjected = projection && !isFolded;
  const parts = partsOf(
    tokens,
    width,
    nLayers,
    isProjected ? encoderWidth : undefined,
    start === "zero",
  );
  return {
    kind: "PREFIX_TUNING",
    title: "Prefix tuning",
    targets: [],
    mergeable: "no",
    virtualTokens: tokens,
    init: (rng: Rng): TensorRecord =>
      Object.fromEntries(
        parts.map(([name, shape, init]) => [
          name,
          new Tensor("float32", shape, init(rng.fold(name), shape)),
        ]),
      ),
    context: () => ({}),
    past: (values) => {
      const flat = prefixValue(values, isProjected);
      // (P, 2·L·H·D) → (2·L, H, P, D)
      const all = transpose(reshape(flat, [tokens, 2 * nLayers, nKvHeads, headDim]), [1, 2, 0, 3]);
      return Array.from({ length: nLayers }, (_, i) => ({
        keys: slice(all, 0, 2 * i, 2 * i + 1),
        values: slice(all, 0, 2 * i + 1, 2 * i + 2),
      }));
    },
    merge: () => refuseMerge("prefix-tuning"),
    file: {
      pack: ({ params }) => ({
        [embeddingsName]: isProjected ? folded(params) : params[embeddingsName]!,
      }),
      unpack: (stored, where) => ({
        params: {
          [embeddingsName]: readEmbeddings(stored, [tokens, 2 * nLayers * width], where),
        },
        buffers: {},
      }),
    },
    config: () => ({
      ...promptConfig("PREFIX_TUNING", {
        tokens,
        tokenDim: width,
        heads: nKvHeads,
        layers: nLayers,
      }),
      encoder_hidden_size: encoderWidth,
      init_weights: start === "zero" ? "zero" : null,
      prefix_projection: projection,
    }),
  };
}

export const prefixTuningKind: AdapterKind<StoredOptions> = {
  kind: "PREFIX_TUNING",
  bind: bindPrefixTuning,
  read: (config, where, model) => {
    const { sizes } = promptModel(where, model, 0);
    const width = widthOf(sizes);
    const { prefix_projection: projection = false, init_weights: start = null } = config;
    if (typeof projection !== "boolean") {
      throw new FormatError(
        `${where}: prefix_projection must be true or false, got ${JSON.stringify(projection)}.`,
      );
    }
    if (start !== null && start !== "zero") {
      throw new FormatError(
        `${where}: init_weights must be null or "zero", got ${JSON.stringify(start)}.`,
      );
    }
    return {
      tokens: readPromptConfig(config, where, {
        tokenDim: width,
        heads: sizes.nKvHeads,
        layers: sizes.nLayers,
      }),
      projection,
      encoderWidth: numberIn(config, "encoder_hidden_size", where, width),
      start: start ?? "random",
      isFolded: true,
    };
  },
};

export const prefixTuning: Method<PrefixTuningOptions> = defineMethod<PrefixTuningOptions>({
  id: "prefix-tuning",
  number: null,
  aliases: ["prefix"],
  title: "Prefix tuning",
  capability: "adapt",
  summary:
    "Trains keys and values of virtual tokens that every layer of a frozen model attends to.",
  paper: {
    title: "Prefix-Tuning: Optimizing Continuous Prompts for Generation",
    year: 2021,
    url: "https://arxiv.org/abs/2101.00190",
  },
  implementation: "parity",
  options,
  isChangedAtFirst: true,
  tiny: { tokens: 3 },
  roles: { adapter: prefixTuningKind },
});
