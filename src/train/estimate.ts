/** What a fine-tuning will take, before its first step: memory from its graphs, time from a rehearsal. */

import type { Backend } from "../backend/backend.ts";
import { memorySet } from "../data/set.ts";
import type { Clock } from "../host/host.ts";
import type { Module } from "../nn/module.ts";
import { optimizerByName } from "../optim/by-name.ts";
import { sizeOf } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { causalLm } from "./causal-lm.ts";
import { type Examples, type FinetuneOptions, Finetuner } from "./finetune.ts";
import { type Trainee, TrainProgram } from "./program.ts";
import type { StepPart } from "./stepper.ts";
import { groupsOf } from "./trainee.ts";

/** Steps looked at, spread over the whole training. */
const sampledSteps = 48;
/** Shapes rehearsed, from the smallest to the largest. */
const rehearsedShapes = 5;
/** Sessions that a training keeps loaded, and the bytes that they may take. */
export const keptSessions = 16;
export const keptBytes = 2e9;
/**
 * What a session holds beside the memory that its graph needs: the engine's allocator keeps freed
 * blocks of other sizes, and the nodes take some. Measured on models of 5 and 124 million parameters.
 */
export const sessionFactor = 1.3;
export const sessionBytes = 6e6;

/** One shape of batches in the plan. */
interface Shape {
  readonly parts: readonly StepPart[];
  /** Tokens of its batch, padding included. */
  readonly tokens: number;
  /** Sampled steps that have it. */
  count: number;
}

export interface MemoryEstimate {
  /** Resident at the time of asking: the model and the data, if they are loaded. */
  readonly residentBytes: number;
  /** Trained parameters, their gradients and optimiser state. */
  readonly trainedBytes: number;
  /** The largest step's graph. */
  readonly stepBytes: number;
  /** All shapes' sessions that are kept. */
  readonly sessionBytes: number;
  /** The largest batch of held-out examples, when they are judged. */
  readonly judgeBytes: number;
  readonly totalBytes: number;
}

export interface RunEstimate {
  readonly steps: number;
  /** Distinct shapes of batches. */
  readonly shapes: number;
  /** Mean time of a step. */
  readonly secondsPerStep: number;
  /** All steps, with the loading of their sessions. */
  readonly seconds: number;
  readonly memory: MemoryEstimate;
}

interface Plan {
  readonly steps: number;
  readonly sampled: number;
  /** By tokens, the largest last. */
  readonly shapes: readonly Shape[];
}

async function planOf(tuner: Finetuner): Promise<Plan> {
  const shapes = new Map<string, Shape>();
  const sampled = Math.min(tuner.steps, sampledSteps);
  for (let i = 0; i < sampled; i++) {
    const parts = await tuner.partsAt(Math.floor((i * tuner.steps) / sampled));
    const key = parts
      .map(({ batch }) => Object.values(batch).map(({ shape }: Tensor) => shape))
      .join("|");
    const known = shapes.get(key);
    if (known) known.count++;
    else {
      const tokens = parts.reduce((sum, { batch }) => sum + batch.ids.size, 0);
      shapes.set(key, { parts, tokens, count: 1 });
    }
  }
  const sorted = [...shapes.values()].sort((a, b) => a.tokens - b.tokens);
  return { steps: tuner.steps, sampled, shapes: sorted };
}

/** Parameters, gradients, optimiser state and what is added up, in float32. */
export function trainedBytes(
  trainee: Trainee<Module>,
  options: Pick<FinetuneOptions, "optimizer" | "accumulate">,
): number {
  const groups = groupsOf(trainee, 0.01, (weightDecay) =>
    optimizerByName(options.optimizer ?? "adamw", { weightDecay }),
  );
  const copies = 2 + Number((options.accumulate ?? 1) > 1);
  let numbers = 0;
  for (const { paths, optimizer } of groups) {
    for (const path of paths) {
      const { shape } = trainee.trained[path]!;
      numbers += copies * sizeOf(shape);
      for (const slot of Object.values(optimizer.slots(shape))) numbers += sizeOf(slot);
    }
  }
  return 4 * numbers;
}

function memoryOf(
  plan: Plan,
  trainee: Trainee<Module>,
  backend: Backend,
  options: FinetuneOptions,
  residentBytes: number,
  judgeBytes: number,
): MemoryEstimate {
  const program = new TrainProgram(trainee, backend, {
    checkpoint: options.checkpoint ?? false,
  });
  const largest = plan.shapes.at(-1)!;
  const biggest = (parts: readonly StepPart[]): StepPart =>
    parts.reduce((a, b) => (b.batch.ids.size > a.batch.ids.size ? b : a));
  const stepBytes = program.peakBytes(biggest(largest.parts).batch);
  const perToken = stepBytes / biggest(largest.parts).batch.ids.size;
  let kept = 0;
  let sessions = 0;
  for (const { parts } of plan.shapes.slice(-keptSessions).reverse()) {
    const bytes = perToken * biggest(parts).batch.ids.size;
    if (sessions > 0 && kept + bytes > keptBytes) break;
    kept += bytes;
    sessions++;
  }
  const trained = trainedBytes(trainee, options);
  const held = kept * sessionFactor + sessions * sessionBytes;
  return {
    residentBytes,
    trainedBytes: trained,
    stepBytes,
    sessionBytes: held,
    judgeBytes,
    // What judging took before the training is kept by the allocator in part, so both are counted.
    totalBytes: residentBytes + trained + held + judgeBytes,
  };
}

/** A batch of the longest held-out examples, as many as are judged together. */
async function judgeBytesOf(
  trainee: Trainee<Module>,
  heldOut: Examples | undefined,
  backend: Backend,
): Promise<number> {
  if (heldOut === undefined) return 0;
  const set = "lengths" in heldOut ? heldOut : memorySet(heldOut);
  const { objective = causalLm, maxLength } = trainee;
  const order = [...set.lengths.keys()].sort((a, b) => set.lengths[b]! - set.lengths[a]!);
  if (order.length === 0) return 0;
  const rows = 32;
  const shape = { rows, ...(maxLength !== undefined && { maxLength }) };
  const batch = objective.batch((await set.get(order.slice(0, rows))) as never[], shape);
  return new TrainProgram(trainee, backend).peakBytes(batch, "eval") * sessionFactor;
}

/**
 * Memory of a training from its graphs alone: nothing is run.
 * @param residentBytes what the process takes now, with model and data loaded
 */
export async function estimateMemory(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: FinetuneOptions,
  residentBytes: number,
  heldOut?: Examples,
): Promise<MemoryEstimate> {
  const judgeBytes = await judgeBytesOf(trainee, heldOut, backend);
  const tuner = await Finetuner.create(trainee, examples, backend, options);
  try {
    return memoryOf(await planOf(tuner), trainee, backend, options, residentBytes, judgeBytes);
  } finally {
    await tuner.release();
  }
}

/**
 * Memory and time. Some steps are rehearsed on this machine, without a change to any parameter.
 * @param residentBytes what the process takes now, with model and data loaded
 */
export async function estimateRun(
  trainee: Trainee<Module>,
  examples: Examples,
  backend: Backend,
  options: FinetuneOptions,
  {
    clock,
    residentBytes,
    heldOut,
  }: {
    readonly clock: Clock;
    readonly residentBytes: number;
    /** Examples that are judged before and after. */
    readonly heldOut?: Examples;
  },
): Promise<RunEstimate> {
  const judgeBytes = await judgeBytesOf(trainee, heldOut, backend);
  const tuner = await Finetuner.create(trainee, examples, backend, options);
  try {
    const plan = await planOf(tuner);
    const memory = memoryOf(plan, trainee, backend, options, residentBytes, judgeBytes);
    const seconds = async (parts: readonly StepPart[]): Promise<number> => {
      const start = clock.monotonic();
      await tuner.rehearse(parts);
      return (clock.monotonic() - start) / 1000;
    };
    const timed: { tokens: number; step: number; load: number }[] = [];
    const count = Math.min(rehearsedShapes, plan.shapes.length);
    for (let i = 0; i < count; i++) {
      const at = count === 1 ? 0 : Math.round((i * (plan.shapes.length - 1)) / (count - 1));
      const { parts, tokens } = plan.shapes[at]!;
      const first = await seconds(parts);
      const again = [await seconds(parts), await seconds(parts), await seconds(parts)];
      // The middle of three: another process may take the processor for one of them.
      const step = again.sort((a, b) => a - b)[1]!;
      timed.push({ tokens, step, load: Math.max(0, first - step) });
    }
    const total = plan.shapes.reduce(
      (sum, { tokens, count: times }) => sum + times * between(timed, tokens, "step"),
      0,
    );
    const loading = plan.shapes.reduce(
      (sum, { tokens }) => sum + between(timed, tokens, "load"),
      0,
    );
    const secondsPerStep = total / plan.sampled;
    return {
      steps: plan.steps,
      shapes: plan.shapes.length,
      secondsPerStep,
      seconds: secondsPerStep * plan.steps + loading,
      memory,
    };
  } finally {
    await tuner.release();
  }
}

/** Straight lines between the shapes that were timed. */
function between(
  timed: readonly { readonly tokens: number; readonly step: number; readonly load: number }[],
  tokens: number,
  field: "step" | "load",
): number {
  const above = timed.findIndex((one) => one.tokens >= tokens);
  if (above < 0) return timed.at(-1)![field];
  const [low, high] = [timed[Math.max(0, above - 1)]!, timed[above]!];
  if (low.tokens === high.tokens) return high[field];
  const along = (tokens - low.tokens) / (high.tokens - low.tokens);
  return low[field] + along * (high[field] - low[field]);
}
