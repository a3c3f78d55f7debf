/**
 * Distillation: a student takes on a teacher's distribution of the next token, by one of several divergences.
 *
 * Hinton et al. 2015, arXiv:1503.02531; equations and the sources of each in `train/objectives/distill.ts`.
 */
import { distill as objective } from "../../train/objectives/distill.ts";
import { defineMethod, type Method } from "../method.ts";
import { divergenceOf, divergenceSpecs, type TaughtOptions } from "./shared/options.ts";

export const distill: Method<TaughtOptions> = defineMethod<TaughtOptions>({
  id: "distill",
  number: null,
  title: "Distillation",
  capability: "distill",
  summary: "A student takes on a teacher's distribution of the next token.",
  paper: {
    title: "Distilling the Knowledge in a Neural Network",
    year: 2015,
    url: "https://arxiv.org/abs/1503.02531",
  },
  implementation: "parity",
  options: divergenceSpecs("forward", "divides the logits of both models"),
  roles: {
    objective: {
      data: "any",
      models: ["teacher"],
      make: ({ others }, options) =>
        objective({
          teacher: others["teacher"]!,
          ...divergenceOf(options),
          ...(options.temperature !== undefined && { temperature: options.temperature }),
        }),
    },
  },
});
