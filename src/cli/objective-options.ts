/** The options of `finetune` that say what is learnt. None has a default here: each objective has its own. */
import { type OptionTable, oneOf, realFrom, wholeFrom } from "./command.ts";
import { divergences } from "./library.ts";

export const objectiveNames = [
  "sft",
  "dpo",
  "ipo",
  "orpo",
  "simpo",
  "kto",
  "reward",
  "distill",
  "grpo",
  "ppo",
  "gkd",
] as const;

export const objectiveOptions: OptionTable = {
  objective: {
    type: "string",
    value: "name",
    default: "sft",
    about: `what is learnt: ${objectiveNames.join(", ")}`,
    check: oneOf(...objectiveNames),
  },
  beta: {
    type: "number",
    about:
      "dpo, ipo, kto: hold to the reference; orpo: odds; simpo: reward scale; grpo: KL; jsd: mixture",
    check: realFrom(0, 100),
  },
  loss: {
    type: "string",
    value: "name",
    about: "dpo: sigmoid (default), robust, hinge",
    check: oneOf("sigmoid", "robust", "hinge"),
  },
  "label-smoothing": {
    type: "number",
    about: "dpo, simpo: share of labels taken to be wrong (default 0)",
    check: realFrom(0, 0.4999),
  },
  gamma: {
    type: "number",
    about: "simpo: margin (default 1); ppo: discount (default 1)",
    check: realFrom(0, 100),
  },
  "sft-weight": {
    type: "number",
    about: "dpo, simpo: adds the chosen answers' loss; distill: the data's (default 0)",
    check: realFrom(0, 100),
  },
  "desirable-weight": {
    type: "number",
    about: "kto: of good answers (default 1)",
    check: realFrom(0, 1e4),
  },
  "undesirable-weight": {
    type: "number",
    about: "kto: of bad answers (default 1)",
    check: realFrom(0, 1e4),
  },
  margin: {
    type: "number",
    about: "reward: what the better answer must win by (default 0)",
    check: realFrom(0, 100),
  },
  center: {
    type: "number",
    about: "reward: keeps rewards about 0 (default 0)",
    check: realFrom(0, 100),
  },
  reference: {
    type: "string",
    value: "how",
    about: "step (default), recorded (dpo, ipo: once, before training), or a model's folder",
  },
  teacher: {
    type: "string",
    value: "folder",
    about: "distill, gkd: a model of the same tokenizer",
  },
  divergence: {
    type: "string",
    value: "name",
    about: `distill (default forward), gkd (default jsd): ${divergences.join(", ")}`,
    check: oneOf(...divergences),
  },
  skew: {
    type: "number",
    about: "skew-forward, skew-reverse: share of the own distribution (default 0.1)",
    check: realFrom(0, 0.999),
  },
  temperature: {
    type: "number",
    about: "distill: of both models; grpo, ppo, gkd: of answers (default 1)",
    check: realFrom(1e-3, 100),
  },
  replay: {
    type: "string",
    value: "file",
    about: "sft: general text that a share of every batch is taken from",
  },
  "replay-share": {
    type: "number",
    about: "of every batch (default 0.05)",
    check: realFrom(1e-4, 0.9999),
  },
  reward: {
    type: "string",
    value: "names",
    about: "grpo, ppo: exact, number, json, length, or a sum as number+0.1*length",
  },
  "reward-schema": {
    type: "string",
    value: "file",
    about: "json: the JSON schema that answers fit",
  },
  "reward-length": {
    type: "number",
    about: "length: tokens up to which an answer is short enough (default 32)",
    check: wholeFrom(1, 1e6),
  },
  "group-size": {
    type: "number",
    about: "grpo: answers to each prompt (default 8)",
    check: wholeFrom(1, 4096),
  },
  iterations: {
    type: "number",
    about: "grpo, ppo: updates on each set of answers (default 1, ppo 4)",
    check: wholeFrom(1, 1000),
  },
  "max-new-tokens": {
    type: "number",
    about: "grpo, ppo, gkd: longest answer (default 64)",
    check: wholeFrom(1, 1 << 20),
  },
  clip: {
    type: "number",
    about: "grpo, ppo: of the ratio (default 0.2)",
    check: realFrom(1e-6, 1),
  },
  normalize: {
    type: "string",
    value: "by",
    about: "grpo: token (default), sequence, length (Dr. GRPO)",
    check: oneOf("token", "sequence", "length"),
  },
  "advantage-scale": {
    type: "string",
    value: "by",
    about: "grpo: group (default), batch, none (Dr. GRPO)",
    check: oneOf("group", "batch", "none"),
  },
  "kl-weight": {
    type: "number",
    about: "ppo: penalty for leaving the reference (default 0.05)",
    check: realFrom(0, 100),
  },
  lambda: { type: "number", about: "ppo: of the advantages (default 0.95)", check: realFrom(0, 1) },
  "on-policy": {
    type: "number",
    about: "gkd: share of batches that are own answers (default 0.5)",
    check: realFrom(0, 1),
  },
};
