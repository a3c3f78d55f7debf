/**
 * How a new model's answers stand to those of the model that it replaces.
 *
 * Echterhoff et al., "MUSCLE", Findings of EMNLP 2024, arXiv:2407.09435, section 3; negative flips after Yan et
 * al., "Positive-Congruent Training", CVPR 2021, arXiv:2011.09161. Of items (x, y), M1 the old and M2 the new
 * model:
 *
 *   NFR = mean[M1(x) = y ∧ M2(x) ≠ y]      PFR = mean[M1(x) ≠ y ∧ M2(x) = y]
 *   NFR_mc = mean[M2(x) ≠ y ∧ M1(x) ≠ M2(x)]                  new mistakes, and mistakes that are others
 *   D(x) = S(M2(x), y) - S(M1(x), y)       PFR = mean[D > 0], NFR = mean[D < 0]   of texts by similarity S
 *   m_g = mean of D where D > 0            m_r = mean of |D| where D < 0
 */
import { OptionError } from "../../errors.ts";
import { Rng } from "../../tensor/rng.ts";
import type { BootstrapOptions } from "./bootstrap.ts";
import { estimateMean, type Measurement } from "./likelihood.ts";

export interface CompatibilityOptions extends BootstrapOptions {
  /** Of the resampling; default 0. */
  readonly seed?: number;
}

export interface CompatibilityReport {
  readonly items: number;
  /** Means of being right, or of the similarity. */
  readonly old: Measurement;
  readonly new: Measurement;
  /** Share of items that became wrong, or worse. */
  readonly negativeFlips: Measurement;
  /** Share of items that became right, or better. */
  readonly positiveFlips: Measurement;
}

export interface ChoiceCompatibility extends CompatibilityReport {
  /** Share of items that are wrong in another way than before, those that were right included. */
  readonly inconsistentMistakes: Measurement;
}

export interface TextCompatibility extends CompatibilityReport {
  /** Mean gain where there is one, and mean loss where there is one; 0 without any. */
  readonly gain: number;
  readonly regression: number;
}

function check(items: number, ...others: readonly number[]): void {
  if (items === 0) throw new OptionError("compatibility: there are no items.");
  if (others.every((count) => count === items)) return;
  throw new OptionError(
    `compatibility: old and new answers and what is right must be as many, got ${[items, ...others].join(", ")}.`,
  );
}

/**
 * Of answers that are right or wrong.
 * @param old what the old model chose of each item @param next what the new one chose
 * @param right what is right
 * @throws OptionError when there is none, or not as many of each.
 */
export function choiceCompatibility(
  old: readonly (string | number)[],
  next: readonly (string | number)[],
  right: readonly (string | number)[],
  options: CompatibilityOptions = {},
): ChoiceCompatibility {
  check(right.length, old.length, next.length);
  const mean = meanOf(options);
  const of = (holds: (i: number) => boolean): Measurement => mean(right.map((_, i) => +holds(i)));
  const wasRight = (i: number): boolean => old[i] === right[i];
  const isRight = (i: number): boolean => next[i] === right[i];
  return {
    items: right.length,
    old: of(wasRight),
    new: of(isRight),
    negativeFlips: of((i) => wasRight(i) && !isRight(i)),
    positiveFlips: of((i) => !wasRight(i) && isRight(i)),
    inconsistentMistakes: of((i) => !isRight(i) && old[i] !== next[i]),
  };
}

/**
 * Of texts, by their similarity to what is right.
 * @param similarity of an answer and the right one; more is better
 * @throws OptionError when there is none, or not as many of each.
 */
export function textCompatibility(
  old: readonly string[],
  next: readonly string[],
  right: readonly string[],
  similarity: (answer: string, expected: string) => number,
  options: CompatibilityOptions = {},
): TextCompatibility {
  check(right.length, old.length, next.length);
  const mean = meanOf(options);
  const before = right.map((expected, i) => similarity(old[i]!, expected));
  const after = right.map((expected, i) => similarity(next[i]!, expected));
  const changes = after.map((value, i) => value - before[i]!);
  const average = (values: readonly number[]): number =>
    values.length === 0 ? 0 : values.reduce((a, b) => a + b, 0) / values.length;
  return {
    items: right.length,
    old: mean(before),
    new: mean(after),
    negativeFlips: mean(changes.map((change) => +(change < 0))),
    positiveFlips: mean(changes.map((change) => +(change > 0))),
    gain: average(changes.filter((change) => change > 0)),
    regression: average(changes.filter((change) => change < 0).map((change) => -change)),
  };
}

/** The same draws for every measure, so that their intervals can be held beside each other. */
function meanOf(options: CompatibilityOptions): (values: readonly number[]) => Measurement {
  const rng = new Rng(options.seed ?? 0).fold("compatibility");
  return (values) => estimateMean(values, rng.fold("items"), options);
}
