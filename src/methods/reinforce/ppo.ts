/**
 * PPO: a clipped policy gradient with a learnt baseline, token by token.
 *
 * Schulman et al., 2017, arXiv:1707.06347; for language models Ouyang et al. 2022, arXiv:2203.02155. Equations
 * in `train/objectives/ppo.ts`.
 */
import { ppoPolicy } from "../../train/objectives/policies.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  clipOption,
  groupSizeOption,
  iterationsOption,
  maxNewTokensOption,
  samplingOption,
} from "./shared/options.ts";

export interface PpoMethodOptions {
  readonly groupSize?: number;
  readonly clip?: number;
  /** Discount. */
  readonly gamma?: number;
  readonly lambda?: number;
  readonly klWeight?: number;
  readonly temperature?: number;
  readonly iterations?: number;
  readonly maxNewTokens?: number;
}

export const ppo: Method<PpoMethodOptions> = defineMethod<PpoMethodOptions>({
  id: "ppo",
  number: null,
  title: "PPO",
  capability: "reinforce",
  summary: "Learns from rewards of its own answers, against a value that it learns beside them.",
  paper: {
    title: "Proximal Policy Optimization Algorithms",
    year: 2017,
    url: "https://arxiv.org/abs/1707.06347",
  },
  implementation: "parity",
  options: {
    groupSize: groupSizeOption(1, 1),
    clip: clipOption,
    gamma: { type: "number", default: 1, range: [0, 1], about: "discount" },
    lambda: {
      type: "number",
      default: 0.95,
      range: [0, 1],
      about: "0 trusts the learnt values, 1 the rewards",
    },
    klWeight: {
      type: "number",
      default: 0.05,
      range: [0, 100],
      about: "penalty for leaving what the model was",
    },
    temperature: samplingOption,
    iterations: iterationsOption(4),
    maxNewTokens: maxNewTokensOption,
  },
  roles: {
    policy: {
      data: "answered",
      hasReference: true,
      usesReward: true,
      make: ({ model }, options) => {
        const { iterations, maxNewTokens, ...rest } = options;
        return {
          method: ppoPolicy({ dModel: model.sizes.dModel, ...rest }),
          iterations: iterations ?? 4,
          maxNewTokens: maxNewTokens ?? 64,
          temperature: options.temperature ?? 1,
        };
      },
    },
  },
  tiny: { iterations: 2, maxNewTokens: 3 },
});
