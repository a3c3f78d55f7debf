/** Options and sparsity of Model Breadcrumbs, which its two forms share. */
import type { OptionSpecs } from "../../../options.ts";
import { lambdaOption, normalizeOption, weightOption } from "./role.ts";
import { bandOf, type Granularity, keepBand, rowLength } from "./sparsify.ts";
import type { Family, TaskVectorOptions } from "./task-vectors.ts";

export interface BreadcrumbsOptions extends Partial<TaskVectorOptions> {
  /** Share of each task vector that is kept, γ - β, in (0, 1]; default 0.09. */
  readonly density?: number;
  /** Share of the largest entries that is left out, 1 - γ; default 0.01. */
  readonly gamma?: number;
  /** What is ranked together: a tensor, or each row along its last dimension; default "tensor". */
  readonly granularity?: Granularity;
}

export const breadcrumbsOptions: OptionSpecs<BreadcrumbsOptions> = {
  weight: weightOption(0.3, "factor of this model's task vector, the paper's α"),
  density: {
    type: "number",
    default: 0.09,
    range: [0, 1],
    open: [true, false],
    about: "share of each task vector that is kept (γ - β in the paper); 1 keeps all",
  },
  gamma: {
    type: "number",
    default: 0.01,
    range: [0, 1],
    about: "share of the largest entries that is left out (1 - γ in the paper)",
  },
  granularity: {
    type: "text",
    default: "tensor",
    choices: ["tensor", "row"],
    about: "what is ranked together: a tensor, or each row along its last dimension",
  },
  normalize: normalizeOption(false),
  lambda: lambdaOption,
};

export const breadcrumbsPaper = {
  title: "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
  year: 2024,
  url: "https://arxiv.org/abs/2312.06795",
} as const;

export const breadcrumbsSparsify: NonNullable<Family<Required<BreadcrumbsOptions>>["sparsify"]> = (
  task,
  { density, gamma, granularity },
) => {
  if (density >= 1) return undefined;
  const row = rowLength(task.shape, granularity);
  return keepBand(task, row, bandOf(row, density, gamma));
};
