/** What prefix and prompt tuning share: tokens that no one wrote, before every sequence, as PEFT keeps them. */
import { checkHarmless, numberIn } from "../../../adapters/peft-config.ts";
import { FormatError, OptionError, UnsupportedError } from "../../../errors.ts";
import type { JsonObject } from "../../../io/json.ts";
import { asWeights } from "../../../models/folder.ts";
import type { LanguageModel, PretrainedModel } from "../../../models/model.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import { type StaticShape, sameShape, showShape } from "../../../tensor/shape.ts";
import type { Tensor } from "../../../tensor/tensor.ts";

/** The one tensor in the files of both. */
export const embeddingsName = "prompt_embeddings";

/**
 * That a model can read tokens behind keys and values that were there before.
 * @throws UnsupportedError for a model of another kind, or one whose positions do not allow it.
 * @throws OptionError where the virtual tokens leave no position for others.
 */
export function promptModel(where: string, model: PretrainedModel, tokens: number): LanguageModel {
  if (model.kind !== "causal-lm") {
    throw new UnsupportedError(
      `${where}: a ${model.family} ${model.kind} model does not read behind virtual tokens — take a causal language model, or another adapter.`,
    );
  }
  const causal = model as LanguageModel;
  if (causal.stateShapes) {
    throw new UnsupportedError(
      `${where}: a ${model.family} carries a state in place of keys and values — take another adapter.`,
    );
  }
  if (causal.cacheLimit !== undefined) {
    throw new UnsupportedError(
      `${where}: this ${model.family} turns positions by other angles beyond ${causal.cacheLimit} tokens (LongRoPE), which virtual tokens would not follow — take another adapter.`,
    );
  }
  const { maxPositions } = causal.sizes;
  if (tokens > maxPositions - 2) {
    throw new OptionError(
      `${where}: ${tokens} virtual tokens leave no room in the model's ${maxPositions} positions — take at most ${maxPositions - 2}.`,
    );
  }
  return causal;
}

/** Heads and width as a kind's files have them. */
export interface PromptSizes {
  readonly tokens: number;
  readonly tokenDim: number;
  readonly heads: number;
  readonly layers: number;
}

/** Fields of an adapter_config.json that both kinds have. */
export function promptConfig(
  kind: string,
  { tokens, tokenDim, heads, layers }: PromptSizes,
): Record<string, unknown> {
  return {
    auto_mapping: null,
    base_model_name_or_path: null,
    inference_mode: true,
    modules_to_save: null,
    num_attention_heads: heads,
    num_layers: layers,
    num_transformer_submodules: 1,
    num_virtual_tokens: tokens,
    peft_type: kind,
    revision: null,
    task_type: "CAUSAL_LM",
    token_dim: tokenDim,
  };
}

const harmless = { num_transformer_submodules: [null, 1], task_type: [null, "CAUSAL_LM"] };

/**
 * The number of virtual tokens, once sizes are checked against the model's.
 * @param sizes of the model; a size that a file does not name is the model's
 * @throws FormatError for sizes of another model, UnsupportedError for another task.
 */
export function readPromptConfig(
  config: JsonObject,
  where: string,
  sizes: Omit<PromptSizes, "tokens">,
): number {
  checkHarmless(config, where, harmless);
  const fields = {
    token_dim: sizes.tokenDim,
    num_attention_heads: sizes.heads,
    num_layers: sizes.layers,
  };
  for (const [field, own] of Object.entries(fields)) {
    const value = numberIn(config, field, where, own);
    if (value === own) continue;
    throw new FormatError(
      `${where}: ${field} is ${value}, the model has ${own} — was the adapter made for another model?`,
    );
  }
  return numberIn(config, "num_virtual_tokens", where, 0);
}

/**
 * The one tensor of a file.
 * @throws FormatError when there is another one, or it has another shape.
 */
export function readEmbeddings(
  stored: Readonly<TensorRecord>,
  shape: StaticShape,
  where: string,
): Tensor<"float32"> {
  const tensor = stored[embeddingsName];
  const other = Object.keys(stored).find((name) => name !== embeddingsName);
  if (!tensor || other !== undefined) {
    throw new FormatError(
      `${where}: must hold "${embeddingsName}" alone, ${tensor ? `and has "${other}" too` : `and lacks it`}.`,
    );
  }
  if (!sameShape(tensor.shape, shape)) {
    throw new FormatError(
      `${where}: "${embeddingsName}" must have shape ${showShape(shape)}, got ${showShape(tensor.shape)}.`,
    );
  }
  return asWeights(tensor, `${where}: tensor "${embeddingsName}"`) as Tensor<"float32">;
}

/** @throws UnsupportedError always: what stands before a sequence is in no weight. */
export function refuseMerge(where: string): never {
  throw new UnsupportedError(
    `${where}: cannot be merged — it stands before every sequence and changes no weight; use it beside the model.`,
  );
}
