/**
 * TIES-Merging: trim small changes, settle sign conflicts, average what agrees.
 *
 * Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023, arXiv:2306.01708.
 *
 *   τ_t = θ_t - θ_0                                  task vector of model t
 *   τ̂_t = the k share of τ_t largest in |·|          trim
 *   γ   = sgn(Σ_t w_t τ̂_t)                           elect
 *   τ   = mean of τ̂_t over { t : sgn(τ̂_t) = γ }      disjoint mean, weighted by w_t
 *   θ   = θ_0 + λ τ
 *
 *   θ_0 → base    θ_t → tensors[t]    k → density, 0.2 in the paper    w_t → weight    λ → lambda
 *
 * Differs: trims each tensor by itself, as mergekit does, where the paper's text ranks a whole model; floor(k ·
 * size) entries are kept and one at least, the earlier of equal ones; where the sum is 0, plus is elected.
 * Cost: two rankings' passes and two sums for each model.
 */
import { defineMethod, type MergeRole, type Method } from "../method.ts";
import { densityOption, lambdaOption, normalizeOption, weightOption } from "./shared/role.ts";
import { keepLargest } from "./shared/sparsify.ts";
import { mergeTaskVectors, type TaskVectorOptions } from "./shared/task-vectors.ts";

export interface TiesOptions extends Partial<TaskVectorOptions> {
  /** Share of each task vector that is kept, in (0, 1]; default 0.2. */
  readonly density?: number;
}

type All = Required<TiesOptions>;

const role: MergeRole<TiesOptions> = {
  needsBase: true,
  models: { least: 1 },
  perModel: ["weight", "density"],
  merge: (input, options) =>
    mergeTaskVectors<All>(input, options as readonly All[], {
      hasConsensus: true,
      sparsify: (task, { density }) => keepLargest(task, density),
    }),
};

export const ties: Method<TiesOptions> = defineMethod<TiesOptions>({
  id: "ties",
  number: null,
  title: "TIES-Merging",
  capability: "merge",
  summary: "Trims small changes, settles sign conflicts, then averages what agrees.",
  paper: {
    title: "TIES-Merging: Resolving Interference When Merging Models",
    year: 2023,
    url: "https://arxiv.org/abs/2306.01708",
  },
  implementation: "parity",
  options: {
    weight: weightOption(1, "factor of this model's task vector"),
    density: densityOption(0.2),
    normalize: normalizeOption(true),
    lambda: lambdaOption,
  },
  roles: { merge: role },
});
