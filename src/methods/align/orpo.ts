/**
 * ORPO: supervised fine-tuning on the chosen answer and a penalty on the odds of the rejected one.
 *
 * Hong, Lee & Thorne, EMNLP 2024, arXiv:2403.07691; equations and deviations in `train/objectives/orpo.ts`.
 */
import { type OrpoOptions, orpo as objective } from "../../train/objectives/orpo.ts";
import { defineMethod, type Method } from "../method.ts";

export const orpo: Method<OrpoOptions> = defineMethod<OrpoOptions>({
  id: "orpo",
  number: null,
  title: "ORPO",
  capability: "align",
  summary: "Learns the chosen answer and lowers the odds of the rejected one, without a reference.",
  paper: {
    title: "ORPO: Monolithic Preference Optimization without Reference Model",
    year: 2024,
    url: "https://arxiv.org/abs/2403.07691",
  },
  implementation: "parity",
  options: {
    beta: { type: "number", default: 0.1, range: [0, 100], about: "weight of the odds ratio" },
  },
  roles: { objective: { data: "preference", make: (_, options) => objective(options) } },
});
