/**
 * KTO: answers judged one by one as good or bad, weighed as people weigh gains and losses.
 *
 * Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization", ICML 2024,
 * arXiv:2402.01306.
 *
 *   r(x, y) = log π(y|x) - log π_ref(y|x)
 *   z       = max(0, mean of r(x_i, y_{i-1}) over the batch)        KL estimate from mismatched pairs (§4)
 *   L       = λ_D (1 - σ(β (r - z)))    for good answers
 *             λ_U (1 - σ(β (z - r)))    for bad ones                (eq. 8)
 *
 *   λ_D → desirableWeight, λ_U → undesirableWeight
 *
 * As TRL, the answer of the example before (the last one's for the first) stands in for a mismatched one,
 * and no gradient goes through z; a batch of one example has z = 0. Where good and bad answers are not as
 * many, the paper advises weights with λ_D · good : λ_U · bad between 1 : 1 and 4 : 3.
 */
import type { Example } from "../../data/example.ts";
import {
  cast,
  div,
  greater,
  maximum,
  mul,
  sigmoid,
  stopGradient,
  sub,
  where,
} from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { BatchShape } from "../batches.ts";
import type { Batch, Objective } from "../objective.ts";
import { logRatios } from "./dpo.ts";
import { checkIn, preferenceRate } from "./preference.ts";
import { halves, perItem, rowWeights, sequenceTensors } from "./sequences.ts";

export interface KtoOptions {
  /** How strongly the model is held to the reference, above 0; default 0.1. */
  readonly beta?: number;
  /** λ_D, weight of good answers; default 1. */
  readonly desirableWeight?: number;
  /** λ_U, weight of bad ones; default 1. */
  readonly undesirableWeight?: number;
}

/**
 * The loss of judged answers.
 * @param ratios log π - log π_ref, (R,) @param isGood bool (R,)
 * @param z the KL estimate, a scalar
 * @returns (R,)
 */
export function ktoLoss(
  ratios: Value,
  isGood: Value,
  z: Value,
  { beta = 0.1, desirableWeight = 1, undesirableWeight = 1 }: KtoOptions = {},
): Value {
  const gain = mul(sub(1, sigmoid(mul(sub(ratios, z), beta))), desirableWeight);
  const harm = mul(sub(1, sigmoid(mul(sub(z, ratios), beta))), undesirableWeight);
  return where(isGood, gain, harm);
}

/** A prompt and the answer to another one, cut to `most` tokens. */
export function mismatched(asked: Example, answered: Example, most: number): Example {
  const before = Math.max(1, asked.mask.indexOf(1));
  const start = Math.max(1, answered.mask.indexOf(1));
  const size = Math.min(before + answered.ids.length - start, most);
  const ids = new Int32Array(size);
  const mask = new Uint8Array(size);
  ids.set(asked.ids.subarray(0, Math.min(before, size)));
  if (size > before) {
    ids.set(answered.ids.subarray(start, start + size - before), before);
    mask.set(answered.mask.subarray(start, start + size - before), before);
  }
  return { ids, mask };
}

/** Judged answers in the first `shape.rows` sequences, mismatched ones in as many after them. */
function judgedTensors(examples: readonly Example[], shape: BatchShape): Batch {
  const places: (Example | undefined)[] = new Array(2 * shape.rows).fill(undefined);
  const count = examples.length;
  examples.forEach((example, i) => {
    places[i] = example;
    const other = examples[(i + count - 1) % count]!;
    places[shape.rows + i] = mismatched(example, other, (shape.maxLength ?? 2 ** 30) + 1);
  });
  return {
    ...sequenceTensors(places, 2 * shape.rows, shape),
    good: perItem(shape.rows, (i) => (examples[i]?.isGood ? 1 : 0)),
    mismatches: rowWeights(count > 1 ? count : 0, shape.rows),
    weights: rowWeights(count, shape.rows),
  };
}

/** The KL estimate of a batch from log-ratios of mismatched answers (R,): a scalar without gradient. */
export function klEstimate(ratios: Value, weights: Value): Value {
  const mean = div(sum(mul(ratios, weights)), maximum(sum(weights), 1));
  return stopGradient(maximum(mean, 0));
}

/**
 * Examples are answers with `isGood`.
 * @throws OptionError for settings outside their range.
 */
export function kto(options: KtoOptions = {}): Objective<LanguageModel, Example> {
  const { beta = 0.1, desirableWeight = 1, undesirableWeight = 1 } = options;
  checkIn("kto: beta", beta, 0, 100, true);
  checkIn("kto: desirableWeight", desirableWeight, 0, 1e4);
  checkIn("kto: undesirableWeight", undesirableWeight, 0, 1e4);
  return {
    name: "kto",
    learningRate: preferenceRate,
    batch: judgedTensors,
    loss: (scene, batch) => {
      const [ratios, others] = halves(logRatios(scene, batch).ratios);
      const z = klEstimate(others, batch["mismatches"]!);
      const good = greater(batch["good"]!, 0.5);
      const weights = batch["weights"]!;
      const total = (values: Value): Value => sum(mul(values, weights));
      const rewards = mul(ratios, beta);
      const sign = sub(mul(batch["good"]!, 2), 1);
      return {
        sum: total(ktoLoss(ratios, good, z, options)),
        metrics: {
          // A good answer should gain over z, a bad one lose.
          correct: total(cast(greater(mul(sub(ratios, z), sign), 0), ratios.dtype)),
          goodReward: total(mul(rewards, batch["good"]!)),
          badReward: total(mul(rewards, sub(1, batch["good"]!))),
          kl: mul(z, sum(weights)),
        },
      };
    },
  };
}
