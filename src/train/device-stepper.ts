/**
 * The training step whose parameters, gradients and optimiser state stay on the backend's device. Two
 * programs: loss and gradients, one per batch shape, and one update of all parameters (global norm,
 * clipping, optimisers, masks, running means). Batch and scalars go in, loss and gradient norm come out.
 *
 * State is double: the update reads one set of tensors and writes the other, and only a finite gradient
 * norm makes the other set the current one.
 */
import {
  type AnyTensor,
  type Backend,
  type Device,
  type DeviceTensor,
  type Executable,
  runAnywhere,
} from "../backend/backend.ts";
import { place, releaseAll } from "../backend/place.ts";
import { StateError, UnsupportedError } from "../errors.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import type { ParameterGroup } from "../optim/groups.ts";
import type { StaticShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type DeviceUpdate, updateInputs, updateProgram, updateScalars } from "./device-update.ts";
import {
  type Batch,
  type EvalResult,
  type Trainee,
  TrainProgram,
  type Weights,
} from "./program.ts";
import type { StepPart, Stepper, StepperChanges, StepperOptions, StepResult } from "./stepper.ts";
import {
  checkLearningRate,
  checkParts,
  checkState,
  checkWrite,
  planUpdate,
  totalWeight,
  type UpdatePlan,
  type UpdateState,
} from "./update.ts";

/** Tensors by name: `param`, the optimiser's slots, `ema`. */
type Arrays = Record<string, DeviceTensor>;

interface Entry extends DeviceUpdate {
  readonly onDevice: {
    /** What the next step reads, and what its update writes. */
    now: Arrays;
    next: Arrays;
    readonly mask: DeviceTensor | undefined;
    /** Two where parts are added up: an addition reads one and writes the other. */
    readonly gradients: readonly DeviceTensor[];
  };
}

export class DeviceStepper implements Stepper {
  readonly #device: Device;
  readonly #backend: Backend;
  readonly #entries: readonly Entry[];
  readonly #frozen: Weights;
  readonly #program: TrainProgram;
  readonly #options: StepperOptions;
  #update: Executable | undefined;
  #step = 0;
  #origin = 0;
  /** Where the gradients of the last step are. */
  #lastGradients: Weights | undefined;
  #isReleased = false;

  private constructor(
    trainee: Trainee<Module>,
    backend: Backend,
    device: Device,
    options: StepperOptions,
    entries: readonly Entry[],
    frozen: Weights,
  ) {
    this.#device = device;
    this.#backend = backend;
    this.#options = options;
    this.#entries = entries;
    this.#frozen = frozen;
    this.#program = new TrainProgram({ ...trainee, frozen }, backend, options);
  }

  /**
   * Uploads frozen weights, once for all programs, and trained parameters. Frozen weights of a type that
   * the device does not keep stay on the host and travel at every run.
   * @throws UnsupportedError for a backend without a device; OptionError or DtypeError as `Updater`
   * does; StateError when the device has no room.
   */
  static async make(
    trainee: Trainee<Module>,
    groups: readonly ParameterGroup[],
    backend: Backend,
    options: StepperOptions = {},
  ): Promise<DeviceStepper> {
    const { device } = backend;
    if (!device) {
      throw new UnsupportedError(
        `stepper: ${backend.name} keeps no tensors on a device — use HostStepper.`,
      );
    }
    const plans = planUpdate(trainee.trained, groups, options);
    const frozen = await place(trainee.frozen, device);
    const made: DeviceTensor[] = [];
    try {
      const entries: Entry[] = [];
      for (const plan of plans) entries.push(await entryOf(plan, device, options, made));
      return new DeviceStepper(trainee, backend, device, options, entries, frozen);
    } catch (error) {
      releaseAll([...Object.values(frozen), ...made]);
      throw error;
    }
  }

  get stepCount(): number {
    return this.#step;
  }

  async step(parts: readonly StepPart[], learningRate: number): Promise<StepResult> {
    checkParts(parts, this.#options.accumulates ?? false);
    checkLearningRate(learningRate);
    const total = totalWeight(parts);
    const params = this.#current("param");
    const gradients = (at: number): Weights =>
      Object.fromEntries(
        this.#entries.map(({ path, onDevice }) => [path, onDevice.gradients[at % 2]!]),
      );
    let loss = 0;
    for (const [i, { batch, noise }] of parts.entries()) {
      loss += await this.#program.lossAndGradients(
        batch,
        params,
        gradients(i),
        total,
        noise,
        i > 0 ? gradients(i - 1) : undefined,
      );
    }
    this.#lastGradients = gradients(parts.length - 1);
    const gradientNorm = await this.#runUpdate(learningRate, this.#lastGradients);
    const isApplied = Number.isFinite(gradientNorm);
    if (isApplied) {
      this.#step++;
      for (const { onDevice, param } of this.#entries) {
        if (param.size === 0) continue;
        [onDevice.now, onDevice.next] = [onDevice.next, onDevice.now];
      }
    }
    return { loss, gradientNorm, isApplied };
  }

  /** Writes the next set of parameters and state; the norm of the gradient. */
  async #runUpdate(learningRate: number, gradients: Weights): Promise<number> {
    const entries = this.#entries.filter(({ param }) => param.size > 0);
    if (entries.length === 0) return 0;
    this.#update ??= await this.#backend.load(updateProgram(entries, this.#options));
    const outputs = await runAnywhere(
      this.#update,
      [
        ...entries.flatMap(({ path, onDevice: { now, mask } }) =>
          Object.values(updateInputs<AnyTensor>(now, gradients[path]!, mask)),
        ),
        Tensor.from(updateScalars(entries, this.#step + 1 - this.#origin, learningRate)),
      ],
      [undefined, ...entries.flatMap(({ onDevice }) => Object.values(onDevice.next))],
    );
    return (outputs[0] as Tensor).item();
  }

  async evaluate(batch: Batch): Promise<EvalResult> {
    return this.#program.evaluate(batch, this.#current("param"));
  }

  async inspect(batch: Batch): Promise<TensorRecord> {
    return this.#program.inspect(batch, this.#current("param"));
  }

  /** The current tensors of one name, by path. */
  #current(name: string): Record<string, DeviceTensor> {
    if (this.#isReleased) throw new StateError("step: the stepper was released.");
    return Object.fromEntries(
      this.#entries.map(({ path, onDevice }) => [path, onDevice.now[name]!]),
    );
  }

  async params(): Promise<TensorRecord> {
    return readAll(this.#current("param"));
  }

  async ema(): Promise<TensorRecord | undefined> {
    return this.#options.ema === undefined ? undefined : readAll(this.#current("ema"));
  }

  async state(): Promise<UpdateState> {
    this.#current("param");
    const tensors: Record<string, DeviceTensor> = {};
    for (const { path, onDevice } of this.#entries) {
      const { param: _, ...state } = onDevice.now;
      for (const [name, tensor] of Object.entries(state)) tensors[`${path}.${name}`] = tensor;
    }
    return { step: this.#step, origin: this.#origin, tensors: await readAll(tensors) };
  }

  async gradients(): Promise<TensorRecord> {
    if (!this.#lastGradients) throw new StateError("stepper: no step was made yet.");
    return readAll(this.#lastGradients as Record<string, DeviceTensor>);
  }

  async write({ params = {}, frozen = {}, resetOptimizer }: StepperChanges): Promise<void> {
    checkWrite("trained parameter", this.#current("param"), params);
    checkWrite("frozen tensor", this.#frozen, frozen);
    const made: DeviceTensor[] = [];
    const upload = (tensor: Tensor): Promise<DeviceTensor> =>
      keep(made, this.#device.upload(tensor));
    const zeros = (of: StaticShape): Promise<DeviceTensor> =>
      keep(made, this.#device.allocate(of, "float32"));
    const swaps: (() => void)[] = [];
    const swap = (into: Record<string, AnyTensor>, name: string, tensor: AnyTensor): void => {
      swaps.push(() => {
        releaseAll([into[name]!]);
        into[name] = tensor;
      });
    };
    try {
      for (const [name, tensor] of Object.entries(frozen)) {
        const kept = this.#device.keeps(tensor.dtype) ? await upload(tensor) : tensor.clone();
        swap(this.#frozen as Record<string, AnyTensor>, name, kept);
      }
      for (const { path, shapes, onDevice } of this.#entries) {
        const param = params[path];
        if (param) swap(onDevice.now, "param", await upload(param.to("float32")));
        if (!resetOptimizer) continue;
        for (const [name, shape] of Object.entries(shapes)) {
          if (name !== "param" && name !== "ema") swap(onDevice.now, name, await zeros(shape));
        }
      }
    } catch (error) {
      releaseAll(made);
      throw error;
    }
    for (const change of swaps) change();
    if (resetOptimizer) this.#origin = this.#step;
  }

  async load(params: Readonly<Record<string, Tensor>>, state: UpdateState): Promise<void> {
    this.#current("param");
    const own: Record<string, StaticShape> = {};
    const ownState: Record<string, StaticShape> = {};
    for (const { path, shapes } of this.#entries) {
      const { param, ...rest } = shapes;
      own[path] = param!;
      for (const [name, shape] of Object.entries(rest)) ownState[`${path}.${name}`] = shape;
    }
    checkState(own, ownState, params, state);
    const made: DeviceTensor[] = [];
    const loaded: Arrays[] = [];
    try {
      for (const { path, shapes } of this.#entries) {
        const arrays: Arrays = {};
        for (const name of Object.keys(shapes)) {
          const source = name === "param" ? params[path]! : state.tensors[`${path}.${name}`]!;
          arrays[name] = await keep(made, this.#device.upload(source.to("float32")));
        }
        loaded.push(arrays);
      }
    } catch (error) {
      releaseAll(made);
      throw error;
    }
    this.#entries.forEach(({ onDevice }, i) => {
      releaseAll(Object.values(onDevice.now));
      onDevice.now = loaded[i]!;
    });
    this.#step = state.step;
    this.#origin = state.origin ?? 0;
  }

  async release(): Promise<void> {
    if (this.#isReleased) return;
    this.#isReleased = true;
    await this.#program.release();
    await this.#update?.release();
    releaseAll(Object.values(this.#frozen));
    for (const { onDevice } of this.#entries) {
      const { now, next, mask, gradients } = onDevice;
      releaseAll([...Object.values(now), ...Object.values(next), ...gradients]);
      mask?.release();
    }
  }
}

/** Remembers a tensor, for the case that a later one fails. */
async function keep(made: DeviceTensor[], tensor: Promise<DeviceTensor>): Promise<DeviceTensor> {
  made.push(await tensor);
  return made.at(-1)!;
}

/** A parameter, its state and room for what the update writes. */
async function entryOf(
  plan: UpdatePlan,
  device: Device,
  { ema, accumulates }: StepperOptions,
  made: DeviceTensor[],
): Promise<Entry> {
  const { param, mask } = plan;
  const { shape } = param;
  const shapes = { param: shape, ...plan.slots, ...(ema !== undefined && { ema: shape }) };
  const zeros = (of: StaticShape): Promise<DeviceTensor> =>
    keep(made, device.allocate(of, "float32"));
  const upload = (tensor: Tensor): Promise<DeviceTensor> =>
    keep(made, device.upload(tensor.to("float32")));
  const now: Arrays = {};
  const next: Arrays = {};
  for (const [name, of] of Object.entries(shapes)) {
    now[name] = name === "param" || name === "ema" ? await upload(param) : await zeros(of);
    // What has no elements never changes.
    if (param.size > 0) next[name] = await zeros(of);
  }
  const gradients = [await zeros(shape)];
  if (accumulates) gradients.push(await zeros(shape));
  const onDevice = { now, next, mask: mask && (await upload(mask)), gradients };
  return { ...plan, shapes, onDevice };
}

async function readAll(tensors: Readonly<Record<string, DeviceTensor>>): Promise<TensorRecord> {
  const entries = Object.entries(tensors).map(
    async ([name, tensor]) => [name, await tensor.read()] as const,
  );
  return Object.fromEntries(await Promise.all(entries));
}
