/**
 * KTO: answers judged one by one as good or bad, weighed as people weigh gains and losses.
 *
 * Ethayarajh et al., ICML 2024, arXiv:2402.01306; equations and deviations in `train/objectives/kto.ts`.
 */
import type { NumberOption } from "../../options.ts";
import { type KtoOptions, kto as objective } from "../../train/objectives/kto.ts";
import { defineMethod, type Method } from "../method.ts";
import { betaOption, heldTo } from "./shared/options.ts";

const weightOption = (about: string): NumberOption => ({
  type: "number",
  default: 1,
  range: [0, 1e4],
  about,
});

export const kto: Method<KtoOptions> = defineMethod<KtoOptions>({
  id: "kto",
  number: null,
  title: "KTO",
  capability: "align",
  summary: "Learns from answers that were judged good or bad one by one.",
  paper: {
    title: "KTO: Model Alignment as Prospect Theoretic Optimization",
    year: 2024,
    url: "https://arxiv.org/abs/2402.01306",
  },
  implementation: "parity",
  options: {
    beta: betaOption(0.1, heldTo),
    desirableWeight: weightOption("weight of good answers"),
    undesirableWeight: weightOption("weight of bad answers"),
  },
  roles: {
    objective: {
      data: "judged",
      hasReference: true,
      make: (_, options) => objective(options),
    },
  },
});
