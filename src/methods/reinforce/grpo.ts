/**
 * GRPO: policy gradient whose baseline is the mean reward of several answers to one prompt.
 *
 * Shao et al., "DeepSeekMath", 2024, arXiv:2402.03300; equations and variants (DAPO, Dr. GRPO) in
 * `train/objectives/grpo.ts`.
 */
import { grpoPolicy } from "../../train/objectives/policies.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  clipOption,
  groupSizeOption,
  iterationsOption,
  maxNewTokensOption,
  samplingOption,
} from "./shared/options.ts";

export interface GrpoMethodOptions {
  readonly groupSize?: number;
  /** Weight of the KL term. */
  readonly beta?: number;
  readonly clip?: number;
  readonly normalize?: "token" | "sequence" | "length";
  readonly advantageScale?: "group" | "batch" | "none";
  readonly temperature?: number;
  readonly iterations?: number;
  readonly maxNewTokens?: number;
}

export const grpo: Method<GrpoMethodOptions> = defineMethod<GrpoMethodOptions>({
  id: "grpo",
  number: null,
  title: "GRPO",
  capability: "reinforce",
  summary: "Learns from rewards of its own answers, against the mean of several to one prompt.",
  paper: {
    title: "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
    year: 2024,
    url: "https://arxiv.org/abs/2402.03300",
  },
  implementation: "parity",
  options: {
    groupSize: groupSizeOption(8, 2),
    beta: {
      type: "number",
      default: 0,
      range: [0, 100],
      about: "weight of the KL term; 0.04 in the paper",
    },
    clip: clipOption,
    normalize: {
      type: "text",
      default: "token",
      choices: ["token", "sequence", "length"],
      about: "what the loss is a mean over: DAPO's, the paper's, Dr. GRPO's",
    },
    advantageScale: {
      type: "text",
      default: "group",
      choices: ["group", "batch", "none"],
      about: "whose deviation advantages are divided by; none in Dr. GRPO",
    },
    temperature: samplingOption,
    iterations: iterationsOption(1),
    maxNewTokens: maxNewTokensOption,
  },
  roles: {
    policy: {
      data: "answered",
      hasReference: ({ beta = 0 }) => beta > 0,
      usesReward: true,
      make: (_, options) => {
        const { advantageScale, clip, iterations, maxNewTokens = 64, ...rest } = options;
        return {
          method: grpoPolicy({
            ...rest,
            ...(clip !== undefined && { clipLow: clip }),
            ...(advantageScale !== undefined && { scale: advantageScale }),
            maxLength: maxNewTokens,
          }),
          iterations: iterations ?? 1,
          maxNewTokens,
          temperature: options.temperature ?? 1,
        };
      },
    },
  },
  tiny: { groupSize: 2, maxNewTokens: 3 },
});
