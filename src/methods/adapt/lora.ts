/**
 * LoRA: a product of two thin matrices beside each chosen linear layer of a frozen model.
 *
 * Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685. The mathematics
 * is in `adapters/lora.ts`.
 *
 * Differs: the options' defaults are those of QLoRA (arXiv:2305.14314), which adapts every linear layer.
 */
import { type LoraOptions, loraKind } from "../../adapters/lora.ts";
import type { OptionSpecs } from "../../options.ts";
import { defineMethod, type Method } from "../method.ts";

/** What `finetune` takes where nothing is said: as many parameters as people usually train. */
export const loraOptions: OptionSpecs<LoraOptions> & {
  readonly rank: { readonly default: number };
} = {
  rank: { type: "integer", default: 16, range: [1, 4096], about: "rank of the update" },
  alpha: {
    type: "number",
    range: [0, 1e6],
    about: "scale is alpha / rank; 2 · rank where it is not given",
  },
  dropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of the adapter's input zeroed in training",
  },
  rankStabilized: {
    type: "flag",
    default: false,
    about: "scale is alpha / √rank, as rsLoRA has it (arXiv:2312.03732)",
  },
  useDora: {
    type: "flag",
    default: false,
    about: "a magnitude for each output beside the direction, as DoRA has it (arXiv:2402.09353)",
  },
  loraBias: { type: "flag", default: false, about: "train a bias with the update" },
  targetModules: {
    type: "list",
    default: "all-linear",
    words: ["all-linear"],
    about: "layers to adapt, by the last part of their name",
  },
  excludeModules: { type: "list", default: [], about: "layers to leave out, named alike" },
  rankPattern: {
    type: "table",
    default: {},
    range: [1, 4096],
    about: "another rank for some layers, as v_proj=4",
  },
  alphaPattern: {
    type: "table",
    default: {},
    range: [1e-6, 1e6],
    about: "another alpha for some layers",
  },
  trainableTokens: {
    type: "numbers",
    default: [],
    range: [0, 2 ** 31 - 1],
    about: "ids of tokens whose embeddings are trained whole",
  },
  rateRatio: {
    type: "number",
    default: 1,
    range: [1e-3, 1e3],
    about: "how many times A's learning rate B takes; 16 in LoRA+ (arXiv:2402.12354)",
  },
};

export const lora: Method<LoraOptions> = defineMethod<LoraOptions>({
  id: "lora",
  number: null,
  title: "LoRA",
  capability: "adapt",
  summary: "Trains a product of two thin matrices beside each layer of a frozen model.",
  paper: {
    title: "LoRA: Low-Rank Adaptation of Large Language Models",
    year: 2021,
    url: "https://arxiv.org/abs/2106.09685",
  },
  implementation: "parity",
  options: loraOptions,
  roles: { adapter: loraKind },
  tiny: { rank: 2 },
});
