/**
 * PPO: a clipped policy gradient with a learnt baseline, token by token.
 *
 * Schulman et al., "Proximal Policy Optimization Algorithms", 2017, arXiv:1707.06347, eq. 7 and 9;
 * Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016,
 * arXiv:1506.02438, eq. 16; for language models Ouyang et al. 2022, arXiv:2203.02155.
 *
 *   r_t  = -κ (log π_old(y_t) - log π_ref(y_t)) + [t last] R
 *   δ_t  = r_t + γ V_{t+1} - V_t,   A_t = Σ_l (γ λ)^l δ_{t+l},   G_t = A_t + V_t
 *   ρ_t  = π(y_t) / π_old(y_t)
 *   L_π  = -min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t)
 *   L_V  = ½ max((V - G)², (clip(V, V_old ± ε_V) - G)²)
 *   L    = mean over tokens of L_π + c_V L_V
 *
 *   κ → klWeight, γ → gamma, λ → lambda, ε → clip, ε_V → valueClip, c_V → valueWeight
 *
 * V_t is a linear function of the hidden state that predicts token t: TRL's `v_head.summary`. It is trained
 * with the policy and is no part of what is saved. Advantages are whitened over the batch.
 */

import { add, clamp, exp, maximum, mul, neg, square, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { reshape } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import { sum } from "../../ir/reduce.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { ValueRecord } from "../../nn/module.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Objective, Scene } from "../objective.ts";
import { checkIn } from "./preference.ts";
import { type Rollout, referenceOf, rolloutTensors, tokenMetric } from "./rollout.ts";
import { perItem, tokenLogProbs } from "./sequences.ts";

export interface PpoOptions {
  /** Size of the model's hidden states. */
  readonly dModel: number;
  /** ε, in (0, 1); default 0.2. */
  readonly clip?: number;
  /** ε_V, above 0; default 0.2. */
  readonly valueClip?: number;
  /** c_V, from 0; default 0.1. */
  readonly valueWeight?: number;
  /** Of sampling: divides logits, above 0; default 1. */
  readonly temperature?: number;
}

export interface GaeOptions {
  /** Discount, in [0, 1]; default 1. */
  readonly gamma?: number;
  /** In [0, 1]: 0 trusts the values, 1 the rewards; default 0.95. */
  readonly lambda?: number;
}

/**
 * Advantages, whitened over all tokens, and what the values should have been.
 * @param rewards of each answer, a token @param values of each answer, a token
 */
export function gae(
  rewards: readonly Float32Array[],
  values: readonly Float32Array[],
  { gamma = 1, lambda = 0.95 }: GaeOptions = {},
): { readonly advantages: Float32Array[]; readonly returns: Float32Array[] } {
  const raw = rewards.map((own, i) => {
    const expected = values[i]!;
    const advantages = new Float64Array(own.length);
    let later = 0;
    for (let t = own.length - 1; t >= 0; t--) {
      const delta = own[t]! + gamma * (expected[t + 1] ?? 0) - expected[t]!;
      later = delta + gamma * lambda * later;
      advantages[t] = later;
    }
    return advantages;
  });
  const all = raw.flatMap((own) => [...own]);
  const mean = all.reduce((a, b) => a + b, 0) / Math.max(1, all.length);
  const variance = all.reduce((a, b) => a + (b - mean) ** 2, 0) / Math.max(1, all.length - 1);
  const scale = 1 / Math.sqrt(variance + 1e-8);
  return {
    advantages: raw.map((own) => Float32Array.from(own, (x) => (x - mean) * scale)),
    returns: raw.map((own, i) => Float32Array.from(own, (x, t) => x + values[i]![t]!)),
  };
}

/**
 * Rewards of an answer's tokens: the penalty for leaving the reference, and the score at the last one.
 * @param klWeight κ, from 0
 */
export function tokenRewards(
  score: number,
  old: Float32Array,
  reference: Float32Array,
  klWeight: number,
): Float32Array<ArrayBuffer> {
  const rewards = Float32Array.from(old, (own, t) => -klWeight * (own - reference[t]!));
  if (rewards.length > 0) rewards[rewards.length - 1]! += score;
  return rewards;
}

/**
 * Losses of tokens, (N,) each.
 * @param own log π(y_t) @param predicted V_t
 */
export function ppoLosses(
  own: Value,
  predicted: Value,
  { old, advantages, values, returns }: Record<"old" | "advantages" | "values" | "returns", Value>,
  { clip = 0.2, valueClip = 0.2 }: Pick<PpoOptions, "clip" | "valueClip"> = {},
): { policy: Value; value: Value } {
  const ratio = exp(sub(own, old));
  const policy = maximum(
    mul(neg(advantages), ratio),
    mul(neg(advantages), clamp(ratio, 1 - clip, 1 + clip)),
  );
  const near = add(values, clamp(sub(predicted, values), -valueClip, valueClip));
  const value = maximum(square(sub(predicted, returns)), square(sub(near, returns)));
  return { policy, value: mul(value, 0.5) };
}

const headWeight = "v_head.summary.weight";
const headBias = "v_head.summary.bias";

/** log π(y_t) and V_t of every token, (N,) each. */
function policyAndValues(
  { model, context, values }: Scene<LanguageModel>,
  batch: ValueRecord,
  temperature: number,
): { own: Value; predicted: Value } {
  const own = tokenLogProbs(model, context, batch, temperature);
  const { hidden } = model.forward(context, batch["ids"]!);
  const states = gather(hidden, batch["rows"]!);
  const heights = reshape(dot(states, values[headWeight]!, { transB: true }), [-1]);
  return { own, predicted: mul(add(heights, values[headBias]!), batch["items"]!) };
}

/**
 * @throws OptionError for settings outside their range.
 */
export function ppo(options: PpoOptions): Objective<LanguageModel, Rollout> {
  const { dModel, clip = 0.2, valueClip = 0.2, valueWeight = 0.1, temperature = 1 } = options;
  checkIn("ppo: clip", clip, 0, 1, true);
  checkIn("ppo: valueClip", valueClip, 0, 1e6, true);
  checkIn("ppo: valueWeight", valueWeight, 0, 100);
  checkIn("ppo: temperature", temperature, 0, 100, true);
  return {
    name: "ppo",
    learningRate: { adapter: 1e-4, full: 5e-6 },
    init: (rng) => ({
      [headWeight]: new Tensor(
        "float32",
        [1, dModel],
        rng.fold("value").normals(dModel, 1 / Math.sqrt(dModel + 1)),
      ),
      [headBias]: new Tensor("float32", [1], new Float32Array(1)),
    }),
    batch: (rollouts: readonly Rollout[], shape) => {
      const tensors = rolloutTensors(rollouts, shape);
      const { items } = tensors as Required<typeof tensors>;
      return { ...tensors, weights: perItem(items.size, (i) => items.data[i] as number) };
    },
    loss: (scene, batch) => {
      const { own, predicted } = policyAndValues(scene, batch, temperature);
      const weights = batch["weights"]!;
      const parts = ppoLosses(own, predicted, batch as never, options);
      return {
        sum: sum(mul(add(parts.policy, mul(parts.value, valueWeight)), weights)),
        metrics: {
          policyLoss: tokenMetric(parts.policy, batch),
          valueLoss: tokenMetric(parts.value, batch),
        },
      };
    },
    inspect: (scene, batch) => {
      const { own, predicted } = policyAndValues(scene, batch, temperature);
      const reference = referenceOf(scene, batch, temperature);
      return { old: own, values: predicted, reference };
    },
  };
}
