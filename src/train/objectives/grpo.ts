/**
 * GRPO: policy gradient whose baseline is the mean reward of several answers to one prompt.
 *
 * Shao et al., "DeepSeekMath", 2024, arXiv:2402.03300, eq. 3 and 4; Liu et al., "Understanding R1-Zero-Like
 * Training" (Dr. GRPO), 2025, arXiv:2503.20783; Yu et al., "DAPO", 2025, arXiv:2503.14476; Zheng et al.,
 * "Group Sequence Policy Optimization", 2025, arXiv:2507.18071.
 *
 *   A_i   = (r_i - mean(r)) / (std(r) + 1e-4)                       over the answers to one prompt
 *   ρ_t   = π(y_t) / π_old(y_t)
 *   L_t   = -min(ρ_t A, clip(ρ_t, 1 - ε_low, 1 + ε_high) A) + β k3(π, π_ref)
 *   k3    = π_ref/π - log π_ref/π - 1
 *
 *   normalize  "token"     Σ L_t / all tokens                       DAPO, TRL's default
 *              "sequence"  mean over answers of their mean          the paper
 *              "length"    Σ L_t / (answers · maxLength)            Dr. GRPO
 *   ratio      "sequence"  ρ = the answer's geometric mean of ρ_t   GSPO
 *
 * Standard deviations are unbiased, as TRL's.
 */
import { OptionError } from "../../errors.ts";
import {
  add,
  cast,
  clamp,
  div,
  exp,
  maximum,
  minimum,
  mul,
  neg,
  notEqual,
  stopGradient,
  sub,
} from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { ValueRecord } from "../../nn/module.ts";
import type { Objective } from "../objective.ts";
import { checkIn } from "./preference.ts";
import {
  inspectRollouts,
  klTokens,
  type Rollout,
  referenceOf,
  rolloutTensors,
  tokenMetric,
} from "./rollout.ts";
import { perItem, rowWeights, sumBySequence, tokenLogProbs } from "./sequences.ts";

export type { Rollout } from "./rollout.ts";

export interface GrpoOptions {
  /** Weight of the KL term, from 0; default 0 (TRL's; the paper has 0.04). */
  readonly beta?: number;
  /** ε_low, in (0, 1); default 0.2. */
  readonly clipLow?: number;
  /** ε_high, above 0; default clipLow (DAPO: 0.28). */
  readonly clipHigh?: number;
  /** What the sum over tokens is divided by; default "token". */
  readonly normalize?: "token" | "sequence" | "length";
  /** Longest answer in tokens, for "length". */
  readonly maxLength?: number;
  /** Importance ratios of tokens (default) or of whole answers. */
  readonly ratio?: "token" | "sequence";
  /** Of sampling: divides logits, above 0; default 1. */
  readonly temperature?: number;
}

/** How rewards become advantages. */
export type AdvantageScale = "group" | "batch" | "none";

/**
 * Advantages of answers, group by group.
 * @param rewards of all answers, those to one prompt together
 * @param groupSize answers a prompt, from 2
 * @param scale divide by the deviation of the group (default), of the batch, or not (Dr. GRPO)
 * @throws OptionError when the groups do not come out even.
 */
export function groupAdvantages(
  rewards: ArrayLike<number>,
  groupSize: number,
  scale: AdvantageScale = "group",
): Float32Array<ArrayBuffer> {
  if (!Number.isInteger(groupSize) || groupSize < 2 || rewards.length % groupSize !== 0) {
    throw new OptionError(
      `grpo: ${rewards.length} rewards make no groups of ${groupSize} — a group has two or more answers.`,
    );
  }
  const advantages = new Float32Array(rewards.length);
  const all = deviation(rewards, 0, rewards.length);
  for (let start = 0; start < rewards.length; start += groupSize) {
    const own = deviation(rewards, start, groupSize);
    const size = scale === "none" ? 1 : (scale === "group" ? own.deviation : all.deviation) + 1e-4;
    for (let i = start; i < start + groupSize; i++) advantages[i] = (rewards[i]! - own.mean) / size;
  }
  return advantages;
}

function deviation(
  values: ArrayLike<number>,
  start: number,
  count: number,
): { mean: number; deviation: number } {
  let [total, squares] = [0, 0];
  for (let i = start; i < start + count; i++) total += values[i]!;
  const mean = total / count;
  for (let i = start; i < start + count; i++) squares += (values[i]! - mean) ** 2;
  return { mean, deviation: Math.sqrt(squares / Math.max(1, count - 1)) };
}

/** Log-ratios of tokens (N,), or for each token that of its whole answer. */
function logRatios(own: Value, old: Value, batch: ValueRecord, ratio: "token" | "sequence"): Value {
  const tokens = mul(sub(own, old), batch["items"]!);
  if (ratio === "token") return tokens;
  const means = div(sumBySequence(tokens, batch), maximum(batch["counts"]!, 1));
  return gather(means, batch["owners"]!);
}

/**
 * @throws OptionError for settings outside their range.
 */
export function grpo(options: GrpoOptions = {}): Objective<LanguageModel, Rollout> {
  const {
    beta = 0,
    clipLow = 0.2,
    normalize = "token",
    ratio = "token",
    temperature = 1,
  } = options;
  const { clipHigh = clipLow, maxLength = Number.NaN } = options;
  checkIn("grpo: beta", beta, 0, 100);
  checkIn("grpo: clipLow", clipLow, 0, 1, true);
  checkIn("grpo: clipHigh", clipHigh, 0, 100, true);
  checkIn("grpo: temperature", temperature, 0, 100, true);
  if (normalize === "length" && !(maxLength >= 1)) {
    throw new OptionError(
      'grpo: normalize "length" needs maxLength, the longest answer in tokens.',
    );
  }
  return {
    name: "grpo",
    learningRate: { adapter: 1e-4, full: 5e-6 },
    batch: (rollouts: readonly Rollout[], shape) => {
      const tensors = rolloutTensors(rollouts, shape);
      const { items, owners, counts } = tensors as Required<typeof tensors>;
      const scale = (i: number): number => {
        if (normalize === "token") return 1;
        if (normalize === "length") return 1 / maxLength;
        return 1 / Math.max(1, counts.data[owners.data[i] as number] as number);
      };
      return {
        ...tensors,
        scale: perItem(items.size, (i) => (items.data[i] as number) * scale(i)),
        weights:
          normalize === "token"
            ? perItem(items.size, (i) => items.data[i] as number)
            : rowWeights(rollouts.length, shape.rows),
      };
    },
    loss: (scene, batch) => {
      const own = tokenLogProbs(scene.model, scene.context, batch, temperature);
      const old = batch["old"] ?? stopGradient(own);
      const moved = exp(logRatios(own, old, batch, ratio));
      const kept = clamp(moved, 1 - clipLow, 1 + clipHigh);
      const { advantages, scale } = batch as Record<"advantages" | "scale", Value>;
      const gains = minimum(mul(moved, advantages), mul(kept, advantages));
      const clipped = cast(notEqual(mul(kept, advantages), mul(moved, advantages)), own.dtype);
      const metrics = { clipped: tokenMetric(clipped, batch) };
      if (beta === 0) return { sum: sum(mul(neg(gains), scale)), metrics };
      const kl = klTokens(own, referenceOf(scene, batch, temperature));
      return {
        sum: sum(mul(add(neg(gains), mul(kl, beta)), scale)),
        metrics: { ...metrics, kl: tokenMetric(kl, batch) },
      };
    },
    inspect: (scene, batch) =>
      inspectRollouts(scene, batch, { temperature, withReference: beta > 0 }),
  };
}
