/** Language models trained from scratch on documents, with a tokenizer of their own; `brownLm` on Brown. */

import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../../data/bpe.ts";
import { loadTokenizer, Tokenizer } from "../../data/tokenizer.ts";
import { OptionError } from "../../errors.ts";
import { Gpt2 } from "../../models/gpt2.ts";
import { Llama } from "../../models/llama.ts";
import type { LanguageModel } from "../../models/model.ts";
import { Rng } from "../../tensor/rng.ts";
import { pretrain } from "../../train/pretrain.ts";
import { sha256Hex } from "../cells.ts";
import {
  type Brown,
  type BrownFile,
  halfOf,
  loadBrown,
  ofGenres,
  splitBrown,
  textOf,
} from "../data/brown.ts";
import type { ExperimentContext } from "../experiment.ts";
import { type OpenedBase, openBase } from "./base.ts";

export interface LmBaseOptions {
  /** Default "llama". */
  readonly family?: "llama" | "gpt2";
  /** Default 96. */
  readonly dModel?: number;
  /** Default 4. */
  readonly nLayers?: number;
  /** Default dModel / 24 or / 16 or / 32, the first that divides. */
  readonly nHeads?: number;
  /** Inner width; default 3 · dModel of a Llama, 4 · dModel of a GPT-2. */
  readonly dFeedForward?: number;
  /** Tokens in all; default 1,024. */
  readonly vocabSize?: number;
  /** Tokens with meanings of their own, beside the end of text; default none. */
  readonly specialTokens?: readonly string[];
  /** Positions that the model has; default 256. */
  readonly maxPositions?: number;
  /** Default 1,500. */
  readonly steps?: number;
  /** Windows a step; default 16. */
  readonly batchSize?: number;
  /** Tokens of a window; default 64. */
  readonly seqLen?: number;
  /** Default 3e-3. */
  readonly learningRate?: number;
  /** Share of windows with passages that return, which teaches copying; default 0. */
  readonly repeats?: number;
  /** Default 0. */
  readonly seed?: number;
  /** Learns the tokenizer from these documents in place of the training ones, so that bases share it. */
  readonly tokenizerFrom?: readonly string[];
}

export interface Documents {
  readonly train: readonly string[];
  readonly heldOut: readonly string[];
}

export interface LmBase extends OpenedBase<LanguageModel> {
  readonly tokenizer: Tokenizer;
  readonly documents: Documents;
  /** Mean -log p per token on the held-out documents, in nats. */
  readonly heldOutLoss: number;
}

export const endOfText = "<|endoftext|>";

/**
 * Documents as one row of tokens, each followed by the end of text. No token of a byte-level tokenizer crosses
 * from a word into the space behind it, so each word is encoded once, with the space before it.
 */
export function tokensOf(
  tokenizer: Tokenizer,
  documents: readonly string[],
): Int32Array<ArrayBuffer> {
  if (tokenizer.eosId === undefined) {
    throw new OptionError("tokens: the tokenizer names no end-of-text token.");
  }
  const known = new Map<string, Int32Array>();
  const parts: Int32Array[] = [];
  let size = 0;
  const push = (ids: Int32Array): void => {
    parts.push(ids);
    size += ids.length;
  };
  const end = Int32Array.of(tokenizer.eosId);
  for (const text of documents) {
    for (const [word] of text.matchAll(/\s*\S+|\s+$/gu)) {
      let ids = known.get(word);
      if (!ids) {
        ids = tokenizer.encode(word);
        known.set(word, ids);
      }
      push(ids);
    }
    push(end);
  }
  const tokens = new Int32Array(size);
  let at = 0;
  for (const part of parts) {
    tokens.set(part, at);
    at += part.length;
  }
  return tokens;
}

function modelOf(
  family: "llama" | "gpt2",
  sizes: {
    readonly vocabSize: number;
    readonly dModel: number;
    readonly nLayers: number;
    readonly nHeads: number;
    readonly maxPositions: number;
    readonly dFeedForward: number;
  },
): LanguageModel {
  if (family === "gpt2") return new Gpt2(sizes);
  return new Llama({ ...sizes, nKvHeads: sizes.nHeads, tieEmbeddings: true });
}

/**
 * A language model trained on documents; tokenizer learnt from the training ones. AdamW, cosine, as `pretrain`.
 * @param name of the base in results
 */
export async function lmBase(
  context: ExperimentContext,
  name: string,
  documents: Documents,
  options: LmBaseOptions = {},
): Promise<LmBase> {
  const isQuick = context.budget === "quick";
  const { family = "llama", dModel = 96, nLayers = 4, specialTokens = [], seed = 0 } = options;
  const headDim = [24, 16, 32].find((size) => dModel % size === 0) ?? dModel;
  const {
    nHeads = dModel / headDim,
    dFeedForward = (family === "llama" ? 3 : 4) * dModel,
    vocabSize = isQuick ? 400 : 1024,
    maxPositions = 256,
    steps = isQuick ? 60 : 1500,
    batchSize = 16,
    seqLen = 64,
    learningRate = 3e-3,
    repeats = 0,
    tokenizerFrom = documents.train,
  } = options;
  const settings = {
    family,
    dModel,
    nLayers,
    nHeads,
    dFeedForward,
    vocabSize,
    maxPositions,
    steps,
    batchSize,
    seqLen,
    learningRate,
    repeats,
    seed,
    specialTokens: specialTokens.join(" "),
  };
  // Of the texts themselves: which files and halves they are follows from it.
  const dataChecksum = sha256Hex(JSON.stringify([documents, tokenizerFrom]));
  const base = await openBase(context, { name, version: "1", settings, dataChecksum }, async () => {
    context.progress(`learning the tokenizer of ${name}`);
    const lines = tokenizerFrom.flatMap((text) => text.split(/(?<=\n)/));
    const bpe = trainBpe(lines, { vocabSize, specialTokens: [endOfText, ...specialTokens] });
    const json = {
      tokenizer: toTokenizerJson(bpe),
      config: toTokenizerConfig(bpe, { eosToken: endOfText, maxLength: maxPositions }),
    };
    const tokenizer = new Tokenizer(json, name);
    const model = modelOf(family, {
      vocabSize: tokenizer.vocabSize,
      dModel,
      nLayers,
      nHeads,
      maxPositions,
      dFeedForward,
    });
    const { params } = model.init(new Rng(seed).fold(name, "init"));
    const train = tokensOf(tokenizer, documents.train);
    const heldOut = tokensOf(tokenizer, documents.heldOut);
    const { signal, backend, progress } = context;
    const result = await pretrain(model, train, heldOut, backend, {
      steps,
      batchSize,
      seqLen,
      learningRate,
      repeats,
      seed,
      params,
      signal,
      onStep: ({ step, loss }) => {
        if (step % 10 === 0)
          progress(`training ${name}: step ${step}/${steps}, loss ${loss.toFixed(3)}`);
      },
    });
    signal.throwIfAborted();
    const bytes = new TextEncoder().encode(documents.heldOut.join("")).length;
    const nll = result.heldOutNll;
    return {
      model,
      params: result.params,
      metrics: {
        heldOutLoss: nll,
        bitsPerByte: (nll * heldOut.length) / bytes / Math.LN2,
        trainTokens: train.length,
      },
      files: { "tokenizer.json": json.tokenizer, "tokenizer_config.json": json.config },
    };
  });
  return {
    ...base,
    documents,
    tokenizer: await loadTokenizer(context.host.files, base.folder),
    heldOutLoss: base.metrics["heldOutLoss"]!,
  };
}

export interface BrownLmOptions extends LmBaseOptions {
  /** Letters of the genres that are trained on; default all. */
  readonly genres?: string;
  /** Only every other training file: the even (0) or the odd ones (1). Default both. */
  readonly half?: 0 | 1;
  /** A tenth of each genre is held out, or another share: every n-th file. Default 10. */
  readonly heldOutEvery?: number;
  /** More training documents, as arithmetic or strings of amino acids. */
  readonly extra?: readonly string[];
}

export interface BrownLm extends LmBase {
  readonly brown: Brown;
  readonly trainFiles: readonly BrownFile[];
  readonly heldOutFiles: readonly BrownFile[];
}

/**
 * The language model on Brown. The tokenizer is learnt from all training files of all genres, so that models of
 * different genres, halves and sizes share it; held-out files are never in it.
 */
export async function brownLm(
  context: ExperimentContext,
  options: BrownLmOptions = {},
): Promise<BrownLm> {
  const { genres, half, heldOutEvery = 10, extra = [], ...rest } = options;
  const brown = await loadBrown(context);
  const all = splitBrown(brown.files, heldOutEvery);
  const some = (files: readonly BrownFile[]): readonly BrownFile[] =>
    genres === undefined ? files : ofGenres(files, genres);
  const trainFiles = half === undefined ? some(all.train) : halfOf(some(all.train), half);
  const heldOutFiles = some(all.heldOut);
  const documents = {
    train: [...trainFiles.map(textOf), ...extra],
    heldOut: heldOutFiles.map(textOf),
  };
  const tokenizerFrom = rest.tokenizerFrom ?? [...all.train.map(textOf), ...extra];
  const base = await lmBase(context, "brownLm", documents, { ...rest, tokenizerFrom });
  return { ...base, brown, trainFiles, heldOutFiles };
}
