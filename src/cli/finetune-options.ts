/** The options of `finetune`: one table for parsing, checking, help, and the record of a run. */
import { type OptionTable, oneOf, realFrom, wholeFrom } from "./command.ts";
import { methodsWith, optimizerNames, type RoleName, scheduleNames } from "./library.ts";
import { fileFlags, methodFlags, modelFlags } from "./method-flags.ts";
import { modelOption, threadsOption } from "./models.ts";
import { taskOptions } from "./task-options.ts";

const data: OptionTable = {
  model: modelOption,
  data: {
    type: "string",
    value: "file",
    about: '.jsonl, .json, .csv, .tsv, .parquet or .txt; or "commands", the task in this package',
  },
  "held-out": {
    type: "string",
    value: "file",
    about: "examples to judge by (default: a tenth of the data, chosen by hash)",
  },
  map: {
    type: "string",
    value: "column=field",
    many: true,
    about: "read a column under another name, as question=prompt",
  },
  format: {
    type: "string",
    value: "name",
    default: "auto",
    about: "of the data, where its name does not say it: jsonl, json, csv, tsv, parquet, text",
    check: oneOf("auto", "jsonl", "json", "csv", "tsv", "parquet", "text"),
  },
  template: {
    type: "string",
    value: "text",
    default: "{prompt}\\n",
    about: "what stands before a completion",
  },
  "chat-format": { type: "flag", about: "show prompts and completions to the model as chats" },
  "loss-on": {
    type: "string",
    value: "what",
    default: "completion",
    about: "tokens that carry loss: completion, last (turn of a chat), all",
    check: oneOf("completion", "last", "all"),
  },
  "max-length": {
    type: "number",
    default: 512,
    about: "longest example in tokens; the rest is cut",
    check: wholeFrom(2, 1 << 20),
  },
  packing: { type: "flag", about: "put several short examples into one row of max-length" },
  preview: { type: "flag", about: "show which tokens carry loss, and end" },
};

const idsOf = (...roles: readonly RoleName[]): string =>
  roles.flatMap((role) => methodsWith(role).map(({ id }) => id)).join(", ");

const method: OptionTable = {
  adapter: {
    type: "string",
    value: "method",
    default: "lora",
    about: `what is trained beside the frozen model: ${idsOf("adapter")}; with options of its own as lora:rank=4,alpha=8`,
  },
  "from-adapter": {
    type: "string",
    value: "folder",
    about: "train an adapter further that is there: its kind and its numbers",
  },
  init: {
    type: "string",
    value: "method",
    about: `first numbers of LoRA: ${idsOf("initialiser") || "none is there yet"}; with options as with --adapter`,
  },
  objective: {
    type: "string",
    value: "method",
    default: "sft",
    about: `what is learnt: ${idsOf("objective", "policy")}; with options as dpo:beta=0.2`,
  },
  curriculum: {
    type: "string",
    value: "method",
    about: `which examples are learnt from, and when: ${idsOf("dataPolicy")}`,
  },
  "load-in-4bit": { type: "flag", about: "keep the frozen model's layers in 4 bits" },
  "load-in-8bit": { type: "flag", about: "keep the frozen model's layers in 8 bits" },
  full: { type: "flag", about: "train all parameters instead of an adapter" },
  freeze: {
    type: "string",
    value: "part",
    many: true,
    about: "with --full: leave parameters out, as embed_tokens or layers.0",
  },
};

/** What objectives need beside options of their own. */
const learning: OptionTable = {
  reference: {
    type: "string",
    value: "how",
    about:
      "of objectives that compare with the model as it was: step (default), recorded (once, before training), or a model's folder",
  },
  ...modelFlags(),
  ...fileFlags(),
  reward: {
    type: "string",
    value: "names",
    about: "of own answers: exact, number, json, length, or a sum as number+0.1*length",
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
};

const training: OptionTable = {
  epochs: {
    type: "number",
    default: 3,
    about: "passes over the data",
    check: realFrom(0.001, 1e6),
  },
  steps: { type: "number", about: "optimiser steps, instead of epochs", check: wholeFrom(1) },
  "batch-size": {
    type: "number",
    default: 16,
    about: "examples a step; rows with --packing",
    check: wholeFrom(1, 65536),
  },
  accumulate: {
    type: "number",
    default: 1,
    about: "parts of a step whose gradients are added up",
    check: wholeFrom(1, 65536),
  },
  "learning-rate": {
    type: "number",
    about: "highest rate (default 2e-3, with --full 3e-4)",
    check: realFrom(0, 10),
  },
  optimizer: {
    type: "string",
    value: "name",
    default: "adamw",
    about: optimizerNames.join(", "),
  },
  schedule: {
    type: "string",
    value: "name",
    default: "linear",
    about: `of the rate: ${scheduleNames.slice(0, 4).join(", ")}, ...`,
  },
  warmup: {
    type: "number",
    about: "share of the steps over which the rate rises (default 0.05)",
    check: realFrom(0, 1),
  },
  decay: {
    type: "number",
    about: "share of the steps over which warmup_stable_decay falls (default 0.2)",
    check: realFrom(0, 1),
  },
  "weight-decay": { type: "number", default: 0.01, about: "on matrices", check: realFrom(0, 10) },
  "clip-norm": {
    type: "number",
    default: 1,
    about: "largest norm of the gradient",
    check: realFrom(1e-6, 1e6),
  },
  "gradient-checkpointing": {
    type: "flag",
    about: "recompute blocks in the backward pass: less memory, more time",
  },
  seed: {
    type: "number",
    default: 0,
    about: "order of the data, first numbers and noise",
    check: wholeFrom(0, 2 ** 52),
  },
};

/** These change how a run is carried out, and not what it computes: a resumed run may have others. */
const running: OptionTable = {
  out: {
    type: "string",
    value: "folder",
    about: "the run: logs, checkpoints, the adapter or model (default runs/<time>)",
  },
  resume: { type: "string", value: "folder", about: "go on with a run that was stopped or killed" },
  "save-every": {
    type: "number",
    about: "steps between checkpoints (default a tenth of all)",
    check: wholeFrom(1),
  },
  keep: { type: "number", default: 2, about: "checkpoints kept", check: wholeFrom(1, 1000) },
  "dry-run": { type: "flag", about: "say what memory and time it would take, and end" },
  "memory-limit": {
    type: "number",
    value: "GB",
    about: "refuse what would need more (default: the machine's)",
    check: realFrom(0.01, 1e5),
  },
  "find-learning-rate": {
    type: "flag",
    about: "try rates from low to high, show the curve, and end",
  },
  compare: {
    type: "string",
    value: "methods",
    about: "train each, as lora,lora:rank=4,full, at the same steps and data; show which is best",
  },
  threads: threadsOption,
};

const judging: OptionTable = {
  "eval-every": {
    type: "number",
    about: "steps between evaluations on held-out examples",
    check: wholeFrom(1),
  },
  "early-stopping": {
    type: "number",
    value: "count",
    about: "end after so many evaluations without a better one, and keep the best",
    check: wholeFrom(1, 1e6),
  },
  "eval-limit": {
    type: "number",
    default: 300,
    about: "held-out prompts answered before and after",
    check: wholeFrom(0),
  },
};

function under(group: string, table: OptionTable): OptionTable {
  return Object.fromEntries(
    Object.entries(table).map(([name, option]) => [name, { ...option, group }]),
  );
}

/** Flags that methods may not give another meaning. */
const taken: ReadonlySet<string> = new Set(
  [data, method, learning, taskOptions, training, judging, running].flatMap((table) =>
    Object.keys(table),
  ),
);

const ofAdapters = methodFlags(["adapter", "initialiser"], taken);
const ofObjectives = methodFlags(
  ["objective", "policy", "dataPolicy"],
  new Set([...taken, ...Object.keys(ofAdapters)]),
);

export const finetuneOptions: OptionTable = {
  ...under("Model and data", data),
  ...under("Method", method),
  ...under("Options of adapters", ofAdapters),
  ...under("Objective", { ...learning, ...ofObjectives }),
  ...under("Task", taskOptions),
  ...under("Training", training),
  ...under("Judging", judging),
  ...under("Run", running),
};

/** Options that a run's record holds, and that a resumed run must not change. */
export const recordedOptions: readonly string[] = Object.keys(finetuneOptions).filter(
  (name) => !Object.hasOwn(running, name) && name !== "preview",
);
