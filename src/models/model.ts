/** What every language model offers: configuration, module, forward pass. */
import type { Value } from "../ir/graph.ts";
import type { Context, Linear, Module, Slot } from "../nn/index.ts";

/** Past keys and values of one layer: (B, Hkv, P, D) each. */
export interface LayerPast {
  readonly keys: Value;
  readonly values: Value;
}

export interface ForwardOptions {
  /** Position ids (B, T) int32; default 0 … T-1 for each row. */
  readonly positions?: Value;
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
  /** Keys and values of these tokens, per layer: (B, Hkv, T, D) each. */
  readonly present: readonly LayerPast[];
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
}

/** A causal language model. */
export interface LanguageModel extends PretrainedModel {
  readonly kind: "causal-lm";
  readonly sizes: LanguageModelSizes;
  /** The token embedding, (V, D). */
  readonly embedding: Slot;
  forward(context: Context, ids: Value, options?: ForwardOptions): ForwardResult;
}
