/**
 * DPO: a preference as a classification, with the model's own log-probabilities as the reward.
 *
 * Rafailov et al., NeurIPS 2023, arXiv:2305.18290; equations and deviations in `train/objectives/dpo.ts`.
 */
import { type DpoOptions, dpo as objective } from "../../train/objectives/dpo.ts";
import { defineMethod, type Method } from "../method.ts";
import { betaOption, heldTo, sftOption, smoothingOption } from "./shared/options.ts";

export const dpo: Method<DpoOptions> = defineMethod<DpoOptions>({
  id: "dpo",
  number: null,
  title: "DPO",
  capability: "align",
  summary: "Learns which of two answers is better, with its own log-probabilities as the reward.",
  paper: {
    title: "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    year: 2023,
    url: "https://arxiv.org/abs/2305.18290",
  },
  implementation: "parity",
  options: {
    beta: betaOption(0.1, heldTo),
    loss: {
      type: "text",
      default: "sigmoid",
      choices: ["sigmoid", "robust", "hinge"],
      about: "the paper's; unbiased for wrong labels; a hinge on the margin",
    },
    labelSmoothing: smoothingOption,
    sftWeight: sftOption,
  },
  roles: {
    objective: {
      data: "preference",
      hasReference: true,
      isRecordable: true,
      make: (_, options) => objective(options),
    },
  },
});
