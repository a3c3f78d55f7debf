/**
 * IPO: DPO with a squared loss on the margin, which does not grow without end on certain preferences.
 *
 * Azar et al., AISTATS 2024, arXiv:2310.12036; equations and deviations in `train/objectives/ipo.ts`.
 */
import { type IpoOptions, ipo as objective } from "../../train/objectives/ipo.ts";
import { defineMethod, type Method } from "../method.ts";
import { betaOption } from "./shared/options.ts";

export const ipo: Method<IpoOptions> = defineMethod<IpoOptions>({
  id: "ipo",
  number: null,
  title: "IPO",
  capability: "align",
  summary: "Learns which of two answers is better, up to a margin that it does not exceed.",
  paper: {
    title: "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    year: 2023,
    url: "https://arxiv.org/abs/2310.12036",
  },
  implementation: "parity",
  buildsOn: ["dpo"],
  options: { beta: betaOption(0.1, "the target margin is 1 / (2 beta)") },
  roles: {
    objective: {
      data: "preference",
      hasReference: true,
      isRecordable: true,
      make: (_, options) => objective(options),
    },
  },
});
