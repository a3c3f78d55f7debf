/** From a configuration and opened models to what is done for every tensor; refuses what does not fit. */
import { FormatError, OptionError, ShapeError, UnsupportedError } from "../../../errors.ts";
import type { SafetensorsDtype } from "../../../io/safetensors.ts";
import { dtypeOrder, tensorDtype } from "../../../io/safetensors-types.ts";
import { isFloat } from "../../../tensor/dtype.ts";
import { sameShape, showShape } from "../../../tensor/shape.ts";
import type { AnyMethod } from "../../method.ts";
import type { MergeConfig, SliceConfig, SourceConfig } from "./config.ts";
import { checkWeights, storedTypes } from "./convert.ts";
import { isBuffer, isEarly, layerName, layerOf, ownNames, stacksOf } from "./names.ts";
import { compareConfigs, withLayers } from "./plan-config.ts";
import { checkParameters, type OptionReader, optionReader } from "./plan-options.ts";
import type { Source } from "./source.ts";

/** A tensor of a source. */
export interface PlannedInput {
  /** Which source. */
  readonly source: number;
  readonly name: string;
}

export interface PlannedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Type on disk. */
  readonly dtype: SafetensorsDtype;
  /** Whole numbers are the same in all models and are copied from the first. */
  readonly isCopied: boolean;
  readonly base: PlannedInput | undefined;
  readonly inputs: readonly PlannedInput[];
  /** Options of each input. */
  readonly options: readonly object[];
}

export interface MergePlan {
  readonly method: AnyMethod;
  /** Which source's config.json and other files are written. */
  readonly home: number;
  readonly tensors: readonly PlannedTensor[];
  /** The contents of config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** What the user should know: settings in which models differ. */
  readonly warnings: readonly string[];
}

/** All models of a configuration, by name, the base first. */
export function modelsOf(config: MergeConfig): string[] {
  const names = config.slices.flatMap(({ sources, baseModel }) => [
    ...(baseModel === undefined ? [] : [baseModel]),
    ...sources.map(({ model }) => model),
  ]);
  const first = config.baseModel === undefined ? [] : [config.baseModel];
  return [...new Set([...first, ...names])];
}

/** What is wrong with a model, in words that name it. */
class Planner {
  readonly config: MergeConfig;
  readonly method: AnyMethod;
  readonly sources: readonly Source[];
  readonly home: number;
  readonly #index: ReadonlyMap<string, number>;
  readonly #names: readonly ReadonlyMap<string, string>[];
  readonly #read: OptionReader;

  constructor(config: MergeConfig, method: AnyMethod, sources: readonly Source[]) {
    this.config = config;
    this.method = method;
    this.sources = sources;
    this.#index = new Map(sources.map(({ label }, i) => [label, i]));
    this.home = this.indexOf(config.baseModel ?? config.slices[0].sources[0].model);
    this.#names = sources.map((source) => ownNames(this.homeSource, source));
    this.#read = optionReader(config, method);
  }

  get homeSource(): Source {
    return this.sources[this.home];
  }

  indexOf(label: string): number {
    return this.#index.get(label)!;
  }

  /** The tensor that a source has for one of the base's names: its own, or the one that it is tied to. */
  inputFor(source: number, name: string): PlannedInput {
    const own = this.#names[source].get(name);
    if (own !== undefined) return { source, name: own };
    const { model, label } = this.sources[source];
    const target = model && Object.hasOwn(model.tied, name) ? model.tied[name] : undefined;
    const tied = target === undefined ? undefined : this.#names[source].get(target);
    if (tied !== undefined) return { source, name: tied };
    throw new FormatError(
      `${this.method.id}: "${label}" lacks the tensor "${name}" — every model must have the tensors of "${this.homeSource.label}".`,
      { model: label, name },
    );
  }

  /** Names of the result outside buffers and what is tied. */
  templates(): string[] {
    const { model } = this.homeSource;
    return [...this.homeSource.entries.keys()].filter(
      (name) => !isBuffer(name, this.homeSource) && !(model && Object.hasOwn(model.tied, name)),
    );
  }

  /** Refuses tensors that the base has no like for: they would be lost. */
  checkExtra(): void {
    const known = new Set(
      [...this.homeSource.entries.keys()].map((name) => {
        const layer = layerOf(name);
        return layer ? layerName(layer.stack, 0, layer.rest) : name;
      }),
    );
    const inLayer = new Set(
      [...this.homeSource.entries.keys()].flatMap((name) => layerOf(name)?.rest ?? []),
    );
    for (const [i, source] of this.sources.entries()) {
      const tied = source.model?.tied ?? {};
      for (const [name, own] of this.#names[i]) {
        const layer = layerOf(name);
        const isKnown = layer
          ? known.has(layerName(layer.stack, 0, layer.rest)) || inLayer.has(layer.rest)
          : known.has(name);
        if (isKnown || isBuffer(own, source) || Object.hasOwn(tied, name)) continue;
        throw new FormatError(
          `${this.method.id}: "${source.label}" has the tensor "${own}", which "${this.homeSource.label}" lacks — every model must have the same tensors.`,
          { model: source.label, name: own },
        );
      }
    }
  }

  checkShape(name: string, input: PlannedInput): void {
    const like = this.homeSource.entries.get(name)!;
    const source = this.sources[input.source];
    const { shape } = source.entries.get(input.name)!;
    if (sameShape(shape, like.shape)) return;
    const isRows = shape.length === 2 && shape[1] === like.shape[1] && like.shape.length === 2;
    const what =
      isRows && (isEarly(name) || /lm_head|decoder|output/.test(name))
        ? `the vocabularies differ; bring both to one size first, or take models of one vocabulary`
        : `models must have one architecture and size`;
    throw new ShapeError(
      `${this.method.id}: tensor "${input.name}" of "${source.label}" has shape ${showShape(shape)}, that of "${this.homeSource.label}" ${showShape(like.shape)} — ${what}.`,
      { model: source.label, name: input.name },
    );
  }

  /** Sources of a slice in the order that the method takes them, and its base. */
  sourcesOf(slice: SliceConfig): {
    readonly base: SourceConfig | undefined;
    readonly models: readonly SourceConfig[];
  } {
    const { id } = this.method;
    const { needsBase, models: count } = this.method.roles.merge!;
    const named = slice.baseModel ?? this.config.baseModel;
    const own = slice.sources.find(({ model }) => model === named);
    const others = slice.sources.filter((source) => source !== own);
    let [base, models] = [undefined as SourceConfig | undefined, [...slice.sources]];
    if (needsBase) {
      if (named === undefined) {
        throw new OptionError(
          `${id}: needs the model that the others were trained from — name it as the base (base_model, --base).`,
        );
      }
      if (!own && !this.config.isWhole) {
        throw new OptionError(
          `${id}: the base "${named}" must be among the sources of every slice, with its layer_range.`,
        );
      }
      base = own ?? { model: named };
      models = others;
    } else if (own) models = [own, ...others];
    else if (named !== undefined && models.length < count.least && this.config.isWhole) {
      models = [{ model: named }, ...models];
    }
    if (models.length < count.least || models.length > (count.most ?? Infinity)) {
      const wanted = count.most === count.least ? `${count.least}` : `${count.least} or more`;
      throw new OptionError(
        `${id}: takes ${wanted} model${wanted === "1" ? "" : "s"}${needsBase ? " beside the base" : ""}, got ${models.length}.`,
      );
    }
    return { base, models };
  }

  /**
   * @param template the base's name that gives shape and type
   * @param nameIn the name in a source, by the base's naming
   */
  tensor(
    name: string,
    template: string,
    slice: SliceConfig,
    t: number,
    nameIn: (source: SourceConfig) => string,
  ): PlannedTensor {
    const { base, models } = this.sourcesOf(slice);
    const entry = this.homeSource.entries.get(template)!;
    const inputOf = (source: SourceConfig): PlannedInput => {
      const input = this.inputFor(this.indexOf(source.model), nameIn(source));
      this.checkShape(template, input);
      return input;
    };
    const dtype = tensorDtype.get(entry.dtype);
    const isCopied = dtype !== undefined && !isFloat(dtype);
    const inputs = models.map(inputOf);
    const planned = base ? inputOf(base) : undefined;
    for (const { source, name: own } of planned ? [planned, ...inputs] : inputs) {
      const { label, entries } = this.sources[source];
      const written = entries.get(own)!.dtype;
      if (!isCopied) checkWeights(`${this.method.id}: tensor "${own}" of "${label}"`, written);
      else if (written !== entry.dtype) {
        throw new FormatError(
          `${this.method.id}: tensor "${own}" of "${label}" has dtype ${written}, that of "${this.homeSource.label}" ${entry.dtype} — whole numbers must be alike in all models.`,
        );
      }
    }
    return {
      name,
      shape: entry.shape,
      dtype: isCopied || !this.config.dtype ? entry.dtype : storedTypes[this.config.dtype],
      isCopied,
      base: planned,
      inputs,
      options: isCopied
        ? []
        : models.map((source) => this.#read(source, slice, nameIn(source), name, t)),
    };
  }
}

/** Where layer `index` of `count` stands, from 0 to 1. */
const placeOf = (index: number, count: number): number => (count > 1 ? index / (count - 1) : 1);

/** Where tensors outside the layers stand in a gradient, behind them as before them: as in mergekit. */
const outside = 0;

function planWhole(planner: Planner): PlannedTensor[] {
  const [slice] = planner.config.slices;
  const names = planner.templates();
  const stacks = stacksOf(names);
  return names.map((name) => {
    const layer = layerOf(name);
    const t = layer ? placeOf(layer.index, stacks.get(layer.stack)!) : outside;
    return planner.tensor(name, name, slice, t, () => name);
  });
}

function planSlices(planner: Planner): { tensors: PlannedTensor[]; layers: number } {
  const { slices } = planner.config;
  const names = planner.templates();
  const stacks = [...stacksOf(names)];
  if (stacks.length !== 1) {
    throw new UnsupportedError(
      `${planner.method.id}: "${planner.homeSource.label}" has ${stacks.length} stacks of layers (${stacks.map(([name]) => name).join(", ") || "none"}), slices are of models with one — merge whole models (models in place of slices).`,
    );
  }
  const [[stack, count]] = stacks;
  const tensors: PlannedTensor[] = [];
  for (const name of names.filter((item) => !layerOf(item))) {
    const slice = isEarly(name) ? slices[0] : slices.at(-1)!;
    tensors.push(planner.tensor(name, name, slice, outside, () => name));
  }
  let layers = 0;
  for (const [i, slice] of slices.entries()) {
    const [first, end] = slice.sources[0].layerRange!;
    for (let k = 0; k < end - first; k++) {
      // Shapes and types are those of the base's layer, or of its last where it has fewer.
      const like = Math.min(first + k, count - 1);
      const rests = names.flatMap((name) => {
        const layer = layerOf(name);
        return layer?.index === like ? [layer.rest] : [];
      });
      for (const rest of rests) {
        tensors.push(
          planner.tensor(
            layerName(stack, layers, rest),
            layerName(stack, like, rest),
            slice,
            placeOf(k, end - first),
            ({ layerRange, model }) => {
              if (!layerRange)
                throw new OptionError(`slices[${i}]: "${model}" has no layer_range.`);
              return layerName(stack, layerRange[0] + k, rest);
            },
          ),
        );
      }
      layers++;
    }
  }
  return { tensors, layers };
}

/**
 * What is read, done and written, tensor by tensor.
 * @param sources as `modelsOf` names them
 * @throws ShapeError, FormatError naming model and tensor where models do not fit; OptionError for options.
 */
export function planMerge(
  config: MergeConfig,
  method: AnyMethod,
  sources: readonly Source[],
): MergePlan {
  checkParameters(config, method);
  const planner = new Planner(config, method, sources);
  for (const slice of config.slices) planner.sourcesOf(slice);
  const home = planner.homeSource;
  const warnings = compareConfigs(method.id, home, sources, config.isWhole);
  planner.checkExtra();
  let tensors: PlannedTensor[];
  let own: Readonly<Record<string, unknown>> = home.config;
  if (config.isWhole) tensors = planWhole(planner);
  else {
    const { tensors: planned, layers } = planSlices(planner);
    tensors = planned;
    own = withLayers(method.id, home, layers);
  }
  if (config.dtype) {
    // Older configs say torch_dtype; one that says both must not contradict itself.
    const old = own["torch_dtype"] !== undefined && { torch_dtype: config.dtype };
    own = { ...own, ...old, dtype: config.dtype };
  }
  // The order in which files are written, so that the next tensor is known: wide types first, then by name.
  const wide = ({ dtype }: PlannedTensor): number => dtypeOrder.indexOf(dtype);
  tensors.sort((a, b) => wide(b) - wide(a) || (a.name < b.name ? -1 : 1));
  return { method, home: planner.home, tensors, config: own, warnings };
}
