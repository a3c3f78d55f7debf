/** What every language model offers: configuration, module, forward pass. */
import type { Value } from "../ir/graph.ts";
import type { Context, Linear, Module, Slot } from "../nn/index.ts";
import type { StaticShape } from "../tensor/shape.ts";
import type { BlockSites } from "./blocks.ts";
import type { PeftPaths } from "./peft-paths.ts";

/** Past keys and values of one layer: (B, Hkv, P, D) each. */
export interface LayerPast {
  readonly keys: Value;
  readonly values: Value;
}

/** What a recurrent model carries from token to token, by name: (B, …) each. */
export type CarriedState = Readonly<Record<string, Value>>;

export interface ForwardOptions {
  /**
   * Position ids (B, T) int32; default 0 … T-1 for each row. Where a model carries a state, each 0 begins
   * a text that knows nothing of what stands before it.
   */
  readonly positions?: Value;
  /** What a model with `stateShapes` carried out of earlier tokens; positions then begin no text. */
  readonly state?: CarriedState;
  /** Tokens of each row that are there, int32 (B,): what follows them changes no state. Default: all. */
  readonly lengths?: Value;
  /** Keys and values of earlier tokens, per layer, and which of them are there: (B, 1, 1, P) bias. */
  readonly past?: { readonly layers: readonly LayerPast[]; readonly mask: Value };
  /** Pairs that may attend: bool, broadcastable to (B, H, T, T), beside the causal rule. */
  readonly mask?: Value;
  /** Rows of (B·T) whose logits are wanted, int32; default all. */
  readonly rows?: Value;
}

export interface ForwardResult {
  /** (B·T, V), or one row per wanted row. */
  readonly logits: Value;
  /** Hidden states after the last norm, (B·T, D). */
  readonly hidden: Value;
  /** Keys and values of these tokens, per layer: (B, Hkv, T, D) each; none with `stateShapes`. */
  readonly present: readonly LayerPast[];
  /** The state after the last token, of a model with `stateShapes`. */
  readonly state?: CarriedState;
}

/** Sizes that a cache and an estimate need. */
export interface LanguageModelSizes {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  readonly nKvHeads: number;
  readonly headDim: number;
  readonly maxPositions: number;
}

/**
 * What a model does: continues text; gives a vector for each token; reads one text and writes another;
 * sees pictures; sees pictures and reads text.
 */
export type ModelKind = "causal-lm" | "encoder" | "seq2seq" | "vision" | "vision-text";

/** A model with published parameter names, which a folder in the Hugging Face layout holds. */
export interface PretrainedModel extends Module {
  readonly kind: ModelKind;
  readonly family: string;
  /** The contents of config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Linear layers of the blocks, by path: where adapters sit. */
  readonly targets: ReadonlyMap<string, Linear>;
  /** Parameters that share one tensor: alias path → path. */
  readonly tied: Readonly<Record<string, string>>;
  /** Linear layers that adapters take by default, by the last part of their path. */
  readonly defaultTargets: readonly string[];
  /**
   * Tensors of a published checkpoint that hold nothing of the model's own (buffers, caches of tables), by
   * name; they are skipped. Default: none.
   */
  readonly ignored?: RegExp;
  /** Layers that no adapter may sit on, by path, as the model reads their weight elsewhere; default none. */
  readonly untargeted?: RegExp;
  /** Where adapter files of PEFT have other paths than this model; default: they have the same. */
  readonly peftPaths?: PeftPaths;
  /** Its blocks in order, where adapters stand in whole places of them; none where it has no such blocks. */
  readonly blocks?: readonly BlockSites[];
}

/** A causal language model. */
export interface LanguageModel extends PretrainedModel {
  readonly kind: "causal-lm";
  /**
   * What the model carries between tokens in place of keys and values: the shape of one row's part, by
   * name, float32, zeros before the first token. Default: keys and values.
   */
  readonly stateShapes?: Readonly<Record<string, StaticShape>>;
  readonly sizes: LanguageModelSizes;
  /** The token embedding, (V, D). */
  readonly embedding: Slot;
  /** Factor on what the token embedding gives; default 1. */
  readonly embeddingScale?: number;
  /**
   * Sequences longer than this turn positions by other angles than shorter ones (LongRoPE), so that keys
   * kept of a shorter one are void. Default: none.
   */
  readonly cacheLimit?: number | undefined;
  forward(context: Context, ids: Value, options?: ForwardOptions): ForwardResult;
}

/** Sizes of a model that gives a vector for each token. */
export interface EncoderSizes {
  readonly vocabSize: number;
  readonly dModel: number;
  readonly nLayers: number;
  readonly nHeads: number;
  /** Longest sequence. */
  readonly maxPositions: number;
}

export interface EncoderOptions {
  /** Tokens that are there, (B, T) bool; padding is false. Default: all. */
  readonly mask?: Value;
  /** Which of two texts a token is of, (B, T) int32; default 0. Models without such types ignore it. */
  readonly tokenTypes?: Value;
  /** Position ids (B, T) int32; default: the model's own rule. */
  readonly positions?: Value;
  /** Rows of (B·T) whose hidden states are wanted, int32; default all. */
  readonly rows?: Value;
}

export interface EncoderResult {
  /** Hidden states after the last block, (B·T, D), or one row per wanted row. */
  readonly hidden: Value;
  /** What the model's pooler makes of the first token, (B, D), where it has one. */
  readonly pooled?: Value;
}

/** What a head gives: a token's word, a text's class, a token's class. */
export type HeadTask = "masked-lm" | "sequence-classification" | "token-classification";

/** What of a classification the labels mean: one of them is right, several are, or a number is wanted. */
export type ProblemType =
  | "single_label_classification"
  | "multi_label_classification"
  | "regression";

/** A head as the checkpoint has it. */
export interface EncoderHead {
  readonly task: HeadTask;
  /** Whose hidden states it reads: of each text the first or the last token, or each token. */
  readonly reads: "first" | "last" | "each";
  /** Names of the classes, in the order of the outputs; none for words. */
  readonly labels: readonly string[];
  readonly problem: ProblemType;
  /** Top-level modules of the head alone, by path: new ones are trained beside an adapter. */
  readonly modules: readonly string[];
  /** Hidden states (R, D) → logits (R, classes or words). */
  forward(context: Context, hidden: Value): Value;
}

/** A model that gives a vector for each token of a text, and what its head makes of them. */
export interface EncoderModel extends PretrainedModel {
  readonly kind: "encoder";
  readonly sizes: EncoderSizes;
  readonly head: EncoderHead | undefined;
  /** The token embedding, (V, D). */
  readonly embedding: Slot;
  forward(context: Context, ids: Value, options?: EncoderOptions): EncoderResult;
}

export interface DecodeOptions {
  /** Tokens of the source that are there, (B, S) bool; default all. */
  readonly mask?: Value;
  /**
   * Keys and values of the tokens decoded before, per layer, which of them are there, (B, 1, 1, P) bias,
   * and their distances: place of the new token less place of the earlier one, (1, P) int32.
   */
  readonly past?: {
    readonly layers: readonly LayerPast[];
    readonly mask: Value;
    readonly distances: Value;
  };
  /** Rows of (B·T) whose logits are wanted, int32; default all. */
  readonly rows?: Value;
}

/** A model that reads one text and writes another. */
export interface Seq2SeqModel extends PretrainedModel {
  readonly kind: "seq2seq";
  /** Of the decoder; maxPositions bounds a source and an answer. */
  readonly sizes: LanguageModelSizes;
  /** The token that an answer begins with, the one that ends it, and that of padding. */
  readonly startId: number;
  readonly endId: number;
  readonly padId: number;
  readonly embedding: Slot;
  /** Hidden states of a source, (B·S, D); `mask` (B, S) bool. */
  encode(context: Context, ids: Value, options?: { readonly mask?: Value }): Value;
  /** What each decoder layer attends to of a source: its keys and values, (B, H, S, D) each. */
  crossed(
    context: Context,
    hidden: Value,
    batch: number | string,
    length: number | string,
  ): LayerPast[];
  /** Logits of the next tokens after `ids` (B, T), given the source's keys and values. */
  decode(
    context: Context,
    ids: Value,
    source: readonly LayerPast[],
    options?: DecodeOptions,
  ): ForwardResult;
}

/** Sizes of a model that sees pictures. */
export interface VisionSizes {
  /** Width of the hidden states. */
  readonly dModel: number;
  /** Length of `pooled`. */
  readonly dPooled: number;
  /** Height and width of a picture; of a model that takes any, those it is made for. */
  readonly imageSize: readonly [height: number, width: number];
  readonly channels: number;
}

export interface VisionOptions {
  /**
   * What normalises a batch in models with batch norm: its own statistics ("batch", which also move the
   * running ones) or the running ones. Default: "batch" in training, else "running".
   */
  readonly statistics?: "batch" | "running";
}

export interface VisionResult {
  /** Of each patch or place of each picture, in order: (B·N, D). */
  readonly hidden: Value;
  /** One vector for each picture, (B, dPooled). */
  readonly pooled: Value;
  /** What the head makes of it, (B, classes), where there is one. */
  readonly logits?: Value;
}

/** A classification of whole pictures. */
export interface PictureHead {
  /** In the order of the outputs. */
  readonly labels: readonly string[];
  readonly problem: ProblemType;
  /** Modules of the head alone, by path: new ones are trained beside an adapter. */
  readonly modules: readonly string[];
}

/** A model that sees pictures. */
export interface VisionModel extends PretrainedModel {
  readonly kind: "vision";
  readonly sizes: VisionSizes;
  readonly head: PictureHead | undefined;
  /** The class of `transformers` that classifies with this body; none where there is no such class. */
  readonly classifier: string | undefined;
  /** @param pixels (B, C, H, W), normalised as the folder's preprocessor_config.json says */
  forward(context: Context, pixels: Value, options?: VisionOptions): VisionResult;
}

/** A model that gives pictures and texts vectors of one space. */
export interface VisionTextModel extends PretrainedModel {
  readonly kind: "vision-text";
  readonly vision: VisionSizes;
  readonly text: EncoderSizes;
  /** Length of both vectors. */
  readonly dShared: number;
  /** log of the factor on cosines, a scalar. */
  readonly logitScale: Slot;
  /** Vectors of pictures (B, C, H, W), not of unit length: (B, dShared). */
  embedImages(context: Context, pixels: Value): Value;
  /** Vectors of texts (B, T) int32, not of unit length: (B, dShared). */
  embedTexts(context: Context, ids: Value, options?: { readonly mask?: Value }): Value;
}
