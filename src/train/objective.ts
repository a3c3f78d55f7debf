/** What is learnt: how examples become a batch, and a batch a loss. */
import type { StepHook } from "../adapters/hook.ts";
import type { Value } from "../ir/graph.ts";
import type { LanguageModel } from "../models/model.ts";
import type { Context, Module, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { BatchShape } from "./batches.ts";

/** Tensors of a batch by name; `weights` says how much each of its items counts, padding 0. */
export interface Batch {
  readonly weights: Tensor<"float32">;
  readonly [name: string]: Tensor;
}

/** What an objective computes with. */
export interface Scene<M extends Module = LanguageModel> {
  readonly model: M;
  /** The model with everything that is trained, in training or in judging. */
  readonly context: Context;
  /**
   * The model as it was: its frozen weights without the adapter. Where parameters of the model itself are
   * trained there is none, and asking for it fails.
   */
  reference(): Context;
  /** Everything trained and frozen, by path: heads and other models beside this one. */
  readonly values: ValueRecord;
}

export interface ObjectiveResult {
  /** Σ weight · loss, a scalar. */
  readonly sum: Value;
  /** Further sums over the batch, weighted alike, by name: `correct` gives an accuracy. */
  readonly metrics?: Readonly<Record<string, Value>>;
}

/** A role: what a training makes small. `M` is the kind of model it is for, `E` its examples. */
export interface Objective<M extends Module = LanguageModel, E = never> {
  readonly name: string;
  /** Highest rate where none is given, of an adapter and of all parameters. */
  readonly learningRate?: { readonly adapter: number; readonly full: number };
  /** Whether several examples may share a row (packing); default false. */
  readonly canPack?: boolean;
  /** Parameters beside the model's that are trained with it, as a head's: by path. */
  readonly init?: (rng: Rng) => TensorRecord;
  /** Weights beside the model's that stay as they are, as a teacher's: by path. */
  readonly frozen?: TensorRecord;
  /** What happens around each step: a schedule moves. The tensors that it changes are among `frozen`. */
  readonly hook?: StepHook;
  /** Examples as one batch of `shape.rows` rows, of one of few shapes. */
  batch(examples: readonly E[], shape: BatchShape): Batch;
  /** The loss of a batch in graph operators. */
  loss(scene: Scene<M>, batch: ValueRecord): ObjectiveResult;
  /** What else can be read off a batch, by name, with dropout off: log-probabilities, values, rewards. */
  inspect?(scene: Scene<M>, batch: ValueRecord): Readonly<Record<string, Value>>;
}

/** An objective whose model and examples are settled elsewhere. */
// biome-ignore lint/suspicious/noExplicitAny: the pair of model and examples is checked where it is made.
export type AnyObjective = Objective<any, any>;
