/** The training step whose parameters live in host memory: a session gives gradients, SIMD updates. */
import type { Backend } from "../backend/backend.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Batch, type EvalResult, type Trainee, TrainProgram } from "./program.ts";
import type { StepPart, Stepper, StepperOptions, StepResult } from "./stepper.ts";
import { checkParts, totalWeight, type UpdateState } from "./update.ts";
import { Updater } from "./updater.ts";

export class HostStepper implements Stepper {
  readonly #program: TrainProgram;
  readonly #updater: Updater;
  readonly #accumulates: boolean;
  readonly #params: TensorRecord;
  readonly #gradients: TensorRecord;

  /**
   * Copies the trained parameters.
   * @throws OptionError or DtypeError as `Updater` does.
   */
  constructor(
    trainee: Trainee<Module>,
    groups: readonly ParameterGroup[],
    backend: Backend,
    options: StepperOptions = {},
  ) {
    this.#updater = new Updater(trainee.trained, groups, backend, options);
    this.#program = new TrainProgram(trainee, backend, options);
    this.#accumulates = options.accumulates ?? false;
    this.#params = this.#updater.params;
    this.#gradients = this.#updater.gradients;
  }

  get stepCount(): number {
    return this.#updater.stepCount;
  }

  async step(parts: readonly StepPart[], learningRate: number): Promise<StepResult> {
    checkParts(parts, this.#accumulates);
    const total = totalWeight(parts);
    let loss = 0;
    for (const [i, { batch, noise }] of parts.entries()) {
      if (i > 0) this.#updater.accumulate();
      loss += await this.#program.lossAndGradients(
        batch,
        this.#params,
        this.#gradients,
        total,
        noise,
      );
    }
    return { loss, ...(await this.#updater.step(learningRate)) };
  }

  evaluate(batch: Batch): Promise<EvalResult> {
    return this.#program.evaluate(batch, this.#params);
  }

  inspect(batch: Batch): Promise<TensorRecord> {
    return this.#program.inspect(batch, this.#params);
  }

  async params(): Promise<TensorRecord> {
    return { ...this.#params };
  }

  async ema(): Promise<TensorRecord | undefined> {
    return this.#updater.ema;
  }

  async state(): Promise<UpdateState> {
    return this.#updater.state();
  }

  async load(params: Readonly<Record<string, Tensor>>, state: UpdateState): Promise<void> {
    this.#updater.load(params, state);
  }

  async release(): Promise<void> {
    await this.#program.release();
    await this.#updater.release();
  }
}
