/** Fine-tuning a language model: an adapter or all parameters, on examples with loss masks. */
import type { Adapter } from "../adapters/adapter.ts";
import type { Backend } from "../backend/backend.ts";
import { type Example, epochBatches } from "../data/examples.ts";
import { OptionError, StateError } from "../errors.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { optimizerByName } from "../optim/by-name.ts";
import { decayGroups } from "../optim/groups.ts";
import { type Schedule, scheduleByName } from "../optim/schedule.ts";
import { Rng } from "../tensor/rng.ts";
import { lossCount, makeBatch } from "./batches.ts";
import { type Trainee, TrainProgram } from "./program.ts";
import { Updater } from "./updater.ts";

export interface FinetuneOptions {
  /** Optimiser steps; default: `epochs` over the data. */
  readonly steps?: number;
  /** Passes over the data when `steps` is not given; default 3. */
  readonly epochs?: number;
  /** Examples a step, over all its parts; default 16. */
  readonly batchSize?: number;
  /** Parts of a step whose gradients are added up; divides batchSize. Default 1. */
  readonly accumulate?: number;
  /** Highest learning rate; default 2e-3 for adapters and 3e-4 for all parameters. */
  readonly learningRate?: number;
  /** Share of the steps over which the rate rises; default 0.05. */
  readonly warmup?: number;
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
}

export interface FinetuneResult {
  /** Trained parameters: the adapter's, or all. */
  readonly params: TensorRecord;
  readonly losses: readonly number[];
  readonly steps: number;
  readonly tokens: number;
  /** Whether a signal ended it early. */
  readonly isStopped: boolean;
}

/** Mean loss and token accuracy on examples. */
export interface ExampleScore {
  readonly nll: number;
  readonly accuracy: number;
}

/** What is trained: an adapter's new parameters beside a frozen model, or the model's own. */
export function traineeOf(
  model: LanguageModel,
  params: TensorRecord,
  adapter: { readonly adapter: Adapter; readonly params: TensorRecord } | undefined,
): Trainee {
  if (!adapter) return { model, frozen: {}, trained: params };
  return {
    model,
    frozen: params,
    trained: adapter.params,
    adapt: (values) => adapter.adapter.context(values),
  };
}

/**
 * Checks settings for so many examples, so that a caller can before it does other work.
 * @throws OptionError for settings outside their range.
 */
export function checkFinetune(options: FinetuneOptions, examples: number): void {
  if (examples === 0) throw new OptionError("finetune: there are no examples.");
  const { batchSize = 16, accumulate = 1 } = options;
  for (const [name, value] of Object.entries({ batchSize, accumulate })) {
    if (Number.isInteger(value) && value >= 1) continue;
    throw new OptionError(`finetune: ${name} must be a whole number from 1, got ${value}.`);
  }
  if (batchSize % accumulate !== 0) {
    throw new OptionError(
      `finetune: batchSize ${batchSize} must be a multiple of accumulate ${accumulate}.`,
    );
  }
  scheduleOf(options, stepsOf(options, examples));
  optimizerByName(options.optimizer ?? "adamw");
}

function stepsOf({ steps, epochs = 3, batchSize = 16 }: FinetuneOptions, examples: number): number {
  return steps ?? Math.ceil(epochs * Math.ceil(examples / batchSize));
}

function scheduleOf({ schedule, warmup = 0.05 }: FinetuneOptions, totalSteps: number): Schedule {
  const warmupSteps = Math.round(totalSteps * warmup);
  return scheduleByName(schedule ?? "linear", { totalSteps, warmupSteps });
}

/**
 * Trains and returns the trained parameters; the base is not touched. The order of the data depends
 * on the seed alone.
 * @throws OptionError for settings outside their range.
 * @throws StateError when the loss is not a number; it names the step and the examples.
 */
export async function finetune(
  trainee: Trainee,
  examples: readonly Example[],
  backend: Backend,
  options: FinetuneOptions = {},
): Promise<FinetuneResult> {
  const { batchSize = 16, accumulate = 1, seed = 0, weightDecay = 0.01 } = options;
  checkFinetune(options, examples.length);
  const isFull = trainee.adapt === undefined;
  const peak = options.learningRate ?? (isFull ? 3e-4 : 2e-3);
  const steps = stepsOf(options, examples.length);
  const schedule = scheduleOf(options, steps);
  const optimizer = options.optimizer ?? "adamw";
  const groups = decayGroups(trainee.trained, { weightDecay }, (decay) =>
    optimizerByName(optimizer, { weightDecay: decay }),
  );
  const updater = new Updater(trainee.trained, groups, backend, {
    clipNorm: options.clipNorm ?? 1,
    accumulates: accumulate > 1,
  });
  const program = new TrainProgram(trainee, backend, {
    checkpoint: options.checkpoint ?? false,
    cacheSize: 16,
  });
  const rng = new Rng(seed);
  const lengths = examples.map(({ ids }) => ids.length);
  const { params, gradients } = updater;
  const losses: number[] = [];
  let tokens = 0;
  let isStopped = false;
  try {
    for (let epoch = 0; losses.length < steps && !isStopped; epoch++) {
      for (const batch of epochBatches(lengths, batchSize, rng.fold("epoch", epoch))) {
        const step = losses.length;
        if (step >= steps) break;
        if (options.signal?.aborted) {
          isStopped = true;
          break;
        }
        const chosen = batch.map((i) => examples[i]!);
        const total = lossCount(chosen);
        const size = batchSize / accumulate;
        let loss = 0;
        for (let start = 0; start < chosen.length; start += size) {
          if (start > 0) updater.accumulate();
          const shape = { rows: size, maxLength: trainee.model.sizes.maxPositions };
          const part = makeBatch(chosen.slice(start, start + size), shape);
          const noise = rng.fold("noise", step, start);
          loss += await program.lossAndGradients(part, params, gradients, total, noise);
        }
        const learningRate = peak * schedule(step);
        const { gradientNorm, isApplied } = await updater.step(learningRate);
        if (!isApplied || !Number.isFinite(loss)) {
          const what = Number.isFinite(loss) ? "norm of the gradient" : "loss";
          throw new StateError(
            `finetune: the ${what} at step ${step + 1} is ${Number.isFinite(loss) ? gradientNorm : loss}, on examples ${batch.join(", ")} — lower the learning rate (${peak}).`,
          );
        }
        losses.push(loss);
        tokens += chosen.reduce((sum, { ids }) => sum + ids.length, 0);
        options.onStep?.({
          step: step + 1,
          steps,
          epoch,
          loss,
          learningRate,
          gradientNorm,
          tokens,
        });
      }
    }
    return { params, losses, steps: losses.length, tokens, isStopped };
  } finally {
    await program.release();
    await updater.release();
  }
}

/** Mean loss per token that carries loss, and how often the likeliest token is right. */
export async function scoreExamples(
  trainee: Trainee,
  examples: readonly Example[],
  backend: Backend,
  batchSize = 32,
): Promise<ExampleScore> {
  const program = new TrainProgram(trainee, backend, { cacheSize: 16 });
  let [loss, correct, weight] = [0, 0, 0];
  const order = examples.map((_, i) => i);
  order.sort((a, b) => examples[a]!.ids.length - examples[b]!.ids.length);
  try {
    for (let start = 0; start < order.length; start += batchSize) {
      const chosen = order.slice(start, start + batchSize).map((i) => examples[i]!);
      const result = await program.evaluate(
        makeBatch(chosen, { rows: batchSize, maxLength: trainee.model.sizes.maxPositions }),
        trainee.trained,
      );
      loss += result.loss;
      correct += result.correct;
      weight += result.weight;
    }
  } finally {
    await program.release();
  }
  return { nll: loss / weight, accuracy: correct / weight };
}
