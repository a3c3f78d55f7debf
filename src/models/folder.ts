/** Model folders in the Hugging Face layout: config.json, model.safetensors, tokenizer files. */
import { FormatError, MissingError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { openCheckpoint } from "../io/checkpoint.ts";
import { isJsonObject, parseJson } from "../io/json.ts";
import { writeSafetensors } from "../io/safetensors.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { Dtype } from "../tensor/dtype.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { gpt2FromConfig } from "./gpt2.ts";
import { llamaFromConfig } from "./llama.ts";
import type { LanguageModel } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

/** Architectures by the `model_type` of config.json. */
const families: Readonly<Record<string, (config: Json) => LanguageModel>> = {
  gpt2: gpt2FromConfig,
  llama: llamaFromConfig,
};

const configLimit = 2 ** 20;

/** A model and its weights, as float32. */
export interface LoadedModel {
  readonly model: LanguageModel;
  readonly params: TensorRecord;
  /** The folder's config.json as it was. */
  readonly config: Json;
  readonly path: string;
}

/** A model without weights from a folder's config.json. */
export async function readModelConfig(
  files: Files,
  path: string,
): Promise<{ model: LanguageModel; config: Json }> {
  const file = files.join(path, "config.json");
  if (!(await files.info(file))) {
    throw new MissingError(
      `${path}: not a model folder, it has no config.json — give a folder in the Hugging Face layout, or "builtin".`,
    );
  }
  const config = parseJson(await files.readBytes(file, configLimit), file);
  if (!isJsonObject(config)) throw new FormatError(`${file}: must be an object.`);
  const type = String(config["model_type"]);
  const make = Object.hasOwn(families, type) ? families[type] : undefined;
  if (!make) {
    throw new UnsupportedError(
      `${file}: model_type "${type}" is not supported — supported are ${Object.keys(families).join(", ")}.`,
    );
  }
  return { model: make(config as Json), config: config as Json };
}

/** Names in a checkpoint that carry no weights of their own. */
const ignored = /(^|\.)(attn\.(masked_bias|bias)|rotary_emb\.inv_freq)$/;

/**
 * Loads a folder, strictly: every tensor of the model is found, every tensor found is used.
 * @throws FormatError naming missing, unexpected or misshaped tensors.
 */
export async function loadModel(files: Files, path: string): Promise<LoadedModel> {
  const { model, config } = await readModelConfig(files, path);
  const checkpoint = await openCheckpoint(files, path);
  try {
    // Some checkpoints leave out the prefix of the inner model.
    const names = new Set(checkpoint.entries.keys());
    const slots = new Map(model.slots());
    const prefix = `${[...slots.keys()][0]!.split(".")[0]}.`;
    const nameOf = (slot: string): string =>
      !names.has(slot) && names.has(slot.slice(prefix.length)) && slot.startsWith(prefix)
        ? slot.slice(prefix.length)
        : slot;
    const params: TensorRecord = {};
    const missing: string[] = [];
    for (const [slot, spec] of slots) {
      const name = nameOf(slot);
      const entry = checkpoint.entries.get(name);
      if (!entry) {
        missing.push(slot);
        continue;
      }
      if (!sameShape(entry.shape, spec.shape)) {
        throw new FormatError(
          `${path}: tensor "${name}" must have shape ${showShape(spec.shape)}, got ${showShape(entry.shape)} — does config.json belong to these weights?`,
        );
      }
      params[slot] = (await checkpoint.read(name)).to("float32");
      names.delete(name);
    }
    for (const alias of Object.keys(model.tied)) names.delete(nameOf(alias));
    const unexpected = [...names].filter((name) => !ignored.test(name));
    if (missing.length > 0 || unexpected.length > 0) {
      const list = (label: string, items: readonly string[]): string =>
        items.length === 0
          ? ""
          : ` ${label}: ${items.slice(0, 5).join(", ")}${items.length > 5 ? ` and ${items.length - 5} more` : ""}.`;
      throw new FormatError(
        `${path}: the weights do not fit a ${model.family} of this config.json.${list("Missing", missing)}${list("Unexpected", unexpected)}`,
        { missing, unexpected },
      );
    }
    return { model, params, config, path };
  } finally {
    await checkpoint.close();
  }
}

export interface SaveOptions {
  /** Type on disk; default float32. */
  readonly dtype?: Extract<Dtype, "float32" | "float16" | "bfloat16">;
  /** Contents of config.json; default the model's own. */
  readonly config?: Json;
  /** Further files, by name. */
  readonly files?: Readonly<Record<string, string>>;
}

const dtypeNames = { float32: "float32", float16: "float16", bfloat16: "bfloat16" } as const;

/** Writes a folder that `transformers` and `loadModel` read. Tied weights are stored once. */
export async function saveModel(
  files: Files,
  path: string,
  model: LanguageModel,
  params: Readonly<Record<string, Tensor>>,
  options: SaveOptions = {},
): Promise<void> {
  const dtype = options.dtype ?? "float32";
  await files.makeDirectory(path);
  const config = { ...(options.config ?? model.config), dtype: dtypeNames[dtype] };
  const tensors = [...model.slots()].map(([name]): [string, Tensor] => {
    const tensor = params[name];
    if (!tensor) throw new MissingError(`saveModel: no tensor for "${name}".`);
    return [name, tensor.to(dtype)];
  });
  await writeSafetensors(files, files.join(path, "model.safetensors"), tensors, { format: "pt" });
  for (const [name, text] of Object.entries(options.files ?? {})) {
    await files.writeText(files.join(path, name), text);
  }
  // Last, so that a folder with a config is complete.
  await files.writeText(files.join(path, "config.json"), `${JSON.stringify(config, null, 2)}\n`);
}
