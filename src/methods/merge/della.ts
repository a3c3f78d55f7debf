/**
 * DELLA: drop small changes more often than large ones, elect signs, average what agrees.
 *
 * Deep, Bhardwaj, Poria, "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based
 * Sampling", 2024, arXiv:2406.11617.
 *
 *   r_i = rank of |τ_i| in its row, from 0 for the smallest to n - 1
 *   q_i = density - ε + 2 ε r_i / (n - 1)             chance of being kept, 1 - p_i in the paper
 *   τ̂_i = m_i τ_i / q_i,  m_i ~ Bernoulli(q_i)        its expectation is τ_i
 *   γ   = sgn(Σ_t w_t τ̂_t)
 *   θ   = θ_0 + λ · mean of τ̂_t over { t : sgn(w_t τ̂_t) = γ }, weighted by w_t
 *
 *   a row: what stands behind one index of the first dimension; of a vector, all of it
 *   1 - p → density    ε → epsilon    w_t → weight    λ → lambda
 *
 * The bits come from (seed, tensor, model) alone. Differs from mergekit, which scales what is left to the L1 norm
 * of the task vector in place of 1 / q_i. Cost: a sorted row and one random number an entry.
 */
import { defineMethod, type Method } from "../method.ts";
import { type DellaOptions, dellaOptions, dellaPaper, dellaSparsify } from "./shared/della.ts";
import { mergeTaskVectors } from "./shared/task-vectors.ts";

export const della: Method<DellaOptions> = defineMethod<DellaOptions>({
  id: "della",
  number: null,
  title: "DELLA-Merging",
  capability: "merge",
  summary: "Drops small changes more often than large ones, elects signs, averages what agrees.",
  paper: dellaPaper,
  implementation: "faithful",
  buildsOn: ["ties"],
  options: dellaOptions(true),
  roles: {
    merge: {
      needsBase: true,
      models: { least: 1 },
      perModel: ["weight", "density", "epsilon"],
      merge: (input, options) =>
        mergeTaskVectors(input, options as readonly Required<DellaOptions>[], {
          hasConsensus: true,
          sparsify: dellaSparsify,
        }),
    },
  },
});
