/** Options that several objectives over answers have. */
import type { NumberOption } from "../../../options.ts";

type Defaulted = NumberOption & { readonly default: number };

export const betaOption = (value: number, about: string): Defaulted => ({
  type: "number",
  default: value,
  range: [0, 100],
  open: [true, false],
  about,
});

export const smoothingOption: Defaulted = {
  type: "number",
  default: 0,
  range: [0, 0.4999],
  about: "share of labels taken to be wrong",
};

export const sftOption: Defaulted = {
  type: "number",
  default: 0,
  range: [0, 100],
  about: "adds so many times the cross-entropy of the chosen answers",
};

export const heldTo = "how strongly the model is held to what it was";
