/** What of a model is trained, and in which form the rest is kept. */
import { adaptedContext, joinContexts, positionsBeside } from "../adapters/adapted.ts";
import type { Adapter, LoadedAdapter } from "../adapters/adapter.ts";
import { OptionError, StateError } from "../errors.ts";
import type { LoadModelOptions } from "../models/folder.ts";
import type { LanguageModel, PretrainedModel } from "../models/model.ts";
import { peftName } from "../models/peft-paths.ts";
import type { Linear } from "../nn/linear.ts";
import type { Context, ContextOptions, Module, TensorRecord, ValueRecord } from "../nn/module.ts";
import {
  dequantizeWeight,
  type QuantizeOptions,
  quantizedLayers,
  quantizedWeights,
  quantizeLinear,
} from "../nn/quantize.ts";
import { decayGroups, type ParameterGroup } from "../optim/groups.ts";
import type { Optimizer } from "../optim/optimizer.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { AnyObjective } from "./objective.ts";
import { referencePrefix, type Trainee } from "./program.ts";

export interface TraineeOptions {
  /**
   * Without an adapter: parts of paths whose parameters stay as they are, as `model.embed_tokens` or
   * `layers.0`.
   */
  readonly freeze?: readonly string[];
  /** With an adapter: keep the linear layers of the blocks in 4 or 8 bits. */
  readonly quantize?: QuantizeOptions;
}

/**
 * What is trained: an adapter's new parameters beside a frozen model, or the model's own.
 * @throws OptionError when a part of a path names nothing, nothing is left to train, or options do
 * not go together.
 */
export function traineeOf(
  model: LanguageModel,
  params: TensorRecord,
  adapter?: LoadedAdapter,
  options: TraineeOptions = {},
): Trainee {
  return {
    model,
    maxLength: positionsBeside(model, adapter?.adapter),
    ...partsOf(model, params, adapter, options),
  };
}

/**
 * What of a model's parameters is trained and what is kept, and in which form.
 * @throws as `traineeOf`.
 */
export function partsOf(
  model: PretrainedModel,
  params: TensorRecord,
  adapter: LoadedAdapter | undefined,
  options: TraineeOptions = {},
): Pick<Trainee, "frozen" | "trained" | "form"> | (AdapterParts & Pick<Trainee, "form">) {
  const { freeze = [], quantize } = options;
  if (adapter) {
    if (freeze.length > 0) {
      throw new OptionError(
        `freeze: an adapter leaves the whole model as it is — leave out ${freeze.join(", ")}, or train without an adapter.`,
      );
    }
    // A layer that is trained whole beside the adapter is read as it is trained.
    const isTrained = (path: string): boolean =>
      Object.hasOwn(adapter.params, peftName(model, `${path}.weight`));
    const base = quantize
      ? quantizeModel(model, params, quantize, isTrained)
      : { params, context: (): ContextOptions => ({}) };
    return { form: base.context, ...withAdapter(model, base.params, adapter, base.context) };
  }
  if (quantize) {
    throw new OptionError(
      "quantize: weights of 4 or 8 bits take no gradient — train an adapter beside them.",
    );
  }
  // Running statistics take no gradient.
  const isState = new Map([...model.slots()].map(([path, { kind }]) => [path, kind === "state"]));
  const isKept = (path: string): boolean =>
    isState.get(path) === true || freeze.some((part) => names(part, path));
  const unused = freeze.filter((part) => !Object.keys(params).some((path) => names(part, path)));
  if (unused.length > 0) {
    throw new OptionError(
      `freeze: "${unused[0]}" is part of no parameter's path — paths are like ${Object.keys(params)[0]}.`,
    );
  }
  const entries = Object.entries(params);
  const trained = Object.fromEntries(entries.filter(([path]) => !isKept(path)));
  if (Object.keys(trained).length === 0) {
    throw new OptionError(`freeze: ${freeze.join(", ")} leave nothing to train.`);
  }
  return { frozen: Object.fromEntries(entries.filter(([path]) => isKept(path))), trained };
}

/** What of a trainee an adapter decides. */
export type AdapterParts = Required<Pick<Trainee, "frozen" | "trained" | "adapter" | "adapt">> &
  Pick<Trainee, "hooks" | "penalty" | "learningRate" | "learningRateScale">;

/** @throws StateError when numbers are missing that weights or data must give. */
function checkPrepared(adapter: Adapter, params: TensorRecord, buffers: TensorRecord): void {
  if (!adapter.prepare) return;
  const lost = Object.entries({ ...params, ...buffers }).find(([, { data }]) =>
    Number.isNaN(data[0]),
  );
  if (!lost) return;
  throw new StateError(
    `${adapter.title}: "${lost[0]}" has no numbers yet, weights or data must give them — begin with those of firstNumbers in place of init.`,
  );
}

/**
 * An adapter beside frozen weights: those that it stands in for are let go, its buffers lie among them.
 * @param form what frozen weights in another form need
 */
export function withAdapter(
  model: PretrainedModel,
  base: TensorRecord,
  { adapter, params, buffers = {} }: LoadedAdapter,
  form: (frozen: ValueRecord) => ContextOptions = () => ({}),
): AdapterParts {
  checkPrepared(adapter, params, buffers);
  const replaced = new Set(adapter.replaces);
  const kept = Object.entries(base).filter(([path]) => !replaced.has(path));
  const names = Object.keys(buffers);
  const valuesOf = (own: ValueRecord, frozen: ValueRecord): ValueRecord => ({
    ...own,
    ...Object.fromEntries(names.map((name) => [name, frozen[name]!])),
  });
  return {
    frozen: { ...Object.fromEntries(kept), ...buffers },
    trained: params,
    adapter,
    adapt: (own, frozen) =>
      joinContexts(form(frozen), adaptedContext(adapter, model, valuesOf(own, frozen))),
    ...(adapter.hook && { hooks: [adapter.hook] }),
    ...(adapter.penalty && {
      penalty: (values: ValueRecord, context: Context) => adapter.penalty!(values, context),
    }),
    ...(adapter.learningRate !== undefined && { learningRate: adapter.learningRate }),
    ...(adapter.learningRateScale && {
      learningRateScale: (path: string) => adapter.learningRateScale!(path),
    }),
  };
}

/**
 * Parameters of a trainee by optimiser and rate: matrices decay, and those with a rate of their own stand
 * apart.
 */
export function groupsOf(
  { trained, learningRateScale }: Pick<Trainee<Module>, "trained" | "learningRateScale">,
  weightDecay: number,
  makeOptimizer: (weightDecay: number) => Optimizer,
): ParameterGroup[] {
  const groups = decayGroups(trained, { weightDecay }, makeOptimizer);
  if (!learningRateScale) return groups;
  return groups.flatMap(({ paths, optimizer }) => {
    const byScale = new Map<number, string[]>();
    for (const path of paths) {
      const scale = learningRateScale(path);
      byScale.set(scale, [...(byScale.get(scale) ?? []), path]);
    }
    return [...byScale].map(([scale, own]) => ({
      paths: own,
      optimizer,
      learningRateScale: scale,
    }));
  });
}

/**
 * The trainee with another objective, and with what that trains or keeps beside the model.
 * @throws OptionError when a path is there twice.
 */
export function withObjective(
  trainee: Trainee,
  objective: AnyObjective,
  rng: Rng = new Rng(0),
): Trainee {
  // What an adapter brings of its own, as a head that is saved with it, is there already.
  const own = Object.fromEntries(
    Object.entries(objective.init?.(rng.fold("objective")) ?? {}).filter(
      ([path]) => !Object.hasOwn(trainee.trained, path),
    ),
  );
  const { frozen = {} } = objective;
  for (const path of [...Object.keys(own), ...Object.keys(frozen)]) {
    if (!Object.hasOwn(trainee.trained, path) && !Object.hasOwn(trainee.frozen, path)) continue;
    throw new OptionError(`${objective.name}: "${path}" is a parameter of the model already.`);
  }
  return {
    ...trainee,
    objective,
    trained: { ...trainee.trained, ...own },
    frozen: { ...trainee.frozen, ...frozen },
    ...(objective.hook && { hooks: [...(trainee.hooks ?? []), objective.hook] }),
  };
}

/**
 * The trainee with a frozen copy of a model to compare with, where its own parameters are trained or
 * another model is the reference. Costs the model's size in memory once more.
 * @param params all parameters of a model of the same shape
 */
export function withReference(trainee: Trainee, params: TensorRecord): Trainee {
  const copies = Object.entries(params).map(([path, tensor]) => [
    `${referencePrefix}${path}`,
    tensor.clone(),
  ]);
  return { ...trainee, frozen: { ...trainee.frozen, ...Object.fromEntries(copies) } };
}

/** The trainee's frozen weights that are the model's own, without an adapter's, a teacher's or a copy's. */
export function ownWeights({ frozen, objective, adapter }: Trainee): TensorRecord {
  const others = { ...objective?.frozen, ...adapter?.initBuffers?.() };
  return Object.fromEntries(
    Object.entries(frozen).filter(
      ([path]) => !path.startsWith(referencePrefix) && !Object.hasOwn(others, path),
    ),
  );
}

/** The weights of a model as floats, of those too that `quantizeModel` packed. */
export function unpackedParams(model: PretrainedModel, params: TensorRecord): TensorRecord {
  const floats: TensorRecord = { ...params };
  for (const [path, { inFeatures, outFeatures, inputsFirst }] of model.targets) {
    const name = `${path}.weight`;
    const packed = params[`${name}.packed`] as Tensor<"uint8"> | undefined;
    if (!packed) continue;
    const scales = params[`${name}.scales`] as Tensor<"float32">;
    const blockSize = inFeatures / scales.shape[1]!;
    const bits = ((packed.shape[2]! * 8) / blockSize) as 4 | 8;
    const attrs = { bits, blockSize, inFeatures, outFeatures };
    const rows = dequantizeWeight({ packed, scales, attrs });
    delete floats[`${name}.packed`];
    delete floats[`${name}.scales`];
    floats[name] = inputsFirst
      ? new Tensor(
          "float32",
          [inFeatures, outFeatures],
          Float32Array.from(
            rows,
            (_, i) => rows[(i % outFeatures) * inFeatures + Math.floor(i / outFeatures)]!,
          ),
        )
      : new Tensor("float32", [outFeatures, inFeatures], rows);
  }
  return floats;
}

/** Whether whole words of a path are those of `part`: `layers.1` names `layers.1.mlp` and not `layers.10`. */
function names(part: string, path: string): boolean {
  return `.${path}.`.includes(`.${part}.`);
}

/** A model's weights with the linear layers of its blocks quantised. */
export interface QuantizedModel {
  /** Float parameters as they were; for quantised layers `<path>.weight.packed` and `.scales`. */
  readonly params: TensorRecord;
  /** What the forward pass needs to know, given these values. */
  context(values: ValueRecord): ContextOptions;
}

/** The two tensors that stand for a layer's weight. */
function packedOf(
  layer: Linear,
  name: string,
  weight: Tensor,
  options: QuantizeOptions,
): TensorRecord {
  const { packed, scales } = quantizeLinear(layer, weight, options);
  return { [`${name}.packed`]: packed, [`${name}.scales`]: scales };
}

/**
 * For `loadModel`: linear layers of the blocks are quantised as they are read, and their floats let go.
 * `quantizeModel` and `traineeOf` with the same options take what comes out.
 */
export function quantizedAsRead(options: QuantizeOptions): NonNullable<LoadModelOptions["keep"]> {
  return (model, slot, weight) => {
    const layer = slot.endsWith(".weight") ? model.targets.get(slot.slice(0, -7)) : undefined;
    return layer ? packedOf(layer, slot, weight, options) : { [slot]: weight };
  };
}

/**
 * Quantises every linear layer of the blocks; embeddings, norms and the head stay float32.
 * @param params floats, or what was kept of them by `quantizedAsRead`
 * @param staysFloat layers, by path, that are left as they are; default none
 */
export function quantizeModel(
  model: PretrainedModel,
  params: TensorRecord,
  options: QuantizeOptions = {},
  staysFloat: (path: string) => boolean = () => false,
): QuantizedModel {
  const kept: TensorRecord = { ...params };
  const targets = [...model.targets].filter(([path]) => !staysFloat(path));
  const layers = targets.map(([path, layer]) => {
    const name = `${path}.weight`;
    const weight = params[name];
    if (weight) {
      delete kept[name];
      Object.assign(kept, packedOf(layer, name, weight, options));
    }
    const { inFeatures, outFeatures } = layer;
    const blockSize = inFeatures / kept[`${name}.scales`]!.shape[1]!;
    const bits = ((kept[`${name}.packed`]!.shape[2]! * 8) / blockSize) as 4 | 8;
    const { activations } = options;
    const attrs = { bits, blockSize, inFeatures, outFeatures, ...(activations && { activations }) };
    return { layer, name, attrs };
  });
  return {
    params: kept,
    context: (values) => {
      const all = layers.map(({ layer, name, attrs }) => {
        const [packed, scales] = [values[`${name}.packed`]!, values[`${name}.scales`]!];
        return [layer, { packed, scales, attrs }] as const;
      });
      return { linear: quantizedLayers(all), weights: quantizedWeights(all) };
    },
  };
}
