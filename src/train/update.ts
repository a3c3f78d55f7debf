/** What an update is, whoever runs it: which optimiser takes a parameter, its state, its arithmetic. */
import { DtypeError, MissingError, OptionError, ShapeError, StateError } from "../errors.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import { isFloat } from "../tensor/dtype.ts";
import { type StaticShape, sameShape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { StepPart } from "./stepper.ts";

export interface UpdaterOptions {
  /** Largest global norm of the gradient, above 0; beyond it all gradients are scaled down. */
  readonly clipNorm?: number;
  /** By path: 0 or 1 per element, multiplied into the parameter after each update. */
  readonly masks?: Readonly<Record<string, Tensor>>;
  /** Keep a running mean of every parameter with this decay, in [0, 1). */
  readonly ema?: number;
  /** Make room to add up gradients of several parts of a batch; default false. */
  readonly accumulates?: boolean;
}

/** How one parameter is updated. */
export interface UpdatePlan {
  readonly path: string;
  readonly param: Tensor;
  readonly group: ParameterGroup;
  /** State of the optimiser, by name. */
  readonly slots: Readonly<Record<string, StaticShape>>;
  readonly mask: Tensor | undefined;
}

/** What a later run needs beside the parameters: `<path>.<slot>`, and `<path>.ema` where one is kept. */
export interface UpdateState {
  /** Updates made so far. */
  readonly step: number;
  /** Those before the optimiser was made to forget; default 0. */
  readonly origin?: number;
  readonly tensors: Readonly<Record<string, Tensor>>;
}

/**
 * A plan for every parameter, in their order.
 * @param groups each parameter belongs to exactly one
 * @throws OptionError when a path is in no group, in two, or unknown, when an optimiser cannot take
 * a parameter, or an option is outside its range; DtypeError for a parameter that is not of floats.
 */
export function planUpdate(
  params: Readonly<Record<string, Tensor>>,
  groups: readonly ParameterGroup[],
  options: UpdaterOptions,
): UpdatePlan[] {
  checkOptions(params, groups, options);
  const owner = new Map<string, ParameterGroup>();
  for (const group of groups) {
    for (const path of group.paths) {
      if (owner.has(path)) throw new OptionError(`updater: "${path}" is in two groups.`);
      if (!Object.hasOwn(params, path)) throw new OptionError(`updater: no parameter "${path}".`);
      owner.set(path, group);
    }
  }
  return Object.entries(params).map(([path, param]) => {
    const group = owner.get(path);
    if (!group) throw new OptionError(`updater: "${path}" is in no group.`);
    if (!isFloat(param.dtype)) {
      throw new DtypeError(
        `updater: "${path}" must hold floats to be trained, got ${param.dtype}.`,
      );
    }
    const refusal = group.optimizer.refusal?.(param.shape);
    if (refusal !== undefined) {
      throw new OptionError(
        `updater: "${path}" has shape ${showShape(param.shape)}, but ${refusal}.`,
      );
    }
    const mask = options.masks?.[path];
    if (mask && !sameShape(mask.shape, param.shape)) {
      throw new ShapeError(
        `updater: mask of "${path}" must have shape ${showShape(param.shape)}, got ${showShape(mask.shape)}.`,
      );
    }
    return { path, param, group, slots: group.optimizer.slots(param.shape), mask };
  });
}

function checkOptions(
  params: Readonly<Record<string, Tensor>>,
  groups: readonly ParameterGroup[],
  { clipNorm, ema, masks = {} }: UpdaterOptions,
): void {
  if (clipNorm !== undefined && !(clipNorm > 0)) {
    throw new OptionError(`updater: clipNorm must be above 0, got ${clipNorm}.`);
  }
  if (ema !== undefined && !(ema >= 0 && ema < 1)) {
    throw new OptionError(`updater: ema must be in [0, 1), got ${ema}.`);
  }
  for (const { learningRateScale: scale = 1 } of groups) {
    if (!(scale >= 0 && scale < Infinity)) {
      throw new OptionError(`updater: learningRateScale must be a number from 0, got ${scale}.`);
    }
  }
  for (const path of Object.keys(masks)) {
    if (Object.hasOwn(params, path)) continue;
    throw new OptionError(`updater: a mask is for "${path}", which is no parameter.`);
  }
}

/** @throws OptionError for a learning rate that is not a number from 0. */
export function checkLearningRate(learningRate: number): void {
  if (learningRate >= 0 && learningRate < Infinity) return;
  throw new OptionError(`updater: learning rate must be a number from 0, got ${learningRate}.`);
}

/**
 * The new contents of a parameter's arrays, in graph operators.
 * @param arrays param, gradient, the optimiser's slots, and mask and ema where there are such
 * @param scalars the optimiser's numbers of the step, and `gradientScale`
 * @param emaDecay decay of the running mean
 */
export function updateOf(
  group: ParameterGroup,
  arrays: Readonly<Record<string, Value>>,
  scalars: Readonly<Record<string, Value>>,
  emaDecay: number | undefined,
): Record<string, Value> {
  const { param, gradient, mask, ema, ...slots } = arrays;
  const scaled = mul(gradient!, scalars["gradientScale"]!);
  const next = group.optimizer.update(param!, scaled, slots, scalars);
  const kept = mask ? mul(next.param, mask) : next.param;
  return {
    param: kept,
    ...next.slots,
    ...(ema && emaDecay !== undefined && { ema: add(mul(ema, emaDecay), mul(kept, 1 - emaDecay)) }),
  };
}

/**
 * Checks parameters and state of an earlier run against the shapes that are kept.
 * @param own shapes of the parameters, by path
 * @param ownState shapes of the state's tensors, by name
 * @throws MissingError, ShapeError or StateError naming a tensor that is missing, of another shape
 * or not kept here.
 */
export function checkState(
  own: Readonly<Record<string, StaticShape>>,
  ownState: Readonly<Record<string, StaticShape>>,
  params: Readonly<Record<string, Tensor>>,
  state: UpdateState,
): void {
  const pairs = [
    ...Object.entries(own).map(([name, shape]) => [name, shape, params[name]] as const),
    ...Object.entries(ownState).map(([name, shape]) => [name, shape, state.tensors[name]] as const),
  ];
  for (const [name, shape, from] of pairs) {
    if (!from) throw new MissingError(`updater: the checkpoint lacks "${name}".`);
    if (!sameShape(shape, from.shape)) {
      throw new ShapeError(
        `updater: "${name}" must have shape ${showShape(shape)}, got ${showShape(from.shape)}.`,
      );
    }
  }
  for (const name of Object.keys(state.tensors)) {
    if (!Object.hasOwn(ownState, name)) {
      throw new StateError(
        `updater: the checkpoint has "${name}", which is not kept here — use the optimizer and options that wrote it.`,
      );
    }
  }
  if (!(Number.isSafeInteger(state.step) && state.step >= 0)) {
    throw new StateError(`updater: step must be a whole number from 0, got ${state.step}.`);
  }
  const { origin = 0 } = state;
  if (!(Number.isSafeInteger(origin) && origin >= 0 && origin <= state.step)) {
    throw new StateError(
      `updater: origin must be a whole number from 0 to the step ${state.step}, got ${origin}.`,
    );
  }
}

/**
 * Checks tensors that are to be written over others.
 * @param what they are, for the error
 * @throws StateError for a name that is not kept here, ShapeError for another shape.
 */
export function checkWrite(
  what: string,
  own: Readonly<Record<string, { readonly shape: StaticShape }>>,
  written: Readonly<Record<string, Tensor>> = {},
): void {
  for (const [name, { shape }] of Object.entries(written)) {
    const into = Object.hasOwn(own, name) ? own[name] : undefined;
    if (!into) throw new StateError(`stepper: "${name}" is no ${what} of this training.`);
    if (sameShape(into.shape, shape)) continue;
    throw new ShapeError(
      `stepper: "${name}" must have shape ${showShape(into.shape)}, got ${showShape(shape)}.`,
    );
  }
}

/** @throws OptionError without parts, StateError for several where there is no room to add up. */
export function checkParts(parts: readonly StepPart[], accumulates: boolean): void {
  if (parts.length === 0) throw new OptionError("step: needs at least one part of a batch.");
  if (parts.length > 1 && !accumulates) {
    throw new StateError(
      `step: no room to add up ${parts.length} parts — set the option accumulates.`,
    );
  }
}

/** Σ weight over all parts. */
export function totalWeight(parts: readonly StepPart[]): number {
  let total = 0;
  for (const { batch } of parts) for (const weight of batch.weights.data) total += weight;
  return total;
}
