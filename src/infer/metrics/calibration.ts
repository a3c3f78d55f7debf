/** Calibration: does what is predicted with probability p come true in a share p of the cases? */
import { OptionError } from "../../errors.ts";

/** Predictions: how sure each was, and whether it was right. */
export interface Predictions {
  /** Probability of the predicted class, in [0, 1]. */
  readonly confidences: ArrayLike<number>;
  /** 1 where the prediction is right, else 0. */
  readonly correct: ArrayLike<number>;
}

/** A row of the reliability table. */
export interface ReliabilityBin {
  /** Confidences in it lie in (low, high], the first from 0 on; of equal mass: their least and most. */
  readonly low: number;
  readonly high: number;
  readonly count: number;
  /** Mean confidence; 0 in an empty bin. */
  readonly confidence: number;
  /** Share of right predictions; 0 in an empty bin. */
  readonly accuracy: number;
}

/** How predictions are put into bins: by equal steps of confidence, or as many into each. */
export type Binning = "width" | "mass";

/**
 * The reliability table (DeGroot & Fienberg 1983; Guo et al. 2017, arXiv:1706.04599, §2).
 * @param count bins, 1 to 1000; default 10
 * @throws OptionError when lengths differ, a confidence is no probability, or there are no bins.
 */
export function reliability(
  { confidences, correct }: Predictions,
  binning: Binning = "width",
  count = 10,
): ReliabilityBin[] {
  if (!(Number.isInteger(count) && count >= 1 && count <= 1000)) {
    throw new OptionError(`calibration: bins must be a whole number from 1 to 1000, got ${count}.`);
  }
  const size = confidences.length;
  if (correct.length !== size) {
    throw new OptionError(`calibration: ${size} confidences, but ${correct.length} outcomes.`);
  }
  for (let i = 0; i < size; i++) {
    // Sums in float32 may end a little above 1.
    if (confidences[i]! >= 0 && confidences[i]! <= 1 + 1e-5) continue;
    throw new OptionError(`calibration: confidence ${i} is ${confidences[i]}, not in [0, 1].`);
  }
  const order = Array.from({ length: size }, (_, i) => i);
  if (binning === "mass") order.sort((a, b) => confidences[a]! - confidences[b]! || a - b);
  const binOf = (i: number, place: number): number =>
    binning === "mass"
      ? Math.floor((place * count) / size)
      : Math.min(count - 1, Math.max(0, Math.ceil(confidences[i]! * count) - 1));
  const bins = Array.from({ length: count }, () => [] as number[]);
  order.forEach((i, place) => {
    bins[binOf(i, place)]!.push(i);
  });
  return bins.map((members, bin) => {
    const mean = (of: ArrayLike<number>): number =>
      members.reduce((sum, i) => sum + of[i]!, 0) / Math.max(1, members.length);
    const edge = (at: number): number => (members.length > 0 ? confidences[members.at(at)!]! : 0);
    const isWidth = binning === "width";
    return {
      low: isWidth ? bin / count : edge(0),
      high: isWidth ? (bin + 1) / count : edge(-1),
      count: members.length,
      confidence: mean(confidences),
      accuracy: mean(correct),
    };
  });
}

/**
 * Expected calibration error: Σ |B| / n · |accuracy(B) - confidence(B)| over bins. With bins of equal
 * width as Naeini et al. 2015 and Guo et al. 2017, eq. 3; with bins of equal mass as Nguyen & O'Connor
 * 2015 (arXiv:1508.05154, §4.2). NaN without predictions.
 */
export function expectedCalibrationError(bins: readonly ReliabilityBin[]): number {
  const total = bins.reduce((sum, { count }) => sum + count, 0);
  return bins.reduce(
    (sum, { count, accuracy, confidence }) =>
      sum + (count / total) * Math.abs(accuracy - confidence),
    0,
  );
}

/** The largest |accuracy - confidence| of a bin that is not empty (Guo et al. 2017, eq. 5). */
export function maximumCalibrationError(bins: readonly ReliabilityBin[]): number {
  return bins.reduce(
    (most, { count, accuracy, confidence }) =>
      count > 0 ? Math.max(most, Math.abs(accuracy - confidence)) : most,
    0,
  );
}

/**
 * Brier's score of one prediction over classes, Σ_k (p_k - y_k)², in [0, 2]; lower is better.
 * Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 1950.
 */
export function brierScore(probabilities: ArrayLike<number>, answer: number): number {
  let sum = 0;
  for (let k = 0; k < probabilities.length; k++) {
    sum += (probabilities[k]! - (k === answer ? 1 : 0)) ** 2;
  }
  return sum;
}
