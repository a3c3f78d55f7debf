/**
 * Prompt tuning: embeddings of virtual tokens that stand before every sequence, and nothing else, are trained.
 *
 * Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021, arXiv:2104.08691,
 * section 2.
 *
 *   Pr_θ(Y | [P_e; X_e])          X_e the words' embeddings, P_e trained, the model's weights θ as they are
 *
 *   P_e → prompt_embeddings (tokens, dModel)       as they go into the first block
 *
 * The virtual tokens see only each other and are the same for every sequence, so a first pass over them alone
 * gives their keys and values for all: the same numbers as with the embeddings joined, for less. As in PEFT
 * they stand at positions 0 to tokens - 1, the words behind them, and a model's factor on its embeddings
 * (Gemma) is not taken on them. They begin as random numbers, as rows of the vocabulary, or as given tokens
 * (the paper: labels of the classes), repeated or cut to their number. Cost: tokens · dModel numbers; in
 * training a pass over the virtual tokens a step.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { FormatError, OptionError } from "../../errors.ts";
import { mul } from "../../ir/elementwise.ts";
import { reshape } from "../../ir/layout.ts";
import type { LanguageModel, PretrainedModel } from "../../models/model.ts";
import { Embedding } from "../../nn/embedding.ts";
import type { Context, Module, Noise, SiteFn } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import type { Rng } from "../../tensor/rng.ts";
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

export interface PromptTuningOptions {
  /** Virtual tokens before every sequence; the paper takes 100 and finds little beyond 20. */
  readonly tokens?: number;
  /** First embeddings: normal numbers, rows of the vocabulary by chance, or those of `startTokens`. */
  readonly start?: "random" | "vocabulary" | "tokens";
  /** With `start: "tokens"`: ids of a text, repeated or cut to the number of virtual tokens. */
  readonly startTokens?: readonly number[];
  /** The text that `startTokens` are of, and its tokenizer: kept in the folder, and nothing else. */
  readonly startText?: string;
  readonly tokenizer?: string;
}

const options = {
  tokens: {
    type: "integer",
    default: 20,
    range: [1, 4096],
    about: "virtual tokens before every sequence; the paper takes 100",
  },
  start: {
    type: "text",
    default: "random",
    choices: ["random", "vocabulary", "tokens"],
    about: "first embeddings: random, rows of the vocabulary, or those of startTokens",
  },
  startTokens: { type: "numbers", range: [0, 2 ** 31 - 1], about: "token ids of a first text" },
  startText: { type: "text", about: "the text that startTokens are of, to be noted in the folder" },
  tokenizer: { type: "text", about: "whose tokens they are, to be noted in the folder" },
} as const satisfies OptionSpecs<PromptTuningOptions>;

const starts = { random: "RANDOM", vocabulary: "SAMPLE_VOCAB", tokens: "TEXT" } as const;

/** Options as a folder gives them: how the embeddings began is only noted. */
interface StoredOptions extends PromptTuningOptions {
  readonly isTrained?: boolean;
}

/** The token embedding of a model as a module, and its path. */
function embeddingOf(model: LanguageModel): readonly [path: string, module: Embedding] {
  for (const [path, module] of model.modules()) {
    if (module instanceof Embedding && module.weight === model.embedding) return [path, module];
  }
  throw new OptionError(`prompt-tuning: the token embedding of this ${model.family} is not known.`);
}

/** Token ids for each virtual token: those given, again from the first where they are too few. */
export function repeatedTokens(ids: ArrayLike<number>, count: number): Int32Array<ArrayBuffer> {
  return Int32Array.from({ length: count }, (_, i) => ids[i % ids.length]!);
}

/** Names of a first pass's noise, so that it draws other numbers than the pass over the words. */
function ownNoise(noise: Noise | undefined): { readonly noise?: Noise } {
  return noise ? { noise: (site, shape) => noise(`${embeddingsName}.${site}`, shape) } : {};
}

/**
 * Binds prompt tuning to a model.
 * @throws OptionError for options outside their range, tokens that the model does not have, or more virtual
 * tokens than its positions.
 * @throws UnsupportedError for a model that is no causal language model with keys and values.
 */
export function bindPromptTuning(model: PretrainedModel, given: StoredOptions = {}): Adapter {
  const { isTrained = false, ...own } = given;
  const read = readOptions<PromptTuningOptions, typeof options>("prompt-tuning", options, own);
  const { tokens, start, startTokens, startText, tokenizer } = read;
  const causal = promptModel("prompt-tuning", model, tokens);
  const { dModel, vocabSize, nHeads, nLayers } = causal.sizes;
  const [path, embedding] = embeddingOf(causal);
  const scale = causal.embeddingScale ?? 1;
  if (!isTrained && (start === "tokens") !== (startTokens !== undefined)) {
    throw new OptionError(
      start === "tokens"
        ? `prompt-tuning: start "tokens" needs startTokens, ids of a text.`
        : `prompt-tuning: startTokens are for start "tokens", got start "${start}".`,
    );
  }
  const unknown = startTokens?.find((id) => !(Number.isInteger(id) && id < vocabSize));
  if (unknown !== undefined || startTokens?.length === 0) {
    throw new OptionError(
      `prompt-tuning: startTokens must be ids below ${vocabSize}, at least one, got ${unknown ?? "none"}.`,
    );
  }
  const shape = [tokens, dModel];
  const random = (rng: Rng): Tensor<"float32"> =>
    new Tensor("float32", shape, rng.fold(embeddingsName).normals(tokens * dModel, 1));
  return {
    kind: "PROMPT_TUNING",
    title: "Prompt tuning",
    targets: [],
    mergeable: "no",
    virtualTokens: tokens,
    init: (rng) => ({ [embeddingsName]: random(rng) }),
    ...(start !== "random" &&
      !isTrained && {
        prepare: async ({ base, rng }) => {
          const draw = rng.fold(embeddingsName);
          const ids =
            start === "tokens"
              ? repeatedTokens(startTokens!, tokens)
              : Int32Array.from(draw.uniforms(tokens), (u) => Math.floor(u * vocabSize));
          const table = base[`${path}.weight`];
          if (!table) {
            throw new OptionError(`prompt-tuning: the base has no "${path}.weight" to begin with.`);
          }
          const rows = table.numbers();
          const first = Float32Array.from(
            { length: tokens * dModel },
            (_, i) => rows[ids[Math.floor(i / dModel)]! * dModel + (i % dModel)]! * scale,
          );
          return {
            params: { [embeddingsName]: new Tensor("float32", shape, first) },
            buffers: {},
          };
        },
      }),
    context: () => ({}),
    past: (values, _model, context: Context) => {
      const virtual = values[embeddingsName]!;
      // The model takes its factor on all that comes from here.
      const joined = reshape(scale === 1 ? virtual : mul(virtual, 1 / scale), [1, tokens, dModel]);
      const sites = new Map<Module, SiteFn>(context.options.sites);
      sites.set(embedding, () => joined);
      const ids = virtual.graph.constant(Tensor.zeros([1, tokens], "int32"));
      const inner = context.with({
        sites,
        around: undefined,
        ...ownNoise(context.options.noise),
      });
      return causal.forward(inner, ids).present;
    },
    merge: () => refuseMerge("prompt-tuning"),
    file: {
      pack: ({ params }) => params,
      unpack: (stored, where) => ({
        params: { [embeddingsName]: readEmbeddings(stored, shape, where) },
        buffers: {},
      }),
    },
    config: () => ({
      ...promptConfig("PROMPT_TUNING", {
        tokens,
        tokenDim: dModel,
        heads: nHeads,
        layers: nLayers,
      }),
      // PEFT takes "TEXT" only with a text and a tokenizer.
      prompt_tuning_init:
        start === "tokens" && (startText === undefined || tokenizer === undefined)
          ? starts.random
          : starts[start],
      prompt_tuning_init_text: startText ?? null,
      tokenizer_kwargs: null,
      tokenizer_name_or_path: tokenizer ?? null,
    }),
  };
}

export const promptTuningKind: AdapterKind<StoredOptions> = {
  kind: "PROMPT_TUNING",
  bind: bindPromptTuning,
  read: (config, where, model) => {
    const { sizes } = promptModel(where, model, 0);
    const began = config["prompt_tuning_init"] ?? "RANDOM";
    const start = Object.entries(starts).find(([, name]) => name === began)?.[0];
    if (start === undefined) {
      throw new FormatError(
        `${where}: prompt_tuning_init must be ${Object.values(starts).join(" or ")}, got ${JSON.stringify(began)}.`,
      );
    }
    const text = (field: string): string | undefined => {
      const value = config[field] ?? null;
      if (value === null) return undefined;
      if (typeof value === "string") return value;
      throw new FormatError(`${where}: ${field} must be text, got ${JSON.stringify(value)}.`);
    };
    const [startText, tokenizer] = [
      text("prompt_tuning_init_text"),
      text("tokenizer_name_or_path"),
    ];
    return {
      tokens: readPromptConfig(config, where, {
        tokenDim: sizes.dModel,
        heads: sizes.nHeads,
        layers: sizes.nLayers,
      }),
      start: start as keyof typeof starts,
      ...(startText !== undefined && { startText }),
      ...(tokenizer !== undefined && { tokenizer }),
      isTrained: true,
    };
  },
};

export const promptTuning: Method<PromptTuningOptions> = defineMethod<PromptTuningOptions>({
  id: "prompt-tuning",
  number: null,
  aliases: ["soft-prompt"],
  title: "Prompt tuning",
  capability: "adapt",
  summary:
    "Trains the embeddings of virtual tokens that stand before every sequence, and nothing else.",
  paper: {
    title: "The Power of Scale for Parameter-Efficient Prompt Tuning",
    year: 2021,
    url: "https://arxiv.org/abs/2104.08691",
  },
  implementation: "parity",
  options,
  isChangedAtFirst: true,
  tiny: { tokens: 3 },
  roles: { adapter: promptTuningKind },
});
