/** What is in a model folder and in an adapter folder. */
import { openCheckpoint } from "../../io/checkpoint.ts";
import { isJsonObject, type JsonObject, parseJson } from "../../io/json.ts";
import type { Files, LanguageModel } from "../library.ts";
import {
  loadAdapter,
  lora,
  MissingError,
  PlasticityError,
  Rng,
  readModelConfig,
  SafetensorsFile,
} from "../library.ts";
import { countParameters, modelFolder } from "../models.ts";
import { showCount } from "../output.ts";
import { countBy, type Report, showBytes, showCounts, sizeOf, type Table } from "./report.ts";

async function readObject(files: Files, path: string): Promise<JsonObject | undefined> {
  if (!(await files.info(path))) return undefined;
  const value = parseJson(await files.readText(path, 2 ** 27), path, { maxBytes: 2 ** 27 });
  return isJsonObject(value) ? value : undefined;
}

/** Numbers of float32 a parameter takes: itself; in training also its gradient and AdamW's two. */
const trained = 4;

interface Estimates {
  readonly load: number;
  readonly trainLora: number;
  readonly trainFull: number;
  readonly loraParameters: number;
}

function estimate(model: LanguageModel, parameters: number): Estimates {
  const params = lora(model, { rank: 8 }).init(new Rng(0));
  const own = Object.values(params).reduce((sum, { size }) => sum + size, 0);
  return {
    load: 4 * parameters,
    trainLora: 4 * parameters + 4 * trained * own,
    trainFull: 4 * trained * parameters,
    loraParameters: own,
  };
}

/** How many numbers a model carries from token to token, for one text; of one that does so. */
function stateSize(model: LanguageModel): number | undefined {
  if (!model.stateShapes) return undefined;
  return Object.values(model.stateShapes).reduce((sum, shape) => sum + sizeOf(shape), 0);
}

function sizeFacts(model: LanguageModel): Report["facts"] {
  const { nLayers, dModel, nHeads, headDim, nKvHeads, vocabSize, maxPositions } = model.sizes;
  const state = stateSize(model);
  return [
    [
      "layers",
      state === undefined
        ? `${nLayers} of width ${dModel}; ${nHeads} heads of ${headDim}, ${nKvHeads} for keys and values`
        : `${nLayers} of width ${dModel}; no attention, a state of ${showCount(state)} numbers for each text`,
    ],
    ["vocabulary", String(vocabSize)],
    [
      "positions",
      state === undefined
        ? String(maxPositions)
        : `no table of them; texts of up to ${maxPositions}`,
    ],
  ];
}

async function tokenizerFacts(files: Files, path: string): Promise<Record<string, unknown>> {
  const tokenizer = await readObject(files, files.join(path, "tokenizer.json"));
  const config = await readObject(files, files.join(path, "tokenizer_config.json"));
  const model = tokenizer && isJsonObject(tokenizer["model"]) ? tokenizer["model"] : undefined;
  const vocab = model?.["vocab"];
  const added = tokenizer?.["added_tokens"];
  const template = (await files.info(files.join(path, "chat_template.jinja")))
    ? "chat_template.jinja"
    : config?.["chat_template"] !== undefined && config["chat_template"] !== null
      ? "tokenizer_config.json"
      : undefined;
  return {
    tokenizer: model?.["type"] ?? null,
    vocabulary: Array.isArray(vocab)
      ? vocab.length
      : isJsonObject(vocab)
        ? Object.keys(vocab).length
        : null,
    addedTokens: Array.isArray(added) ? added.length : 0,
    chatTemplate: template ?? null,
  };
}

function filesTable(list: readonly { name: string; bytes: number }[]): Table {
  return {
    title: "Files",
    head: ["name", "bytes"],
    rows: list.map(({ name, bytes }) => [name, String(bytes)]),
    align: ["left", "right"],
  };
}

async function listFiles(files: Files, path: string): Promise<{ name: string; bytes: number }[]> {
  return (await files.list(path))
    .filter(({ isDirectory }) => !isDirectory)
    .map((file) => ({ name: file.path.split(/[\\/]/).at(-1)!, bytes: file.bytes }));
}

export async function modelReport(
  files: Files,
  path: string,
  withTensors: boolean,
): Promise<Report> {
  const { model, config } = await readModelConfig(files, path);
  const checkpoint = await openCheckpoint(files, path);
  const entries = [...checkpoint.entries.values()];
  await checkpoint.close();
  const parameters = countParameters(model);
  const { nHeads, nKvHeads, headDim, ...sizes } = model.sizes;
  const state = stateSize(model);
  const memory = estimate(model, parameters);
  const text = await tokenizerFacts(files, path);
  const list = await listFiles(files, path);
  const stored = entries.reduce((sum, { bytes }) => sum + bytes, 0);
  const types = countBy(entries, ({ dtype }) => dtype);
  const tied = Object.entries(model.tied).map(([alias, own]) => `${alias} = ${own}`);
  const vocabulary =
    text["vocabulary"] === null
      ? ""
      : `, ${text["vocabulary"]} tokens, ${text["addedTokens"]} added`;
  return {
    kind: "model",
    facts: [
      ["model", path],
      ["family", `${model.family} (${String(config["model_type"])})`],
      ["parameters", `${showCount(parameters)} (${parameters})`],
      ...sizeFacts(model),
      ["tied weights", tied.join(", ") || "none"],
      ["weights", `${entries.length} tensors (${showCounts(types)}), ${showBytes(stored)}`],
      ["tokenizer", `${text["tokenizer"] ?? "none"}${vocabulary}`],
      ["chat template", String(text["chatTemplate"] ?? "none")],
      ["targets of adapters", model.defaultTargets.join(", ")],
      [
        "memory to load",
        `about ${showBytes(memory.load)} as float32; as much again while it generates`,
      ],
      [
        "memory to train",
        `about ${showBytes(memory.trainLora)} for LoRA of rank 8 (${showCount(memory.loraParameters)} parameters), ${showBytes(memory.trainFull)} for all weights with AdamW; activations come on top`,
      ],
    ],
    tables: [
      filesTable(list),
      ...(withTensors
        ? [
            {
              title: `${entries.length} tensors`,
              head: ["name", "type", "shape", "bytes"],
              rows: entries.map(({ name, dtype, shape, bytes }) => [
                name,
                dtype,
                `[${shape.join(", ")}]`,
                String(bytes),
              ]),
              align: ["left", "left", "left", "right"] as const,
            },
          ]
        : []),
    ],
    data: {
      path,
      family: model.family,
      modelType: config["model_type"],
      parameters,
      sizes:
        state === undefined
          ? { ...sizes, nHeads, nKvHeads, headDim }
          : { ...sizes, stateNumbers: state },
      tied: model.tied,
      storedBytes: stored,
      dtypes: Object.fromEntries(types),
      ...text,
      defaultTargets: model.defaultTargets,
      memoryBytes: memory,
      files: list,
      ...(withTensors && { tensors: entries }),
    },
  };
}

export async function adapterReport(
  files: Files,
  path: string,
  modelName: string | undefined,
): Promise<Report> {
  const config = (await readObject(files, files.join(path, "adapter_config.json")))!;
  const weightsPath = files.join(path, "adapter_model.safetensors");
  if (!(await files.info(weightsPath))) {
    throw new MissingError(
      `${path}: has adapter_config.json and no adapter_model.safetensors — the folder is not complete, or keeps its weights as .bin, which is not read.`,
    );
  }
  const weights = await SafetensorsFile.open(files, weightsPath);
  await weights.close();
  const entries = [...weights.entries.values()];
  const parameters = entries.reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const types = countBy(entries, ({ dtype }) => dtype);
  const show = (key: string): string => {
    const value = config[key];
    if (value === undefined || value === null) return "not said";
    return Array.isArray(value)
      ? value.join(", ")
      : typeof value === "object"
        ? JSON.stringify(value)
        : String(value);
  };
  let fits: { model: string; fits: boolean; why?: string } | undefined;
  if (modelName !== undefined) {
    const { model } = await readModelConfig(files, modelFolder(modelName));
    try {
      await loadAdapter(files, path, model);
      fits = { model: modelName, fits: true };
    } catch (error) {
      if (!(error instanceof PlasticityError)) throw error;
      fits = { model: modelName, fits: false, why: error.message };
    }
  }
  const patterns = ["rank_pattern", "alpha_pattern"].filter((key) => {
    const value = config[key];
    return isJsonObject(value) && Object.keys(value).length > 0;
  });
  return {
    kind: "adapter",
    facts: [
      ["adapter", path],
      ["kind", show("peft_type")],
      ["rank", show("r")],
      ["alpha", `${show("lora_alpha")}${config["use_rslora"] === true ? ", over √rank" : ""}`],
      ["targets", show("target_modules")],
      ...patterns.map((key) => [key.replace("_", " "), show(key)] as const),
      ["base", show("base_model_name_or_path")],
      ["parameters", `${showCount(parameters)} (${parameters})`],
      ["weights", `${entries.length} tensors (${showCounts(types)})`],
      ...(fits
        ? ([[`fits ${fits.model}`, fits.fits ? "yes" : `no: ${fits.why}`]] as const)
        : ([["", "--model <folder> says whether it fits"]] as const)),
    ],
    tables: [filesTable(await listFiles(files, path))],
    data: {
      path,
      adapterKind: config["peft_type"],
      rank: config["r"],
      alpha: config["lora_alpha"],
      targets: config["target_modules"],
      base: config["base_model_name_or_path"] ?? null,
      parameters,
      dtypes: Object.fromEntries(types),
      config,
      ...(fits && { fits }),
    },
  };
}
