/**
 * DARE: drop most of what fine-tuning changed at random, scale up the rest, add it.
 *
 * Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
 * ICML 2024, arXiv:2311.03099.
 *
 *   m_t ~ Bernoulli(1 - p)
 *   τ̂_t = m_t ⊙ τ_t / (1 - p)          its expectation is τ_t
 *   θ   = θ_0 + λ Σ_t w_t τ̂_t
 *
 *   1 - p → density    w_t → weight    λ → lambda
 *
 * The bits come from (seed, tensor, model) alone. Differs from mergekit, which scales what is left to the L1 norm
 * of the task vector in place of 1 / (1 - p); both agree on large tensors. Cost: one random number an entry.
 */
import { defineMethod, type Method } from "../method.ts";
import { type DareOptions, dareOptions, darePaper, dareSparsify } from "./shared/dare.ts";
import { mergeTaskVectors } from "./shared/task-vectors.ts";

export const dareLinear: Method<DareOptions> = defineMethod<DareOptions>({
  id: "dare-linear",
  number: null,
  title: "DARE",
  capability: "merge",
  summary: "Drops most changes at random, scales up the rest, and adds them.",
  paper: darePaper,
  implementation: "faithful",
  buildsOn: ["task-arithmetic"],
  options: dareOptions,
  roles: {
    merge: {
      needsBase: true,
      models: { least: 1 },
      perModel: ["weight", "density"],
      merge: (input, options) =>
        mergeTaskVectors(input, options as readonly Required<DareOptions>[], {
          hasConsensus: false,
          sparsify: dareSparsify,
        }),
    },
  },
});
