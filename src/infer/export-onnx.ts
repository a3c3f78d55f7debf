/**
 * A model folder that `@huggingface/transformers` (JavaScript) loads: config.json, tokenizer files,
 * generation_config.json and onnx/model*.onnx.
 *
 * Every file is verified before anything is written: its logits on probe inputs, read at once, in
 * two parts with a cache, and with padding on the left, against the engine's.
 */
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { OrtBackend } from "../backend/ort/ort.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { OptionError, StateError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, parseJson } from "../io/json.ts";
import { encodeOnnxParts, type OnnxGraph, type OnnxTensor } from "../io/onnx.ts";
import type { LoadedModel } from "../models/folder.ts";
import type { TensorRecord } from "../nn/module.ts";
import { exportOpsets, languageModelGraph } from "./onnx-graph.ts";
import { onnxLogits } from "./onnx-run.ts";
import { type OnnxVariant, onnxVariants, variantSuffix, withWeights } from "./onnx-weights.ts";
import { compareLogits, type LogitDifference, probeInputs, probeLogits } from "./verify.ts";

/**
 * Largest allowed max |difference| / max |reference| of the logits, by the form of the weights.
 *
 * One random token may be off by twice as much as all of a text, so the largest difference says little of
 * rounded weights: SmolLM2-135M in q8 is off by 0.055, at one random token behind its first block, and by
 * 0.038 on 2,300 tokens of English, whose loss it raises by 0.1 %. A scale for each row gives 0.11, one for
 * each matrix 0.42 (loss 1.4 % higher): the limit lies between.
 */
export const exportTolerance: Readonly<Record<OnnxVariant, number>> = {
  fp32: 1e-4,
  fp16: 1e-2,
  q8: 0.1,
  q4: 0.5,
};

/** The same against the engine on the very weights that are stored: what the graph itself may add. */
const graphTolerance = 1e-4;

export interface ExportOnnxOptions {
  /** Forms of the weights, one file each; default ["fp32"]. */
  readonly variants?: readonly OnnxVariant[];
  /** Written into the weights. */
  readonly adapter?: LoadedAdapter;
  /** For probe texts and the ids in generation_config.json. */
  readonly tokenizer?: Tokenizer;
  /** Largest allowed max |difference| / max |reference|; default by variant, `exportTolerance`. */
  readonly tolerance?: number;
  /** Of the random token ids; default 0. */
  readonly seed?: number;
  /** Weights of more bytes lie in files of their own, `<name>_data`; default 1.5e9. */
  readonly maxInlineBytes?: number;
  /** Most bytes of such a file; default 2e9, which a browser can hold. */
  readonly maxDataBytes?: number;
}

export interface VariantReport {
  readonly variant: OnnxVariant;
  /** In `onnx/`. */
  readonly file: string;
  readonly bytes: number;
  /** Against the model (and adapter) as loaded. */
  readonly difference: LogitDifference;
  /** Against the engine on the weights as stored. */
  readonly graphDifference: LogitDifference;
  readonly tolerance: number;
  /** Files of weights beside it. */
  readonly dataFiles: readonly string[];
}

/** An export that is verified and not yet written. */
export interface VerifiedExport {
  readonly variants: readonly VariantReport[];
  /** Writes the folder and returns the names of its files; config.json comes last. */
  write(out: string): Promise<readonly string[]>;
}

/** Where a tensor's bytes lie when they are not in the model's own file. */
interface DataFile {
  readonly name: string;
  readonly tensors: OnnxTensor[];
  bytes: number;
}

/** The engine maps such files into memory, by pages. */
const alignment = 4096;

function moveOut(
  graph: OnnxGraph,
  fileName: string,
  maxBytes: number,
): { graph: OnnxGraph; data: DataFile[] } {
  const data: DataFile[] = [];
  const initializers = graph.initializers.map((tensor): OnnxTensor => {
    const length = tensor.data.length;
    if (length < alignment) return tensor;
    if (length > maxBytes) {
      throw new UnsupportedError(
        `export: "${tensor.name}" has ${length} bytes, a file of weights holds ${maxBytes} — raise maxDataBytes.`,
      );
    }
    let file = data.at(-1);
    if (!file || file.bytes + length > maxBytes) {
      // transformers.js looks for these names.
      const name = `${fileName}_data${data.length === 0 ? "" : `_${data.length}`}`;
      file = { name, tensors: [], bytes: 0 };
      data.push(file);
    }
    const external = { location: file.name, offset: file.bytes, length };
    file.tensors.push(tensor);
    file.bytes += Math.ceil(length / alignment) * alignment;
    return { ...tensor, data: new Uint8Array(0), external };
  });
  return { graph: { ...graph, initializers }, data };
}

interface Built {
  readonly report: VariantReport;
  readonly parts: readonly Uint8Array[];
  readonly data: readonly DataFile[];
}

/**
 * Builds and verifies the files of an export.
 * @throws StateError when a file's logits differ by more than its tolerance.
 * @throws UnsupportedError for an adapter that cannot be merged, or a model that cannot be exported.
 */
export async function verifyOnnxExport(
  files: Files,
  backend: OrtBackend,
  base: LoadedModel,
  options: ExportOnnxOptions = {},
): Promise<VerifiedExport> {
  const { model, params } = base;
  const { variants = ["fp32"], adapter, tokenizer, maxInlineBytes = 1.5e9 } = options;
  for (const variant of variants) {
    if (onnxVariants.includes(variant)) continue;
    throw new OptionError(
      `export: unknown variant "${variant}" — known are ${onnxVariants.join(", ")}.`,
    );
  }
  if (variants.length === 0) throw new OptionError("export: variants is empty — name one or more.");
  if (adapter?.adapter.mergeable === "no") {
    throw new UnsupportedError(
      `export: a ${adapter.adapter.kind} adapter cannot be written into weights — export the base alone.`,
    );
  }
  const ids = probeInputs(model.sizes, options);
  const reference = await probeLogits(backend, model, params, ids, adapter);
  const merged: TensorRecord = adapter
    ? { ...params, ...adapter.adapter.merge(params, adapter.params, adapter.buffers) }
    : params;
  const bare = languageModelGraph(model);
  const built: Built[] = [];
  for (const variant of new Set(variants)) {
    const { graph, stored } = withWeights(bare, model, merged, variant);
    const file = `model${variantSuffix[variant]}.onnx`;
    const bytes = graph.initializers.reduce((total, { data }) => total + data.length, 0);
    const isOut = bytes > maxInlineBytes;
    const { graph: written, data } = isOut
      ? moveOut(graph, file, options.maxDataBytes ?? 2e9)
      : { graph, data: [] };
    const parts = encodeOnnxParts(written, exportOpsets);
    // The bytes to be written; or where they are no single model, the graph with weights as inputs.
    const logits = await onnxLogits(backend, isOut ? graph : parts, model.sizes, ids);
    const own = await probeLogits(backend, model, stored, ids);
    const tolerance = options.tolerance ?? exportTolerance[variant];
    const check = (what: string, difference: LogitDifference, allowed: number): LogitDifference => {
      if (difference.maxRelative <= allowed) return difference;
      throw new StateError(
        `export: ${file} gives other logits than ${what}: max |difference| ${difference.maxAbsolute.toPrecision(3)}, relative ${difference.maxRelative.toPrecision(3)}, allowed is ${allowed} — nothing was written; choose a more precise form, or allow more.`,
        { difference, tolerance: allowed },
      );
    };
    built.push({
      parts,
      data,
      report: {
        variant,
        file,
        bytes: parts.reduce((total, part) => total + part.length, 0),
        difference: check("the model", compareLogits(reference, logits), tolerance),
        graphDifference: check(
          "the engine on the same weights",
          compareLogits(own, logits),
          graphTolerance,
        ),
        tolerance,
        dataFiles: data.map(({ name }) => name),
      },
    });
  }
  return {
    variants: built.map(({ report }) => report),
    write: (out) => writeFolder(files, base, built, tokenizer, out),
  };
}

async function writeParts(files: Files, path: string, parts: Iterable<Uint8Array>): Promise<void> {
  const writer = await files.create(path);
  try {
    for (const part of parts) await writer.write(part);
    await writer.commit();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

function* dataParts({ tensors }: DataFile): Generator<Uint8Array> {
  for (const { data } of tensors) {
    yield data;
    yield new Uint8Array(Math.ceil(data.length / alignment) * alignment - data.length);
  }
}

const copied = [
  "tokenizer.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "chat_template.jinja",
  "vocab.json",
  "merges.txt",
] as const;

async function readJsonFile(files: Files, path: string): Promise<Record<string, unknown>> {
  if (!(await files.info(path))) return {};
  const value = parseJson(await files.readText(path, 2 ** 24), path);
  return isJsonObject(value) ? { ...value } : {};
}

async function writeFolder(
  files: Files,
  { path, config }: LoadedModel,
  built: readonly Built[],
  tokenizer: Tokenizer | undefined,
  out: string,
): Promise<readonly string[]> {
  const names: string[] = [];
  const json = async (name: string, value: unknown): Promise<void> => {
    await files.writeText(files.join(out, name), `${JSON.stringify(value, null, 2)}\n`);
    names.push(name);
  };
  await files.makeDirectory(files.join(out, "onnx"));
  for (const { report, parts, data } of built) {
    for (const file of data) {
      await writeParts(files, files.join(out, "onnx", file.name), dataParts(file));
      names.push(`onnx/${file.name}`);
    }
    await writeParts(files, files.join(out, "onnx", report.file), parts);
    names.push(`onnx/${report.file}`);
  }
  for (const name of copied) {
    const from = files.join(path, name);
    if (!(await files.info(from))) continue;
    await writeParts(files, files.join(out, name), [await files.readBytes(from, 2 ** 27)]);
    names.push(name);
  }
  const tokenizerConfig = await readJsonFile(files, files.join(path, "tokenizer_config.json"));
  // Batches are padded; a model without a token for it takes the one that ends texts.
  tokenizerConfig["pad_token"] ??= tokenizerConfig["eos_token"];
  await json("tokenizer_config.json", tokenizerConfig);

  const generation = await readJsonFile(files, files.join(path, "generation_config.json"));
  for (const key of ["bos_token_id", "eos_token_id", "pad_token_id"]) {
    if (config[key] !== undefined && config[key] !== null) generation[key] ??= config[key];
  }
  if (tokenizer?.eosId !== undefined) generation["eos_token_id"] ??= tokenizer.eosId;
  const eos = generation["eos_token_id"];
  generation["pad_token_id"] ??= Array.isArray(eos) ? eos[0] : eos;
  await json("generation_config.json", generation);

  const own = isJsonObject(config["transformers.js_config"] as never)
    ? (config["transformers.js_config"] as object)
    : {};
  const outside = built.filter(({ data }) => data.length > 0);
  const hints = {
    ...own,
    // Without it fp32 is looked for.
    ...(!built.some(({ report }) => report.variant === "fp32") && {
      dtype: built[0]!.report.variant,
    }),
    ...(outside.length > 0 && {
      use_external_data_format: Object.fromEntries(
        outside.map(({ report, data }) => [report.file, data.length]),
      ),
    }),
  };
  await json("config.json", {
    ...config,
    ...(Object.keys(hints).length > 0 && { "transformers.js_config": hints }),
  });
  return names;
}
