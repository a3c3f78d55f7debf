/**
 * SimPO: the mean log-probability of an answer as its reward, and a margin that the chosen one must win by.
 *
 * Meng, Xia & Chen, NeurIPS 2024, arXiv:2405.14734; equations and deviations in `train/objectives/simpo.ts`.
 */
import { simpo as objective, type SimpoOptions } from "../../train/objectives/simpo.ts";
import { defineMethod, type Method } from "../method.ts";
import { betaOption, sftOption, smoothingOption } from "./shared/options.ts";

export const simpo: Method<SimpoOptions> = defineMethod<SimpoOptions>({
  id: "simpo",
  number: null,
  title: "SimPO",
  capability: "align",
  summary: "Learns which of two answers is better by their mean log-probabilities, with a margin.",
  paper: {
    title: "SimPO: Simple Preference Optimization with a Reference-Free Reward",
    year: 2024,
    url: "https://arxiv.org/abs/2405.14734",
  },
  implementation: "parity",
  options: {
    beta: betaOption(2, "scale of the reward"),
    gamma: {
      type: "number",
      default: 1,
      range: [0, 100],
      about: "margin that the chosen answer must win by",
    },
    labelSmoothing: smoothingOption,
    sftWeight: sftOption,
  },
  roles: { objective: { data: "preference", make: (_, options) => objective(options) } },
});
