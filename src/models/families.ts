/** Every architecture that a folder may hold, by the `model_type` of its config.json. */
import { bertFromConfig } from "./bert.ts";
import { classifying } from "./causal-encoder.ts";
import { clipFromConfig, clipTextFromConfig, clipVisionFromConfig } from "./clip.ts";
import { distilBertFromConfig } from "./distilbert.ts";
import { gemma3FromConfig } from "./gemma3.ts";
import { gptNeoxFromConfig } from "./gpt-neox.ts";
import { gpt2FromConfig } from "./gpt2.ts";
import { llamaFromConfig } from "./llama.ts";
import { mambaFromConfig } from "./mamba.ts";
import { mamba2FromConfig } from "./mamba2.ts";
import type { PretrainedModel } from "./model.ts";
import { phi3FromConfig } from "./phi3.ts";
import { resnetFromConfig } from "./resnet.ts";
import { robertaFromConfig, xlmRobertaFromConfig } from "./roberta.ts";
import { mt5FromConfig, t5FromConfig } from "./t5.ts";
import { vitFromConfig } from "./vit.ts";

type Json = Readonly<Record<string, unknown>>;

const table: Readonly<Record<string, (config: Json) => PretrainedModel>> = {
  bert: bertFromConfig,
  clip: clipFromConfig,
  clip_text_model: clipTextFromConfig,
  clip_vision_model: clipVisionFromConfig,
  distilbert: distilBertFromConfig,
  gemma3_text: gemma3FromConfig,
  gpt2: gpt2FromConfig,
  gpt_neox: gptNeoxFromConfig,
  llama: llamaFromConfig,
  mamba: mambaFromConfig,
  mamba2: mamba2FromConfig,
  mistral: llamaFromConfig,
  mt5: mt5FromConfig,
  phi3: phi3FromConfig,
  qwen2: llamaFromConfig,
  qwen3: llamaFromConfig,
  resnet: resnetFromConfig,
  roberta: robertaFromConfig,
  t5: t5FromConfig,
  vit: vitFromConfig,
  "xlm-roberta": xlmRobertaFromConfig,
};

/** Makes a model without weights; refuses by an OptionError or FormatError what it does not know. */
export const families: Readonly<Record<string, (config: Json) => PretrainedModel>> =
  Object.fromEntries(Object.entries(table).map(([type, make]) => [type, classifying(make)]));
