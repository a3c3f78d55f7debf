/**
 * Model Breadcrumbs with the sign consensus of TIES, as mergekit has it.
 *
 * Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024,
 * arXiv:2312.06795; the election is that of Yadav et al., arXiv:2306.01708.
 *
 *   τ̂_t = m_t ⊙ τ_t                      the band of Model Breadcrumbs
 *   γ   = sgn(Σ_t w_t τ̂_t)
 *   θ   = θ_0 + λ Σ_t [sgn(w_t τ̂_t) = γ] w_t τ̂_t
 *
 *   w_t → weight    share cut at the top → gamma    share kept → density    λ → lambda
 *
 * Does not divide by the weights that take part, as mergekit; `normalize` does. Cost: two rankings' passes and
 * two sums for each model.
 */
import { defineMethod, type Method } from "../method.ts";
import {
  type BreadcrumbsOptions,
  breadcrumbsOptions,
  breadcrumbsPaper,
  breadcrumbsSparsify,
} from "./shared/breadcrumbs.ts";
import { mergeTaskVectors } from "./shared/task-vectors.ts";

export const breadcrumbsTies: Method<BreadcrumbsOptions> = defineMethod<BreadcrumbsOptions>({
  id: "breadcrumbs-ties",
  number: null,
  title: "Model Breadcrumbs with TIES",
  capability: "merge",
  summary: "Adds what lies between the largest and the small changes and has the sign that wins.",
  paper: breadcrumbsPaper,
  implementation: "parity",
  buildsOn: ["breadcrumbs", "ties"],
  options: breadcrumbsOptions,
  roles: {
    merge: {
      needsBase: true,
      models: { least: 1 },
      perModel: ["weight", "density", "gamma"],
      merge: (input, options) =>
        mergeTaskVectors(input, options as readonly Required<BreadcrumbsOptions>[], {
          hasConsensus: true,
          sparsify: breadcrumbsSparsify,
        }),
    },
  },
});
