/** Model folders in the Hugging Face layout: config.json, model.safetensors, tokenizer files. */
import { FormatError, MissingError, OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { openCheckpoint } from "../io/checkpoint.ts";
import { fileDtype } from "../io/safetensors-types.ts";
import { writeShards } from "../io/safetensors-write.ts";
import type { TensorRecord } from "../nn/module.ts";
import { type Dtype, isFloat } from "../tensor/dtype.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { configText, parseConfig } from "./config.ts";
import { families } from "./families.ts";
import { withGguf } from "./gguf-folder.ts";
import type { LanguageModel, ModelKind, PretrainedModel } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

const configLimit = 2 ** 20;

/** A model and its weights, as float32. */
export interface LoadedModel<M extends PretrainedModel = LanguageModel> {
  readonly model: M;
  readonly params: TensorRecord;
  /** The folder's config.json as it was. */
  readonly config: Json;
  readonly path: string;
}

export interface LoadModelOptions {
  /**
   * What is kept of a parameter once it is read, by name, so that not all of a model's floats are in memory
   * at once; default itself.
   */
  readonly keep?: (model: PretrainedModel, slot: string, weights: Tensor) => TensorRecord;
}

/** A causal language model without weights from a folder's config.json. */
export async function readModelConfig(
  files: Files,
  path: string,
): Promise<{ model: LanguageModel; config: Json }> {
  const { model, config } = await readAnyConfig(files, path);
  return { model: ofKind<LanguageModel>(model, "causal-lm", path), config };
}

const kindNames: Readonly<Record<ModelKind, string>> = {
  "causal-lm": "a causal language model",
  encoder: "a text encoder",
  seq2seq: "an encoder with a decoder",
  vision: "a model of pictures",
  "vision-text": "a model of pictures and text",
};

/** @throws UnsupportedError when the model is of another kind. */
export function ofKind<M extends PretrainedModel>(
  model: PretrainedModel,
  kind: M["kind"],
  path: string,
): M {
  if (model.kind === kind) return model as M;
  throw new UnsupportedError(
    `${path}: holds ${kindNames[model.kind]} (${model.family}), ${kindNames[kind]} is needed here.`,
  );
}

/** A model of any kind without weights from a folder's config.json, or from a GGUF file. */
export async function readAnyConfig(
  given: Files,
  path: string,
): Promise<{ model: PretrainedModel; config: Json }> {
  const files = withGguf(given);
  const file = files.join(path, "config.json");
  if (!(await files.info(file))) {
    const isFile = (await files.info(path))?.isDirectory === false;
    throw new MissingError(
      `${path}: ${isFile ? "is a file and no model folder" : "not a model folder, it has no config.json"} — give a folder in the Hugging Face layout, or "builtin".`,
    );
  }
  const config = parseConfig(await files.readBytes(file, configLimit), file);
  const type = config["model_type"];
  const known = Object.keys(families).join(", ");
  if (typeof type !== "string") {
    throw new FormatError(
      `${file}: model_type must be a name, got ${JSON.stringify(type ?? null)} — supported are ${known}.`,
    );
  }
  const make = Object.hasOwn(families, type) ? families[type] : undefined;
  if (!make) {
    throw new UnsupportedError(
      `${file}: model_type "${type}" is not supported — supported are ${known}.`,
    );
  }
  try {
    return { model: make(config as Json), config: config as Json };
  } catch (error) {
    // What a model refuses of its settings is a fault of this file.
    if (!(error instanceof OptionError || error instanceof FormatError)) throw error;
    throw new FormatError(
      `${file}: ${error.message}`,
      { ...error.details, path: file },
      { cause: error },
    );
  }
}

/** Names in a checkpoint that carry no weights of their own. */
const ignored = /(^|\.)(attn\.(masked_bias|bias)|rotary_emb\.inv_freq)$/;

/**
 * Weights from a file as float32.
 * @param where begins an error: the file and the tensor
 * @throws FormatError for whole numbers, and for numbers that are none: all they touch would be none.
 */
export function asWeights(tensor: Tensor, where: string): Tensor {
  if (!isFloat(tensor.dtype)) {
    throw new FormatError(
      `${where} is of ${tensor.dtype}, weights are floats — folders that other tools quantized are not read.`,
    );
  }
  const result = tensor.to("float32");
  const data = result.data as Float32Array;
  for (let i = 0; i < data.length; i++) {
    if (data[i]! - data[i]! === 0) continue;
    throw new FormatError(
      `${where} holds ${data[i]} at element ${i} — the file is damaged, or the training that wrote it went wrong.`,
    );
  }
  return result;
}

/**
 * Whole numbers that a model keeps beside its weights, as the batches that a norm has seen.
 * @throws FormatError for floats, and for numbers outside 0 … 2³¹ - 1.
 */
function asCounts(tensor: Tensor, where: string): Tensor {
  const numbers = Array.from(tensor.numbers());
  if (!isFloat(tensor.dtype) && numbers.every((n) => n >= 0 && n < 2 ** 31)) {
    return tensor.to("int32");
  }
  throw new FormatError(
    `${where} must hold whole numbers from 0 below ${2 ** 31}, got ${tensor.dtype} ${numbers.slice(0, 3).join(", ")}.`,
  );
}

/**
 * How a checkpoint names a model's slots: some leave out the prefix of the inner model.
 * @param names of the tensors in the checkpoint
 */
export function checkpointNames(
  model: PretrainedModel,
  names: ReadonlySet<string>,
): (slot: string) => string {
  const [[first]] = [...model.slots()] as [[string, unknown]];
  const prefix = `${first.split(".")[0]}.`;
  return (slot) => {
    const short = slot.slice(prefix.length);
    return !names.has(slot) && slot.startsWith(prefix) && names.has(short) ? short : slot;
  };
}

/**
 * Loads a folder or a GGUF file, strictly: every tensor of the model is found, every tensor found is used.
 * @throws FormatError naming missing, unexpected or misshaped tensors, and numbers that are none.
 */
export async function loadModel(
  given: Files,
  path: string,
  options: LoadModelOptions = {},
): Promise<LoadedModel> {
  const files = withGguf(given);
  const { model, config } = await readModelConfig(files, path);
  return { model, config, path, params: await loadWeights(files, path, model, options) };
}

/**
 * The same for a model of any kind.
 * @throws FormatError as `loadModel`.
 */
export async function loadAnyModel(
  given: Files,
  path: string,
): Promise<LoadedModel<PretrainedModel>> {
  const files = withGguf(given);
  const { model, config } = await readAnyConfig(files, path);
  return { model, config, path, params: await loadWeights(files, path, model) };
}

async function loadWeights(
  files: Files,
  path: string,
  model: PretrainedModel,
  { keep }: LoadModelOptions = {},
): Promise<TensorRecord> {
  const checkpoint = await openCheckpoint(files, path);
  try {
    const names = new Set(checkpoint.entries.keys());
    const slots = new Map(model.slots());
    const nameOf = checkpointNames(model, new Set(names));
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
      const where = `${path}: tensor "${name}"`;
      const tensor = await checkpoint.read(name);
      const weights = isFloat(spec.dtype) ? asWeights(tensor, where) : asCounts(tensor, where);
      Object.assign(params, keep ? keep(model, slot, weights) : { [slot]: weights });
      names.delete(name);
    }
    for (const alias of Object.keys(model.tied)) names.delete(nameOf(alias));
    const unexpected = [...names].filter(
      (name) => !ignored.test(name) && !(model.ignored?.test(name) ?? false),
    );
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
    return params;
  } finally {
    await checkpoint.close();
  }
}

export interface SaveOptions {
  /** Type on disk; default float32. */
  readonly dtype?: Extract<Dtype, "float32" | "float16" | "bfloat16">;
  /** Most bytes of weights in one file; default 5e9, as in `transformers`. */
  readonly maxShardBytes?: number;
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
  model: PretrainedModel,
  params: Readonly<Record<string, Tensor>>,
  options: SaveOptions = {},
): Promise<void> {
  const dtype = options.dtype ?? "float32";
  await files.makeDirectory(path);
  const config = { ...(options.config ?? model.config), dtype: dtypeNames[dtype] };
  const slots = new Map(model.slots());
  // Counts are int64 on disk, as PyTorch keeps them.
  const typeOf = (name: string): Dtype => (isFloat(slots.get(name)!.dtype) ? dtype : "int64");
  const plans = [...slots].map(([name, { shape }]) => {
    if (!params[name]) throw new MissingError(`saveModel: no tensor for "${name}".`);
    return { name, dtype: fileDtype[typeOf(name)], shape };
  });
  await writeShards(files, path, plans, async ({ name }) => params[name]!.to(typeOf(name)), {
    ...(options.maxShardBytes !== undefined && { maxShardBytes: options.maxShardBytes }),
  });
  for (const [name, text] of Object.entries(options.files ?? {})) {
    await files.writeText(files.join(path, name), text);
  }
  // Last, so that a folder with a config is complete.
  await files.writeText(files.join(path, "config.json"), configText(config));
}
