/** What the engine may know of a merge beside what every role says, and options that merges share. */
import type { FlagOption, NumberOption, OptionSpec } from "../../../options.ts";
import type { MergeInput, MergeRole, Method } from "../../method.ts";

export interface StreamedMergeRole<O> extends MergeRole<O> {
  /**
   * Each element of the result depends on that element of the inputs alone, and on no random numbers:
   * tensors too large for memory may come in parts. Default false.
   */
  readonly isElementwise?: boolean;
  /** Whether models that are all the same are merged into that model; default: they are. */
  readonly keepsEqual?: (options: readonly O[]) => boolean;
}

/** A method that merges, whatever its options. */
// biome-ignore lint/suspicious/noExplicitAny: options are read by their description.
export type MergeMethod = Omit<Method<any>, "options"> & {
  readonly options: Readonly<Record<string, OptionSpec>>;
};

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
