/**
 * SimPO: the mean log-probability of an answer as its reward, and a margin that the chosen one must win by.
 * No reference model.
 *
 * Meng, Xia & Chen, "SimPO: Simple Preference Optimization with a Reference-Free Reward", NeurIPS 2024,
 * arXiv:2405.14734.
 *
 *   r(x, y) = β/|y| log π(y|x)                          (eq. 4)
 *   L       = -log σ(r(x, y_w) - r(x, y_l) - γ)         (eq. 6)
 *
 *   β → beta, γ → gamma
 *
 * With `sftWeight` it is CPO-SimPO: so many times the chosen answers' cross-entropy per token is added.
 */
import { add, mul, neg, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import {
  checkIn,
  type PreferenceObjective,
  pairResult,
  preferenceRate,
  reward,
  withSft,
} from "./preference.ts";
import {
  halves,
  meanLogProbs,
  negLogSigmoid,
  preferenceTensors,
  sequenceLogProbs,
} from "./sequences.ts";

export interface SimpoOptions {
  /** Scale of the reward, above 0; default 2, the paper's. (TRL's CPO trainer has 0.1.) */
  readonly beta?: number;
  /** The margin, from 0; default 1, half of beta as the paper advises. (TRL has 0.5.) */
  readonly gamma?: number;
  /** Share of labels taken to be wrong, in [0, 0.5); default 0. */
  readonly labelSmoothing?: number;
  /** Weight of the chosen answers' cross-entropy; default 0. */
  readonly sftWeight?: number;
}

/**
 * The loss of pairs from mean log-probabilities.
 * @param chosen (R,) @param rejected (R,)
 * @returns (R,)
 */
export function simpoLoss(chosen: Value, rejected: Value, options: SimpoOptions = {}): Value {
  const { beta = 2, gamma = 1, labelSmoothing = 0 } = options;
  const margin = sub(mul(sub(chosen, rejected), beta), gamma);
  const right = mul(negLogSigmoid(margin), 1 - labelSmoothing);
  if (labelSmoothing === 0) return right;
  return add(right, mul(negLogSigmoid(neg(margin)), labelSmoothing));
}

/**
 * @throws OptionError for settings outside their range.
 */
export function simpo(options: SimpoOptions = {}): PreferenceObjective {
  const { beta = 2, gamma = 1, labelSmoothing = 0, sftWeight = 0 } = options;
  checkIn("simpo: beta", beta, 0, 100, true);
  checkIn("simpo: gamma", gamma, 0, 100);
  checkIn("simpo: labelSmoothing", labelSmoothing, 0, 0.4999);
  checkIn("simpo: sftWeight", sftWeight, 0, 100);
  return {
    name: "simpo",
    learningRate: preferenceRate,
    batch: preferenceTensors,
    loss: ({ model, context }, batch) => {
      const sums = sequenceLogProbs(model, context, batch);
      const [chosen, rejected] = halves(meanLogProbs(sums, batch));
      return pairResult(
        {
          losses: withSft(simpoLoss(chosen, rejected, options), sums, batch, sftWeight),
          chosen: reward(chosen, beta),
          rejected: reward(rejected, beta),
        },
        batch["weights"]!,
      );
    },
  };
}
