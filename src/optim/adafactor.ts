/**
 * Adafactor: the second moment of a matrix is kept as means of its rows and columns.
 *
 * Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", ICML 2018,
 * arXiv:1804.04235, Algorithms 4 and 5; arithmetic and state as torch.optim.Adafactor.
 *
 *   1 − β̂₂ₜ = t^decay                                              §7.2
 *   R ← β̂₂ R + (1 − β̂₂) mean over columns of G²                    row_var (…, n, 1)
 *   C ← β̂₂ C + (1 − β̂₂) mean over rows of G²                       col_var (…, 1, m)
 *   V̂ = R C / max(mean(R), ε₁)                                     §3; V itself below two dimensions
 *   U = G / √max(V̂, ε₁²)
 *   Û = U / max(1, RMS(U) / d)                                     update clipping, §6
 *   α = max(ε₂, RMS(θ)) ρ,  ρ = min(η, 1/√t)                       relative steps, §8
 *   θ ← (1 − η λ) θ − α Û
 *
 *   decay → beta2Decay, d → clipThreshold, ε₁, ε₂ → epsilon1, epsilon2, λ → weightDecay
 *
 * Differs from the paper as torch does: ε₁ bounds the mean and the quotient from below instead of
 * being added to G², and ρ is bounded by the learning rate η. With `relativeStep` false ρ = η, with
 * `scaleParameter` false α = ρ: the setting in which T5 is often fine-tuned.
 */
import {
  add,
  div,
  maximum,
  minimum,
  mul,
  reciprocal,
  rsqrt,
  sqrt,
  square,
  sub,
} from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { mean } from "../ir/reduce.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, fromZero, negative, positive, withDefaults } from "./options.ts";

export interface AdafactorOptions {
  /** Exponent of the step in 1 − β̂₂, below 0; default -0.8. */
  readonly beta2Decay?: number;
  /** ε₁: least root of the second moment; default float32's machine epsilon, 2^-23. */
  readonly epsilon1?: number;
  /** ε₂: least root mean square that a parameter counts with; default 1e-3. */
  readonly epsilon2?: number;
  /** d: largest root mean square of an update; default 1. */
  readonly clipThreshold?: number;
  /** λ: share of the learning rate by which weights shrink; default 0. */
  readonly weightDecay?: number;
  /** Bound the learning rate by 1/√step; default true. */
  readonly relativeStep?: boolean;
  /** Multiply the step by the parameter's root mean square; default true. */
  readonly scaleParameter?: boolean;
}

export const adafactorDefaults: Required<AdafactorOptions> = {
  beta2Decay: -0.8,
  epsilon1: 2 ** -23,
  epsilon2: 1e-3,
  clipThreshold: 1,
  weightDecay: 0,
  relativeStep: true,
  scaleParameter: true,
};

const keep = { keepDims: true } as const;
const rootMeanSquare = (x: Value): Value => sqrt(mean(square(x)));

/** @throws OptionError for a decay from 0, or another number below 0. */
export function adafactor(options: AdafactorOptions = {}): Optimizer {
  const settled = withDefaults("adafactor", adafactorDefaults, options);
  const { beta2Decay, epsilon1, epsilon2, clipThreshold, weightDecay } = settled;
  const { relativeStep, scaleParameter } = settled;
  check("adafactor", negative, { beta2Decay });
  check("adafactor", positive, { epsilon1, clipThreshold });
  check("adafactor", fromZero, { epsilon2, weightDecay });
  // ε₁² of 1e-60 would be zero in float32, and the root of zero divide by it.
  const leastSquare = Math.max(epsilon1 ** 2, 2 ** -126);
  const leastMean = Math.max(epsilon1, 2 ** -126);
  return {
    name: "adafactor",
    elementwise: false,
    slots: (shape): Record<string, typeof shape> =>
      shape.length < 2
        ? { variance: shape }
        : {
            row_var: [...shape.slice(0, -1), 1],
            col_var: [...shape.slice(0, -2), 1, shape.at(-1)!],
          },
    scalars: (step, learningRate) => ({
      fresh: step ** beta2Decay,
      stale: 1 - step ** beta2Decay,
      rate: relativeStep ? Math.min(learningRate, 1 / Math.sqrt(step)) : learningRate,
      shrink: 1 - learningRate * weightDecay,
    }),
    update: (param, gradient, { row_var, col_var, variance }, scalars) => {
      const { fresh, stale, rate, shrink } = scalars;
      const squares = square(gradient);
      const moved = (from: Value, to: Value): Value => add(mul(from, stale!), mul(to, fresh!));
      let second: Value;
      let slots: Record<string, Value>;
      if (row_var && col_var) {
        const row = moved(row_var, mean(squares, -1, keep));
        const column = moved(col_var, mean(squares, -2, keep));
        // The division comes first: products of two small means would be zero in float32.
        second = mul(div(row, maximum(mean(row, -2, keep), leastMean)), column);
        slots = { row_var: row, col_var: column };
      } else {
        second = moved(variance!, squares);
        slots = { variance: second };
      }
      const update = mul(gradient, rsqrt(maximum(second, leastSquare)));
      const unclipped = minimum(mul(reciprocal(rootMeanSquare(update)), clipThreshold), 1);
      const size = scaleParameter ? mul(maximum(rootMeanSquare(param), epsilon2), rate!) : rate!;
      const kept = weightDecay === 0 ? param : mul(param, shrink!);
      return { param: sub(kept, mul(update, mul(size, unclipped))), slots };
    },
  };
}
