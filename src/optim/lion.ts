/**
 * Lion: every element moves by the learning rate, in the direction of a sign.
 *
 * Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv:2302.06675,
 * Algorithm 2.
 *
 *   c ← β₁ m + (1 − β₁) g
 *   θ ← θ − η (sgn(c) + λ θ)
 *   m ← β₂ m + (1 − β₂) g          exp_avg, as in the authors' release
 *
 * The paper takes a learning rate 3 to 10 times smaller than AdamW's, and λ as much larger.
 */
import { add, mul, sign, sub } from "../ir/elementwise.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, fromZero, share, withDefaults } from "./options.ts";

export interface LionOptions {
  /** β₁: weight of the running mean in the direction, in [0, 1); default 0.9. */
  readonly beta1?: number;
  /** β₂: decay of the running mean, in [0, 1); default 0.99. */
  readonly beta2?: number;
  /** λ: share of the learning rate by which weights shrink; default 0. */
  readonly weightDecay?: number;
}

export const lionDefaults: Required<LionOptions> = { beta1: 0.9, beta2: 0.99, weightDecay: 0 };

/** @throws OptionError for a decay outside [0, 1), or a negative number. */
export function lion(options: LionOptions = {}): Optimizer {
  const { beta1, beta2, weightDecay } = withDefaults("lion", lionDefaults, options);
  check("lion", share, { beta1, beta2 });
  check("lion", fromZero, { weightDecay });
  return {
    name: "lion",
    elementwise: true,
    slots: (shape) => ({ exp_avg: shape }),
    scalars: (_, learningRate) => ({ learningRate }),
    update: (param, gradient, { exp_avg }, { learningRate }) => {
      const toward = sign(add(mul(exp_avg!, beta1), mul(gradient, 1 - beta1)));
      const change = weightDecay === 0 ? toward : add(toward, mul(param, weightDecay));
      return {
        param: sub(param, mul(change, learningRate!)),
        slots: { exp_avg: add(mul(exp_avg!, beta2), mul(gradient, 1 - beta2)) },
      };
    },
  };
}
