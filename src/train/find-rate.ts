/**
 * Which learning rate to take: the loss over a few steps of rates that rise from far too low to far
 * too high.
 *
 * Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017, arXiv:1506.01186, section
 * 3.3; the choice by the steepest fall of the smoothed loss is fastai's.
 */

import type { Backend } from "../backend/backend.ts";
import { OptionError, StateError } from "../errors.ts";
import type { Module } from "../nn/module.ts";
import { type Examples, type FinetuneOptions, Finetuner } from "./finetune.ts";
import type { Trainee } from "./program.ts";

export interface FindRateOptions {
  /** First and last rate; default 1e-6 and 1. */
  readonly low?: number;
  readonly high?: number;
  /** Rates tried, evenly on a logarithmic scale; default 60. */
  readonly count?: number;
  readonly signal?: AbortSignal;
  readonly onStep?: (done: number, rate: number, loss: number) => void;
}

export interface RateTrial {
  readonly learningRate: number;
  readonly loss: number;
  /** Mean of the losses so far, recent ones more. */
  readonly smoothed: number;
}

export interface FoundRate {
  /** Where the smoothed loss falls fastest over the logarithm of the rate. */
  readonly learningRate: number;
  readonly trials: readonly RateTrial[];
  /** Whether the loss blew up before the last rate. */
  readonly hasDiverged: boolean;
}

const decay = 0.9;
/** Past this multiple of the best smoothed loss nothing is learnt any more. */
const divergence = 4;

/**
 * Tries rates on copies of the parameters: the trainee is not touched.
 * @throws OptionError for a range that is none, or when the loss falls nowhere.
 */
export async function findLearningRate(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: FinetuneOptions = {},
  search: FindRateOptions = {},
): Promise<FoundRate> {
  const { low = 1e-6, high = 1, count = 60, signal } = search;
  if (!(low > 0 && high > low && high <= 1e6)) {
    throw new OptionError(`findLearningRate: needs 0 < low < high, got ${low} and ${high}.`);
  }
  if (!Number.isInteger(count) || count < 10 || count > 10000) {
    throw new OptionError(
      `findLearningRate: count must be a whole number from 10 to 10000, got ${count}.`,
    );
  }
  const tuner = await Finetuner.create(trainee, examples, backend, { ...options, steps: count });
  const trials: RateTrial[] = [];
  let [mean, best] = [0, Infinity];
  let hasDiverged = false;
  try {
    for (let i = 0; i < count && !signal?.aborted; i++) {
      const learningRate = low * (high / low) ** (i / (count - 1));
      let loss: number;
      try {
        loss = (await tuner.next({ learningRate }))!.loss;
      } catch (error) {
        if (!(error instanceof StateError)) throw error;
        hasDiverged = true;
        break;
      }
      mean = decay * mean + (1 - decay) * loss;
      const smoothed = mean / (1 - decay ** (i + 1));
      trials.push({ learningRate, loss, smoothed });
      search.onStep?.(i + 1, learningRate, loss);
      best = Math.min(best, smoothed);
      if (smoothed > divergence * best && i > 5) {
        hasDiverged = true;
        break;
      }
    }
  } finally {
    await tuner.release();
  }
  return { learningRate: steepest(trials), trials, hasDiverged };
}

/** The rate at which the smoothed loss falls fastest, before it is lowest. */
function steepest(trials: readonly RateTrial[]): number {
  const lowest = trials.reduce(
    (at, { smoothed }, i) => (smoothed < trials[at]!.smoothed ? i : at),
    0,
  );
  let chosen: { rate: number; slope: number } | undefined;
  for (let i = 1; i < lowest; i++) {
    const slope = trials[i + 1]!.smoothed - trials[i - 1]!.smoothed;
    if (!chosen || slope < chosen.slope) chosen = { rate: trials[i]!.learningRate, slope };
  }
  if (!chosen || chosen.slope >= 0) {
    throw new OptionError(
      `findLearningRate: over ${trials.length} rates the loss falls nowhere — is there something to learn, and is the lowest rate low enough?`,
    );
  }
  return chosen.rate;
}
