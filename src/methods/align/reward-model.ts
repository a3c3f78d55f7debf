/**
 * A reward model: a number for an answer, higher for the better of two.
 *
 * Ouyang et al., NeurIPS 2022, arXiv:2203.02155, eq. 1; head and file in `train/objectives/reward.ts`.
 */
import {
  rewardModel as objective,
  type RewardOptions,
  rewardAdapter,
} from "../../train/objectives/reward.ts";
import { defineMethod, type Method } from "../method.ts";

type Options = Omit<RewardOptions, "dModel">;

export const rewardModel: Method<Options> = defineMethod<Options>({
  id: "reward-model",
  number: null,
  aliases: ["reward"],
  title: "Reward model",
  capability: "align",
  summary: "Learns a number for an answer that is higher for the better of two.",
  paper: {
    title: "Training language models to follow instructions with human feedback",
    year: 2022,
    url: "https://arxiv.org/abs/2203.02155",
  },
  implementation: "parity",
  options: {
    margin: {
      type: "number",
      default: 0,
      range: [0, 100],
      about: "what the better answer must win by",
    },
    center: { type: "number", default: 0, range: [0, 100], about: "keeps rewards about 0" },
  },
  roles: {
    objective: {
      data: "preference",
      readsLast: true,
      adapt: (adapter, model) => rewardAdapter(adapter, model.sizes.dModel),
      make: ({ model }, options) => objective({ dModel: model.sizes.dModel, ...options }),
    },
  },
});
