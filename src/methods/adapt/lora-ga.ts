/**
 * LoRA-GA: LoRA that begins along the directions in which full fine-tuning would make its first step.
 *
 * Wang, Yu & Li, "LoRA-GA: Low-Rank Adaptation with Gradient Approximation", NeurIPS 2024, arXiv:2407.05000,
 * algorithm 1 and theorem 3.1; the other directions are those of the authors' code.
 *
 *   ∂L/∂W = U Σ Vᵀ                                  on some batches
 *   A = c V_{1…r}ᵀ,  B = c U_{r+1…2r}               first numbers, c = (out)^¼ / √γ
 *   W_res = W - s B A                               the base beside which they are trained
 *
 *   γ → gamma    s → scale; the paper takes alpha / √r, which `rankStabilized` gives
 *
 * Differs: batches come in the training's order and keep its examples' weights; where a layer has fewer than 2r
 * directions, the later half overlaps the first. PEFT multiplies B by the gradient's singular values and leaves A
 * at unit length, which makes the first numbers depend on the loss's scale: here both are as the paper says.
 * Cost: gradients of the adapted weights, all in memory, and one decomposition a layer.
 */
import type { PrepareScene } from "../../adapters/adapter.ts";
import type { LoraOptions } from "../../adapters/lora.ts";
import type { OptionSpecs } from "../../options.ts";
import { type Matrix, matrix, type Svd, topSvd, transpose } from "../../tensor/linalg/index.ts";
import { defineMethod, type Initialised, type Method } from "../method.ts";
import {
  energyOf,
  type Factors,
  factoredLora,
  firstFactors,
  outputsFirst,
  times,
} from "./shared/first-factors.ts";

const directions = ["ArB2r", "A2rBr", "ArBr"] as const;

export interface LoraGaOptions {
  /** Batches whose gradients are taken; the paper uses 64 examples in all. */
  readonly batches?: number;
  /** γ: the larger, the smaller the first numbers; 16 in the authors' code. */
  readonly gamma?: number;
  /** Which directions A and B take: the first r and the next, the other way about, or in turns. */
  readonly direction?: (typeof directions)[number];
}

/** The columns of a matrix that are named. */
function pick(a: Matrix, indices: readonly number[]): Matrix {
  const result = matrix(a.rows, indices.length);
  for (let i = 0; i < a.rows; i++) {
    for (const [to, from] of indices.entries()) {
      result.data[i * indices.length + to] = a.data[i * a.columns + from]!;
    }
  }
  return result;
}

/**
 * A and B of a gradient's decomposition.
 * @param decomposed with 2r directions, or all there are
 */
export function loraGaFactors(
  { u, vt }: Pick<Svd, "u" | "vt">,
  rank: number,
  { gamma = 16, direction = "ArB2r" }: Pick<LoraGaOptions, "gamma" | "direction"> = {},
): Factors {
  const count = Math.min(2 * rank, u.columns);
  const early = Array.from({ length: rank }, (_, i) => i);
  const late = early.map((i) => i + count - rank);
  // Every other one; those of a pair that is not whole overlap too.
  const even = early.map((i) => Math.min(2 * i, count - rank + i));
  const odd = early.map((i) => Math.min(2 * i + 1, count - rank + i));
  const [ofA, ofB] =
    direction === "ArB2r" ? [early, late] : direction === "A2rBr" ? [late, early] : [odd, even];
  const factor = u.rows ** 0.25 / Math.sqrt(gamma);
  return {
    a: times(transpose(pick(transpose(vt), ofA)), factor),
    b: times(pick(u, ofB), factor),
  };
}

async function initialise(
  scene: PrepareScene,
  options: LoraOptions,
  { batches = 8, gamma = 16, direction = "ArB2r" }: LoraGaOptions,
): Promise<Initialised> {
  const adapter = factoredLora("lora-ga", scene, options);
  const weights = adapter.targets.map((path) => `${path}.weight`);
  const gradients = await scene.gradients(weights, batches);
  const shares: Record<string, number> = {};
  const params = firstFactors(scene, "LoRA-GA", adapter, ({ path, layer, rank }) => {
    const gradient = outputsFirst(layer, gradients[`${path}.weight`]!);
    const count = Math.min(2 * rank, gradient.rows, gradient.columns);
    const decomposed = topSvd(gradient, count);
    const held = decomposed.s.reduce((sum, x) => sum + x * x, 0);
    shares[path] = held / Math.max(Number.MIN_VALUE, energyOf(gradient));
    return loraGaFactors(decomposed, rank, { gamma, direction });
  });
  return {
    lora: options,
    params,
    isTakenFromBase: true,
    report: { gradientEnergy: shares, batches },
  };
}

const options = {
  batches: {
    type: "integer",
    default: 8,
    range: [1, 100_000],
    about: "batches whose gradients are taken; the paper takes 64 examples in all",
  },
  gamma: {
    type: "number",
    default: 16,
    range: [1e-6, 1e9],
    about: "the larger, the smaller the first numbers",
  },
  direction: {
    type: "text",
    default: "ArB2r",
    choices: directions,
    about: "directions of the gradient: A the first r and B the next, the other way, or in turns",
  },
} as const satisfies OptionSpecs<LoraGaOptions>;

export const loraGa: Method<LoraGaOptions> = defineMethod<LoraGaOptions>({
  id: "lora-ga",
  number: null,
  title: "LoRA-GA",
  capability: "adapt",
  summary:
    "LoRA that begins along the first directions of the gradient, so that its first step is like full fine-tuning's.",
  paper: {
    title: "LoRA-GA: Low-Rank Adaptation with Gradient Approximation",
    year: 2024,
    url: "https://arxiv.org/abs/2407.05000",
  },
  implementation: "faithful",
  options,
  roles: { initialiser: { readsData: true, readsWeights: true, initialise } },
  tiny: { batches: 2 },
});
