/** What the objectives over pairs of answers have in common: batches, metrics, the share of plain SFT. */
import type { Preference } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";
import {
  add,
  cast,
  div,
  greater,
  maximum,
  mul,
  neg,
  stopGradient,
  sub,
} from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { ValueRecord } from "../../nn/module.ts";
import type { Objective, ObjectiveResult } from "../objective.ts";
import { halves } from "./sequences.ts";

export type PreferenceObjective = Objective<LanguageModel, Preference>;

/** The rates of objectives that start from a model which answers already: far below SFT's. */
export const preferenceRate: { readonly adapter: number; readonly full: number } = {
  adapter: 1e-4,
  full: 5e-6,
};

/** What a pair costs, and the rewards that judging reports. */
export interface PairLoss {
  /** (R,) */
  readonly losses: Value;
  /** Implicit rewards of the answers, (R,) each. */
  readonly chosen: Value;
  readonly rejected: Value;
}

/**
 * Sums over the pairs of a batch: `correct` counts those whose chosen answer has the higher reward.
 * @param weights (R,)
 */
export function pairResult(
  { losses, chosen, rejected }: PairLoss,
  weights: Value,
): ObjectiveResult {
  const total = (values: Value): Value => sum(mul(values, weights));
  const won = cast(greater(chosen, rejected), losses.dtype);
  return {
    sum: total(losses),
    metrics: {
      correct: total(won),
      margin: total(sub(chosen, rejected)),
      chosenReward: total(chosen),
      rejectedReward: total(rejected),
    },
  };
}

/**
 * Cross-entropy of the chosen answers, the mean over their tokens in the batch: one number.
 * @param sums log p of all answers, (2R,)
 */
export function chosenNll(sums: Value, { counts }: ValueRecord): Value {
  const [chosen] = halves(sums);
  const [tokens] = halves(counts!);
  return neg(div(sum(chosen), maximum(sum(tokens), 1)));
}

/** Adds `weight` times the chosen answers' cross-entropy to every pair. */
export function withSft(losses: Value, sums: Value, batch: ValueRecord, weight: number): Value {
  return weight === 0 ? losses : add(losses, mul(chosenNll(sums, batch), weight));
}

/** A reward for judging: no gradient goes through it. */
export function reward(values: Value, scale: number): Value {
  return stopGradient(mul(values, scale));
}

/** @throws OptionError naming the option when the value is not in the interval. */
export function checkIn(
  name: string,
  value: number,
  low: number,
  high: number,
  open = false,
): void {
  if ((open ? value > low : value >= low) && value <= high) return;
  throw new OptionError(`${name} must be in ${open ? "(" : "["}${low}, ${high}], got ${value}.`);
}
