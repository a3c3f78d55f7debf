/**
 * What a training on own answers will take: beside its steps the answers, their cache, and the time that
 * they take to decode. Memory from graphs and sizes, time from rollouts that are rehearsed.
 */
import type { Backend } from "../backend/backend.ts";
import type { Clock } from "../host/host.ts";
import { cacheCapacity } from "../infer/cache.ts";
import type { LanguageModel } from "../models/model.ts";
import { Rng } from "../tensor/rng.ts";
import { sizeOf } from "../tensor/shape.ts";
import {
  keptBytes,
  keptSessions,
  type MemoryEstimate,
  type RunEstimate,
  sessionBytes,
  sessionFactor,
  trainedBytes,
} from "./estimate.ts";
import type { Rollout } from "./objectives/rollout.ts";
import { type PolicyOptions, PolicyTrainer } from "./policy.ts";
import { joined, type PolicyPrompt } from "./policy-prompts.ts";
import { type Trainee, TrainProgram } from "./program.ts";
import { withObjective } from "./trainee.ts";

/** Rollouts rehearsed after the first, which loads the sessions. */
const rehearsed = 3;
/** Lengths of batches differ by this. */
const lengthStep = 16;

export interface PolicyMemoryEstimate extends MemoryEstimate {
  /** Answers that are decoded together: their cache, their logits, and the reading of their prompts. */
  readonly rolloutBytes: number;
}

export interface PolicyEstimate extends RunEstimate {
  readonly memory: PolicyMemoryEstimate;
  readonly rollouts: number;
  /** Mean time of the answers of a rollout, as the model gives them now, and their rewards. */
  readonly secondsPerRollout: number;
}

/** Bytes that decoding takes beside the weights. */
export function rolloutBytes(
  model: LanguageModel,
  prompts: readonly Pick<PolicyPrompt, "ids">[],
  options: Pick<PolicyOptions, "method" | "batchSize" | "decodeSize" | "maxNewTokens">,
): number {
  const { batchSize = 8, decodeSize = 64, maxNewTokens = 64, method } = options;
  const { nLayers, nHeads, nKvHeads, headDim, vocabSize, dModel, maxPositions } = model.sizes;
  const rows = Math.max(2, Math.min(decodeSize, batchSize * method.groupSize));
  const longest = prompts.reduce((most, { ids }) => Math.max(most, ids.length), 1);
  const whole = Math.min(maxPositions, longest + maxNewTokens);
  const perRow = model.stateShapes
    ? 2 * Object.values(model.stateShapes).reduce((sum, shape) => sum + sizeOf(shape), 0)
    : // While a cache grows, the one of half the size is there too.
      1.5 * 2 * nLayers * nKvHeads * headDim * cacheCapacity(whole);
  const widest = Math.max(dModel, ...[...model.targets.values()].map((layer) => layer.outFeatures));
  const scores = model.stateShapes ? 0 : 2 * nHeads * longest * longest;
  const reading = longest * (2 * dModel + 3 * widest) + scores;
  return 4 * rows * (perRow + reading + 2 * vocabSize);
}

/** A rollout of answers of the greatest length to the longest prompts, as the method learns from it. */
function longestRollouts(
  prompts: readonly PolicyPrompt[],
  { method, batchSize = 8, iterations = 1, maxNewTokens = 64 }: PolicyOptions,
  maxPositions: number,
): readonly Rollout[] {
  const sorted = [...prompts].sort((a, b) => b.ids.length - a.ids.length);
  const answers = Array.from({ length: batchSize * method.groupSize }, (_, i) => {
    const { ids } = sorted[Math.floor(i / method.groupSize) % sorted.length]!;
    const answer = new Int32Array(Math.min(maxNewTokens, maxPositions - ids.length));
    return { example: joined(ids, answer), reward: 0, tokens: answer.length };
  });
  const zeros = answers.map(({ tokens }) => {
    const [old, reference, values] = [0, 0, 0].map(() => new Float32Array(tokens));
    return { old: old!, reference: reference!, values: values! };
  });
  return method.learn(answers, method.needsInspection(iterations) ? zeros : []);
}

/**
 * Memory of a training on own answers, from its graphs and sizes alone: nothing is run.
 * @param residentBytes what the process takes now, with model and data loaded
 */
export function estimatePolicyMemory(
  trainee: Trainee,
  prompts: readonly PolicyPrompt[],
  backend: Backend,
  options: PolicyOptions,
  residentBytes: number,
): PolicyMemoryEstimate {
  const { batchSize = 8, partSize = 16, checkpoint = false, method } = options;
  const whole = withObjective(trainee, method.objective, new Rng(options.seed ?? 0));
  const { maxPositions } = trainee.model.sizes;
  const rows = Math.min(partSize, batchSize * method.groupSize);
  const batch = method.objective.batch(
    longestRollouts(prompts, options, maxPositions).slice(0, rows) as never,
    { rows, maxLength: maxPositions },
  );
  const stepBytes = new TrainProgram(whole, backend, { checkpoint }).peakBytes(batch);
  // Answers of every length come, and each length of a batch is a session.
  const longest = batch.ids.shape.at(-1)!;
  let [kept, sessions] = [0, 0];
  for (let length = longest; length > 0 && sessions < keptSessions; length -= lengthStep) {
    const bytes = (stepBytes * length) / longest;
    if (sessions > 0 && kept + bytes > keptBytes) break;
    kept += bytes;
    sessions++;
  }
  const trained = trainedBytes(whole, { ...options, accumulate: 2 });
  const held = kept * sessionFactor + sessions * sessionBytes;
  // One reads prompts, one makes tokens.
  const rolling = rolloutBytes(trainee.model, prompts, options) * sessionFactor + 2 * sessionBytes;
  return {
    residentBytes,
    trainedBytes: trained,
    stepBytes,
    sessionBytes: held,
    judgeBytes: 0,
    rolloutBytes: rolling,
    totalBytes: residentBytes + trained + held + rolling,
  };
}

/**
 * Memory and time. Some rollouts are rehearsed on this machine, without a change to any parameter; answers of a
 * model that learns may become longer or shorter than they are now.
 */
export async function estimatePolicy(
  trainee: Trainee,
  prompts: readonly PolicyPrompt[],
  backend: Backend,
  options: PolicyOptions,
  { clock, residentBytes }: { readonly clock: Clock; readonly residentBytes: number },
): Promise<PolicyEstimate> {
  const memory = estimatePolicyMemory(trainee, prompts, backend, options, residentBytes);
  const trainer = await PolicyTrainer.create(trainee, prompts, backend, options);
  try {
    const time = async <T>(work: () => Promise<T>): Promise<[T, number]> => {
      const start = clock.monotonic();
      const result = await work();
      return [result, (clock.monotonic() - start) / 1000];
    };
    const { iterations = 1 } = options;
    const rollouts = Math.ceil(trainer.steps / iterations);
    const shapes = new Set<string>();
    const [rolls, steps, loads]: [number[], number[], number[]] = [[], [], []];
    const count = Math.min(rollouts, 1 + rehearsed);
    for (let rollout = 0; rollout < count; rollout++) {
      const [parts, seconds] = await time(() => trainer.partsAt(rollout));
      if (parts.length === 0) break;
      const [, first] = await time(() => trainer.rehearse(parts));
      const [, again] = await time(() => trainer.rehearse(parts));
      for (const { batch } of parts) shapes.add(String(batch.ids.shape));
      rolls.push(seconds);
      steps.push(again);
      loads.push(Math.max(0, first - again));
    }
    const mean = (list: readonly number[]): number =>
      list.reduce((sum, x) => sum + x, 0) / Math.max(1, list.length);
    const warm = rolls.length > 1 ? rolls.slice(1) : rolls;
    const secondsPerRollout = mean(warm);
    const secondsPerStep = mean(steps);
    const loading = Math.max(0, rolls[0]! - secondsPerRollout) + loads.reduce((a, b) => a + b, 0);
    return {
      steps: trainer.steps,
      shapes: shapes.size,
      rollouts,
      secondsPerStep,
      secondsPerRollout,
      seconds: rollouts * secondsPerRollout + trainer.steps * secondsPerStep + loading,
      memory,
    };
  } finally {
    await trainer.release();
  }
}
