/** DELLA's options and sparsity, which its two forms share. */
import type { OptionSpecs } from "../../../options.ts";
import {
  densityOption,
  lambdaOption,
  normalizeOption,
  rescaleOption,
  weightOption,
} from "./role.ts";
import { checkSpread, keepByRank } from "./sparsify.ts";
import type { Family, TaskVectorOptions } from "./task-vectors.ts";

export interface DellaOptions extends Partial<TaskVectorOptions> {
  /** Mean chance of an entry to be kept, 1 - p, in (0, 1]; default 0.5. */
  readonly density?: number;
  /** Half of what chances differ by within a row; density ± epsilon lies in (0, 1). Default 0.15. */
  readonly epsilon?: number;
  /** Divide what is kept by its chance; default true. */
  readonly rescale?: boolean;
}

export const dellaOptions = (isNormalized: boolean): OptionSpecs<DellaOptions> => ({
  weight: weightOption(1, "factor of this model's task vector"),
  density: densityOption(0.5),
  epsilon: {
    type: "number",
    default: 0.15,
    range: [0, 0.5],
    about: "chances of a row go from density - epsilon for its smallest entry to density + epsilon",
  },
  rescale: rescaleOption,
  normalize: normalizeOption(isNormalized),
  lambda: lambdaOption,
});

export const dellaPaper = {
  title: "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
  year: 2024,
  url: "https://arxiv.org/abs/2406.11617",
} as const;

export const dellaSparsify: NonNullable<Family<Required<DellaOptions>>["sparsify"]> = (
  task,
  options,
  rng,
) => {
  if (options.density >= 1 || task.size === 0) return undefined;
  checkSpread("della", options.density, options.epsilon);
  const row = task.shape.length > 1 ? task.size / task.shape[0] : task.size;
  return keepByRank(task.delta(), row, options, rng);
};
