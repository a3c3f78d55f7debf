/**
 * DARE with the sign consensus of TIES.
 *
 * Yu et al., "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
 * ICML 2024, arXiv:2311.03099, section 4.4.
 *
 *   m_t ~ Bernoulli(1 - p),  τ̂_t = m_t ⊙ τ_t / (1 - p)
 *   γ   = sgn(Σ_t w_t τ̂_t)
 *   θ   = θ_0 + λ Σ_t [sgn(w_t τ̂_t) = γ] w_t τ̂_t
 *
 *   1 - p → density, in place of the trimming of TIES    w_t → weight    λ → lambda
 *
 * As mergekit it does not divide by the weights that take part; `normalize` does, and is then TIES with random
 * trimming. The bits come from (seed, tensor, model) alone. Cost: one random number an entry, two sums.
 */
import { defineMethod, type Method } from "../method.ts";
import { type DareOptions, dareOptions, darePaper, dareSparsify } from "./shared/dare.ts";
import { mergeTaskVectors } from "./shared/task-vectors.ts";

export const dareTies: Method<DareOptions> = defineMethod<DareOptions>({
  id: "dare-ties",
  number: null,
  title: "DARE with TIES",
  capability: "merge",
  summary: "Drops most changes at random, scales up the rest, adds those of the sign that wins.",
  paper: darePaper,
  implementation: "faithful",
  buildsOn: ["ties", "dare-linear"],
  options: dareOptions,
  roles: {
    merge: {
      needsBase: true,
      models: { least: 1 },
      perModel: ["weight", "density"],
      merge: (input, options) =>
        mergeTaskVectors(input, options as readonly Required<DareOptions>[], {
          hasConsensus: true,
          sparsify: dareSparsify,
        }),
    },
  },
});
