/** Writes a model folder as a GGUF file that llama.cpp loads. */
import { FormatError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { openCheckpoint } from "../io/checkpoint.ts";
import { createGguf, type GgufPlan, type GgufValue } from "../io/gguf.ts";
import { blockSize, quantize, type WritableType } from "../io/gguf-quants.ts";
import { asWeights, checkpointNames, readModelConfig } from "./folder.ts";
import { metadataOfConfig } from "./gguf-config.ts";
import { withGguf } from "./gguf-folder.ts";
import { type GgufFamily, ggufFamilies, placeThere, relaid } from "./gguf-names.ts";
import { metadataOfTokenizer } from "./gguf-tokenizer-write.ts";

/** Forms of the matrices; vectors are float32 always. */
export const ggufDtypes = ["f32", "f16", "bf16", "q8_0", "q4_0"] as const;
export type GgufDtype = (typeof ggufDtypes)[number];

/** llama.cpp's `llama_ftype`. */
const fileTypes = { f32: 0, f16: 1, q4_0: 2, q8_0: 7, bf16: 32 } as const;

export interface GgufModelOptions {
  /** Default f16. */
  readonly dtype?: GgufDtype;
  /** `general.name`. */
  readonly name?: string;
}

export interface GgufModelReport {
  readonly architecture: string;
  readonly tensors: number;
  /** Tensors by their type. */
  readonly types: Readonly<Record<string, number>>;
  readonly hasTokenizer: boolean;
}

/**
 * The type of a matrix. Rows that are no whole blocks stay float16, and with 4 bits the embedding and the
 * output have 8, where 4 cost most.
 */
function typeOf(name: string, columns: number, dtype: GgufDtype): WritableType {
  const type = dtype.toUpperCase() as WritableType;
  const own = type === "Q4_0" && /^(token_embd|output)\.weight$/.test(name) ? "Q8_0" : type;
  return columns % blockSize(own) === 0 ? own : "F16";
}

async function textsOf(
  files: Files,
  path: string,
): Promise<{
  readonly tokenizer: string | undefined;
  readonly config: string | undefined;
  readonly template: string | undefined;
}> {
  const read = async (name: string, most: number): Promise<string | undefined> => {
    const file = files.join(path, name);
    return (await files.info(file)) ? files.readText(file, most) : undefined;
  };
  const config = await read("tokenizer_config.json", 2 ** 24);
  let template = await read("chat_template.jinja", 2 ** 20);
  if (template === undefined && config !== undefined) {
    const own = (JSON.parse(config) as { chat_template?: unknown }).chat_template;
    if (typeof own === "string") template = own;
  }
  return { tokenizer: await read("tokenizer.json", 2 ** 27), config, template };
}

function familyNamed(modelType: unknown): GgufFamily {
  const family = ggufFamilies.find((known) => known.modelType === modelType);
  if (family) return family;
  throw new UnsupportedError(
    `gguf: a model of type ${JSON.stringify(modelType)} cannot be written — supported are ${ggufFamilies.map((known) => known.modelType).join(", ")}.`,
  );
}

/**
 * Writes the model of a folder, its tokenizer and its chat template, one tensor in memory at a time.
 * @param path a model folder, or a GGUF file to write in another form
 * @throws UnsupportedError where llama.cpp has no name for the model, a layer or the tokenizer
 * @throws FormatError when the folder lacks a tensor, or one of its numbers is none.
 */
export async function saveGguf(
  given: Files,
  path: string,
  out: string,
  options: GgufModelOptions = {},
): Promise<GgufModelReport> {
  const files = withGguf(given);
  const { dtype = "f16", name } = options;
  const { model } = await readModelConfig(files, path);
  const family = familyNamed(model.config["model_type"]);
  const { nHeads, nKvHeads, vocabSize, headDim } = model.sizes;
  const feedForward = [...model.slots()].find(
    ([slot]) => placeThere(family, slot)?.name === "blk.0.ffn_up.weight",
  )?.[1].shape;
  const { metadata, tensors } = metadataOfConfig(family, model.config, {
    headDim,
    vocabSize,
    dFeedForward: Math.max(...(feedForward ?? [0])),
  });
  const texts = await textsOf(files, path);
  const text = (value: string): GgufValue => ({ type: "string", value });
  const entries: [string, GgufValue][] = [
    ["general.architecture", text(family.architecture)],
    ["general.type", text("model")],
    ...(name ? ([["general.name", text(name)]] as [string, GgufValue][]) : []),
    ["general.file_type", { type: "uint32", value: fileTypes[dtype] }],
    ["general.quantization_version", { type: "uint32", value: 2 }],
    ...metadata,
    ...(texts.tokenizer === undefined
      ? []
      : metadataOfTokenizer(
          { tokenizer: texts.tokenizer, config: texts.config },
          vocabSize,
          path,
          texts.template,
        )),
  ];
  const checkpoint = await openCheckpoint(files, path);
  try {
    const nameOf = checkpointNames(model, new Set(checkpoint.entries.keys()));
    const sources = [...model.slots()].map(([slot, { shape }]) => {
      const how = placeThere(family, slot);
      if (!how) throw new UnsupportedError(`gguf: llama.cpp has no name for "${slot}".`);
      const source = nameOf(slot);
      if (!checkpoint.entries.has(source)) {
        throw new FormatError(`${path}: has no tensor "${slot}" — is the folder complete?`, {
          path,
        });
      }
      const there = how.isTurned && shape.length === 2 ? [...shape].reverse() : shape;
      const isFull = there.length < 2 || how.isFull;
      const type = isFull ? "F32" : typeOf(how.name, there.at(-1)!, dtype);
      return { source, how, plan: { name: how.name, type, shape: there } };
    });
    const plans: GgufPlan[] = [
      ...tensors.map(([own, { length }]) => ({ name: own, type: "F32", shape: [length] })),
      ...sources.map(({ plan }) => plan),
    ];
    await createGguf(files, out, entries, plans, async (plan, i) => {
      const extra = tensors[i]?.[1];
      if (extra) return new Uint8Array(extra.buffer, extra.byteOffset, extra.byteLength);
      const { source, how } = sources[i - tensors.length]!;
      const where = `${path}: tensor "${source}"`;
      const { data, shape } = asWeights(await checkpoint.read(source), where);
      const numbers = data as Float32Array<ArrayBuffer>;
      const there = relaid(numbers, shape, how, { nHeads, nKvHeads }, "there");
      return quantize(plan.type as WritableType, there.numbers, where);
    });
    const types: Record<string, number> = {};
    for (const { type } of plans) types[type] = (types[type] ?? 0) + 1;
    return {
      architecture: family.architecture,
      tensors: plans.length,
      types,
      hasTokenizer: texts.tokenizer !== undefined,
    };
  } finally {
    await checkpoint.close();
  }
}
