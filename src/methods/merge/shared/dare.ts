/** DARE's options and sparsity, which its two forms share. */

import type { OptionSpecs } from "../../../options.ts";
import {
  densityOption,
  lambdaOption,
  normalizeOption,
  rescaleOption,
  weightOption,
} from "./role.ts";
import { keepByChance } from "./sparsify.ts";
import type { Family, TaskVectorOptions } from "./task-vectors.ts";

export interface DareOptions extends Partial<TaskVectorOptions> {
  /** Chance of an entry to be kept, 1 - p, in (0, 1]; default 0.5. */
  readonly density?: number;
  /** Divide what is kept by that chance, so that the expectation is the task vector; default true. */
  readonly rescale?: boolean;
}

export const dareOptions: OptionSpecs<DareOptions> = {
  weight: weightOption(1, "factor of this model's task vector"),
  density: densityOption(0.5),
  rescale: rescaleOption,
  normalize: normalizeOption(false),
  lambda: lambdaOption,
};

export const darePaper = {
  title:
    "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
  year: 2024,
  url: "https://arxiv.org/abs/2311.03099",
} as const;

export const dareSparsify: NonNullable<Family<Required<DareOptions>>["sparsify"]> = (
  task,
  { density, rescale },
  rng,
) => keepByChance(task.size, density, rescale, rng);
