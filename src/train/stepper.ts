/**
 * One training step behind one seam: loss, gradients and update, wherever parameters and optimiser state
 * live. On a CPU they live in memory that a SIMD pass updates in place (`HostStepper`); on a backend that
 * keeps tensors on its device the update is part of the step's graph and they stay there
 * (`DeviceStepper`).
 */
import type { Backend } from "../backend/backend.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { DeviceStepper } from "./device-stepper.ts";
import { HostStepper } from "./host-stepper.ts";
import type { Batch, EvalResult, ProgramOptions, Trainee } from "./program.ts";
import type { UpdaterOptions, UpdateState } from "./update.ts";
import type { UpdateInfo } from "./updater.ts";

export type { UpdateState as TrainState } from "./update.ts";

export interface StepperOptions extends UpdaterOptions, ProgramOptions {}

/** A part of a step's batch: gradients of all parts are added up before the update. */
export interface StepPart {
  readonly batch: Batch;
  /** The source of this part's noise: dropout. Its key alone counts, and it does not move. */
  readonly noise: Rng;
}

export interface StepResult extends UpdateInfo {
  /** Σ w · nll / Σ w over all parts, before the update. */
  readonly loss: number;
}

export interface Stepper {
  /** Updates made so far; a step that is not applied does not count. */
  readonly stepCount: number;
  /**
   * One optimiser step. The loss is averaged over the weights of all parts together.
   * @throws OptionError for a learning rate that is not a number from 0, or without parts.
   * @throws StateError for several parts without the option `accumulates`.
   */
  step(parts: readonly StepPart[], learningRate: number): Promise<StepResult>;
  /** The loss of a batch with the current parameters, without training: dropout off. */
  evaluate(batch: Batch): Promise<EvalResult>;
  /** What the objective reads off a batch with the current parameters, by name; dropout off. */
  inspect(batch: Batch): Promise<TensorRecord>;
  /** Current parameters by path. They may be the stepper's own and change with the next step: copy to keep. */
  params(): Promise<TensorRecord>;
  /** Running means of the parameters, if kept; as `params`. */
  ema(): Promise<TensorRecord | undefined>;
  /** Step and optimiser state; as `params`. What one stepper gives another takes. */
  state(): Promise<UpdateState>;
  /**
   * Takes parameters and state of an earlier run.
   * @throws MissingError, ShapeError or StateError naming a tensor that is missing, of another shape or
   * not kept here; nothing is changed then.
   */
  load(params: Readonly<Record<string, Tensor>>, state: UpdateState): Promise<void>;
  /** Gradients of the last step before clipping, by path; as `params`. */
  gradients(): Promise<TensorRecord>;
  /**
   * Writes parameters and frozen tensors over what was there.
   * @throws StateError for a name that is not kept here, ShapeError for another shape; nothing is
   * changed then.
   */
  write(changes: StepperChanges): Promise<void>;
  /** Frees sessions and device memory. */
  release(): Promise<void>;
}

export interface StepperChanges {
  readonly params?: Readonly<Record<string, Tensor>>;
  /** Of the trainee's frozen tensors. */
  readonly frozen?: Readonly<Record<string, Tensor>>;
  /** The optimiser forgets its moments and counts from 0; `stepCount` goes on. */
  readonly resetOptimizer?: true;
}

/**
 * The stepper for a backend: on the device where the backend keeps tensors there.
 * @param groups each trained parameter belongs to exactly one
 * @throws OptionError or DtypeError as `Updater` does.
 */
export async function makeStepper(
  trainee: Trainee<Module>,
  groups: readonly ParameterGroup[],
  backend: Backend,
  options: StepperOptions = {},
): Promise<Stepper> {
  return backend.device
    ? DeviceStepper.make(trainee, groups, backend, options)
    : new HostStepper(trainee, groups, backend, options);
}
