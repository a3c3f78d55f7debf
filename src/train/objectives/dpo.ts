/**
 * DPO: a preference as a classification, with the model's own log-probabilities as the reward.
 *
 * Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
 * NeurIPS 2023, arXiv:2305.18290.
 *
 *   r(x, y) = β (log π(y|x) - log π_ref(y|x))                  implicit reward (eq. 5, without Z)
 *   L       = -log σ(r(x, y_w) - r(x, y_l))                    (eq. 7)
 *   L_ε     = -(1 - ε) log σ(Δ) - ε log σ(-Δ)                  labels wrong with probability ε (cDPO)
 *   L_rob   = (-(1 - ε) log σ(Δ) + ε log σ(-Δ)) / (1 - 2ε)     unbiased for such labels (arXiv:2403.00409)
 *   L_hinge = max(0, 1 - Δ)                                    SLiC's loss on the same margin
 *
 *   π → the model, π_ref → the model as it was; y_w, y_l → chosen, rejected; Δ → difference of rewards
 *
 * The reference is run in the same step (adapters: the base without them), or read from the examples where
 * `precomputeReference` wrote it. Cost: four answers forward, two backward; two forward with
 * recorded ones, about a sixth less time.
 */
import type { Preference } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";
import { add, mul, neg, relu, stopGradient, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { ValueRecord } from "../../nn/module.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { BatchShape } from "../batches.ts";
import type { Batch, Scene } from "../objective.ts";
import {
  checkIn,
  type PreferenceObjective,
  pairResult,
  preferenceRate,
  reward,
  withSft,
} from "./preference.ts";
import { halves, negLogSigmoid, preferenceTensors, sequenceLogProbs } from "./sequences.ts";

export interface DpoOptions {
  /** How strongly the model is held to the reference, above 0; default 0.1. */
  readonly beta?: number;
  /** "sigmoid" (default), "robust" (needs labelSmoothing) or "hinge". */
  readonly loss?: "sigmoid" | "robust" | "hinge";
  /** Share of labels taken to be wrong, in [0, 0.5); default 0. Not of "hinge". */
  readonly labelSmoothing?: number;
  /** Adds so many times the chosen answers' cross-entropy per token; default 0. */
  readonly sftWeight?: number;
}

/** A preference with log π_ref of its answers. */
export interface ReferencedPreference extends Preference {
  readonly reference?: { readonly chosen: number; readonly rejected: number };
}

/**
 * The loss of pairs from their log-ratios log π - log π_ref.
 * @param chosen (R,) @param rejected (R,)
 * @returns (R,)
 */
export function dpoLoss(chosen: Value, rejected: Value, options: DpoOptions = {}): Value {
  const { beta = 0.1, loss = "sigmoid", labelSmoothing = 0 } = options;
  const delta = mul(sub(chosen, rejected), beta);
  if (loss === "hinge") return relu(sub(1, delta));
  const right = mul(negLogSigmoid(delta), 1 - labelSmoothing);
  if (labelSmoothing === 0) return right;
  const wrong = mul(negLogSigmoid(neg(delta)), labelSmoothing);
  if (loss === "sigmoid") return add(right, wrong);
  return mul(sub(right, wrong), 1 / (1 - 2 * labelSmoothing));
}

/** Both answers of each pair, and what is recorded of the reference. */
export function referencedTensors(
  examples: readonly ReferencedPreference[],
  shape: BatchShape,
): Batch {
  const batch = preferenceTensors(examples, shape);
  if (!examples.some(({ reference }) => reference)) return batch;
  const reference = new Float32Array(2 * shape.rows);
  examples.forEach((example, i) => {
    if (!example.reference) {
      throw new OptionError(
        "dpo: some pairs of a batch have recorded log-probabilities, some none.",
      );
    }
    reference[i] = example.reference.chosen;
    reference[shape.rows + i] = example.reference.rejected;
  });
  return { ...batch, reference: new Tensor("float32", [2 * shape.rows], reference) };
}

/** log π and log π - log π_ref of all answers, (2R,) each. */
export function logRatios(
  { model, context, reference }: Scene<LanguageModel>,
  batch: ValueRecord,
): { sums: Value; ratios: Value } {
  const sums = sequenceLogProbs(model, context, batch);
  const before = batch["reference"] ?? stopGradient(sequenceLogProbs(model, reference(), batch));
  return { sums, ratios: sub(sums, before) };
}

/** log π of both answers with the model as it is: what `precomputeReference` records. */
export function inspectPairs(
  { model, context }: Scene<LanguageModel>,
  batch: ValueRecord,
): { chosen: Value; rejected: Value } {
  const [chosen, rejected] = halves(sequenceLogProbs(model, context, batch));
  return { chosen, rejected };
}

/**
 * @throws OptionError for settings outside their range.
 */
export function dpo(options: DpoOptions = {}): PreferenceObjective {
  const { beta = 0.1, loss = "sigmoid", labelSmoothing = 0, sftWeight = 0 } = options;
  checkIn("dpo: beta", beta, 0, 100, true);
  checkIn("dpo: labelSmoothing", labelSmoothing, 0, 0.4999);
  checkIn("dpo: sftWeight", sftWeight, 0, 100);
  if (loss === "hinge" && labelSmoothing > 0) {
    throw new OptionError('dpo: loss "hinge" has no labelSmoothing — leave it out.');
  }
  return {
    name: "dpo",
    learningRate: preferenceRate,
    batch: referencedTensors,
    loss: (scene, batch) => {
      const { sums, ratios } = logRatios(scene, batch);
      const [chosen, rejected] = halves(ratios);
      return pairResult(
        {
          losses: withSft(dpoLoss(chosen, rejected, options), sums, batch, sftWeight),
          chosen: reward(chosen, beta),
          rejected: reward(rejected, beta),
        },
        batch["weights"]!,
      );
    },
    inspect: inspectPairs,
  };
}
