/**
 * What every adapter is: trained parameters beside a frozen model, and what they do at their sites.
 *
 * | an adapter may            | through |
 * |---|---|
 * | wrap a layer: its input, its base output         | `context().sites`, by module |
 * | wrap a place in a block: what attention or the feed-forward layer adds, or the block | `sites`, by the modules of `model.blocks` |
 * | change a parameter                               | `context().replace`, by slot |
 * | compute a layer with its weight in another form, and let the weight go | `context().linear`, `replaces` |
 * | steer all sites from one place, perhaps by a first pass | `context().around`, `signals`, `passes` |
 * | put keys and values before every sequence        | `past` |
 * | begin with numbers that weights or data give     | `prepare` |
 * | act after each optimiser step                    | `hook` |
 * | add to the loss                                  | `penalty` |
 */
import { OptionError } from "../errors.ts";
import type { JsonObject } from "../io/json.ts";
import type { Value } from "../ir/graph.ts";
import type { LayerPast, PretrainedModel } from "../models/model.ts";
import type { Context, ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { StepHook } from "./hook.ts";

/** An adapter's numbers. */
export interface AdapterNumbers {
  /** What is trained, by the name under which files keep it. */
  readonly params: TensorRecord;
  /** What is not: codes, random bases, masks. */
  readonly buffers: TensorRecord;
}

/** How an adapter's numbers lie in a file, where that is not as they are in memory. */
export interface AdapterFile {
  /** Tensors as they are written. */
  pack(numbers: AdapterNumbers): TensorRecord;
  /**
   * Numbers from the tensors of a file.
   * @param where begins an error
   * @throws FormatError when they are not all that is needed, and nothing else.
   */
  unpack(stored: Readonly<TensorRecord>, where: string): AdapterNumbers;
}

/** What `prepare` and an initialiser have to look at. */
export interface PrepareScene {
  readonly model: PretrainedModel;
  /** The base's parameters by path. */
  readonly base: Readonly<TensorRecord>;
  readonly rng: Rng;
  /** Bits in which the base's linear layers are going to be kept; default: they stay floats. */
  readonly bits?: 4 | 8 | undefined;
  /**
   * Inputs of linear layers on the training data, batch after batch, from the start at each call: rows of
   * tokens that count (padding left out), (N, in) by the layer's path.
   * @throws OptionError where there is no data.
   */
  inputs(layers: readonly string[]): AsyncIterable<Readonly<Record<string, Tensor<"float32">>>>;
  /**
   * Gradients of the training loss to base parameters, summed over batches, by path.
   * @param batches how many, from the first
   */
  gradients(paths: readonly string[], batches: number): Promise<TensorRecord>;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: (message: string) => void;
}

/** A scene without training data: for what looks at the base's weights alone. */
export function weightsScene(
  model: PretrainedModel,
  base: Readonly<TensorRecord>,
  rng: Rng,
): PrepareScene {
  const refuse = (): never => {
    throw new OptionError("prepare: needs training data, and none was given.");
  };
  return { model, base, rng, inputs: refuse, gradients: async () => refuse() };
}

/** An adapter bound to a model: where it sits and what it computes. Its numbers come from outside. */
export interface Adapter {
  /** The kind as PEFT names it, `LORA`; kinds that PEFT does not have begin with no such name. */
  readonly kind: string;
  /** As people write it, `LoRA`. */
  readonly title: string;
  /** Paths of the layers it sits on. */
  readonly targets: readonly string[];
  /** Whether its effect can be written into the base weights. */
  readonly mergeable: "exact" | "approximate" | "no";
  /** What `merge` adds to a weight does not depend on the weight: default false. */
  readonly isAdditive?: boolean;
  /** Base parameters that it stands in for: they are not needed beside it. Default: none. */
  readonly replaces?: readonly string[];
  /** Forward passes whose keys and values decoding keeps, this one last; default 1. */
  readonly passes?: number;
  readonly hook?: StepHook;
  readonly file?: AdapterFile;

  /** New numbers for every trained parameter. */
  init(rng: Rng): TensorRecord;
  /** Buffers where `prepare` is not asked, and the shapes of all; default: none. */
  initBuffers?(): TensorRecord;
  /** First numbers from weights or data; default: `init` and `initBuffers`. */
  prepare?(scene: PrepareScene): Promise<AdapterNumbers>;
  /** What the forward pass does with the values of parameters and buffers. */
  context(values: ValueRecord): ContextOptions;
  /** Positions that `past` takes before every sequence, P; default 0. */
  readonly virtualTokens?: number;
  /** Keys and values of each layer that stand before every sequence: (1, Hkv, P, D) each. */
  past?(values: ValueRecord, model: PretrainedModel, context: Context): readonly LayerPast[];
  /** A scalar that is added to the mean loss of a batch, after its forward pass. */
  penalty?(values: ValueRecord, context: Context): Value;
  /** Highest learning rate where none is given; default the objective's, or 2e-3. */
  readonly learningRate?: number;
  /** How many times the learning rate a parameter takes; default 1 for all. */
  learningRateScale?(name: string): number;
  /** Base weights with the adapter written in; only those it changes. */
  merge(
    base: Readonly<Record<string, Tensor>>,
    params: TensorRecord,
    buffers?: TensorRecord,
  ): TensorRecord;
  /** The contents of adapter_config.json; of an adapter that changes with training, by its numbers. */
  config(numbers?: AdapterNumbers): Readonly<Record<string, unknown>>;
}

/** An adapter and its numbers. */
export interface LoadedAdapter {
  readonly adapter: Adapter;
  readonly params: TensorRecord;
  /** Default: none. */
  readonly buffers?: TensorRecord;
}

/** What binding an adapter may need beside the model. */
export interface BindScene {
  /** Reads another adapter's folder for the same model. */
  load(path: string): Promise<LoadedAdapter>;
}

/** A kind of adapter: made from options, and read back from a folder. */
export interface AdapterKind<O = never> {
  /** `peft_type`. */
  readonly kind: string;
  /** @throws OptionError for options that do not fit the model. */
  bind(model: PretrainedModel, options: O, scene?: BindScene): Adapter | Promise<Adapter>;
  /**
   * Options from the contents of an adapter_config.json, whose other fields it checks.
   * @throws FormatError, UnsupportedError for what it cannot carry.
   */
  read(config: JsonObject, where: string, model: PretrainedModel): O;
}

/** A kind whose options are settled elsewhere. */
// biome-ignore lint/suspicious/noExplicitAny: each kind checks what it is given.
export type AnyAdapterKind = AdapterKind<any>;

/** Paths of a model's linear layers that a target names: the whole path, or its last parts. */
export function matchTargets(model: PretrainedModel, targets: readonly string[]): string[] {
  return [...model.targets.keys()].filter((path) =>
    targets.some((target) => path === target || path.endsWith(`.${target}`)),
  );
}

/**
 * Paths of the linear layers that an adapter sits on.
 * @throws OptionError for targets that match no layer.
 */
export function targetsOf(
  model: PretrainedModel,
  wanted: readonly string[] | "all-linear" = model.defaultTargets,
): string[] {
  const targets = wanted === "all-linear" ? [...model.targets.keys()] : matchTargets(model, wanted);
  if (targets.length > 0) return targets;
  const known = [...new Set([...model.targets.keys()].map((path) => path.split(".").at(-1)))];
  throw new OptionError(
    `targetModules [${(wanted as readonly string[]).join(", ")}] match no layer of this ${model.family} — it has ${known.join(", ")}.`,
  );
}

/** New numbers of an adapter that looks at neither weights nor data. */
export function newNumbers(adapter: Adapter, rng: Rng): AdapterNumbers {
  return { params: adapter.init(rng), buffers: adapter.initBuffers?.() ?? {} };
}
