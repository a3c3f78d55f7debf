/**
 * Task arithmetic: add what fine-tuning changed.
 *
 * Ilharco et al., "Editing Models with Task Arithmetic", ICLR 2023, arXiv:2212.04089.
 *
 *   τ_t = θ_t - θ_0
 *   θ   = θ_0 + λ Σ_t w_t τ_t
 *
 *   θ_0 → base    θ_t → tensors[t]    w_t → weight, below 0 to forget    λ → lambda
 *
 * The paper takes one λ for all tasks, chosen on validation data: 0.3 to 0.4 for eight tasks. Cost: one pass.
 */
import { defineMethod, type MergeRole, type Method } from "../method.ts";
import { lambdaOption, normalizeOption, weightOption } from "./shared/role.ts";
import { mergeTaskVectors, type TaskVectorOptions } from "./shared/task-vectors.ts";

export type TaskArithmeticOptions = Partial<TaskVectorOptions>;

const role: MergeRole<TaskArithmeticOptions> = {
  needsBase: true,
  models: { least: 1 },
  perModel: ["weight"],
  isElementwise: true,
  merge: (input, options) =>
    mergeTaskVectors(input, options as readonly TaskVectorOptions[], { hasConsensus: false }),
};

export const taskArithmetic: Method<TaskArithmeticOptions> = defineMethod<TaskArithmeticOptions>({
  id: "task-arithmetic",
  number: null,
  title: "Task arithmetic",
  capability: "merge",
  summary: "Adds to the base what each fine-tuning changed, or takes it away.",
  paper: {
    title: "Editing Models with Task Arithmetic",
    year: 2023,
    url: "https://arxiv.org/abs/2212.04089",
  },
  implementation: "parity",
  options: {
    weight: weightOption(1, "factor of this model's task vector; below 0 to forget"),
    normalize: normalizeOption(false),
    lambda: lambdaOption,
  },
  roles: { merge: role },
});
