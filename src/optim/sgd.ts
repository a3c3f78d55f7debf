/**
 * Stochastic gradient descent with momentum.
 *
 * Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013
 * (Nesterov's form); arithmetic and state as torch.optim.SGD.
 *
 *   g ← g + λ θ
 *   b ← μ b + (1 − τ) g            momentum_buffer; b = g at the first step
 *   θ ← θ − η b, with Nesterov's form θ − η (g + μ b)
 *
 *   μ → momentum, τ → dampening, λ → weightDecay, η → learning rate
 */
import { OptionError } from "../errors.ts";
import { add, mul, sub } from "../ir/elementwise.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, fromZero, withDefaults } from "./options.ts";

export interface SgdOptions {
  /** μ: share of the last step's direction that is kept, from 0; default 0. */
  readonly momentum?: number;
  /** τ: share of a gradient that does not enter the direction, after the first step; default 0. */
  readonly dampening?: number;
  /** Look ahead by one more share of the direction; default false. */
  readonly nesterov?: boolean;
  /** λ: added to the gradient times the parameter; default 0. */
  readonly weightDecay?: number;
}

export const sgdDefaults: Required<SgdOptions> = {
  momentum: 0,
  dampening: 0,
  nesterov: false,
  weightDecay: 0,
};

/** @throws OptionError for a negative number, or Nesterov's form without momentum or with dampening. */
export function sgd(options: SgdOptions = {}): Optimizer {
  const { momentum, dampening, nesterov, weightDecay } = withDefaults("sgd", sgdDefaults, options);
  check("sgd", fromZero, { momentum, weightDecay });
  if (!Number.isFinite(dampening)) {
    throw new OptionError(`sgd: dampening must be a number, got ${dampening}.`);
  }
  if (nesterov && (momentum === 0 || dampening !== 0)) {
    throw new OptionError(
      `sgd: nesterov needs momentum above 0 and no dampening, got momentum ${momentum} and dampening ${dampening}.`,
    );
  }
  return {
    name: "sgd",
    elementwise: true,
    slots: (shape): Record<string, typeof shape> =>
      momentum === 0 ? {} : { momentum_buffer: shape },
    scalars: (step, learningRate) => ({
      learningRate,
      ...(momentum !== 0 && { enters: step === 1 ? 1 : 1 - dampening }),
    }),
    update: (param, gradient, { momentum_buffer }, { learningRate, enters }) => {
      const g = weightDecay === 0 ? gradient : add(gradient, mul(param, weightDecay));
      if (!momentum_buffer) return { param: sub(param, mul(g, learningRate!)), slots: {} };
      const buffer = add(mul(momentum_buffer, momentum), mul(g, enters!));
      const direction = nesterov ? add(g, mul(buffer, momentum)) : buffer;
      return {
        param: sub(param, mul(direction, learningRate!)),
        slots: { momentum_buffer: buffer },
      };
    },
  };
}
