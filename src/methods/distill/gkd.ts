/**
 * GKD: a teacher corrects what the student says itself, mixed with answers of the data.
 *
 * Agarwal et al., "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", ICLR
 * 2024, arXiv:2306.13649; the loss is `distill`'s, the mixing is in `train/objectives/policies.ts`.
 */
import { gkdPolicy } from "../../train/objectives/policies.ts";
import { defineMethod, type Method } from "../method.ts";
import { divergenceOf, divergenceSpecs, type TaughtOptions } from "./shared/options.ts";

export interface GkdMethodOptions extends TaughtOptions {
  /** Share of batches that are own answers. */
  readonly onPolicy?: number;
  readonly maxNewTokens?: number;
}

export const gkd: Method<GkdMethodOptions> = defineMethod<GkdMethodOptions>({
  id: "gkd",
  number: null,
  title: "GKD",
  capability: "distill",
  summary: "A teacher corrects what the student says itself.",
  paper: {
    title: "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes",
    year: 2023,
    url: "https://arxiv.org/abs/2306.13649",
  },
  implementation: "faithful",
  buildsOn: ["distill"],
  options: {
    ...divergenceSpecs("jsd", "of the student's answers"),
    onPolicy: {
      type: "number",
      default: 0.5,
      range: [0, 1],
      about: "share of batches that are own answers",
    },
    maxNewTokens: {
      type: "integer",
      default: 64,
      range: [1, 2 ** 20],
      about: "longest answer in tokens",
    },
  },
  roles: {
    policy: {
      data: "answered",
      models: ["teacher"],
      usesReward: false,
      make: ({ others }, options) => ({
        method: gkdPolicy({
          teacher: others["teacher"]!,
          ...divergenceOf(options),
          ...(options.onPolicy !== undefined && { onPolicy: options.onPolicy }),
        }),
        iterations: 1,
        maxNewTokens: options.maxNewTokens ?? 64,
        temperature: options.temperature ?? 1,
      }),
    },
  },
  tiny: { maxNewTokens: 3 },
});
