/**
 * IPO: DPO with a squared loss on the margin, which does not grow without end on certain preferences.
 *
 * Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences",
 * AISTATS 2024, arXiv:2310.12036, eq. 17.
 *
 *   h = log π(y_w|x)/π_ref(y_w|x) / |y_w| - log π(y_l|x)/π_ref(y_l|x) / |y_l|
 *   L = (h - 1 / (2 τ))²
 *
 *   τ → beta, |y| → tokens of the answer
 *
 * Differs from the paper's text as TRL does, after its authors: log-ratios are means over the answer's
 * tokens, so that the target margin does not depend on lengths.
 */
import { div, maximum, square, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { inspectPairs, logRatios, referencedTensors } from "./dpo.ts";
import {
  checkIn,
  type PreferenceObjective,
  pairResult,
  preferenceRate,
  reward,
} from "./preference.ts";
import { halves } from "./sequences.ts";

export interface IpoOptions {
  /** τ: the target margin is 1 / (2 τ); above 0, default 0.1. */
  readonly beta?: number;
}

/**
 * The loss of pairs from their mean log-ratios.
 * @param chosen (R,) @param rejected (R,)
 * @returns (R,)
 */
export function ipoLoss(chosen: Value, rejected: Value, { beta = 0.1 }: IpoOptions = {}): Value {
  return square(sub(sub(chosen, rejected), 1 / (2 * beta)));
}

/**
 * @throws OptionError for settings outside their range.
 */
export function ipo(options: IpoOptions = {}): PreferenceObjective {
  const { beta = 0.1 } = options;
  checkIn("ipo: beta", beta, 0, 100, true);
  return {
    name: "ipo",
    learningRate: preferenceRate,
    batch: referencedTensors,
    loss: (scene, batch) => {
      const { ratios } = logRatios(scene, batch);
      const [chosen, rejected] = halves(div(ratios, maximum(batch["counts"]!, 1)));
      return pairResult(
        {
          losses: ipoLoss(chosen, rejected, options),
          chosen: reward(chosen, beta),
          rejected: reward(rejected, beta),
        },
        batch["weights"]!,
      );
    },
    inspect: inspectPairs,
  };
}
