/** Pretraining: a language model from its first numbers, on windows of a long text. */
import type { Backend } from "../backend/backend.ts";
import { drawWindows } from "../data/stream.ts";
import { OptionError, StateError } from "../errors.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { adamW } from "../optim/adamw.ts";
import { decayGroups } from "../optim/groups.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Batch, EvalResult } from "./program.ts";
import { makeStepper } from "./stepper.ts";

export interface PretrainOptions {
  readonly steps: number;
  readonly batchSize: number;
  readonly seqLen: number;
  /** Highest learning rate; default 1.5e-3. */
  readonly learningRate?: number;
  /** Steps over which the learning rate rises from 0; default 2 % of the steps. */
  readonly warmupSteps?: number;
  /** Default 0.1, on matrices only. */
  readonly weightDecay?: number;
  /** Default 1. */
  readonly clipNorm?: number;
  /** Share of windows with repeated passages, see `WindowOptions`; default 0. */
  readonly repeats?: number;
  readonly seed: number;
  /** First numbers; default: the model's own initialisers. */
  readonly params?: TensorRecord;
  /** Parameters that learn at a share of the rate: by path. */
  readonly learningRateScales?: Readonly<Record<string, number>>;
  /** Evaluate on the held-out tokens every so many steps; 0 only at the end. */
  readonly evalEvery?: number;
  /** Save every so many steps through `onSave`. */
  readonly saveEvery?: number;
  readonly onStep?: (info: StepInfo) => void;
  readonly onEval?: (step: number, nll: number) => void;
  readonly onSave?: (snapshot: Snapshot) => Promise<void>;
  /** Ends the run after a step; what was made goes to `onSave`. */
  readonly signal?: AbortSignal;
  /** State of an earlier run to go on from. */
  readonly resume?: Snapshot;
}

export interface StepInfo {
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  readonly learningRate: number;
  readonly gradientNorm: number;
  readonly tokens: number;
}

export interface Snapshot {
  readonly params: Readonly<Record<string, Tensor>>;
  readonly state: { readonly step: number; readonly tensors: Readonly<Record<string, Tensor>> };
}

/** Rises linearly, then falls along a cosine to a tenth. */
export function cosineRate(step: number, steps: number, warmup: number, peak: number): number {
  if (step < warmup) return (peak * (step + 1)) / warmup;
  const along = Math.min(1, (step - warmup) / Math.max(1, steps - warmup));
  return peak * (0.1 + 0.45 * (1 + Math.cos(Math.PI * along)));
}

export interface PretrainResult {
  readonly params: TensorRecord;
  /** Mean -log p per token on the held-out text. */
  readonly heldOutNll: number;
  /** Whether a signal ended it early. */
  readonly isStopped: boolean;
}

/**
 * Trains all parameters; the data of a step depends on the seed and the step alone.
 * @throws OptionError when the held-out text has fewer than two tokens.
 * @throws StateError when the loss is not a number.
 */
export async function pretrain(
  model: LanguageModel,
  tokens: Int32Array,
  heldOut: Int32Array,
  backend: Backend,
  options: PretrainOptions,
): Promise<PretrainResult> {
  const { steps, batchSize, seqLen, seed, learningRate = 1.5e-3, weightDecay = 0.1 } = options;
  checkHeldOut(heldOut);
  const warmup = options.warmupSteps ?? Math.ceil(steps / 50);
  const params = options.params ?? model.init(new Rng(seed).fold("init")).params;
  const decayed = decayGroups(params, { weightDecay }, (decay) =>
    adamW({ beta1: 0.9, beta2: 0.95, weightDecay: decay }),
  );
  const scales = options.learningRateScales ?? {};
  const groups = decayed.flatMap(({ paths, optimizer }) =>
    [...new Set(paths.map((path) => scales[path] ?? 1))].map((scale) => ({
      paths: paths.filter((path) => (scales[path] ?? 1) === scale),
      optimizer,
      learningRateScale: scale,
    })),
  );
  const stepper = await makeStepper({ model, frozen: {}, trained: params }, groups, backend, {
    clipNorm: options.clipNorm ?? 1,
  });
  const snapshot = async (): Promise<Snapshot> => ({
    params: await stepper.params(),
    state: await stepper.state(),
  });
  const data = new Rng(seed).fold("data");
  const windows = {
    batchSize,
    seqLen,
    repeats: options.repeats ?? 0,
    vocabSize: model.sizes.vocabSize,
  };
  let isStopped = false;
  try {
    if (options.resume) await stepper.load(options.resume.params, options.resume.state);
    for (let step = stepper.stepCount; step < steps; step++) {
      if (options.signal?.aborted) {
        isStopped = true;
        await options.onSave?.(await snapshot());
        break;
      }
      const { ids, targets } = drawWindows(tokens, windows, data.fold(step));
      const batch = fullBatch(ids, targets, batchSize, seqLen);
      const rate = cosineRate(step, steps, warmup, learningRate);
      const noise = data.fold(step, "noise");
      const { loss, gradientNorm, isApplied } = await stepper.step([{ batch, noise }], rate);
      if (!isApplied || !Number.isFinite(loss)) {
        const what = Number.isFinite(loss) ? "norm of the gradient" : "loss";
        throw new StateError(
          `pretrain: the ${what} at step ${step + 1} is ${Number.isFinite(loss) ? gradientNorm : loss} — lower the learning rate (${learningRate}).`,
        );
      }
      options.onStep?.({
        step: step + 1,
        steps,
        loss,
        learningRate: rate,
        gradientNorm,
        tokens: (step + 1) * batchSize * seqLen,
      });
      const { evalEvery = 0, saveEvery = 0 } = options;
      if (evalEvery > 0 && (step + 1) % evalEvery === 0 && step + 1 < steps) {
        const nll = await meanNll((batch) => stepper.evaluate(batch), heldOut, batchSize, seqLen);
        options.onEval?.(step + 1, nll);
      }
      if (saveEvery > 0 && (step + 1) % saveEvery === 0) {
        await options.onSave?.(await snapshot());
      }
    }
    const heldOutNll = await meanNll(
      (batch) => stepper.evaluate(batch),
      heldOut,
      batchSize,
      seqLen,
    );
    options.onEval?.(stepper.stepCount, heldOutNll);
    return { params: await stepper.params(), heldOutNll, isStopped };
  } finally {
    await stepper.release();
  }
}

function fullBatch(
  ids: Int32Array<ArrayBuffer>,
  targets: Int32Array<ArrayBuffer>,
  batchSize: number,
  seqLen: number,
): Batch {
  const rows = batchSize * seqLen;
  return {
    ids: new Tensor("int32", [batchSize, seqLen], ids),
    targets: new Tensor("int32", [rows], targets),
    weights: new Tensor("float32", [rows], new Float32Array(rows).fill(1)),
  };
}

function checkHeldOut({ length }: Int32Array): void {
  if (length >= 2) return;
  throw new OptionError(
    `pretrain: the held-out text has ${length} tokens — it needs 2 or more, as the first is not predicted.`,
  );
}

/**
 * Mean -log p over a text cut into windows; the last, partial one carries weight where it has text.
 * @throws OptionError when the text has fewer than two tokens.
 */
export async function meanNll(
  evaluate: (batch: Batch) => Promise<EvalResult>,
  tokens: Int32Array,
  batchSize: number,
  seqLen: number,
): Promise<number> {
  checkHeldOut(tokens);
  let loss = 0;
  let weight = 0;
  const stride = batchSize * seqLen;
  for (let start = 0; start + 1 < tokens.length; start += stride) {
    const ids = new Int32Array(stride);
    const targets = new Int32Array(stride);
    const weights = new Float32Array(stride);
    for (let i = 0; i < stride && start + i + 1 < tokens.length; i++) {
      ids[i] = tokens[start + i]!;
      targets[i] = tokens[start + i + 1]!;
      weights[i] = 1;
    }
    const batch: Batch = {
      ids: new Tensor("int32", [batchSize, seqLen], ids),
      targets: new Tensor("int32", [stride], targets),
      weights: new Tensor("float32", [stride], weights),
    };
    const result = await evaluate(batch);
    loss += result.loss;
    weight += result.weight;
  }
  return loss / weight;
}
