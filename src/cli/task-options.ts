/** The options of `finetune` and `eval` that tasks read. */
import { type OptionTable, type OptionValues, oneOf, realFrom, wholeFrom } from "./command.ts";
import { pairsOf } from "./finetune-data.ts";
import {
  type AnyTaskKind,
  type DataFormat,
  OptionError,
  type Pooling,
  pictureTaskKinds,
  poolings,
  type Rng,
  type SentenceConfig,
  type TaskOptions,
  taskKinds,
} from "./library.ts";

/** The task that is none of the table: the next token. */
export const nextToken = "causal-lm";

const kinds: readonly AnyTaskKind[] = [...taskKinds, ...pictureTaskKinds];

const names = [nextToken, ...kinds.map(({ name }) => name)];

export const taskOption: OptionTable = {
  task: {
    type: "string",
    value: "name",
    default: nextToken,
    about: `what is learnt of the data: ${names.join(", ")}`,
    check: oneOf(...names),
  },
  labels: {
    type: "string",
    value: "names",
    about: "of classes or tags, with commas, in the order of their numbers (default: those found)",
  },
};

export const taskOptions: OptionTable = {
  ...taskOption,
  "mask-share": {
    type: "number",
    about: "masked-lm: share of the tokens hidden (default 0.15)",
    check: realFrom(0.01, 0.9),
  },
  "sentence-loss": {
    type: "string",
    value: "name",
    about:
      "sentence-embedding: mnrl, triplet, cosine, contrastive or cosent (default: cosent with scores, else mnrl)",
    check: oneOf("mnrl", "triplet", "cosine", "contrastive", "cosent"),
  },
  "cosine-scale": {
    type: "number",
    about: "mnrl, cosent: what cosines are multiplied by (default 20)",
    check: realFrom(1e-3, 1e3),
  },
  pooling: {
    type: "string",
    value: "name",
    about: `sentence-embedding: ${poolings.join(", ")} (default: the folder's own)`,
    check: oneOf(...poolings),
  },
  matryoshka: {
    type: "string",
    value: "sizes",
    about: "sentence-embedding: learn vectors that may be cut, as 384,192,96",
  },
  "num-beams": {
    type: "number",
    about:
      "seq2seq: beams of the search for each answer (default 1: the likeliest token each time)",
    check: wholeFrom(1, 64),
  },
  "length-penalty": {
    type: "number",
    about: "seq2seq: with beams, above 0 for longer answers (default 1)",
    check: realFrom(-10, 10),
  },
};

/** A task that nothing is learnt for: `eval` alone has it. */
export const zeroShotTask = "zero-shot-image-classification";

const judged = [...names, zeroShotTask];

/** What `eval` has beside `taskOptions`. */
export const judgingOptions: OptionTable = {
  task: {
    ...taskOption["task"]!,
    about: `what the model is judged by: ${judged.join(", ")}`,
    check: oneOf(...judged),
  },
  "label-template": {
    type: "string",
    value: "text",
    about: `${zeroShotTask}: what a class is called, {} for its name (default "This is a photo of {}.")`,
  },
  "top-k": {
    type: "number",
    about: `${zeroShotTask}: right is also a class among so many likeliest (default 5)`,
    check: wholeFrom(1, 65536),
  },
};

/** The task that the options name; none for the next token. */
export function taskOf(options: OptionValues): AnyTaskKind | undefined {
  return kinds.find(({ name }) => name === options["task"]);
}

function sizesOf(text: string): number[] {
  const sizes = text.split(",").map(Number);
  if (sizes.every((size) => Number.isInteger(size) && size >= 1)) return sizes;
  throw new OptionError(`--matryoshka must be whole numbers with commas, got "${text}".`);
}

/** What options say to a task. */
export function taskSettings(
  options: OptionValues,
  rng: Rng,
  sentence: SentenceConfig | undefined,
): TaskOptions {
  const some = (name: string, key: string): object =>
    options[name] === undefined ? {} : { [key]: options[name] };
  return {
    rng,
    map: pairsOf("map", (options["map"] as readonly string[] | undefined) ?? []),
    format: options["format"] as DataFormat | "auto",
    ...some("held-out", "heldOutPath"),
    ...some("max-length", "maxLength"),
    ...some("label-smoothing", "labelSmoothing"),
    ...some("mask-share", "maskShare"),
    ...some("sentence-loss", "loss"),
    ...some("cosine-scale", "scale"),
    ...(options["pooling"] !== undefined && { pooling: options["pooling"] as Pooling }),
    ...(options["matryoshka"] !== undefined && { dims: sizesOf(options["matryoshka"] as string) }),
    ...(options["labels"] !== undefined && {
      labels: (options["labels"] as string).split(",").map((label) => label.trim()),
    }),
    ...some("eval-limit", "answerLimit"),
    ...some("num-beams", "numBeams"),
    ...some("length-penalty", "lengthPenalty"),
    ...(sentence && { sentence }),
  };
}

/** Numbers of a measure as people read them. */
export function showMeasure(value: number): string {
  return Number.isFinite(value) ? value.toFixed(4) : "—";
}
