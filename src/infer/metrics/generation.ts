/** Answers that a model wrote, beside the expected ones. */
import { OptionError } from "../../errors.ts";
import { Rng } from "../../tensor/rng.ts";
import { exactMatch, tokenF1 } from "./answers.ts";
import type { BootstrapOptions } from "./bootstrap.ts";
import { estimateMean, type Measurement } from "./likelihood.ts";
import { rouge } from "./rouge.ts";

export interface GenerationReport {
  readonly answers: number;
  /** Letter for letter, white space at the ends aside. */
  readonly exactMatch: Measurement;
  /** After SQuAD's normalization. */
  readonly normalizedMatch: Measurement;
  /** SQuAD's, of words. */
  readonly f1: Measurement;
  readonly rouge1: Measurement;
  readonly rouge2: Measurement;
  readonly rougeL: Measurement;
  readonly rougeLsum: Measurement;
}

export interface GenerationReportOptions extends BootstrapOptions {
  /** Of the resampling; default 0. */
  readonly seed?: number;
}

/**
 * Means over answers; of ROUGE the F1.
 * @throws OptionError when there are no answers.
 */
export function generationReport(
  pairs: readonly { readonly answer: string; readonly expected: string }[],
  options: GenerationReportOptions = {},
): GenerationReport {
  if (pairs.length === 0) throw new OptionError("generation: there are no answers.");
  const rng = new Rng(options.seed ?? 0);
  const rouges = pairs.map(({ answer, expected }) => rouge(answer, expected));
  // The same draws for every measure, so that their intervals can be held beside each other.
  const mean = (values: readonly number[]): Measurement =>
    estimateMean(values, rng.fold("answers"), options);
  return {
    answers: pairs.length,
    exactMatch: mean(pairs.map(({ answer, expected }) => +(answer.trim() === expected.trim()))),
    normalizedMatch: mean(pairs.map(({ answer, expected }) => exactMatch(answer, expected))),
    f1: mean(pairs.map(({ answer, expected }) => tokenF1(answer, expected))),
    rouge1: mean(rouges.map(({ rouge1 }) => rouge1.f1)),
    rouge2: mean(rouges.map(({ rouge2 }) => rouge2.f1)),
    rougeL: mean(rouges.map(({ rougeL }) => rougeL.f1)),
    rougeLsum: mean(rouges.map(({ rougeLsum }) => rougeLsum.f1)),
  };
}
