/** Perplexity, bits per byte, token accuracy and calibration, from scores of tokens. */
import type { Example } from "../../data/example.ts";
import type { Tokenizer } from "../../data/tokenizer.ts";
import { OptionError } from "../../errors.ts";
import { Rng } from "../../tensor/rng.ts";
import type { TokenScores } from "../score.ts";
import { type BootstrapOptions, bootstrapRatio, type Interval } from "./bootstrap.ts";
import { expectedCalibrationError, type ReliabilityBin, reliability } from "./calibration.ts";

/** A number and the interval that resampled examples give it. */
export interface Measurement {
  readonly value: number;
  readonly interval: Interval;
}

export interface Calibration {
  /** With bins of equal width. */
  readonly expectedError: number;
  /** With bins of equal mass. */
  readonly expectedErrorOfMass: number;
  /** Mean Σ_k (p_k - y_k)², in [0, 2]. */
  readonly brier: number;
  /** By steps of equal width. */
  readonly table: readonly ReliabilityBin[];
}

export interface LikelihoodReport {
  readonly examples: number;
  /** Tokens that carry loss. */
  readonly tokens: number;
  /** Mean -log p of them, in nats. */
  readonly loss: Measurement;
  /** exp(loss) */
  readonly perplexity: Measurement;
  /** Share of tokens that are the likeliest in their place. */
  readonly tokenAccuracy: Measurement;
  /**
   * Σ -log₂ p over the tokens that spell text, by the bytes of UTF-8 that they spell. Comparable between
   * tokenizers. Special tokens, as that for the end, spell nothing and are left out.
   */
  readonly bitsPerByte: Measurement | undefined;
  /** Of the likeliest token in each place. */
  readonly calibration: Calibration;
}

export interface LikelihoodOptions extends BootstrapOptions {
  /** Of the resampling; default 0. */
  readonly seed?: number;
  /** Of the reliability table; default 10. */
  readonly bins?: number;
}

function transformed(estimate: Measurement, f: (x: number) => number): Measurement {
  const { low, high } = estimate.interval;
  return { value: f(estimate.value), interval: { low: f(low), high: f(high) } };
}

const sumOf = (values: ArrayLike<number>): number => {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += values[i]!;
  return total;
};

/** Σ numerators / Σ denominators with its interval. */
export function estimateRatio(
  numerators: ArrayLike<number>,
  denominators: ArrayLike<number>,
  rng: Rng,
  options: BootstrapOptions = {},
): Measurement {
  return {
    value: sumOf(numerators) / sumOf(denominators),
    interval: bootstrapRatio(numerators, denominators, rng, options),
  };
}

/** The mean of one number an example, with its interval. */
export function estimateMean(
  values: ArrayLike<number>,
  rng: Rng,
  options: BootstrapOptions = {},
): Measurement {
  return estimateRatio(values, new Float64Array(values.length).fill(1), rng, options);
}

const encoder = new TextEncoder();

/** Nats and bytes of UTF-8 of the scored tokens that spell text. */
function spelled(
  { ids }: Example,
  { positions, logprobs }: TokenScores,
  tokenizer: Pick<Tokenizer, "decode">,
  isSilent: (id: number) => boolean,
): { readonly nats: number; readonly bytes: number } {
  const sizeUpTo = (end: number): number =>
    encoder.encode(tokenizer.decode(ids.subarray(0, end), { skipSpecial: true })).length;
  let [nats, bytes] = [0, 0];
  for (let i = 0; i < positions.length; ) {
    let j = i;
    while (j < positions.length && positions[j]! - positions[i]! === j - i) j++;
    // What is before is decoded too: some tokenizers lose the space at a text's start.
    bytes += sizeUpTo(positions[j - 1]! + 1) - sizeUpTo(positions[i]!);
    for (; i < j; i++) if (!isSilent(ids[positions[i]!]!)) nats -= logprobs[i]!;
  }
  return { nats, bytes };
}

/**
 * All measures of likelihood over scored examples.
 * @throws OptionError when no token carries loss, or a setting is outside its range.
 */
export function likelihoodReport(
  examples: readonly Example[],
  scores: readonly TokenScores[],
  tokenizer: Pick<Tokenizer, "decode">,
  options: LikelihoodOptions = {},
): LikelihoodReport {
  const rng = new Rng(options.seed ?? 0).fold("bootstrap");
  const counts = scores.map(({ positions }) => positions.length);
  const tokens = sumOf(counts);
  if (tokens === 0) throw new OptionError("likelihood: no token carries loss.");
  const nats = scores.map(({ logprobs }) => -sumOf(logprobs));
  const loss = estimateRatio(nats, counts, rng.fold("loss"), options);
  const hits = scores.map(({ isTop }) => sumOf(isTop));
  const silent = new Map<number, boolean>();
  const isSilent = (id: number): boolean => {
    const known = silent.get(id) ?? tokenizer.decode([id], { skipSpecial: true }) === "";
    silent.set(id, known);
    return known;
  };
  const spells = scores.map((score, i) => spelled(examples[i]!, score, tokenizer, isSilent));
  const bytes = spells.map((one) => one.bytes);
  const perByte =
    sumOf(bytes) > 0
      ? estimateRatio(
          spells.map((one) => one.nats / Math.LN2),
          bytes,
          rng.fold("bits"),
          options,
        )
      : undefined;
  return {
    examples: examples.length,
    tokens,
    loss,
    perplexity: transformed(loss, Math.exp),
    tokenAccuracy: estimateRatio(hits, counts, rng.fold("accuracy"), options),
    bitsPerByte: perByte,
    calibration: tokenCalibration(scores, options.bins ?? 10),
  };
}

function tokenCalibration(scores: readonly TokenScores[], bins: number): Calibration {
  const total = sumOf(scores.map(({ positions }) => positions.length));
  const confidences = new Float64Array(total);
  const correct = new Uint8Array(total);
  let brier = 0;
  let at = 0;
  for (const { topProbabilities, isTop, squares, logprobs } of scores) {
    confidences.set(topProbabilities, at);
    correct.set(isTop, at);
    at += isTop.length;
    // Σ_k (p_k - y_k)² = Σ p² - 2 p_y + 1
    for (let i = 0; i < isTop.length; i++) brier += squares[i]! - 2 * Math.exp(logprobs[i]!) + 1;
  }
  return { ...calibrationOf({ confidences, correct }, bins), brier: brier / total };
}

/** Both errors and the table; Brier's score needs more than the predictions. */
export function calibrationOf(
  predictions: { readonly confidences: ArrayLike<number>; readonly correct: ArrayLike<number> },
  bins: number,
): Omit<Calibration, "brier"> {
  const table = reliability(predictions, "width", bins);
  const ofMass = reliability(predictions, "mass", bins);
  return {
    expectedError: expectedCalibrationError(table),
    expectedErrorOfMass: expectedCalibrationError(ofMass),
    table,
  };
}
