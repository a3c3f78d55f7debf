/**
 * Muon: momentum whose singular values are all brought near 1, for the matrices inside a network.
 *
 * Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024,
 * https://kellerjordan.github.io/posts/muon/; scaling of the step by Liu et al., "Muon is Scalable
 * for LLM Training", 2025, arXiv:2502.16982; arithmetic and state as torch.optim.Muon.
 *
 *   b ← μ b + (1 − μ) g                                momentum_buffer
 *   u = (1 − μ) g + μ b with Nesterov's form, else b
 *   X₀ = u / ‖u‖_F,  Xᵢ₊₁ = a Xᵢ + (b A + c A²) Xᵢ,  A = Xᵢ Xᵢᵀ      Newton–Schulz, five times
 *   θ ← (1 − η λ) θ − η s X₅
 *
 *   s: "original" √max(1, rows / columns); "match_rms_adamw" 0.2 √max(rows, columns)
 *
 * Differs: the products run in float32, where torch takes bfloat16. Embeddings, heads, biases and
 * norms belong to another optimiser: `matrixGroups` splits them.
 */
import { OptionError } from "../errors.ts";
import { add, div, maximum, mul, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { norm } from "../ir/reduce.ts";
import { type StaticShape, toStatic } from "../tensor/shape.ts";
import type { Optimizer } from "./optimizer.ts";
import { check, fromZero, positive, share, wholeFromOne, withDefaults } from "./options.ts";

/** How a step grows with the size of its matrix. */
export type MuonScale = "original" | "match_rms_adamw";

export interface MuonOptions {
  /** μ: share of the running mean that is kept, in [0, 1); default 0.95. */
  readonly momentum?: number;
  /** Look ahead by one more share of the mean; default true. */
  readonly nesterov?: boolean;
  /** λ: share of the learning rate by which weights shrink; default 0.1. */
  readonly weightDecay?: number;
  /** s: with "match_rms_adamw" a learning rate of AdamW serves unchanged; default "original". */
  readonly scale?: MuonScale;
  /** Newton–Schulz iterations; default 5. */
  readonly iterations?: number;
  /** a, b, c of the iteration; default 3.4445, -4.775, 2.0315. */
  readonly coefficients?: readonly [number, number, number];
  /** Least norm that the direction is divided by; default 1e-7. */
  readonly epsilon?: number;
}

export const muonDefaults: Required<MuonOptions> = {
  momentum: 0.95,
  nesterov: true,
  weightDecay: 0.1,
  scale: "original",
  iterations: 5,
  coefficients: [3.4445, -4.775, 2.0315],
  epsilon: 1e-7,
};

const scales: Readonly<Record<MuonScale, (rows: number, columns: number) => number>> = {
  original: (rows, columns) => Math.sqrt(Math.max(1, rows / columns)),
  match_rms_adamw: (rows, columns) => 0.2 * Math.sqrt(Math.max(rows, columns)),
};

/** A matrix (n, m) with singular values near 1 and the same singular vectors. */
export function orthogonalize(
  matrix: Value,
  {
    iterations = muonDefaults.iterations,
    coefficients: [a, b, c] = muonDefaults.coefficients,
    epsilon = muonDefaults.epsilon,
  }: Pick<MuonOptions, "iterations" | "coefficients" | "epsilon"> = {},
): Value {
  const [rows, columns] = toStatic(matrix.shape, "orthogonalize");
  // X Xᵀ is smaller on the short side.
  const isTall = rows! > columns!;
  let x = isTall ? transpose(matrix) : matrix;
  x = div(x, maximum(norm(x), epsilon));
  for (let i = 0; i < iterations; i++) {
    const gram = dot(x, x, { transB: true });
    const mixed = add(mul(gram, b), dot(gram, gram, { alpha: c }));
    x = add(mul(x, a), dot(mixed, x));
  }
  return isTall ? transpose(x) : x;
}

const refusal = (shape: StaticShape): string | undefined =>
  shape.length === 2 ? undefined : "muon takes matrices only — put it into another group";

/** @throws OptionError for an unknown scale or a number outside its range. */
export function muon(options: MuonOptions = {}): Optimizer {
  const settled = withDefaults("muon", muonDefaults, options);
  const { momentum, nesterov, weightDecay, scale, iterations, coefficients, epsilon } = settled;
  check("muon", share, { momentum });
  check("muon", fromZero, { weightDecay });
  check("muon", positive, { epsilon });
  check("muon", wholeFromOne, { iterations });
  if (!Object.hasOwn(scales, scale)) {
    throw new OptionError(
      `muon: scale must be ${Object.keys(scales).join(" or ")}, got "${scale}".`,
    );
  }
  if (coefficients.length !== 3 || !coefficients.every(Number.isFinite)) {
    throw new OptionError(
      `muon: coefficients must be three numbers, got [${coefficients.join(", ")}].`,
    );
  }
  return {
    name: "muon",
    elementwise: false,
    slots: (shape) => ({ momentum_buffer: shape }),
    refusal,
    scalars: (_, learningRate) => ({ learningRate, shrink: 1 - learningRate * weightDecay }),
    update: (param, gradient, { momentum_buffer }, { learningRate, shrink }) => {
      const [rows, columns] = toStatic(param.shape, "muon");
      const mean = add(mul(momentum_buffer!, momentum), mul(gradient, 1 - momentum));
      const direction = nesterov ? add(mul(gradient, 1 - momentum), mul(mean, momentum)) : mean;
      const x = orthogonalize(direction, { iterations, coefficients, epsilon });
      const size = mul(learningRate!, scales[scale](rows!, columns!));
      return { param: sub(mul(param, shrink!), mul(x, size)), slots: { momentum_buffer: mean } };
    },
  };
}
