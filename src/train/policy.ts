/**
 * Training on what the model says itself: it answers prompts, the answers are judged, it learns from them.
 *
 *   rollout k   prompts by (seed, k); answers drawn by (seed, k); rewards; what the method makes of them
 *   updates     `iterations` steps on each rollout
 *
 * A step depends on the seed and the step alone, and a state holds the rollout it is in the middle of, so
 * that a run which was saved and loaded again goes on with the same bits.
 */
import type { Backend } from "../backend/backend.ts";
import type { ExampleSet } from "../data/set.ts";
import { OptionError, StateError } from "../errors.ts";
import { Decoder } from "../infer/decoder.ts";
import type { TensorRecord } from "../nn/module.ts";
import { optimizerByName } from "../optim/by-name.ts";
import type { Schedule } from "../optim/schedule.ts";
import { Rng } from "../tensor/rng.ts";
import {
  type ExampleScore,
  type FinetuneState,
  type FinetuneStep,
  type ScoreOptions,
  scheduleOf,
} from "./finetune.ts";
import { HookRunner, phasedSchedule, withOwnBuffers } from "./hooks.ts";
import type { Inspected, PolicyMethod, ScoredAnswer } from "./objectives/policies.ts";
import type { Rollout } from "./objectives/rollout.ts";
import { joined, type PolicyPrompt } from "./policy-prompts.ts";
import type { Trainee } from "./program.ts";
import type { Reward } from "./rewards.ts";
import { packRollouts, unpackRollouts } from "./rollout-state.ts";
import { makeStepper, type StepPart, type Stepper } from "./stepper.ts";
import { groupsOf, ownWeights, withObjective } from "./trainee.ts";

export { type PolicyPrompt, promptSet } from "./policy-prompts.ts";

export interface PolicyOptions {
  readonly method: PolicyMethod;
  /** Text of token ids, for rewards. */
  readonly decode: (ids: ArrayLike<number>) => string;
  /** Needed where the method uses it. */
  readonly reward?: Reward;
  /** Optimiser steps; default: `epochs` over the prompts. */
  readonly steps?: number;
  /** Passes over the prompts when `steps` is not given; default 1. */
  readonly epochs?: number;
  /** Prompts a rollout; default 8. */
  readonly batchSize?: number;
  /** Updates on each rollout; default 1. */
  readonly iterations?: number;
  /** Answers in one part of a step; gradients are added up. Default 16. */
  readonly partSize?: number;
  /** Answers decoded together; default 64. */
  readonly decodeSize?: number;
  /** Tokens of an answer at most; default 64. */
  readonly maxNewTokens?: number;
  /** Of sampling, above 0; default 1. */
  readonly temperature?: number;
  /** End an answer, and are learnt with it. */
  readonly stopIds?: readonly number[];
  readonly learningRate?: number;
  readonly warmup?: number;
  readonly schedule?: string;
  readonly optimizer?: string;
  readonly weightDecay?: number;
  readonly clipNorm?: number;
  readonly checkpoint?: boolean;
  readonly seed?: number;
  readonly signal?: AbortSignal;
  readonly onStep?: (info: FinetuneStep) => void;
}

export interface PolicyResult {
  readonly params: TensorRecord;
  readonly losses: readonly number[];
  /** Mean reward of each step's answers; NaN where the method uses none. */
  readonly rewards: readonly number[];
  readonly steps: number;
  readonly isStopped: boolean;
}

/** A rollout and what is told of it. */
export interface HeldRollouts {
  readonly rollouts: readonly Rollout[];
  readonly metrics: Readonly<Record<string, number>>;
}

/** @throws OptionError for settings outside their range. */
export function checkPolicy(options: PolicyOptions, prompts: number): void {
  if (prompts === 0) throw new OptionError("policy: there are no prompts.");
  const { batchSize = 8, iterations = 1, partSize = 16, decodeSize = 64, steps = 1 } = options;
  const { maxNewTokens = 64, temperature = 1, epochs = 1, method } = options;
  const whole = { batchSize, iterations, partSize, decodeSize, steps, maxNewTokens };
  for (const [name, value] of Object.entries(whole)) {
    if (Number.isInteger(value) && value >= 1 && value <= 2 ** 31) continue;
    throw new OptionError(`policy: ${name} must be a whole number from 1, got ${value}.`);
  }
  if (!(temperature > 0 && temperature <= 100)) {
    throw new OptionError(`policy: temperature must be in (0, 100], got ${temperature}.`);
  }
  if (!(epochs > 0 && epochs < Infinity)) {
    throw new OptionError(`policy: epochs must be a number above 0, got ${epochs}.`);
  }
  if (method.usesReward && !options.reward) {
    throw new OptionError(`policy: ${method.name} learns from rewards — give one.`);
  }
}

/** Training on own answers, step by step; of the form of `Finetuner`. */
export class PolicyTrainer {
  /** Optimiser steps in all. */
  readonly steps: number;
  readonly #trainee: Trainee;
  readonly #prompts: readonly PolicyPrompt[];
  readonly #options: PolicyOptions;
  readonly #stepper: Stepper;
  readonly #backend: Backend;
  readonly #rng: Rng;
  readonly #schedule: Schedule;
  readonly #hooks: HookRunner;
  readonly #peak: number;
  /** Parameters as the decoder reads them. */
  readonly #live: TensorRecord = {};
  #decoder: Decoder | undefined;
  #held: HeldRollouts | undefined;
  #tokens = 0;

  private constructor(
    trainee: Trainee,
    prompts: readonly PolicyPrompt[],
    backend: Backend,
    options: PolicyOptions,
    stepper: Stepper,
  ) {
    this.#trainee = trainee;
    this.#prompts = prompts;
    this.#backend = backend;
    this.#options = options;
    this.#stepper = stepper;
    this.#rng = new Rng(options.seed ?? 0);
    const { batchSize = 8, iterations = 1, epochs = 1 } = options;
    this.steps = options.steps ?? Math.ceil((epochs * prompts.length) / batchSize) * iterations;
    this.#schedule = phasedSchedule(trainee, this.steps, (steps) => scheduleOf(options, steps));
    this.#hooks = new HookRunner(trainee, stepper, this.#rng, this.steps);
    const { adapter, full } = options.method.objective.learningRate ?? {
      adapter: 1e-3,
      full: 1e-4,
    };
    this.#peak = options.learningRate ?? (trainee.adapt ? adapter : full);
  }

  /**
   * @param trainee what is trained; its objective is the method's
   * @throws OptionError for settings outside their range, or prompts longer than the model takes.
   */
  static async create(
    trainee: Trainee,
    prompts: readonly PolicyPrompt[],
    backend: Backend,
    options: PolicyOptions,
  ): Promise<PolicyTrainer> {
    checkPolicy(options, prompts.length);
    const { method, weightDecay = 0.01, optimizer = "adamw" } = options;
    const { maxPositions } = trainee.model.sizes;
    const long = prompts.findIndex(({ ids }) => ids.length >= maxPositions);
    if (long >= 0) {
      throw new OptionError(
        `policy: prompt ${long} has ${prompts[long]!.ids.length} tokens, the model takes ${maxPositions - 1} and an answer.`,
      );
    }
    const whole = withObjective(trainee, method.objective, new Rng(options.seed ?? 0));
    const own = withOwnBuffers(whole);
    const groups = groupsOf(own, weightDecay, (decay) =>
      optimizerByName(optimizer, { weightDecay: decay }),
    );
    const stepper = await makeStepper(own, groups, backend, {
      clipNorm: options.clipNorm ?? 1,
      accumulates: true,
      checkpoint: options.checkpoint ?? false,
      cacheSize: 16,
    });
    return new PolicyTrainer(own, prompts, backend, options, stepper);
  }

  /** Steps made. */
  get step(): number {
    return this.#stepper.stepCount;
  }

  /** The decoder of the parameters as they are now. */
  async #decoderNow(): Promise<Decoder> {
    const { adapter, model, form } = this.#trainee;
    // Base weights may be kept on a device: those that are trained are then read anew.
    if (!adapter && this.#backend.device) {
      await this.#decoder?.release();
      this.#decoder = undefined;
    }
    Object.assign(this.#live, await this.#stepper.params());
    const base = ownWeights(this.#trainee);
    if (adapter) {
      this.#decoder ??= new Decoder(model, base, this.#backend, {
        adapter: { adapter, params: this.#live, buffers: this.#adapterBuffers() },
        ...(form && { form }),
        prepack: false,
      });
    } else {
      this.#decoder ??= new Decoder(model, { ...base, ...this.#live }, this.#backend, {
        prepack: false,
      });
    }
    return this.#decoder;
  }

  /** The adapter's own, as hooks leave them. */
  #adapterBuffers(): TensorRecord {
    const { adapter, frozen } = this.#trainee;
    const names = Object.keys(adapter?.initBuffers?.() ?? {});
    return Object.fromEntries(names.map((name) => [name, frozen[name]!]));
  }

  /** The prompts of a rollout: each epoch passes over all of them, in an order by the seed. */
  #promptsOf(rollout: number): PolicyPrompt[] {
    const { batchSize = 8 } = this.#options;
    const count = this.#prompts.length;
    const first = rollout * batchSize;
    let order: Int32Array | undefined;
    let known = -1;
    return Array.from({ length: batchSize }, (_, i) => {
      const epoch = Math.floor((first + i) / count);
      if (epoch !== known) {
        order = this.#rng.fold("prompts", epoch).permutation(count);
        known = epoch;
      }
      return this.#prompts[order![(first + i) % count]!]!;
    });
  }

  /** Answers to prompts, as they are asked; `undefined` when the signal ended it. */
  async #answer(
    prompts: readonly PolicyPrompt[],
    how: {
      readonly temperature: number;
      readonly rng: Rng;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<readonly ScoredAnswer[] | undefined> {
    const { maxNewTokens = 64, stopIds = [], decodeSize = 64, decode, reward } = this.#options;
    const decoder = await this.#decoderNow();
    const stop = new Set(stopIds);
    const answers: ScoredAnswer[] = [];
    for (let start = 0; start < prompts.length; start += decodeSize) {
      const asked = prompts.slice(start, start + decodeSize);
      const made = await decoder.complete(
        asked.map(({ ids }) => ids),
        {
          temperature: how.temperature,
          maxNewTokens,
          seed: how.rng.fold("answers", start).integer(2 ** 31),
          isEnd: (_, token) => stop.has(token),
          ...(how.signal && { signal: how.signal }),
        },
      );
      if (how.signal?.aborted) return undefined;
      for (const [i, { tokens, finishReason }] of made.entries()) {
        const { ids, prompt, expected } = asked[i]!;
        const isEnded = finishReason === "stop";
        const shown = isEnded ? tokens.subarray(0, -1) : tokens;
        const value = reward
          ? await reward({
              prompt,
              expected,
              answer: decode(shown),
              tokens: tokens.length,
              isEnded,
            })
          : Number.NaN;
        if (reward && !Number.isFinite(value)) {
          throw new StateError(
            `policy: the reward of ${JSON.stringify(decode(shown).slice(0, 60))} is ${value} — a reward must be a number.`,
          );
        }
        answers.push({ example: joined(ids, tokens), reward: value });
      }
    }
    return answers;
  }

  /** Parts of a step from rollouts. */
  #parts(rollouts: readonly Rollout[], step: number): StepPart[] {
    const { partSize = 16, method } = this.#options;
    const { maxLength } = this.#trainee;
    const rows = Math.min(partSize, rollouts.length);
    const shape = { rows, ...(maxLength !== undefined && { maxLength }) };
    return Array.from({ length: Math.ceil(rollouts.length / rows) }, (_, i) => ({
      batch: method.objective.batch(rollouts.slice(i * rows, (i + 1) * rows) as never, shape),
      noise: this.#rng.fold("noise", step, i),
    }));
  }

  /** What the objective reads off answers, token by token. */
  async #inspect(answers: readonly ScoredAnswer[]): Promise<Inspected[]> {
    const bare = answers.map(({ example }): Rollout => ({ example, advantage: 0 }));
    const inspected: Inspected[] = [];
    for (const { batch } of this.#parts(bare, 0)) {
      const found = await this.#stepper.inspect(batch);
      let at = 0;
      for (const count of batch["counts"]!.data as Float32Array) {
        if (inspected.length === answers.length) break;
        const own = Object.entries(found).map(([name, { data }]) => [
          name,
          Float32Array.from((data as Float32Array).subarray(at, at + count)),
        ]);
        inspected.push(Object.fromEntries(own) as Inspected);
        at += count;
      }
    }
    return inspected;
  }

  async #roll(rollout: number, signal?: AbortSignal): Promise<HeldRollouts | undefined> {
    const { method, temperature = 1, iterations = 1 } = this.#options;
    const rng = this.#rng.fold("rollout", rollout);
    const prompts = this.#promptsOf(rollout);
    if (method.takesData?.(rng)) {
      const given = prompts.map(({ example, prompt }) => {
        if (example) return { example, reward: Number.NaN };
        throw new OptionError(
          `policy: ${method.name} takes answers of the data too, and the prompt ${JSON.stringify(prompt.slice(0, 40))} has none — learn from own answers alone (onPolicy 1).`,
        );
      });
      return { rollouts: method.learn(given, []), metrics: { onPolicy: 0 } };
    }
    const asked = prompts.flatMap((prompt) => new Array(method.groupSize).fill(prompt));
    const answers = await this.#answer(asked as PolicyPrompt[], { temperature, rng, signal });
    if (!answers) return undefined;
    const inspected = method.needsInspection(iterations) ? await this.#inspect(answers) : [];
    return { rollouts: method.learn(answers, inspected), metrics: summary(answers, method) };
  }

  /**
   * Makes one step; `undefined` when all are made, or the signal ended a rollout.
   * @throws StateError when the loss or a reward is not a number.
   */
  async next(options: { readonly learningRate?: number } = {}): Promise<FinetuneStep | undefined> {
    const { iterations = 1, signal, batchSize = 8 } = this.#options;
    const { step } = this;
    if (step >= this.steps) return undefined;
    const rollout = Math.floor(step / iterations);
    if (step % iterations === 0) this.#held = undefined;
    this.#held ??= await this.#roll(rollout, signal);
    if (!this.#held) return undefined;
    const { rollouts, metrics } = this.#held;
    const learningRate = options.learningRate ?? this.#peak * this.#schedule(step);
    await this.#hooks.before(step);
    const { loss, gradientNorm, isApplied } = await this.#stepper.step(
      this.#parts(rollouts, step),
      learningRate,
    );
    if (!isApplied || !Number.isFinite(loss)) {
      throw new StateError(
        `policy: the loss at step ${step + 1} is ${loss}, the norm of its gradient ${gradientNorm} — lower the learning rate (${this.#peak}).`,
        { step: step + 1 },
      );
    }
    const told = await this.#hooks.after(step + 1, loss);
    this.#tokens += rollouts.reduce((sum, { example }) => sum + example.ids.length, 0);
    return {
      step: step + 1,
      steps: this.steps,
      epoch: Math.floor((rollout * batchSize) / this.#prompts.length),
      loss,
      learningRate,
      gradientNorm,
      tokens: this.#tokens,
      metrics: { ...metrics, ...told },
    };
  }

  /** Answers of a rollout as the parts of a step on it, for estimates: on a training without steps of its own. */
  async partsAt(rollout: number): Promise<readonly StepPart[]> {
    const held = await this.#roll(rollout, this.#options.signal);
    return held ? this.#parts(held.rollouts, 0) : [];
  }

  /** Runs a step's parts without a change to the parameters, for timing; moments do change. */
  async rehearse(parts: readonly StepPart[]): Promise<void> {
    await this.#stepper.step(parts, 0);
  }

  /** Trained parameters now, an objective's own included; they change with the next step: copy to keep. */
  params(): Promise<TensorRecord> {
    return this.#stepper.params();
  }

  /** What `load` needs to go on from here, bit for bit; with the rollout it is in the middle of. */
  async state(): Promise<FinetuneState> {
    const params = await this.#stepper.params();
    const { step, origin = 0, tensors } = await this.#stepper.state();
    const isMiddle = step % (this.#options.iterations ?? 1) !== 0;
    const held = isMiddle && this.#held ? packRollouts(this.#held) : {};
    return {
      params,
      optimizer: { step, origin, tensors: { ...tensors, ...held } },
      buffers: this.#hooks.buffers,
      tokens: this.#tokens,
    };
  }

  /**
   * Goes on from where another stood.
   * @throws MissingError, ShapeError or StateError when the state belongs to other settings.
   */
  async load({ params, optimizer, buffers, tokens }: FinetuneState): Promise<void> {
    if (optimizer.step > this.steps) {
      throw new StateError(
        `policy: the state is of step ${optimizer.step}, these settings have ${this.steps} steps.`,
      );
    }
    const { held, others } = unpackRollouts(optimizer.tensors);
    await this.#hooks.load(buffers);
    await this.#stepper.load(params, { ...optimizer, tensors: others });
    this.#held = held;
    this.#tokens = tokens;
  }

  /**
   * Mean reward of greedy answers; `nll` is its negative, so that less is better as for losses. `undefined`
   * when the signal ended it.
   * @param prompts a set as `promptSet` makes it
   */
  async evaluate(
    prompts: ExampleSet<PolicyPrompt> | readonly PolicyPrompt[],
    { signal }: ScoreOptions = {},
  ): Promise<ExampleScore | undefined> {
    if (!this.#options.method.usesReward) {
      throw new OptionError(`policy: ${this.#options.method.name} has no reward to judge by.`);
    }
    const all =
      "lengths" in prompts
        ? await prompts.get(Array.from({ length: prompts.count }, (_, i) => i))
        : prompts;
    const answers = await this.#answer(all, { temperature: 0, rng: this.#rng, signal });
    if (!answers) return undefined;
    const metrics = summary(answers, this.#options.method);
    return { nll: -metrics["reward"]!, accuracy: metrics["reward"]!, metrics };
  }

  /** Frees the engine's sessions; parameters stay readable. */
  async release(): Promise<void> {
    await this.#decoder?.release();
    await this.#stepper.release();
  }
}

function summary(answers: readonly ScoredAnswer[], method: PolicyMethod): Record<string, number> {
  const mean = (of: (answer: ScoredAnswer) => number): number =>
    answers.reduce((sum, answer) => sum + of(answer), 0) / answers.length;
  const length = mean(({ example }) => example.mask.reduce((a, b) => a + b, 0));
  if (!method.usesReward) return { onPolicy: 1, answerTokens: length };
  return { reward: mean(({ reward }) => reward), answerTokens: length };
}

/**
 * Trains a model on its own answers: rollout, rewards, updates.
 * @throws as `PolicyTrainer`.
 */
export async function trainPolicy(
  trainee: Trainee,
  prompts: readonly PolicyPrompt[],
  backend: Backend,
  options: PolicyOptions,
): Promise<PolicyResult> {
  const trainer = await PolicyTrainer.create(trainee, prompts, backend, options);
  const [losses, rewards]: [number[], number[]] = [[], []];
  try {
    while (!options.signal?.aborted) {
      const info = await trainer.next();
      if (!info) break;
      losses.push(info.loss);
      rewards.push(info.metrics?.["reward"] ?? Number.NaN);
      options.onStep?.(info);
    }
    const isStopped = trainer.step < trainer.steps;
    return { params: await trainer.params(), losses, rewards, steps: losses.length, isStopped };
  } finally {
    await trainer.release();
  }
}
