/**
 * Adam and AdamW: the mean of gradients over the root of the mean of their squares.
 *
 * Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv:1412.6980;
 * Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv:1711.05101.
 *
 *   m ← β₁ m + (1 − β₁) g          exp_avg
 *   v ← β₂ v + (1 − β₂) g²         exp_avg_sq
 *   θ ← (1 − η λ) θ − η m̂ / (√v̂ + ε)     m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
 *
 * Adam adds λ θ to g instead of shrinking θ. As torch.optim.AdamW and torch.optim.Adam.
 */
import { add, div, mul, sqrt, square, sub } from "../ir/elementwise.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, fromZero, share, withDefaults } from "./options.ts";

export interface AdamWOptions {
  /** Decay of the running mean of gradients, in [0, 1); default 0.9. */
  readonly beta1?: number;
  /** Decay of the running mean of squares, in [0, 1); default 0.999. */
  readonly beta2?: number;
  /** Added to the root of the squares; default 1e-8. */
  readonly epsilon?: number;
  /** λ: share of the learning rate by which weights shrink; default 0.01, for `adam` 0. */
  readonly weightDecay?: number;
}

export const adamWDefaults: Required<AdamWOptions> = {
  beta1: 0.9,
  beta2: 0.999,
  epsilon: 1e-8,
  weightDecay: 0.01,
};

export const adamDefaults: Required<AdamWOptions> = { ...adamWDefaults, weightDecay: 0 };

/** @throws OptionError for a decay outside [0, 1), or a negative number. */
export function adamW(options: AdamWOptions = {}): Optimizer {
  return make("adamw", withDefaults("adamw", adamWDefaults, options), true);
}

/**
 * Adam, whose weight decay, if any, is added to the gradient.
 * @throws OptionError for a decay outside [0, 1), or a negative number.
 */
export function adam(options: AdamWOptions = {}): Optimizer {
  return make("adam", withDefaults("adam", adamDefaults, options), false);
}

function make(name: string, options: Required<AdamWOptions>, isDecoupled: boolean): Optimizer {
  const { beta1, beta2, epsilon, weightDecay } = options;
  check(name, share, { beta1, beta2 });
  check(name, fromZero, { epsilon, weightDecay });
  return {
    name,
    elementwise: true,
    slots: (shape) => ({ exp_avg: shape, exp_avg_sq: shape }),
    scalars: (step, learningRate) => ({
      shrink: isDecoupled ? 1 - learningRate * weightDecay : 1,
      stepSize: learningRate / (1 - beta1 ** step),
      rootCorrection: 1 / Math.sqrt(1 - beta2 ** step),
    }),
    update: (param, gradient, { exp_avg, exp_avg_sq }, { shrink, stepSize, rootCorrection }) => {
      const g =
        isDecoupled || weightDecay === 0 ? gradient : add(gradient, mul(param, weightDecay));
      const mean = add(mul(exp_avg!, beta1), mul(g, 1 - beta1));
      const squares = add(mul(exp_avg_sq!, beta2), mul(square(g), 1 - beta2));
      const size = add(mul(sqrt(squares), rootCorrection!), epsilon);
      return {
        param: sub(mul(param, shrink!), div(mul(mean, stepSize!), size)),
        slots: { exp_avg: mean, exp_avg_sq: squares },
      };
    },
  };
}
