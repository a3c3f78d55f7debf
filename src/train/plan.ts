/**
 * Settings for a fine-tuning from what is known of model, data, device and deadline. Every choice has
 * its reason beside it; they are rules of thumb, and `finetune --compare` is the judge.
 */
import { OptionError } from "../errors.ts";

/** What a plan is made from. */
export interface PlanFacts {
  readonly parameters: number;
  readonly maxPositions: number;
  /** Tokens of each training example. */
  readonly lengths: ArrayLike<number>;
  /** Tokens that carry loss, over all training examples. */
  readonly lossTokens: number;
}

/** Settings by the names of the command line's options, and why. */
export interface Choice {
  readonly option: string;
  /** `undefined`: the option is left out. */
  readonly value: number | string | true | undefined;
  readonly reason: string;
}

/** Share of the examples that may be cut. */
const cutShare = 0.005;

function quantile(sorted: ArrayLike<number>, share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))]!;
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

/** A rate for adapters that falls with the size of the model, as larger ones take smaller steps. */
function adapterRate(parameters: number): number {
  if (parameters < 2e7) return 2e-3;
  if (parameters < 2e8) return 1e-3;
  if (parameters < 1e9) return 5e-4;
  return 2e-4;
}

/**
 * Choices that depend on model and data; memory and time come after a rehearsal: see `fitDeadline`.
 * @throws OptionError when there are no examples.
 */
export function planSettings(facts: PlanFacts): Choice[] {
  const { parameters, maxPositions, lossTokens } = facts;
  const lengths = Int32Array.from(facts.lengths).sort();
  const count = lengths.length;
  if (count === 0) throw new OptionError("plan: there are no examples.");
  const tokens = lengths.reduce((a, b) => a + b, 0);
  const median = quantile(lengths, 0.5);
  const long = quantile(lengths, 1 - cutShare);
  const maxLength = Math.min(maxPositions, Math.max(16, roundUp(long - 1, 16)));
  const cut = lengths.filter((length) => length > maxLength + 1).length / count;
  const isFull = parameters < 2e7 && lossTokens > parameters;
  const rank = lossTokens < 5e4 ? 8 : lossTokens < 1e6 ? 16 : 32;
  const batchSize = count < 64 ? 4 : count < 400 ? 8 : 16;
  // Buckets of near lengths leave little padding, so packing pays only where batches are few.
  const packs = median * 4 <= maxLength && count / batchSize < 64;
  const epochs = count < 200 ? 10 : count < 2000 ? 5 : 3;
  return [
    isFull
      ? {
          option: "full",
          value: true,
          reason: `${lossTokens} tokens with loss are more than the ${parameters} parameters: enough to move them all`,
        }
      : {
          option: "adapter",
          value: "lora",
          reason:
            lossTokens <= parameters
              ? `${lossTokens} tokens with loss are fewer than the ${parameters} parameters: an adapter forgets less`
              : `all ${parameters} parameters would take more memory and time`,
        },
    {
      option: "rank",
      value: isFull ? undefined : rank,
      reason: isFull
        ? "no adapter"
        : `for ${lossTokens} tokens with loss: 8 below 50 thousand, 16 below a million, else 32`,
    },
    {
      option: "learning-rate",
      value: isFull ? 3e-4 : adapterRate(parameters),
      reason: `usual for ${isFull ? "all parameters" : "adapters"} of models this size; --find-learning-rate looks closer`,
    },
    {
      option: "max-length",
      value: maxLength,
      reason: `examples have ${lengths[0]} to ${lengths.at(-1)} tokens, half of them at most ${median}; ${percent(cut)} are cut`,
    },
    {
      option: "packing",
      value: packs ? true : undefined,
      reason: packs
        ? `most examples fill less than a quarter of a row of ${maxLength}`
        : "examples of near lengths go together, so little is padding",
    },
    {
      option: "batch-size",
      value: batchSize,
      reason: `${count} examples make ${Math.ceil(count / batchSize)} steps an epoch`,
    },
    {
      option: "epochs",
      value: epochs,
      reason: `${tokens} tokens; smaller sets are read more often, and held-out examples say when it is enough`,
    },
  ];
}

/** How many steps fit into a deadline, and what else follows from them. */
export function fitDeadline(
  steps: number,
  secondsPerStep: number,
  batchSize: number,
  count: number,
  deadlineSeconds: number | undefined,
): Choice[] {
  // A tenth is for loading, and for judging before and after.
  const most = deadlineSeconds === undefined ? Infinity : (0.9 * deadlineSeconds) / secondsPerStep;
  if (most < 1) {
    throw new OptionError(
      `plan: a step takes ${secondsPerStep.toFixed(1)} s, so not one fits into ${deadlineSeconds} s — allow more time, or take a smaller model or batch.`,
    );
  }
  const fitting = Math.min(steps, Math.floor(most));
  const epochs = (fitting * batchSize) / count;
  const every = Math.max(1, Math.round(fitting / 10));
  return [
    {
      option: "steps",
      value: fitting,
      reason:
        fitting < steps
          ? `what fits into the deadline: ${epochs.toFixed(2)} epochs instead of ${((steps * batchSize) / count).toFixed(2)}`
          : `${epochs.toFixed(2)} epochs, about ${Math.ceil(fitting * secondsPerStep)} s`,
    },
    { option: "eval-every", value: every, reason: "ten looks at held-out examples on the way" },
    {
      option: "early-stopping",
      value: epochs > 3 ? 3 : undefined,
      reason:
        epochs > 3
          ? "so many epochs may learn the examples by heart: end when it is no better three times"
          : "few epochs seldom go too far",
    },
  ];
}
