/**
 * PiSSA: LoRA that begins as the principal part of each weight, beside a base that is the rest.
 *
 * Meng, Wang & Zhang, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language
 * Models", NeurIPS 2024, arXiv:2404.02948, equations 2 to 4; `niter` is its fast decomposition.
 *
 *   W = U Σ Vᵀ
 *   A = √(Σ_r / s) V_rᵀ,  B = U_r √(Σ_r / s)      first numbers
 *   W_res = W - s B A                             the base beside which they are trained
 *
 *   s → scale, alpha / r    r → rank, at most min(in, out)
 *
 * Differs: exact decompositions are found from the largest values on; signs are such that the largest entry of
 * each row of A is positive. Cost: one decomposition a layer; what is kept has rank 2r on the whole base.
 */
import type { PrepareScene } from "../../adapters/adapter.ts";
import type { LoraOptions } from "../../adapters/lora.ts";
import type { OptionSpecs } from "../../options.ts";
import { randomSvd, type Svd, topSvd } from "../../tensor/linalg/index.ts";
import { defineMethod, type Initialised, type Method } from "../method.ts";
import {
  balanced,
  energyOf,
  type Factors,
  factoredLora,
  firstFactors,
  outputsFirst,
} from "./shared/first-factors.ts";

export interface PissaOptions {
  /** Turns of a drawn subspace in place of an exact decomposition; 0 is exact, the paper uses 4 and 16. */
  readonly niter?: number;
}

/** A and B of a weight's decomposition. @param scale of LoRA */
export function pissaFactors(decomposed: Svd, rank: number, scale: number): Factors {
  return balanced(decomposed, rank, scale);
}

function initialise(
  scene: PrepareScene,
  options: LoraOptions,
  { niter = 0 }: PissaOptions,
): Initialised {
  const adapter = factoredLora("pissa", scene, options);
  const shares: Record<string, number> = {};
  const params = firstFactors(scene, "PiSSA", adapter, ({ path, layer, rank, scale }) => {
    const weight = outputsFirst(layer, scene.base[`${path}.weight`]!);
    const decomposed =
      niter === 0
        ? topSvd(weight, rank)
        : randomSvd(weight, rank, niter, scene.rng.fold("pissa").fold(path));
    const kept = decomposed.s.slice(0, rank).reduce((sum, x) => sum + x * x, 0);
    shares[path] = kept / Math.max(Number.MIN_VALUE, energyOf(weight));
    return pissaFactors(decomposed, rank, scale);
  });
  return { lora: options, params, isTakenFromBase: true, report: { energy: shares } };
}

const options = {
  niter: {
    type: "integer",
    default: 0,
    range: [0, 100],
    about: "turns of a drawn subspace, quicker than the exact decomposition that 0 asks for",
  },
} as const satisfies OptionSpecs<PissaOptions>;

export const pissa: Method<PissaOptions> = defineMethod<PissaOptions>({
  id: "pissa",
  number: null,
  title: "PiSSA",
  capability: "adapt",
  summary:
    "LoRA that begins as the largest singular directions of each weight, beside a base without them.",
  paper: {
    title:
      "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
    year: 2024,
    url: "https://arxiv.org/abs/2404.02948",
  },
  implementation: "parity",
  options,
  roles: { initialiser: { readsData: false, readsWeights: true, initialise } },
});
