/** Fine-tuning a language model: an adapter or all parameters, on examples with loss masks. */
import type { Backend } from "../backend/backend.ts";
import { place, releaseAll } from "../backend/place.ts";
import { epochBatches } from "../data/epochs.ts";
import type { Example } from "../data/example.ts";
import { packExamples, packedSet } from "../data/packing.ts";
import { type AnyExampleSet, memorySet } from "../data/set.ts";
import { OptionError, StateError } from "../errors.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import { optimizerByName } from "../optim/by-name.ts";
import { type Schedule, scheduleByName } from "../optim/schedule.ts";
import { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { causalLm } from "./causal-lm.ts";
import { HookRunner, phasedSchedule, withOwnBuffers } from "./hooks.ts";
import type { Batch, EvalResult, Trainee } from "./program.ts";
import { TrainProgram } from "./program.ts";
import { makeStepper, type StepPart, type Stepper, type TrainState } from "./stepper.ts";
import { groupsOf } from "./trainee.ts";

export interface FinetuneOptions {
  /** Optimiser steps; default: `epochs` over the data. */
  readonly steps?: number;
  /** Passes over the data when `steps` is not given; default 3. */
  readonly epochs?: number;
  /** Examples a step, over all its parts; rows of packed examples with `packing`. Default 16. */
  readonly batchSize?: number;
  /** Parts of a step whose gradients are added up; divides batchSize. Default 1. */
  readonly accumulate?: number;
  /** Several short examples in one row of this many tokens; each sees itself alone. Default: off. */
  readonly packing?: number;
  /** Highest learning rate; default the objective's, or 2e-3 for adapters and 3e-4 for all parameters. */
  readonly learningRate?: number;
  /** Share of the steps over which the rate rises; default 0.05, none for "constant". */
  readonly warmup?: number;
  /** Share of the steps over which "warmup_stable_decay" falls; default 0.2. */
  readonly decay?: number;
  /** How the rate goes on, by the names of `scheduleByName`; default "linear", down to 0. */
  readonly schedule?: string;
  /** By the names of `optimizerByName`; default "adamw". */
  readonly optimizer?: string;
  /** On matrices only; default 0.01. */
  readonly weightDecay?: number;
  /** Default 1. */
  readonly clipNorm?: number;
  /** Recompute blocks in the backward pass: less memory, about a third more time. */
  readonly checkpoint?: boolean;
  readonly seed?: number;
  /** Ends the training after a step. */
  readonly signal?: AbortSignal;
  readonly onStep?: (info: FinetuneStep) => void;
}

export interface FinetuneStep {
  readonly step: number;
  readonly steps: number;
  readonly epoch: number;
  readonly loss: number;
  readonly learningRate: number;
  readonly gradientNorm: number;
  /** Tokens read so far, padding left out. */
  readonly tokens: number;
  /** What else is told of the step, by name: a policy's mean reward. */
  readonly metrics?: Readonly<Record<string, number>>;
}

export interface FinetuneResult {
  /** Trained parameters: the adapter's, or all. */
  readonly params: TensorRecord;
  /** Buffers that changed with the training, as an adapter's masks; the others are as they were. */
  readonly buffers: TensorRecord;
  readonly losses: readonly number[];
  readonly steps: number;
  readonly tokens: number;
  /** Whether a signal ended it early. */
  readonly isStopped: boolean;
}

/** Means over what carries loss. */
export interface ExampleScore {
  /** The objective's loss; of the next token, in nats. */
  readonly nll: number;
  /** How often the likeliest answer is right; NaN where the objective has no such thing. */
  readonly accuracy: number;
  /** All that the objective measures, by name. */
  readonly metrics: Readonly<Record<string, number>>;
}

export interface ScoreOptions {
  /** Examples together; default 32. */
  readonly batchSize?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number) => void;
}

/** Examples in memory or on disk: of the kind that the trainee's objective learns from. */
export type Examples = readonly Example[] | AnyExampleSet;

function asSet(examples: Examples): AnyExampleSet {
  return "lengths" in examples ? examples : memorySet(examples);
}

/** The rows of an epoch, and which of them each step takes. */
interface Epoch {
  readonly rows: AnyExampleSet;
  readonly batches: readonly (readonly number[])[];
  /** Examples in a row. */
  readonly members: (row: number) => readonly number[];
}

const whole = (value: number): boolean => Number.isInteger(value) && value >= 1;

/**
 * Checks settings for so many examples, so that a caller can before it does other work.
 * @throws OptionError for settings outside their range.
 */
export function checkFinetune(options: FinetuneOptions, examples: number): void {
  if (examples === 0) throw new OptionError("finetune: there are no examples.");
  const { batchSize = 16, accumulate = 1, steps = 1, packing = 2 } = options;
  for (const [name, value] of Object.entries({ batchSize, accumulate, steps, packing })) {
    if (whole(value)) continue;
    throw new OptionError(`finetune: ${name} must be a whole number from 1, got ${value}.`);
  }
  if (batchSize % accumulate !== 0) {
    throw new OptionError(
      `finetune: batchSize ${batchSize} must be a multiple of accumulate ${accumulate}.`,
    );
  }
  const { epochs = 3 } = options;
  if (!(epochs > 0 && epochs < Infinity)) {
    throw new OptionError(`finetune: epochs must be a number above 0, got ${epochs}.`);
  }
  scheduleOf(options, options.steps ?? Math.ceil(epochs * Math.ceil(examples / batchSize)));
  optimizerByName(options.optimizer ?? "adamw");
}

/** The rate over so many steps as a share of its peak. */
export function scheduleOf(
  options: Pick<FinetuneOptions, "schedule" | "warmup" | "decay">,
  totalSteps: number,
): Schedule {
  const name = options.schedule ?? "linear";
  const warmup = options.warmup ?? (name === "constant" ? 0 : 0.05);
  const steps = (share: number): number => Math.round(totalSteps * share);
  return scheduleByName(name, {
    totalSteps,
    warmupSteps: steps(warmup),
    ...(name === "warmup_stable_decay" && {
      decaySteps: Math.min(totalSteps - steps(warmup), steps(options.decay ?? 0.2)),
    }),
  });
}

/** Where a run stands: everything random and every position in the data follows from the step. */
export interface FinetuneState {
  readonly params: Readonly<Record<string, Tensor>>;
  readonly optimizer: TrainState;
  /** What hooks changed, by name; default nothing. */
  readonly buffers?: Readonly<Record<string, Tensor>>;
  /** Tokens read so far. */
  readonly tokens: number;
}

/**
 * Fine-tuning step by step. The base is not touched; the order of the data, the noise and the rate
 * of a step depend on the seed and the step alone, so that a run which was saved and loaded again
 * goes on with the same bits.
 */
export class Finetuner {
  /** Optimiser steps in all. */
  readonly steps: number;
  readonly #trainee: Trainee<Module>;
  readonly #set: AnyExampleSet;
  readonly #options: FinetuneOptions;
  readonly #stepper: Stepper;
  readonly #rng: Rng;
  readonly #schedule: Schedule;
  readonly #hooks: HookRunner;
  readonly #peak: number;
  #epoch = 0;
  #data: Epoch;
  /** The step at the epoch's first batch. */
  #start = 0;
  #tokens = 0;

  private constructor(
    trainee: Trainee<Module>,
    set: AnyExampleSet,
    options: FinetuneOptions,
    stepper: Stepper,
  ) {
    this.#trainee = trainee;
    this.#set = set;
    this.#options = options;
    this.#stepper = stepper;
    this.#rng = new Rng(options.seed ?? 0);
    const { adapter, full } = trainee.objective?.learningRate ?? { adapter: 2e-3, full: 3e-4 };
    this.#peak = options.learningRate ?? trainee.learningRate ?? (trainee.adapt ? adapter : full);
    this.#data = this.#dataOf(0);
    this.steps = options.steps ?? Math.ceil((options.epochs ?? 3) * this.#data.batches.length);
    this.#schedule = phasedSchedule(trainee, this.steps, (steps) => scheduleOf(options, steps));
    this.#hooks = new HookRunner(trainee, stepper, this.#rng, this.steps);
  }

  /**
   * @throws OptionError for settings outside their range.
   */
  static async create(
    trainee: Trainee<Module>,
    examples: Examples,
    backend: Backend,
    options: FinetuneOptions = {},
  ): Promise<Finetuner> {
    const set = asSet(examples);
    checkFinetune(options, set.count);
    const { objective = causalLm } = trainee;
    if (options.packing !== undefined && !objective.canPack) {
      throw new OptionError(
        `finetune: ${objective.name} looks at whole examples and cannot pack several into a row — leave packing off.`,
      );
    }
    const { weightDecay = 0.01, optimizer = "adamw" } = options;
    const groups = groupsOf(trainee, weightDecay, (decay) =>
      optimizerByName(optimizer, { weightDecay: decay }),
    );
    const own = withOwnBuffers(trainee);
    const stepper = await makeStepper(own, groups, backend, {
      clipNorm: options.clipNorm ?? 1,
      accumulates: (options.accumulate ?? 1) > 1,
      checkpoint: options.checkpoint ?? false,
      cacheSize: 16,
    });
    return new Finetuner(own, set, options, stepper);
  }

  /** Steps made. */
  get step(): number {
    return this.#stepper.stepCount;
  }

  /** The order of an epoch's data: by the seed and the epoch alone. */
  #dataOf(epoch: number): Epoch {
    const { batchSize = 16, packing } = this.#options;
    const rng = this.#rng.fold("epoch", epoch);
    const set = this.#set;
    if (packing === undefined) {
      const batches = set.batches?.(batchSize, rng) ?? epochBatches(set.lengths, batchSize, rng);
      return { rows: set, batches, members: (row) => [row] };
    }
    const bins = packExamples(set.lengths, packing, rng);
    const all = bins.map((_, i) => i);
    return {
      rows: packedSet(set, bins),
      batches: Array.from({ length: Math.ceil(all.length / batchSize) }, (_, i) =>
        all.slice(i * batchSize, (i + 1) * batchSize),
      ),
      members: (row) => bins[row]!,
    };
  }

  /** The batch of a step, which is never before the last one asked for. */
  #batchAt(step: number): readonly number[] {
    while (step >= this.#start + this.#data.batches.length) {
      this.#start += this.#data.batches.length;
      this.#data = this.#dataOf(++this.#epoch);
    }
    return this.#data.batches[step - this.#start]!;
  }

  /** What a step reads: its parts, and which examples they hold. */
  async #read(step: number): Promise<{ parts: StepPart[]; examples: number[]; tokens: number }> {
    const { batchSize = 16, accumulate = 1 } = this.#options;
    const batch = this.#batchAt(step);
    const rows = await this.#data.rows.get(batch, this.#rng.fold("examples", step));
    const size = batchSize / accumulate;
    const { maxLength, objective = causalLm } = this.#trainee;
    const shape = { rows: size, ...(maxLength !== undefined && { maxLength }) };
    return {
      parts: Array.from({ length: Math.ceil(rows.length / size) }, (_, i) => ({
        batch: objective.batch(rows.slice(i * size, (i + 1) * size), {
          ...shape,
          rng: this.#rng.fold("batch", step, i * size),
        }),
        noise: this.#rng.fold("noise", step, i * size),
      })),
      examples: batch.flatMap(this.#data.members),
      tokens: batch.reduce((sum, row) => sum + this.#data.rows.lengths[row]!, 0),
    };
  }

  /**
   * The parts of a step's batch, for estimates: of steps in rising order, on a training that makes no
   * steps itself.
   */
  async partsAt(step: number): Promise<readonly StepPart[]> {
    return (await this.#read(step)).parts;
  }

  /** Runs a step's parts without a change to the parameters, for timing; moments do change. */
  async rehearse(parts: readonly StepPart[]): Promise<void> {
    await this.#stepper.step(parts, 0);
  }

  /**
   * Makes one step; `undefined` when all are made.
   * @param options a rate in place of the schedule's
   * @throws StateError when the loss is not a number; it names the step and the examples. Parameters
   * and state are then those before the step where its update was not applied.
   */
  async next(options: { readonly learningRate?: number } = {}): Promise<FinetuneStep | undefined> {
    const { step } = this;
    if (step >= this.steps) return undefined;
    const { parts, examples, tokens } = await this.#read(step);
    const learningRate = options.learningRate ?? this.#peak * this.#schedule(step);
    await this.#hooks.before(step);
    const { loss, gradientNorm, isApplied } = await this.#stepper.step(parts, learningRate);
    if (!isApplied || !Number.isFinite(loss)) {
      const [what, value] = Number.isFinite(loss)
        ? ["norm of the gradient", gradientNorm]
        : ["loss", loss];
      throw new StateError(
        `finetune: the ${what} at step ${step + 1} is ${value}, on examples ${examples.join(", ")} — lower the learning rate (${options.learningRate ?? this.#peak}), or look at these examples.`,
        { step: step + 1, examples },
      );
    }
    this.#tokens += tokens;
    const metrics = await this.#hooks.after(step + 1, loss);
    return {
      step: step + 1,
      steps: this.steps,
      epoch: this.#epoch,
      loss,
      learningRate,
      gradientNorm,
      tokens: this.#tokens,
      ...(Object.keys(metrics).length > 0 && { metrics }),
    };
  }

  /** Trained parameters now; they change with the next step: copy to keep. */
  params(): Promise<TensorRecord> {
    return this.#stepper.params();
  }

  /** What `load` needs to go on from here, bit for bit. */
  async state(): Promise<FinetuneState> {
    const [params, optimizer] = [await this.#stepper.params(), await this.#stepper.state()];
    return { params, optimizer, buffers: this.#hooks.buffers, tokens: this.#tokens };
  }

  /**
   * Goes on from where another stood.
   * @throws MissingError, ShapeError or StateError when the state belongs to other settings.
   */
  async load(state: FinetuneState): Promise<void> {
    if (state.optimizer.step > this.steps) {
      throw new StateError(
        `finetune: the state is of step ${state.optimizer.step}, these settings have ${this.steps} steps.`,
      );
    }
    await this.#hooks.load(state.buffers);
    await this.#stepper.load(state.params, state.optimizer);
    this.#tokens = state.tokens;
    [this.#epoch, this.#start, this.#data] = [0, 0, this.#dataOf(0)];
  }

  /**
   * Mean loss and token accuracy on examples with the parameters as they are; `undefined` when the
   * signal ended it.
   */
  evaluate(
    examples: Examples,
    options: ScoreOptions & { readonly signal: AbortSignal },
  ): Promise<ExampleScore | undefined>;
  evaluate(examples: Examples, options?: Omit<ScoreOptions, "signal">): Promise<ExampleScore>;
  evaluate(examples: Examples, options: ScoreOptions): Promise<ExampleScore | undefined>;
  evaluate(examples: Examples, options: ScoreOptions = {}): Promise<ExampleScore | undefined> {
    return score((batch) => this.#stepper.evaluate(batch), asSet(examples), this.#trainee, options);
  }

  /** Frees the engine's sessions; parameters stay readable. */
  release(): Promise<void> {
    return this.#stepper.release();
  }
}

/**
 * The steps of a training as they are made; leaving the loop early frees everything.
 * @throws as `finetune`.
 */
export async function* finetuneSteps(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: FinetuneOptions = {},
): AsyncGenerator<FinetuneStep, FinetuneResult> {
  const tuner = await Finetuner.create(trainee, examples, backend, options);
  const losses: number[] = [];
  let tokens = 0;
  try {
    while (!options.signal?.aborted) {
      const info = await tuner.next();
      if (!info) break;
      losses.push(info.loss);
      tokens = info.tokens;
      options.onStep?.(info);
      yield info;
    }
    const isStopped = tuner.step < tuner.steps;
    const { params, buffers = {} } = await tuner.state();
    return {
      params: { ...params },
      buffers: { ...buffers },
      losses,
      steps: losses.length,
      tokens,
      isStopped,
    };
  } finally {
    await tuner.release();
  }
}

/**
 * Trains and returns the trained parameters; the base is not touched. The order of the data depends
 * on the seed alone.
 * @throws OptionError for settings outside their range.
 * @throws StateError when the loss is not a number; it names the step and the examples.
 */
export async function finetune(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: FinetuneOptions = {},
): Promise<FinetuneResult> {
  const steps = finetuneSteps(trainee, examples, backend, options);
  while (true) {
    const { done, value } = await steps.next();
    if (done) return value;
  }
}

/**
 * Mean loss per token that carries loss, and how often the likeliest token is right; `undefined` when
 * a signal ended it.
 */
export function scoreExamples(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: ScoreOptions & { readonly signal: AbortSignal },
): Promise<ExampleScore | undefined>;
export function scoreExamples(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options?: Omit<ScoreOptions, "signal">,
): Promise<ExampleScore>;
export async function scoreExamples(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: ScoreOptions = {},
): Promise<ExampleScore | undefined> {
  const frozen = await place(trainee.frozen, backend.device);
  const trained = await place(trainee.trained, backend.device);
  const program = new TrainProgram({ ...trainee, frozen, trained }, backend, { cacheSize: 16 });
  try {
    return await score(
      (batch) => program.evaluate(batch, trained),
      asSet(examples),
      trainee,
      options,
    );
  } finally {
    await program.release();
    releaseAll([...Object.values(frozen), ...Object.values(trained)]);
  }
}

async function score(
  evaluate: (batch: Batch) => Promise<EvalResult>,
  set: AnyExampleSet,
  { maxLength, objective = causalLm }: Trainee<Module>,
  { batchSize = 32, signal, onProgress }: ScoreOptions,
): Promise<ExampleScore | undefined> {
  let [loss, weight] = [0, 0];
  const sums: Record<string, number> = {};
  const shape = { rows: batchSize, ...(maxLength !== undefined && { maxLength }) };
  const order = Uint32Array.from({ length: set.count }, (_, i) => i);
  order.sort((a, b) => set.lengths[a]! - set.lengths[b]! || a - b);
  for (let start = 0; start < order.length; start += batchSize) {
    if (signal?.aborted) return undefined;
    const chosen = await set.get(order.subarray(start, start + batchSize));
    const result = await evaluate(objective.batch(chosen, shape));
    loss += result.loss;
    for (const [name, value] of Object.entries(result.metrics)) {
      sums[name] = (sums[name] ?? 0) + value;
    }
    weight += result.weight;
    onProgress?.(start + chosen.length);
  }
  if (weight === 0) throw new OptionError("score: no token of the examples carries loss.");
  const metrics = Object.fromEntries(
    Object.entries(sums).map(([name, value]) => [name, value / weight]),
  );
  return { nll: loss / weight, accuracy: metrics["correct"] ?? Number.NaN, metrics };
}
