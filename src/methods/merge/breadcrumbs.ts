/**
 * Model Breadcrumbs: add of each fine-tuning neither its largest changes nor its small ones.
 *
 * Davari and Belilovsky, "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks", ECCV 2024,
 * arXiv:2312.06795.
 *
 *   τ_t = θ_t - θ_0                                             for each tensor
 *   m_i = 1 where |τ_i| lies between the β and γ quantiles of its tensor, else 0
 *   θ   = θ_0 + α Σ_t m_t ⊙ τ_t
 *
 *   θ_0 → base    θ_t → tensors[t]    α → weight    1 - γ → gamma    γ - β → density
 *
 * The paper has β = 0.90 (0.85 to 0.90), γ = 0.99 and α = 0.3 for eight tasks, found on a few tasks and kept as
 * others are added. The names are mergekit's: `density` is the share kept, `gamma` the share cut at the top.
 * Exactly floor(density · size) entries are kept, the earlier of equal ones. The authors' code ranks rows along
 * the last dimension: `granularity` "row". Differs from mergekit, which keeps nothing where floor(gamma · size)
 * is 0. Cost: two rankings' passes for each model.
 */
import { defineMethod, type Method } from "../method.ts";
import {
  type BreadcrumbsOptions,
  breadcrumbsOptions,
  breadcrumbsPaper,
  breadcrumbsSparsify,
} from "./shared/breadcrumbs.ts";
import { mergeTaskVectors } from "./shared/task-vectors.ts";

export const breadcrumbs: Method<BreadcrumbsOptions> = defineMethod<BreadcrumbsOptions>({
  id: "breadcrumbs",
  number: 41,
  title: "Model Breadcrumbs",
  capability: "merge",
  summary: "Adds of each fine-tuning neither its largest changes nor its small ones.",
  paper: breadcrumbsPaper,
  implementation: "parity",
  claim: "doesNotHold",
  buildsOn: ["task-arithmetic"],
  options: breadcrumbsOptions,
  roles: {
    merge: {
      needsBase: true,
      models: { least: 1 },
      perModel: ["weight", "density", "gamma"],
      merge: (input, options) =>
        mergeTaskVectors(input, options as readonly Required<BreadcrumbsOptions>[], {
          hasConsensus: false,
          sparsify: breadcrumbsSparsify,
        }),
    },
  },
});
