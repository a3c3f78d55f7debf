/**
 * Supervised fine-tuning: the next token of each example from those before it.
 *
 *   L = - mean of log π(y_t | y_<t) over the tokens that carry loss
 *
 * The objective is `causalLm` in `train/causal-lm.ts`.
 */
import { causalLm } from "../../train/causal-lm.ts";
import { defineMethod, type Method, type NoOptions } from "../method.ts";

export const sft: Method = defineMethod<NoOptions>({
  id: "sft",
  number: null,
  title: "Supervised fine-tuning",
  capability: "align",
  summary: "Learns the next token of each example from those before it.",
  implementation: "parity",
  options: {},
  roles: { objective: { data: "any", make: () => causalLm } },
});
