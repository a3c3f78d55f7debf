/** Adapter folders as PEFT writes and reads them: adapter_config.json, adapter_model.safetensors. */
import { FormatError, MissingError, OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { refusePickle } from "../io/checkpoint.ts";
import { isJsonObject, type JsonObject, parseJson } from "../io/json.ts";
import { SafetensorsFile, writeSafetensors } from "../io/safetensors.ts";
import { asWeights } from "../models/folder.ts";
import type { PretrainedModel } from "../models/model.ts";
import { currentPeftName } from "../models/peft-paths.ts";
import type { TensorRecord } from "../nn/module.ts";
import { isFloat } from "../tensor/dtype.ts";
import { Rng } from "../tensor/rng.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import {
  type Adapter,
  type AnyAdapterKind,
  type BindScene,
  type LoadedAdapter,
  newNumbers,
} from "./adapter.ts";
import { loraKind } from "./lora.ts";
import { namesIn } from "./peft-config.ts";
import { modulesNamed, withModules } from "./saved-modules.ts";

const configName = "adapter_config.json";
const weightsName = "adapter_model.safetensors";
const configLimit = 2 ** 20;

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
  /** Tensors of the adapter that are not trained; default none. */
  readonly buffers?: Readonly<Record<string, Tensor>>;
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
  const numbers = { params: { ...params }, buffers: { ...options.buffers } };
  const stored = adapter.file?.pack(numbers) ?? { ...numbers.params, ...numbers.buffers };
  const weights = Object.entries(stored).map(([name, tensor]) => [name, tensor] as const);
  await writeSafetensors(files, files.join(path, weightsName), weights, { format: "pt" });
  const card = options.card ?? `---\nlibrary_name: peft\n---\n\n# ${adapter.kind} adapter\n`;
  await files.writeText(files.join(path, "README.md"), card);
  const config = { ...adapter.config(numbers), base_model_name_or_path: options.base ?? null };
  await files.writeText(files.join(path, configName), sortedJson(config));
}

/** A folder that a file names: as it is, as PEFT reads it, else from the file's own folder. */
async function besideOr(files: Files, file: string, path: string): Promise<string> {
  if (await files.info(files.join(path, configName))) return path;
  const beside = files.join(file, "..", path);
  return (await files.info(files.join(beside, configName))) ? beside : path;
}

/** Settings that its kind refuses are faults of the file here. */
async function bind(
  files: Files,
  model: PretrainedModel,
  config: JsonObject,
  file: string,
  kinds: readonly AnyAdapterKind[],
  scene: BindScene | undefined,
): Promise<Adapter> {
  const kind = kinds.find((known) => known.kind === config["peft_type"]);
  if (!kind) {
    throw new UnsupportedError(
      `${file}: peft_type ${JSON.stringify(config["peft_type"])} is not supported — supported ${kinds.length === 1 ? "is" : "are"} ${kinds.map((known) => `"${known.kind}"`).join(", ")}.`,
    );
  }
  const named = namesIn(config, "modules_to_save", file);
  // PEFT writes the usual names of heads, of which a model has one; others are refused by their tensors.
  const found = named.filter((name) => modulesNamed(model, name).length > 0);
  const modules = found.length > 0 ? found : named;
  const taskType = config["task_type"];
  try {
    // What an adapter is made of is of other kinds: a folder that names itself ends here.
    const others = kinds.filter((known) => known !== kind);
    const load = async (path: string): Promise<LoadedAdapter> =>
      loadAdapter(files, await besideOr(files, file, path), model, others);
    const adapter = await kind.bind(model, kind.read(config, file, model), scene ?? { load });
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
 * @param kinds that may be read; default LoRA alone
 * @param scene reads other adapters that it names; default: their folders, from where the program runs or
 * from this folder
 * @throws MissingError when the folder is no adapter; FormatError when its tensors do not fit;
 * UnsupportedError when they are in a pickle.
 */
export async function loadAdapter(
  files: Files,
  path: string,
  model: PretrainedModel,
  kinds: readonly AnyAdapterKind[] = [loraKind],
  scene?: BindScene,
): Promise<LoadedAdapter> {
  const file = files.join(path, configName);
  if (!(await files.info(file))) {
    throw new MissingError(`${path}: not an adapter folder, it has no ${configName}.`);
  }
  const config = parseJson(await files.readBytes(file, configLimit), file);
  if (!isJsonObject(config)) throw new FormatError(`${file}: must be an object.`);
  const adapter = await bind(files, model, config, file, kinds, scene);
  const weightsPath = files.join(path, weightsName);
  if (!(await files.info(weightsPath))) await refusePickle(files, path);
  const weights = await SafetensorsFile.open(files, weightsPath);
  try {
    if (adapter.file) {
      const stored: TensorRecord = {};
      for (const name of weights.entries.keys()) stored[name] = await weights.read(name);
      return { adapter, ...adapter.file.unpack(stored, weights.path) };
    }
    const { params, buffers } = newNumbers(adapter, new Rng(0));
    const expected = { ...params, ...buffers };
    // Older versions wrote some models' names in another form.
    const named = new Map(
      [...weights.entries.keys()].map((name) => [
        Object.hasOwn(expected, name) ? name : currentPeftName(model, name),
        name,
      ]),
    );
    const missing = Object.keys(expected).filter((name) => !named.has(name));
    const unexpected = [...named].flatMap(([name, there]) => (expected[name] ? [] : [there]));
    if (missing.length > 0 || unexpected.length > 0) {
      throw new FormatError(
        `${weights.path}: the tensors do not fit this ${model.family}: missing [${missing.slice(0, 3).join(", ")}], unexpected [${unexpected.slice(0, 3).join(", ")}] — was the adapter made for another model?`,
        { missing, unexpected },
      );
    }
    const read = async (like: TensorRecord): Promise<TensorRecord> => {
      const found: TensorRecord = {};
      for (const [name, { shape, dtype }] of Object.entries(like)) {
        const tensor = await weights.read(named.get(name)!);
        if (!sameShape(tensor.shape, shape)) {
          throw new FormatError(
            `${weights.path}: "${name}" must have shape ${showShape(shape)}, got ${showShape(tensor.shape)}.`,
          );
        }
        const where = `${weights.path}: tensor "${name}"`;
        if (isFloat(dtype)) found[name] = asWeights(tensor, where);
        else if (tensor.dtype === dtype) found[name] = tensor;
        else throw new FormatError(`${where} must be ${dtype}, got ${tensor.dtype}.`);
      }
      return found;
    };
    return { adapter, params: await read(params), buffers: await read(buffers) };
  } finally {
    await weights.close();
  }
}
