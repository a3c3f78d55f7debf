/** The training step whose parameters live in host memory: a session gives gradients, SIMD updates. */
import type { Backend } from "../backend/backend.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Batch, type EvalResult, type Trainee, TrainProgram } from "./program.ts";
import type { StepPart, Stepper, StepperChanges, StepperOptions, StepResult } from "./stepper.ts";
import { checkParts, checkWrite, totalWeight, type UpdateState } from "./update.ts";
import { Updater } from "./updater.ts";

export class HostStepper implements Stepper {
  readonly #program: TrainProgram;
  readonly #updater: Updater;
  readonly #accumulates: boolean;
  readonly #params: TensorRecord;
  readonly #gradients: TensorRecord;
  readonly #frozen: TensorRecord;

  /**
   * Copies the trained parameters. Frozen tensors are the trainee's own: `write` changes them.
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
    this.#frozen = trainee.frozen;
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

  async gradients(): Promise<TensorRecord> {
    return { ...this.#gradients };
  }

  async write({ params, frozen, resetOptimizer }: StepperChanges): Promise<void> {
    checkWrite("trained parameter", this.#params, params);
    checkWrite("frozen tensor", this.#frozen, frozen);
    const pairs = [
      ...Object.entries(params ?? {}).map(([name, from]) => [this.#params[name]!, from] as const),
      ...Object.entries(frozen ?? {}).map(([name, from]) => [this.#frozen[name]!, from] as const),
    ];
    for (const [into, from] of pairs) {
      if (into !== from) (into.data as Float32Array).set(from.data as Float32Array);
    }
    if (resetOptimizer) this.#updater.reset();
  }

  async release(): Promise<void> {
    await this.#program.release();
    await this.#updater.release();
  }
}
