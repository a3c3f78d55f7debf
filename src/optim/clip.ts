/** Bounds on gradients: over all parameters by the updater, or per parameter as part of an optimiser. */
import { OptionError } from "../errors.ts";
import { add, clamp, div, minimum, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { norm } from "../ir/reduce.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, positive } from "./options.ts";

/** Keeps the quotient finite where a norm is zero; torch.nn.utils.clip_grad_norm_ takes the same. */
export const clipMargin = 1e-6;

/**
 * Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013: what all
 * gradients are multiplied with so that their common norm is at most `limit`.
 */
export function clipFactor(gradientNorm: number, limit: number): number {
  return Math.min(1, limit / (gradientNorm + clipMargin));
}

/** Every element brought into [-limit, limit]. */
export function clipByValue(gradient: Value, limit: number): Value {
  return clamp(gradient, -limit, limit);
}

/** The gradient scaled down to the norm `limit`, if it is longer. */
export function clipByNorm(gradient: Value, limit: number): Value {
  const factor = minimum(div(gradient.graph.lift(limit), add(norm(gradient), clipMargin)), 1);
  return mul(gradient, factor);
}

export interface ClipOptions {
  /** Largest absolute value of an element. */
  readonly value?: number;
  /** Largest norm of a parameter's gradient. */
  readonly norm?: number;
}

/**
 * The optimiser after a bound on each parameter's own gradient: by value, or by norm.
 * @throws OptionError unless exactly one bound above 0 is given.
 */
export function withClip(optimizer: Optimizer, options: ClipOptions): Optimizer {
  const bounds = Object.entries(options).filter(([, limit]) => limit !== undefined);
  if (bounds.length !== 1) {
    throw new OptionError(`withClip: needs value or norm, got ${bounds.length} of them.`);
  }
  check("withClip", positive, Object.fromEntries(bounds));
  const { value, norm: limit } = options;
  const clip = (gradient: Value): Value =>
    value === undefined ? clipByNorm(gradient, limit!) : clipByValue(gradient, value);
  return {
    name: optimizer.name,
    elementwise: optimizer.elementwise && value !== undefined,
    slots: (shape) => optimizer.slots(shape),
    refusal: (shape) => optimizer.refusal?.(shape),
    scalars: (step, learningRate) => optimizer.scalars(step, learningRate),
    update: (param, gradient, slots, scalars) =>
      optimizer.update(param, clip(gradient), slots, scalars),
  };
}
