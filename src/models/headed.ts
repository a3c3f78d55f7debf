/** A model made anew with another head. */
import { OptionError } from "../errors.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { families } from "./families.ts";
import { fillFrom, type HeadConfig, type Headed, headJson } from "./heads.ts";
import type { EncoderModel, HeadTask, PretrainedModel } from "./model.ts";

const suffixes: Readonly<Record<HeadTask, string>> = {
  "masked-lm": "ForMaskedLM",
  "sequence-classification": "ForSequenceClassification",
  "token-classification": "ForTokenClassification",
};

/**
 * The model with a head for a task: its body keeps its weights, and a head of the same shape too; what it
 * lacks is new, by the stream alone. Causal language models become classifiers of texts.
 * @throws OptionError when the architecture has no such head.
 */
export function headedModel(
  model: PretrainedModel,
  params: TensorRecord,
  head: HeadConfig,
  rng: Rng,
): Headed<EncoderModel> {
  const list = model.config["architectures"];
  const name = Array.isArray(list) ? String(list[0]) : "";
  const prefix = /^(\w+?)(?:LMHeadModel|Model|For[A-Z]\w*)$/.exec(name)?.[1];
  const type = model.config["model_type"];
  const make =
    typeof type === "string" && Object.hasOwn(families, type) ? families[type] : undefined;
  const config = {
    ...model.config,
    architectures: [`${prefix}${suffixes[head.task]}`],
    ...headJson(head),
  };
  const isFit = model.kind === "encoder" || model.kind === "causal-lm";
  const made = isFit && make && prefix !== undefined ? make(config) : undefined;
  if (made?.kind !== "encoder") {
    throw new OptionError(`${head.task}: a ${model.family} takes no such head.`);
  }
  return fillFrom(made as EncoderModel, params, rng);
}

/**
 * The modules to train beside an adapter, as PEFT's `modules_to_save` names them: a classifier, and
 * whatever has new numbers.
 */
export function modulesToTrain({ model, fresh }: Headed<EncoderModel>): string[] {
  const { head } = model;
  const own = head && head.task !== "masked-lm" ? [...head.modules] : [];
  for (const path of fresh) {
    if (own.some((name) => `${path}.`.startsWith(`${name}.`))) continue;
    const top = head?.modules.find((name) => path.startsWith(`${name}.`));
    const name = top ?? path.split(".").slice(1, -1).join(".");
    if (!own.includes(name)) own.push(name);
  }
  return own;
}
