/** config.json of a model in a GGUF file, and the metadata of a model folder. */
import { FormatError, UnsupportedError } from "../errors.ts";
import type { GgufScalar, GgufValue } from "../io/gguf.ts";
import type { GgufFile } from "../io/gguf-read.ts";
import { inverseFrequencies, type Llama3Rope } from "../nn/rope.ts";
import { type GgufFamily, ggufFamilies } from "./gguf-names.ts";

type Json = Readonly<Record<string, unknown>>;

/** Tensors of a file that state how positions are stretched. */
export const ropeTensors: readonly string[] = [
  "rope_freqs.weight",
  "rope_factors_long.weight",
  "rope_factors_short.weight",
];

/** The shortest decimal that is this float32: 1e-5 where the file has 9.99999974e-6. */
export function shortest(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === value) return short;
  }
  return value;
}

/** A single value of the metadata. @throws FormatError for one of another type. */
export function metadataOf(
  file: GgufFile,
  key: string,
  type: "number" | "string" | "boolean",
): GgufScalar | undefined {
  const found = file.metadata.get(key);
  if (!found) return undefined;
  if (typeof found.value !== type) {
    throw new FormatError(
      `${file.path}: metadata "${key}" must be one ${type}, got ${typeof found.value === "object" ? `${found.value.length} × ${found.type}` : found.type}.`,
      { path: file.path, key },
    );
  }
  const value = found.value as GgufScalar;
  return found.type === "float32" ? shortest(value as number) : value;
}

/**
 * The family of a file.
 * @throws UnsupportedError for architectures that are not known, for parts of a model, for adapters.
 */
export function familyOfFile(file: GgufFile): GgufFamily {
  const { path } = file;
  const name = metadataOf(file, "general.architecture", "string");
  if (typeof name !== "string") {
    throw new FormatError(`${path}: the metadata has no "general.architecture".`, { path });
  }
  const kind = metadataOf(file, "general.type", "string") ?? "model";
  if (kind !== "model") {
    throw new UnsupportedError(
      `${path}: holds an ${String(kind)} and no model — give the GGUF file of the model.`,
      { path },
    );
  }
  const count = metadataOf(file, "split.count", "number") ?? 1;
  if (Number(count) > 1) {
    throw new UnsupportedError(
      `${path}: is one of ${count} parts of a model — join them with llama-gguf-split --merge.`,
      { path },
    );
  }
  const family = ggufFamilies.find(({ architecture }) => architecture === name);
  if (family) return family;
  throw new UnsupportedError(
    `${path}: the architecture "${name}" is not supported — supported are ${ggufFamilies.map(({ architecture }) => architecture).join(", ")}.`,
    { path },
  );
}

async function ropeScaling(
  file: GgufFile,
  arch: string,
  base: { readonly headDim: number; readonly theta: number; readonly maxPositions: number },
): Promise<Json | null> {
  const number = (key: string): number | undefined =>
    metadataOf(file, `${arch}.rope.scaling.${key}`, "number") as number | undefined;
  const list = async (name: string): Promise<number[] | undefined> =>
    file.tensors.has(name) ? [...(await file.read(name)).data].map(shortest) : undefined;
  const divisors = await list("rope_freqs.weight");
  if (divisors?.some((x) => x !== 1)) return llama3Scaling(file, divisors, base);
  const [long, short] = [
    await list("rope_factors_long.weight"),
    await list("rope_factors_short.weight"),
  ];
  const original = number("original_context_length");
  const originalKey = original !== undefined && { original_max_position_embeddings: original };
  if (long && short) {
    const attention = number("attn_factor");
    return {
      rope_type: "longrope",
      long_factor: long,
      short_factor: short,
      ...originalKey,
      ...(attention !== undefined && { attention_factor: attention }),
    };
  }
  const type = metadataOf(file, `${arch}.rope.scaling.type`, "string") ?? "none";
  const factor = number("factor") ?? number("scale_linear");
  if (type === "none" || factor === undefined || factor === 0) return null;
  if (type === "linear") return factor === 1 ? null : { rope_type: "linear", factor };
  if (type === "yarn") return { rope_type: "yarn", factor, ...originalKey };
  throw new UnsupportedError(
    `${file.path}: rope scaling "${String(type)}" is not supported — none, linear, yarn and longrope are.`,
    { path: file.path },
  );
}

/** A file has Llama 3's divisors and not what they were made from: its published numbers are tried. */
function llama3Scaling(
  file: GgufFile,
  divisors: readonly number[],
  base: { readonly headDim: number; readonly theta: number; readonly maxPositions: number },
): Json {
  const scaling: Llama3Rope = {
    type: "llama3",
    factor: shortest(Math.fround(Math.max(...divisors))),
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositions: 8192,
  };
  const plain = inverseFrequencies(base);
  const stretched = inverseFrequencies({ ...base, scaling });
  const fits =
    plain.length === divisors.length &&
    plain.every((f, i) => Math.abs(f / stretched[i]! / divisors[i]! - 1) < 1e-4);
  if (!fits) {
    throw new UnsupportedError(
      `${file.path}: tensor "rope_freqs.weight" stretches positions in a way that is not known — Llama 3's is.`,
      { path: file.path },
    );
  }
  return {
    rope_type: "llama3",
    factor: scaling.factor,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
  };
}

/** config.json of the model in a file. */
export async function configOfFile(file: GgufFile, family: GgufFamily): Promise<Json> {
  const { path } = file;
  const arch = family.architecture;
  const config: Record<string, unknown> = {
    architectures: [family.className],
    model_type: family.modelType,
    ...family.fixed,
  };
  for (const [there, here, type] of family.numbers) {
    const value = metadataOf(file, `${arch}.${there}`, type === "bool" ? "boolean" : "number");
    if (value !== undefined) config[here] = value;
  }
  const embedding = file.tensors.get("token_embd.weight")?.shape;
  const vocab = embedding?.[0] ?? metadataOf(file, `${arch}.vocab_size`, "number");
  if (vocab === undefined) {
    throw new FormatError(`${path}: has no tensor "token_embd.weight" and so is no model.`, {
      path,
    });
  }
  config["vocab_size"] = vocab;
  config["tie_word_embeddings"] = family.modelType === "gpt2" || !file.tensors.has("output.weight");
  const number = (key: string): number | undefined =>
    metadataOf(file, `${arch}.${key}`, "number") as number | undefined;
  const [heads, width] = [number("attention.head_count"), number("embedding_length")];
  const turned = number("rope.dimension_count");
  const keyLength = number("attention.key_length");
  const valueLength = number("attention.value_length");
  const plainDim = heads !== undefined && width !== undefined ? width / heads : undefined;
  if (keyLength !== undefined && valueLength !== undefined && keyLength !== valueLength) {
    throw new UnsupportedError(
      `${path}: keys of ${keyLength} and values of ${valueLength} numbers a head are not supported.`,
      { path },
    );
  }
  const headDim = keyLength ?? (family.headDim ? (turned ?? plainDim) : plainDim);
  if (family.headDim && headDim !== undefined) config["head_dim"] = headDim;
  if (family.modelType === "gpt_neox" && turned !== undefined && headDim !== undefined) {
    config["rotary_pct"] = turned / headDim;
  } else if (family.modelType === "phi3" && turned !== undefined && turned !== headDim) {
    config["partial_rotary_factor"] = turned / headDim!;
  }
  if (family.modelType === "gemma3_text" && headDim !== undefined) {
    // As llama.cpp has it: the model of 62 blocks scales by its width.
    config["query_pre_attn_scalar"] = config["num_hidden_layers"] === 62 ? plainDim : headDim;
  }
  if (family.statesBias) config["attention_bias"] = file.tensors.has("blk.0.attn_q.bias");
  const ids = { bos: "bos_token_id", eos: "eos_token_id", pad: "padding_token_id" };
  for (const [role, key] of Object.entries(ids)) {
    const id = metadataOf(file, `tokenizer.ggml.${key}`, "number");
    if (id !== undefined) config[`${role}_token_id`] = id;
  }
  if (typeof config["rope_theta"] === "number" && headDim !== undefined) {
    config["rope_scaling"] = await ropeScaling(file, arch, {
      headDim: family.modelType === "phi3" ? (turned ?? headDim) : headDim,
      theta: config["rope_theta"],
      maxPositions: Number(config["max_position_embeddings"]),
    });
    const original = (config["rope_scaling"] as Json | null)?.["original_max_position_embeddings"];
    // Phi-3 has it beside the scaling.
    if (family.modelType === "phi3") {
      config["original_max_position_embeddings"] = original ?? config["max_position_embeddings"];
    }
  }
  return config;
}

/** Metadata that says of a scaling what the tensors do not; the tensors. */
function scalingOf(
  config: Json,
  base: { readonly headDim: number; readonly theta: number; readonly maxPositions: number },
): { metadata: [string, GgufValue][]; tensors: [string, Float32Array<ArrayBuffer>][] } {
  const raw = (config["rope_scaling"] ?? {}) as Json;
  const type = raw["rope_type"] ?? raw["type"] ?? "default";
  const f32 = (value: unknown): GgufValue => ({ type: "float32", value: Number(value) });
  const original = raw["original_max_position_embeddings"];
  const length: [string, GgufValue][] =
    original === undefined
      ? []
      : [["rope.scaling.original_context_length", { type: "uint32", value: Number(original) }]];
  switch (type) {
    case "default":
      return { metadata: [], tensors: [] };
    case "linear":
    case "yarn":
      return {
        metadata: [
          ["rope.scaling.type", { type: "string", value: String(type) }],
          ["rope.scaling.factor", f32(raw["factor"])],
          ...length,
        ],
        tensors: [],
      };
    case "llama3": {
      const scaling: Llama3Rope = {
        type: "llama3",
        factor: Number(raw["factor"]),
        lowFreqFactor: Number(raw["low_freq_factor"]),
        highFreqFactor: Number(raw["high_freq_factor"]),
        originalMaxPositions: Number(original),
      };
      const stretched = inverseFrequencies({ ...base, scaling });
      const divisors = inverseFrequencies(base).map((f, i) => f / stretched[i]!);
      return { metadata: [], tensors: [["rope_freqs.weight", Float32Array.from(divisors)]] };
    }
    default:
      throw new UnsupportedError(
        `gguf: rope scaling ${JSON.stringify(type)} is not written — linear, yarn and llama3 are.`,
      );
  }
}

/**
 * What a file says of a model's sizes, and tensors that belong to it.
 * @param config the model's own
 * @throws UnsupportedError for settings that llama.cpp does not know.
 */
export function metadataOfConfig(
  family: GgufFamily,
  config: Json,
  sizes: { readonly headDim: number; readonly vocabSize: number; readonly dFeedForward: number },
): { metadata: [string, GgufValue][]; tensors: [string, Float32Array<ArrayBuffer>][] } {
  const arch = family.architecture;
  const metadata: [string, GgufValue][] = [];
  for (const [there, here, type] of family.numbers) {
    const value = config[here] ?? (here === "n_inner" ? sizes.dFeedForward : undefined);
    if (value === undefined || value === null) continue;
    metadata.push([`${arch}.${there}`, { type, value: value as number | boolean }]);
  }
  metadata.push([`${arch}.vocab_size`, { type: "uint32", value: sizes.vocabSize }]);
  if (arch === "gpt2") return { metadata, tensors: [] };
  const share = Number(config["rotary_pct"] ?? config["partial_rotary_factor"] ?? 1);
  const turned = Math.trunc(sizes.headDim * share);
  metadata.push([`${arch}.rope.dimension_count`, { type: "uint32", value: turned }]);
  if (family.headDim) {
    for (const key of ["key_length", "value_length"]) {
      metadata.push([`${arch}.attention.${key}`, { type: "uint32", value: sizes.headDim }]);
    }
  }
  const scaling = scalingOf(config, {
    headDim: turned,
    theta: Number(config["rope_theta"] ?? 10000),
    maxPositions: Number(config["max_position_embeddings"]),
  });
  for (const [key, value] of scaling.metadata) metadata.push([`${arch}.${key}`, value]);
  return { metadata, tensors: scaling.tensors };
}
