/** Options of methods that learn from their own answers. */
import type { NumberOption } from "../../../options.ts";

type Defaulted = NumberOption & { readonly default: number };

const whole = (value: number, least: number, most: number, about: string): Defaulted => ({
  type: "integer",
  default: value,
  range: [least, most],
  about,
});

export const groupSizeOption = (value: number, least: number): Defaulted =>
  whole(value, least, 4096, "answers to each prompt");

export const iterationsOption = (value: number): Defaulted =>
  whole(value, 1, 1000, "updates on each set of answers");

export const maxNewTokensOption: Defaulted = whole(64, 1, 2 ** 20, "longest answer in tokens");

export const samplingOption: Defaulted = {
  type: "number",
  default: 1,
  range: [1e-3, 100],
  about: "temperature of answers",
};

export const clipOption: Defaulted = {
  type: "number",
  default: 0.2,
  range: [1e-6, 0.999999],
  about: "how far the ratio of probabilities moves in an update",
};
