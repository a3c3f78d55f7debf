/** Good folders of models and adapters made bad, each in one way, and what is said of them. */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { adapterKinds } from "../../src/methods/registry.ts";
import { families } from "../../src/models/families.ts";

type Json = Record<string, unknown>;
type Change = (folder: string) => void;
/** What is done to a good folder, and what is said of it. */
type Case = readonly [name: string, change: Change, sentence: string];

const json = (value: unknown): string => JSON.stringify(value);

/** Overwrites fields of a JSON file; undefined takes one out. */
const fields =
  (file: string, change: Json): Change =>
  (folder) => {
    const path = join(folder, file);
    writeFileSync(path, json({ ...(JSON.parse(readFileSync(path, "utf8")) as Json), ...change }));
  };
const config = (change: Json): Change => fields("config.json", change);
const text =
  (file: string, content: string): Change =>
  (folder) =>
    writeFileSync(join(folder, file), content);
/** Other bytes for the weights. */
const weights =
  (change: (bytes: Buffer) => Uint8Array, file = "model.safetensors"): Change =>
  (folder) =>
    writeFileSync(join(folder, file), change(readFileSync(join(folder, file))));
/** Another header for the weights, over the same numbers. */
const header = (change: (header: Record<string, Json>) => void): Change =>
  weights((bytes) => {
    const size = Number(bytes.readBigUInt64LE(0));
    const parsed = JSON.parse(bytes.toString("utf8", 8, 8 + size)) as Record<string, Json>;
    change(parsed);
    const written = Buffer.from(json(parsed));
    const prefix = Buffer.alloc(8);
    prefix.writeBigUInt64LE(BigInt(written.length));
    return Buffer.concat([prefix, written, bytes.subarray(8 + size)]);
  });
const without =
  (...names: readonly string[]): Change =>
  (folder) => {
    for (const name of names) rmSync(join(folder, name));
  };
const longHeader = (bytes: Buffer): Buffer => {
  bytes.writeBigUInt64LE(2n ** 62n);
  return bytes;
};
const withNan = (bytes: Buffer): Buffer => {
  bytes.writeFloatLE(Number.NaN, bytes.length - 8);
  return bytes;
};
const both =
  (...changes: readonly Change[]): Change =>
  (folder) => {
    for (const change of changes) change(folder);
  };

const supported = `supported are ${Object.keys(families).join(", ")}`;
const whole = "must be a whole number from 1 to 16777216";
const single = "model.safetensors";
const pickle =
  'is a pickle, which can run code when it is read, and so is never read — save the weights as safetensors, in transformers and PEFT: save_pretrained("<folder>", safe_serialization=True).';

export const models: readonly Case[] = [
  [
    "broken-config",
    text("config.json", '{"model_type": "llama",'),
    "broken-config/config.json: invalid JSON at byte 23: a key in quotes is needed, got the end of the text.",
  ],
  ["list-config", text("config.json", "[]"), "list-config/config.json: must be an object."],
  [
    "folder-config",
    both(without("config.json"), (folder) => mkdirSync(join(folder, "config.json"))),
    "folder-config/config.json: is a folder, a file is needed — check the path.",
  ],
  [
    "family",
    config({ model_type: "lama" }),
    `family/config.json: model_type "lama" is not supported — ${supported}.`,
  ],
  [
    "no-family",
    config({ model_type: undefined }),
    `no-family/config.json: model_type must be a name, got null — ${supported}.`,
  ],
  [
    "huge",
    config({ hidden_size: 1e12 }),
    `huge/config.json: llama: "hidden_size" ${whole}, got 1000000000000.`,
  ],
  [
    "negative",
    config({ hidden_size: -16 }),
    `negative/config.json: llama: "hidden_size" ${whole}, got -16.`,
  ],
  [
    "texts",
    config({ hidden_size: "16" }),
    `texts/config.json: llama: "hidden_size" ${whole}, got "16".`,
  ],
  [
    "lacking",
    config({ vocab_size: undefined }),
    'lacking/config.json: llama: "vocab_size" is missing.',
  ],
  [
    "deep",
    config({ num_hidden_layers: 2 ** 24 }),
    'deep/config.json: llama: "num_hidden_layers" must be a whole number from 1 to 4096, got 16777216.',
  ],
  [
    "wide",
    config({ vocab_size: 2 ** 24, hidden_size: 2 ** 24 }),
    'wide: tensor "model.embed_tokens.weight" must have shape (16777216, 16777216), got (257, 16) — does config.json belong to these weights?',
  ],
  [
    "far",
    config({
      max_position_embeddings: 2 ** 24,
      head_dim: 512,
      num_attention_heads: 1,
      num_key_value_heads: 1,
      hidden_size: 16,
    }),
    'far: tensor "model.layers.0.self_attn.q_proj.weight" must have shape (512, 16), got (16, 16) — does config.json belong to these weights?',
  ],
  [
    "activation",
    config({ hidden_act: { a: 1 } }),
    'activation/config.json: llama: hidden_act {"a":1} is not supported.',
  ],
  [
    "scaling",
    config({ rope_scaling: "x" }),
    'scaling/config.json: llama: rope scaling must be an object, got "x".',
  ],
  [
    "cut-header",
    weights((bytes) => bytes.subarray(0, 50)),
    `cut-header/${single}: a header of 1184 bytes does not fit a file of 50 — the file is cut short.`,
  ],
  [
    "cut-data",
    weights((bytes) => bytes.subarray(0, -10)),
    `cut-data/${single}: the tensors end at byte 44520, the file at 44510 — it is cut short, or carries bytes that no tensor owns.`,
  ],
  [
    "cut-length",
    weights((bytes) => bytes.subarray(0, 5)),
    `cut-length/${single}: holds 5 bytes, a safetensors file begins with 8 bytes of header length.`,
  ],
  [
    "long-header",
    weights(longHeader),
    `long-header/${single}: a header of 4611686018427388000 bytes is too large, at most 100000000 are read — is this a safetensors file?`,
  ],
  [
    "overlap",
    header((tensors) => {
      tensors["model.norm.weight"]!["data_offsets"] = [0, 16448];
    }),
    `overlap/${single}: tensor "model.norm.weight" lies at data_offsets [0, 16448], its data must begin at 16448 — tensors must follow each other without holes or overlaps.`,
  ],
  [
    "odd-dtype",
    header((tensors) => {
      tensors["model.norm.weight"]!["dtype"] = "F31";
    }),
    `odd-dtype/${single}: tensor "model.norm.weight" has the unknown dtype "F31" — known are BOOL, F4, F6_E2M3, F6_E3M2, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, F8_E4M3FNUZ, F8_E5M2FNUZ, I16, U16, F16, BF16, I32, U32, F32, C64, F64, I64, U64.`,
  ],
  [
    "whole-dtype",
    header((tensors) => {
      tensors["model.norm.weight"]!["dtype"] = "I32";
    }),
    'whole-dtype: tensor "model.norm.weight" is of int32, weights are floats — folders that other tools quantized are not read.',
  ],
  [
    "renamed",
    header((tensors) => {
      tensors["other"] = tensors["model.norm.weight"]!;
      delete tensors["model.norm.weight"];
    }),
    "renamed: the weights do not fit a llama of this config.json. Missing: model.norm.weight. Unexpected: other.",
  ],
  [
    "extra",
    header((tensors) => {
      tensors["more"] = { dtype: "F32", shape: [0], data_offsets: [43328, 43328] };
    }),
    "extra: the weights do not fit a llama of this config.json. Unexpected: more.",
  ],
  [
    "turned",
    header((tensors) => {
      tensors["lm_head.weight"]!["shape"] = [16, 257];
    }),
    'turned: tensor "lm_head.weight" must have shape (257, 16), got (16, 257) — does config.json belong to these weights?',
  ],
  [
    "nan",
    weights(withNan),
    'nan: tensor "model.norm.weight" holds NaN at element 14 — the file is damaged, or the training that wrote it went wrong.',
  ],
  [
    "outside",
    both(
      without(single),
      text(`${single}.index.json`, json({ weight_map: { "lm_head.weight": "../../etc/passwd" } })),
    ),
    `outside/${single}.index.json: weight_map sends "lm_head.weight" to "../../etc/passwd" — it must be the name of a file in this folder.`,
  ],
  [
    "no-weights",
    without(single),
    `no-weights: has neither "${single}" nor "${single}.index.json" — name a folder with safetensors weights.`,
  ],
  [
    "pickled",
    both(without(single), text("pytorch_model.bin", "PK")),
    `pickled/pytorch_model.bin: ${pickle}`,
  ],
  [
    "broken-tokenizer",
    text("tokenizer.json", "{"),
    "broken-tokenizer: tokenizer.json: invalid JSON at byte 1: a key in quotes is needed, got the end of the text.",
  ],
  [
    "no-tokenizer",
    without("tokenizer.json"),
    'no-tokenizer: has no "tokenizer.json" — name a folder with a tokenizer of the Hugging Face form.',
  ],
];

const adapterConfig = (change: Json): Change => fields("adapter_config.json", change);
const adapterFile = "adapter_model.safetensors";
const layer = "base_model.model.model.layers.0";

export const adapters: readonly Case[] = [
  [
    "a-broken",
    text("adapter_config.json", "{"),
    "a-broken/adapter_config.json: invalid JSON at byte 1: a key in quotes is needed, got the end of the text.",
  ],
  [
    "a-kind",
    adapterConfig({ peft_type: "SONG" }),
    `a-kind/adapter_config.json: peft_type "SONG" is not supported — supported are ${adapterKinds()
      .map(({ kind }) => JSON.stringify(kind))
      .join(", ")}.`,
  ],
  [
    "a-rank",
    adapterConfig({ r: 4 }),
    `a-rank/${adapterFile}: "${layer}.self_attn.q_proj.lora_A.weight" must have shape (4, 16), got (2, 16).`,
  ],
  [
    "a-huge",
    adapterConfig({ r: 1e9 }),
    "a-huge/adapter_config.json: rank must be a whole number from 1 to 65536, got 1000000000.",
  ],
  [
    "a-target",
    adapterConfig({ target_modules: ["c_attn"] }),
    "a-target/adapter_config.json: targetModules [c_attn] match no layer of this llama — it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
  ],
  [
    "a-fewer",
    adapterConfig({ target_modules: ["q_proj"] }),
    `a-fewer/${adapterFile}: the tensors do not fit this llama: missing [], unexpected [${layer}.self_attn.v_proj.lora_A.weight, ${layer}.self_attn.v_proj.lora_B.weight] — was the adapter made for another model?`,
  ],
  [
    "a-pickle",
    both(without(adapterFile), text("adapter_model.bin", "PK")),
    `a-pickle/adapter_model.bin: ${pickle}`,
  ],
  [
    "a-none",
    without(adapterFile),
    `a-none/${adapterFile}: no such file or folder — check the path.`,
  ],
  [
    "a-cut",
    weights((bytes) => bytes.subarray(0, -10), adapterFile),
    `a-cut/${adapterFile}: the tensors end at byte 1040, the file at 1030 — it is cut short, or carries bytes that no tensor owns.`,
  ],
  [
    "a-nan",
    weights(withNan, adapterFile),
    `a-nan/${adapterFile}: tensor "${layer}.self_attn.v_proj.lora_B.weight" holds NaN at element 30 — the file is damaged, or the training that wrote it went wrong.`,
  ],
];
