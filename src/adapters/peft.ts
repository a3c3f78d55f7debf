/** Adapter folders as PEFT writes and reads them: adapter_config.json, adapter_model.safetensors. */
import { FormatError, MissingError, OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { refusePickle } from "../io/checkpoint.ts";
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import { SafetensorsFile, writeSafetensors } from "../io/safetensors.ts";
import { asWeights } from "../models/folder.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { type Adapter, matchTargets } from "./adapter.ts";
import { type LoraOptions, lora } from "./lora.ts";
import { compilePattern } from "./pattern.ts";
import { modulesNamed, withModules } from "./saved-modules.ts";

const configName = "adapter_config.json";
const weightsName = "adapter_model.safetensors";
const configLimit = 2 ** 20;
/** EVA writes one a layer. */
const maxPatterns = 1024;

/** An adapter and its numbers. */
export interface LoadedAdapter {
  readonly adapter: Adapter;
  readonly params: TensorRecord;
}

/** JSON as Python's `json.dumps(indent=2, sort_keys=True)` writes it. */
export function sortedJson(value: Readonly<Record<string, unknown>>): string {
  const sort = (item: unknown): unknown => {
    if (Array.isArray(item)) return item.map(sort);
    if (typeof item !== "object" || item === null) return item;
    const entries = Object.entries(item as Record<string, unknown>);
    return Object.fromEntries(
      entries.sort(([a], [b]) => (a < b ? -1 : 1)).map(([key, inner]) => [key, sort(inner)]),
    );
  };
  return JSON.stringify(sort(value), null, 2);
}

export interface SaveAdapterOptions {
  /** The base model's name or folder, for `base_model_name_or_path`. */
  readonly base?: string;
  /** Contents of README.md; default a short card. */
  readonly card?: string;
}

/** Writes a folder that PEFT loads. The configuration comes last: a folder with one is complete. */
export async function saveAdapter(
  files: Files,
  path: string,
  adapter: Adapter,
  params: Readonly<Record<string, Tensor>>,
  options: SaveAdapterOptions = {},
): Promise<void> {
  await files.makeDirectory(path);
  const weights = Object.entries(params).map(([name, tensor]) => [name, tensor] as const);
  await writeSafetensors(files, files.join(path, weightsName), weights, { format: "pt" });
  const card = options.card ?? `---\nlibrary_name: peft\n---\n\n# ${adapter.kind} adapter\n`;
  await files.writeText(files.join(path, "README.md"), card);
  const config = { ...adapter.config(), base_model_name_or_path: options.base ?? null };
  await files.writeText(files.join(path, configName), sortedJson(config));
}

/** Settings that change what an adapter computes and that are not carried here: field → harmless values. */
const unsupported: Readonly<Record<string, readonly unknown[]>> = {
  use_dora: [false, null],
  bias: ["none"],
  layers_to_transform: [null],
  layer_replication: [null],
  lora_bias: [false],
  trainable_token_indices: [null],
  target_parameters: [null],
  exclude_modules: [null],
};

function checkSupported(config: JsonObject, file: string): void {
  for (const [field, allowed] of Object.entries(unsupported)) {
    const value = config[field];
    if (value === undefined || allowed.includes(value)) continue;
    if (Array.isArray(value) && value.length === 0) continue;
    throw new UnsupportedError(`${file}: ${field} ${JSON.stringify(value)} is not supported.`);
  }
}

/** A table of numbers by pattern, without those that match no adapted layer, which PEFT lets pass. */
function readPattern(
  config: JsonObject,
  field: string,
  file: string,
  paths: readonly string[],
): Record<string, number> {
  const value = config[field] ?? {};
  const isTable =
    isJsonObject(value) && Object.values(value).every((item) => typeof item === "number");
  if (!isTable || Object.keys(value).length > maxPatterns) {
    throw new FormatError(
      `${file}: ${field} must map at most ${maxPatterns} patterns to numbers, got ${JSON.stringify(value).slice(0, 80)}.`,
    );
  }
  return Object.fromEntries(
    Object.entries(value as Record<string, number>).filter(([pattern]) =>
      paths.some(compilePattern(pattern, `${file}: ${field}`)),
    ),
  );
}

function readOptions(config: JsonObject, file: string, model: PretrainedModel): LoraOptions {
  if (config["peft_type"] !== "LORA") {
    throw new UnsupportedError(
      `${file}: peft_type ${JSON.stringify(config["peft_type"])} is not supported — supported is "LORA".`,
    );
  }
  checkSupported(config, file);
  const number = (field: string, missing: number): number => {
    const value = config[field] ?? missing;
    if (typeof value === "number") return value;
    throw new FormatError(`${file}: ${field} must be a number, got ${JSON.stringify(value)}.`);
  };
  const targets = config["target_modules"];
  const isList = Array.isArray(targets) && targets.every((item) => typeof item === "string");
  if (targets !== "all-linear" && !isList) {
    throw new FormatError(
      `${file}: target_modules must be a list of names or "all-linear", got ${JSON.stringify(targets)}.`,
    );
  }
  const paths =
    targets === "all-linear"
      ? [...model.targets.keys()]
      : matchTargets(model, targets as readonly string[]);
  return {
    rank: number("r", 8),
    alpha: number("lora_alpha", 8),
    dropout: number("lora_dropout", 0),
    rankStabilized: config["use_rslora"] === true,
    targetModules: targets as readonly string[] | "all-linear",
    rankPattern: readPattern(config, "rank_pattern", file, paths),
    alphaPattern: readPattern(config, "alpha_pattern", file, paths),
  };
}

/** Modules that are trained whole. */
function readModules(config: JsonObject, file: string): readonly string[] {
  const value = config["modules_to_save"] ?? [];
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
  throw new FormatError(
    `${file}: modules_to_save must be a list of names, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

/** Settings that LoRA refuses are faults of the file here. */
function bind(model: PretrainedModel, config: JsonObject, file: string): Adapter {
  const options = readOptions(config, file, model);
  const named = readModules(config, file);
  // PEFT writes the usual names of heads, of which a model has one; others are refused by their tensors.
  const found = named.filter((name) => modulesNamed(model, name).length > 0);
  const modules = found.length > 0 ? found : named;
  const taskType = config["task_type"];
  try {
    const adapter = lora(model, options);
    if (modules.length === 0) return adapter;
    return withModules(adapter, model, modules, {
      ...(typeof taskType === "string" && { taskType }),
    });
  } catch (error) {
    if (!(error instanceof OptionError)) throw error;
    throw new FormatError(`${file}: ${error.message}`, error.details, { cause: error });
  }
}

/**
 * Reads a folder for a model, strictly: every tensor is applied, or named in an error.
 * @throws MissingError when the folder is no adapter; FormatError when its tensors do not fit;
 * UnsupportedError when they are in a pickle.
 */
export async function loadAdapter(
  files: Files,
  path: string,
  model: PretrainedModel,
): Promise<LoadedAdapter> {
  const file = files.join(path, configName);
  if (!(await files.info(file))) {
    throw new MissingError(`${path}: not an adapter folder, it has no ${configName}.`);
  }
  const config = parseJson(await files.readBytes(file, configLimit), file);
  if (!isJsonObject(config)) throw new FormatError(`${file}: must be an object.`);
  const adapter = bind(model, config, file);
  const weightsPath = files.join(path, weightsName);
  if (!(await files.info(weightsPath))) await refusePickle(files, path);
  const weights = await SafetensorsFile.open(files, weightsPath);
  try {
    const expected = adapter.init(new Rng(0));
    const missing = Object.keys(expected).filter((name) => !weights.entries.has(name));
    const unexpected = [...weights.entries.keys()].filter((name) => !expected[name]);
    if (missing.length > 0 || unexpected.length > 0) {
      throw new FormatError(
        `${weights.path}: the tensors do not fit this ${model.family}: missing [${missing.slice(0, 3).join(", ")}], unexpected [${unexpected.slice(0, 3).join(", ")}] — was the adapter made for another model?`,
        { missing, unexpected },
      );
    }
    const params: TensorRecord = {};
    for (const [name, like] of Object.entries(expected)) {
      const tensor = await weights.read(name);
      if (!sameShape(tensor.shape, like.shape)) {
        throw new FormatError(
          `${weights.path}: "${name}" must have shape ${showShape(like.shape)}, got ${showShape(tensor.shape)}.`,
        );
      }
      params[name] = asWeights(tensor, `${weights.path}: tensor "${name}"`);
    }
    return { adapter, params };
  } finally {
    await weights.close();
  }
}
