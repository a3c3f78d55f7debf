/** Every architecture that a folder may hold, by the `model_type` of its config.json. */
import { gpt2FromConfig } from "./gpt2.ts";
import { llamaFromConfig } from "./llama.ts";
import type { PretrainedModel } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

/** Makes a model without weights; refuses by an OptionError or FormatError what it does not know. */
export const families: Readonly<Record<string, (config: Json) => PretrainedModel>> = {
  gpt2: gpt2FromConfig,
  llama: llamaFromConfig,
};
