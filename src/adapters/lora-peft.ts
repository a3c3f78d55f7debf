/** LoRA's adapter_config.json, as PEFT writes and reads it. */
import { FormatError } from "../errors.ts";
import type { JsonObject } from "../io/json.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { LoraOptions } from "./lora.ts";
import { checkHarmless, namesIn, numberIn, patternsIn, targetsIn } from "./peft-config.ts";

/** Settings that change what LoRA computes and that are not carried here: field → harmless values. */
const harmless: Readonly<Record<string, readonly unknown[]>> = {
  bias: ["none"],
  layers_to_transform: [null],
  layer_replication: [null],
  target_parameters: [null],
  use_qalora: [false, null],
  alora_invocation_tokens: [null],
  use_bdlora: [false, null],
  arrow_config: [null],
};

export interface LoraConfigParts {
  readonly options: Required<
    Pick<LoraOptions, "rank" | "alpha" | "dropout" | "rankStabilized" | "useDora" | "loraBias">
  >;
  readonly targets: readonly string[];
  readonly excluded: readonly string[];
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  readonly tokens: readonly number[];
  /** Weights lie (in, out), as GPT-2's do. */
  readonly inputsFirst: boolean;
}

export function loraConfig(parts: LoraConfigParts): Record<string, unknown> {
  const { options, targets, excluded, tokens } = parts;
  return {
    alpha_pattern: parts.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: null,
    bias: "none",
    exclude_modules: excluded.length > 0 ? [...excluded].sort() : null,
    fan_in_fan_out: parts.inputsFirst,
    inference_mode: true,
    init_lora_weights: true,
    layers_pattern: null,
    layers_to_transform: null,
    lora_alpha: options.alpha,
    lora_bias: options.loraBias,
    lora_dropout: options.dropout,
    modules_to_save: null,
    peft_type: "LORA",
    r: options.rank,
    rank_pattern: parts.rankPattern,
    revision: null,
    // Written out, as PEFT does: its own "all-linear" means other layers for some models.
    target_modules: [...new Set(targets)].sort(),
    task_type: "CAUSAL_LM",
    trainable_token_indices: tokens.length > 0 ? [...tokens] : null,
    use_dora: options.useDora,
    use_rslora: options.rankStabilized,
  };
}

/** Ids of `trainable_token_indices`: a list, or a table with one embedding's list. */
function tokensIn(config: JsonObject, where: string): readonly number[] {
  const value = config["trainable_token_indices"] ?? [];
  const lists = Array.isArray(value) ? [value] : Object.values(value);
  const [list] = lists;
  const isList =
    lists.length === 1 && Array.isArray(list) && list.every((id) => Number.isInteger(id));
  if (isList && list.length <= 65536) return list as number[];
  throw new FormatError(
    `${where}: trainable_token_indices must be one list of at most 65536 token ids, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

/** @throws FormatError, UnsupportedError for what is not carried. */
export function readLora(config: JsonObject, where: string, model: PretrainedModel): LoraOptions {
  checkHarmless(config, where, harmless);
  const excludeModules = namesIn(config, "exclude_modules", where);
  const { targetModules, paths } = targetsIn(config, where, model, excludeModules);
  const trainableTokens = tokensIn(config, where);
  return {
    rank: numberIn(config, "r", where, 8),
    alpha: numberIn(config, "lora_alpha", where, 8),
    dropout: numberIn(config, "lora_dropout", where, 0),
    rankStabilized: config["use_rslora"] === true,
    useDora: config["use_dora"] === true,
    loraBias: config["lora_bias"] === true,
    targetModules,
    ...(excludeModules.length > 0 && { excludeModules }),
    rankPattern: patternsIn(config, "rank_pattern", where, paths, model),
    alphaPattern: patternsIn(config, "alpha_pattern", where, paths, model),
    ...(trainableTokens.length > 0 && { trainableTokens }),
  };
}
