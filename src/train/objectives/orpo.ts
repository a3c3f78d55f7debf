/**
 * ORPO: supervised fine-tuning on the chosen answer and a penalty on the odds of the rejected one. No
 * reference model.
 *
 * Hong, Lee & Thorne, "ORPO: Monolithic Preference Optimization without Reference Model", EMNLP 2024,
 * arXiv:2403.07691.
 *
 *   log p(y|x) = 1/|y| Σ_t log π(y_t | x, y_<t)                          (eq. 3)
 *   odds(y|x)  = p(y|x) / (1 - p(y|x))                                   (eq. 4)
 *   L          = -log p(y_w|x) - λ log σ(log odds(y_w|x)/odds(y_l|x))    (eq. 6, 7)
 *
 *   λ → beta
 *
 * The first term is the mean over all tokens of the batch's chosen answers. Differs from TRL, which counts
 * the prompt's tokens in it too.
 */
import {
  add,
  exp,
  less,
  log,
  minimum,
  mul,
  neg,
  square,
  sub,
  where,
} from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import {
  checkIn,
  chosenNll,
  type PreferenceObjective,
  pairResult,
  preferenceRate,
  reward,
} from "./preference.ts";
import {
  halves,
  meanLogProbs,
  negLogSigmoid,
  preferenceTensors,
  sequenceLogProbs,
} from "./sequences.ts";

export interface OrpoOptions {
  /** λ, the weight of the odds ratio, from 0; default 0.1. */
  readonly beta?: number;
}

/** -x below which 1 - e^x is taken by its series: float32 has nothing left of 1 - e^x there. */
const near = 1e-3;

/** log(1 - e^x) for x < 0; near 0 by 1 - e^x = -x (1 + x/2 + x²/6 + …). */
export function log1mExp(x: Value): Value {
  // Neither branch may see what makes it infinite: its gradient would be NaN, even where not taken.
  const isNear = less(-near, x);
  const far = minimum(x, -near);
  const close = minimum(where(isNear, x, -near), -1e-30);
  const series = add(add(1, mul(close, 0.5)), mul(square(close), 1 / 6));
  return where(isNear, add(log(neg(close)), log(series)), log(sub(1, exp(far))));
}

/**
 * -λ log σ(log odds ratio) of pairs, from mean log-probabilities.
 * @param chosen (R,), below 0 @param rejected (R,), below 0
 * @returns (R,)
 */
export function orpoLoss(chosen: Value, rejected: Value, { beta = 0.1 }: OrpoOptions = {}): Value {
  const odds = sub(sub(chosen, rejected), sub(log1mExp(chosen), log1mExp(rejected)));
  return mul(negLogSigmoid(odds), beta);
}

/**
 * @throws OptionError for settings outside their range.
 */
export function orpo(options: OrpoOptions = {}): PreferenceObjective {
  const { beta = 0.1 } = options;
  checkIn("orpo: beta", beta, 0, 100);
  return {
    name: "orpo",
    learningRate: preferenceRate,
    batch: preferenceTensors,
    loss: ({ model, context }, batch) => {
      const sums = sequenceLogProbs(model, context, batch);
      const [chosen, rejected] = halves(meanLogProbs(sums, batch));
      return pairResult(
        {
          losses: add(orpoLoss(chosen, rejected, options), chosenNll(sums, batch)),
          chosen: reward(chosen, beta),
          rejected: reward(rejected, beta),
        },
        batch["weights"]!,
      );
    },
  };
}
