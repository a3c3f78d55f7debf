/** Options that merges share, and the numbers that they read. */
import type { FlagOption, NumberOption } from "../../../options.ts";
import type { MergeInput } from "../../method.ts";

/** The factor of one model. */
export const weightOption = (value: number, about: string): NumberOption & { default: number } => ({
  type: "number",
  default: value,
  range: [-100, 100],
  about,
});

export const normalizeOption = (value: boolean): FlagOption & { default: boolean } => ({
  type: "flag",
  default: value,
  about: "divide by the sum of the weights that take part",
});

export const lambdaOption: NumberOption & { default: number } = {
  type: "number",
  default: 1,
  range: [-100, 100],
  about: "factor of the merged task vector, before it is added to the base",
};

export const densityOption = (value: number): NumberOption & { default: number } => ({
  type: "number",
  default: value,
  range: [0, 1],
  open: [true, false],
  about: "share of each task vector that is kept; 1 keeps all",
});

export const rescaleOption: FlagOption & { default: boolean } = {
  type: "flag",
  default: true,
  about: "divide what is kept by the chance that it was",
};

/** The numbers of each model, and those of the base. */
export function numbersOf(input: MergeInput): {
  readonly base: Float32Array;
  readonly models: readonly Float32Array[];
} {
  return { base: input.base!.data, models: input.tensors.map(({ data }) => data) };
}
