/** Runs the hooks of a training around its steps, and keeps what they change. */
import type { StepChanges } from "../adapters/hook.ts";
import { OptionError, ShapeError, StateError } from "../errors.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import type { Schedule } from "../optim/schedule.ts";
import type { Rng } from "../tensor/rng.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Trainee } from "./program.ts";
import type { Stepper } from "./stepper.ts";

/** Names of the frozen tensors that hooks change. */
function changedNames({ hooks = [], frozen }: Trainee<Module>): string[] {
  const names = hooks.flatMap(({ changes }) => changes);
  for (const name of names) {
    if (Object.hasOwn(frozen, name)) continue;
    throw new StateError(`hook: changes "${name}", which is no frozen tensor of the training.`);
  }
  if (new Set(names).size < names.length) {
    throw new StateError(`hook: two hooks change the same of [${names.join(", ")}].`);
  }
  return names;
}

/** The trainee with own copies of what hooks change, so that the caller's tensors stay. */
export function withOwnBuffers<M extends Module>(trainee: Trainee<M>): Trainee<M> {
  const names = changedNames(trainee as Trainee<Module>);
  if (names.length === 0) return trainee;
  const copies = names.map((name) => [name, trainee.frozen[name]!.clone()] as const);
  return { ...trainee, frozen: { ...trainee.frozen, ...Object.fromEntries(copies) } };
}

/**
 * The rate over all steps: begins anew with each phase that a hook asks for.
 * @param scheduleOf the schedule of so many steps
 * @throws OptionError when two hooks ask for phases, or phases do not add up to the steps.
 */
export function phasedSchedule(
  { hooks = [] }: Trainee<Module>,
  steps: number,
  scheduleOf: (steps: number) => Schedule,
): Schedule {
  const asking = hooks.filter(({ phases }) => phases);
  if (asking.length === 0) return scheduleOf(steps);
  const lengths = asking[0]!.phases!(steps);
  const isWhole = lengths.every((length) => Number.isInteger(length) && length >= 0);
  if (asking.length > 1 || !isWhole || lengths.reduce((a, b) => a + b, 0) !== steps) {
    throw new OptionError(
      `hook: phases [${lengths.join(", ")}] of ${asking.length} hooks must be those of one and add up to ${steps} steps.`,
    );
  }
  const parts = lengths.filter((length) => length > 0);
  const schedules = parts.map((length) => scheduleOf(length));
  return (step) => {
    let at = step;
    for (const [i, length] of parts.entries()) {
      if (at < length || i === parts.length - 1) return schedules[i]!(at);
      at -= length;
    }
    return 0;
  };
}

export class HookRunner {
  readonly #hooks: NonNullable<Trainee["hooks"]>;
  readonly #stepper: Stepper;
  readonly #rng: Rng;
  readonly #steps: number;
  /** On the host; the stepper has copies where it keeps tensors on a device. */
  readonly #buffers: TensorRecord;

  /** @param trainee as `withOwnBuffers` gives it, and the stepper has it */
  constructor(trainee: Trainee<Module>, stepper: Stepper, rng: Rng, steps: number) {
    this.#hooks = trainee.hooks ?? [];
    this.#stepper = stepper;
    this.#rng = rng;
    this.#steps = steps;
    this.#buffers = Object.fromEntries(
      changedNames(trainee).map((name) => [name, trainee.frozen[name]!]),
    );
  }

  /** What hooks changed, as it is now; copy to keep. */
  get buffers(): Readonly<TensorRecord> {
    return this.#buffers;
  }

  async before(step: number): Promise<void> {
    for (const hook of this.#hooks) {
      const changes = hook.before?.(this.#ahead(step));
      if (changes) await this.#apply(hook.changes, changes);
    }
  }

  /**
   * @param step steps made, this one included
   * @returns what is told of the step
   */
  async after(step: number, loss: number): Promise<Record<string, number>> {
    const metrics: Record<string, number> = {};
    for (const hook of this.#hooks) {
      if (!hook.after) continue;
      const { params = false, gradients = false } = hook.reads ?? {};
      const changes = hook.after({
        ...this.#ahead(step),
        loss,
        params: params ? await this.#stepper.params() : {},
        gradients: gradients ? await this.#stepper.gradients() : {},
      });
      if (!changes) continue;
      await this.#apply(hook.changes, changes);
      Object.assign(metrics, changes.metrics);
    }
    return metrics;
  }

  /** Takes what an earlier run saved. @throws StateError, ShapeError when it belongs to other settings. */
  async load(buffers: Readonly<TensorRecord> = {}): Promise<void> {
    const names = Object.keys(this.#buffers);
    const missing = names.find((name) => !Object.hasOwn(buffers, name));
    const stray = Object.keys(buffers).find((name) => !names.includes(name));
    if (missing !== undefined || stray !== undefined) {
      throw new StateError(
        missing !== undefined
          ? `hook: the checkpoint lacks "${missing}".`
          : `hook: the checkpoint has "${stray}", which nothing changes here.`,
      );
    }
    await this.#apply(names, { buffers });
  }

  #ahead(step: number): {
    readonly step: number;
    readonly steps: number;
    readonly rng: Rng;
    readonly buffers: TensorRecord;
  } {
    const rng = this.#rng.fold("hook", step);
    return { step, steps: this.#steps, rng, buffers: this.#buffers };
  }

  async #apply(may: readonly string[], changes: StepChanges): Promise<void> {
    const { params, buffers = {}, resetOptimizer } = changes;
    for (const [name, tensor] of Object.entries(buffers)) {
      const own = may.includes(name) ? this.#buffers[name] : undefined;
      if (!own) throw new StateError(`hook: changes "${name}" and did not say so.`);
      if (!sameShape(own.shape, tensor.shape) || own.dtype !== tensor.dtype) {
        throw new ShapeError(
          `hook: "${name}" must stay ${own.dtype} ${showShape(own.shape)}, got ${tensor.dtype} ${showShape(tensor.shape)}.`,
        );
      }
    }
    await this.#stepper.write({
      ...(params && { params }),
      frozen: buffers,
      ...(resetOptimizer && { resetOptimizer }),
    });
    for (const [name, tensor] of Object.entries(buffers)) copyInto(this.#buffers[name]!, tensor);
  }
}

function copyInto(into: Tensor, from: Tensor): void {
  if (into !== from) (into.data as Float32Array).set(from.data as Float32Array);
}
