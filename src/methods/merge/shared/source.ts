/** A model that is merged, read where it lies: a folder, perhaps with a LoRA that is written in on the way. */
import type { LoadedAdapter } from "../../../adapters/adapter.ts";
import { type LoraAdapter, type LoraLayer, lora } from "../../../adapters/lora.ts";
import { loadAdapter } from "../../../adapters/peft.ts";
import { FormatError, MissingError, UnsupportedError } from "../../../errors.ts";
import type { Files, OpenFile } from "../../../host/host.ts";
import { openCheckpoint } from "../../../io/checkpoint.ts";
import { isJsonObject, type JsonObject, parseJson } from "../../../io/json.ts";
import type { TensorEntry } from "../../../io/safetensors.ts";
import { checkpointNames, readAnyConfig } from "../../../models/folder.ts";
import type { PretrainedModel } from "../../../models/model.ts";
import { peftPrefix } from "../../../models/peft-paths.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { checkWeights, weightBytes, widen } from "./convert.ts";
import type { Scratch } from "./scratch.ts";

const singleName = "model.safetensors";
const indexName = "model.safetensors.index.json";
const configLimit = 2 ** 20;
const indexLimit = 2 ** 26;

/** Folders of a model and of a LoRA on it. */
export interface ModelPaths {
  readonly model: string;
  readonly adapter?: string;
}

export interface Source {
  /** As it was named. */
  readonly label: string;
  readonly path: string;
  readonly entries: ReadonlyMap<string, TensorEntry>;
  readonly config: JsonObject;
  /** The architecture, where it is one that this package knows. */
  readonly model: PretrainedModel | undefined;
  readonly adapter: LoadedAdapter | undefined;
  /** Tensors that the LoRA changes. */
  readonly adapted: ReadonlySet<string>;
  /**
   * Numbers of a tensor as float32, the LoRA written in.
   * @param start first element; @param size elements; of a tensor in `adapted` all of it
   */
  read(
    name: string,
    scratch: Scratch,
    start?: number,
    size?: number,
  ): Promise<Float32Array<ArrayBuffer>>;
  /** Bytes of a tensor of any type, as stored. */
  readBytes(name: string): Promise<Uint8Array<ArrayBuffer>>;
  /** Paths of the files that hold the weights. */
  files(): Promise<readonly string[]>;
  close(): Promise<void>;
}

/** Names of files by the tensors that they hold. */
async function placesOf(files: Files, folder: string): Promise<(name: string) => string> {
  if (await files.info(files.join(folder, singleName))) return () => singleName;
  const path = files.join(folder, indexName);
  const root = parseJson(await files.readText(path, indexLimit), path) as JsonObject;
  const map = root["weight_map"] as Readonly<Record<string, string>>;
  return (name) => map[name];
}

async function readConfig(files: Files, folder: string): Promise<JsonObject> {
  const path = files.join(folder, "config.json");
  if (!(await files.info(path))) {
    throw new MissingError(
      `${folder}: not a model folder, it has no config.json — give a folder in the Hugging Face layout.`,
    );
  }
  const config = parseJson(await files.readBytes(path, configLimit), path);
  if (isJsonObject(config)) return config;
  throw new FormatError(`${path}: must be an object.`);
}

/** A LoRA bound to single layers, by the name of the tensor that each changes. */
function layersOf(
  label: string,
  loaded: LoadedAdapter,
  nameOf: (slot: string) => string,
): ReadonlyMap<string, readonly [path: string, layer: LoraLayer]> {
  const { adapter } = loaded;
  const layers = (adapter as LoraAdapter).layers as LoraAdapter["layers"] | undefined;
  if (adapter.kind !== "LORA" || !layers || adapter.mergeable !== "exact") {
    throw new UnsupportedError(
      `merge: the adapter of "${label}" is ${adapter.title} — only LoRA is merged on the way; write it into its base first: plasticity merge-adapter.`,
    );
  }
  return new Map([...layers].map(([path, layer]) => [nameOf(`${path}.weight`), [path, layer]]));
}

/**
 * Opens a folder, checks every header, and reads the adapter if there is one.
 * @param label as it was named
 * @throws MissingError, FormatError when a folder is not what it should be; UnsupportedError for adapters other
 * than LoRA, or on an architecture that is not known.
 */
export async function openSource(files: Files, label: string, paths: ModelPaths): Promise<Source> {
  const { model: path } = paths;
  const config = await readConfig(files, path);
  const checkpoint = await openCheckpoint(files, path);
  const { entries } = checkpoint;
  // Reading goes on by handles of our own, into memory that is used again.
  await checkpoint.close();
  let model: PretrainedModel | undefined;
  try {
    ({ model } = await readAnyConfig(files, path));
  } catch (error) {
    // Weights of other architectures are merged all the same, unless an adapter sits on them.
    if (!(error instanceof UnsupportedError) || paths.adapter !== undefined) throw error;
  }
  const adapter =
    paths.adapter === undefined ? undefined : await loadAdapter(files, paths.adapter, model!);
  const nameOf = model ? checkpointNames(model, new Set(entries.keys())) : (slot: string) => slot;
  const layers = adapter ? layersOf(label, adapter, nameOf) : new Map();
  // Modules that were trained whole stand in for the base's.
  const whole = new Map(
    Object.keys(adapter?.params ?? {})
      .filter((name) => !/\.lora_[AB]\.weight$/.test(name))
      .map((name) => [nameOf(name.slice(peftPrefix.length)), name]),
  );
  const placeOf = await placesOf(files, path);
  const open = new Map<string, Promise<OpenFile>>();
  const fileOf = (name: string): Promise<OpenFile> => {
    const place = placeOf(name);
    const found = open.get(place) ?? files.open(files.join(path, place));
    open.set(place, found);
    return found;
  };

  const read: Source["read"] = async (name, scratch, start = 0, size) => {
    const { dtype, shape, offset, bytes } = entries.get(name)!;
    checkWeights(`${label}: tensor "${name}"`, dtype);
    const width = weightBytes[dtype]!;
    const count = size ?? bytes / width;
    const into = scratch.take(4 * count);
    const numbers = new Float32Array(into.buffer, 0, count);
    const file = await fileOf(name);
    if (dtype === "F32") await file.read(into, offset + width * start);
    else {
      const stored = scratch.take(width * count);
      await file.read(stored, offset + width * start);
      widen(stored, dtype, numbers);
      scratch.give(stored);
    }
    const own = whole.get(name);
    if (own !== undefined) {
      numbers.set(adapter!.params[own]!.to("float32").data as Float32Array);
      return numbers;
    }
    const found = layers.get(name);
    if (!found) return numbers;
    const [layerPath, layer] = found as readonly [string, LoraLayer];
    // The same LoRA on this layer alone: alpha / rank is its scale.
    const alone = lora(model!, {
      rank: layer.rank,
      alpha: layer.scale * layer.rank,
      targetModules: [layerPath],
    });
    const slot = `${layerPath}.weight`;
    const merged = alone.merge(
      { [slot]: new Tensor("float32", shape, numbers) },
      { [layer.a]: adapter!.params[layer.a]!, [layer.b]: adapter!.params[layer.b]! },
    );
    scratch.give(numbers);
    return merged[slot]!.data as Float32Array<ArrayBuffer>;
  };

  return {
    label,
    path,
    entries,
    config,
    model,
    adapter,
    adapted: new Set([...layers.keys(), ...whole.keys()]),
    read,
    async readBytes(name) {
      const { offset, bytes } = entries.get(name)!;
      const into = new Uint8Array(bytes);
      await (await fileOf(name)).read(into, offset);
      return into;
    },
    files: async () => [
      ...new Set([...entries.keys()].map((name) => files.join(path, placeOf(name)))),
    ],
    async close() {
      const handles = await Promise.allSettled(open.values());
      open.clear();
      for (const handle of handles) if (handle.status === "fulfilled") await handle.value.close();
    },
  };
}
