import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { loadChatTemplate } from "../data/chat-template.ts";
import { loadTokenizer, Tokenizer } from "../data/tokenizer.ts";
import { nodeHost } from "../host/node.ts";
import { createGguf, type GgufValue } from "../io/gguf.ts";
import { GgufFile } from "../io/gguf-read.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { families } from "./families.ts";
import { loadModel, saveModel } from "./folder.ts";
import { loadGguf } from "./gguf.ts";
import { withGguf } from "./gguf-folder.ts";
import { reorderRows } from "./gguf-names.ts";
import { saveGguf } from "./gguf-write.ts";
import type { LanguageModel } from "./model.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-gguf-model-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const path = join(root, "model.gguf");
const folderOf = (name: string): string => new URL(`../../${name}`, import.meta.url).pathname;

const common = {
  vocab_size: 40,
  hidden_size: 32,
  intermediate_size: 48,
  num_hidden_layers: 2,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 64,
};
const configs: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  "llama, as Llama 3 with biases": {
    ...{ ...common, model_type: "llama", rope_theta: 500000, attention_bias: true },
    rope_scaling: {
      ...{ rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 },
      original_max_position_embeddings: 8192,
    },
  },
  "llama with linear scaling": {
    ...{ ...common, model_type: "llama", head_dim: 16, tie_word_embeddings: true },
    rope_scaling: { rope_type: "linear", factor: 2 },
  },
  qwen2: { ...common, model_type: "qwen2", tie_word_embeddings: true },
  qwen3: { ...common, model_type: "qwen3", head_dim: 16 },
  gemma3: {
    ...{ ...common, model_type: "gemma3_text", head_dim: 16, sliding_window: 8 },
    ...{ query_pre_attn_scalar: 16, num_hidden_layers: 6, tie_word_embeddings: true },
  },
  phi3: { ...common, model_type: "phi3", num_key_value_heads: 4 },
  "gpt-neox": { ...common, model_type: "gpt_neox", rotary_pct: 0.5, num_key_value_heads: 4 },
};

/** A model of a config with random weights, in a folder. */
async function folderWith(config: Readonly<Record<string, unknown>>): Promise<string> {
  const folder = join(root, String(config["model_type"]));
  const model = families[String(config["model_type"])]!(config) as LanguageModel;
  const rng = new Rng(3);
  const params = Object.fromEntries(
    [...model.slots()].map(([name, { shape }]) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return [name, Tensor.from(rng.fold(name).normals(size), shape)];
    }),
  );
  await saveModel(files, folder, model, params);
  return folder;
}

function largest(a: Tensor, b: Tensor): number {
  const [x, y] = [Array.from(a.numbers()), b.numbers()];
  return x.reduce((most, value, i) => Math.max(most, Math.abs(value - y[i]!)), 0);
}

describe("a model folder as GGUF and back", () => {
  const known = Object.entries(configs).filter(([, { model_type: type }]) =>
    Object.hasOwn(families, String(type)),
  );

  it.each(known)("keeps every weight and setting of %s", async (_, config) => {
    const folder = await folderWith(config);
    const before = await loadModel(files, folder);
    await saveGguf(files, folder, path, { dtype: "f32" });
    const after = await loadGguf(files, path);
    expect(after.model.config).toEqual(before.model.config);
    expect(Object.keys(after.params).sort()).toEqual(Object.keys(before.params).sort());
    for (const [name, tensor] of Object.entries(before.params)) {
      expect(after.params[name]!.shape).toEqual(tensor.shape);
      // Norms of Gemma are stored with 1 added, which rounds.
      const allowed = config["model_type"] === "gemma3_text" && /norm/.test(name) ? 2 ** -22 : 0;
      expect(largest(after.params[name]!, tensor)).toBeLessThanOrEqual(allowed);
    }
    expect(after.tokenizer).toBeUndefined();
  });

  it.each(["hf-llama", "hf-gpt2"])("keeps the recorded %s", async (name) => {
    const folder = folderOf(`test/parity/${name}`);
    const before = await loadModel(files, folder);
    await saveGguf(files, folder, path, { dtype: "f32" });
    const after = await loadModel(files, path);
    // A missing size of the inner layer becomes a stated one.
    expect({ ...after.model.config, n_inner: null }).toEqual({
      ...before.model.config,
      n_inner: null,
    });
    for (const [slot, tensor] of Object.entries(before.params)) {
      expect(largest(after.params[slot]!, tensor)).toBe(0);
    }
  });

  it.each([
    ["f16", "F16", 2 ** -11],
    ["bf16", "BF16", 2 ** -8],
    ["q8_0", "Q8_0", 1 / 254],
    ["q4_0", "Q4_0", 1 / 8],
  ] as const)("rounds matrices to %s and keeps vectors", async (dtype, type, step) => {
    const folder = await folderWith(configs["llama with linear scaling"]!);
    const before = await loadModel(files, folder);
    const { types } = await saveGguf(files, folder, path, { dtype });
    // Rows of 48 are no whole blocks.
    expect(Object.keys(types)).toContain(type);
    const after = await loadModel(files, path);
    for (const [slot, tensor] of Object.entries(before.params)) {
      const most = Array.from(tensor.numbers()).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      const allowed = tensor.shape.length === 1 ? 0 : most * step * 1.01;
      expect(largest(after.params[slot]!, tensor)).toBeLessThanOrEqual(allowed);
    }
  });

  it("puts the halves of each head side by side", () => {
    // Two heads of four rows: halves (0 1 | 2 3) and (4 5 | 6 7).
    const heads = { nHeads: 2, nKvHeads: 2 };
    const there = reorderRows(
      Float32Array.of(0, 1, 2, 3, 4, 5, 6, 7),
      8,
      "queries",
      heads,
      "there",
    );
    expect([...there]).toEqual([0, 2, 1, 3, 4, 6, 5, 7]);
    expect([...reorderRows(there, 8, "queries", heads, "here")]).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    // Two heads of (query, key, value) of one row each.
    const parts = reorderRows(Float32Array.of(0, 1, 2, 3, 4, 5), 6, "parts", heads, "there");
    expect([...parts]).toEqual([0, 3, 1, 4, 2, 5]);
  });

  it("keeps the tokenizer and the chat template", async () => {
    const folder = folderOf("models/builtin");
    await saveGguf(files, folder, path, { dtype: "q8_0", name: "builtin" });
    const layered = withGguf(files);
    const [before, after] = [
      await loadTokenizer(files, folder),
      await loadTokenizer(layered, path),
    ];
    for (const text of ["Hello, world! 12345 it's", "  a\n\tb é 🙂 日本語", "", "<|endoftext|>x"]) {
      expect([...after.encode(text)]).toEqual([...before.encode(text)]);
      expect([...after.encode(text, { allowSpecial: true })]).toEqual([
        ...before.encode(text, { allowSpecial: true }),
      ]);
      expect(after.decode(after.encode(text))).toBe(before.decode(before.encode(text)));
    }
    expect([after.vocabSize, after.eosId]).toEqual([before.vocabSize, before.eosId]);
    const { tokenizer } = await loadGguf(files, path);
    expect(new Tokenizer(tokenizer!, path).eosId).toBe(before.eosId);
    await expect(loadChatTemplate(layered, path)).resolves.toBeDefined();
    expect((await layered.list(path)).map((info) => info.path.slice(path.length + 1))).toEqual([
      "config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
    ]);
  });
});

describe("a GGUF file that is no model here", () => {
  const text = (value: string): GgufValue => ({ type: "string", value });
  const write = async (
    change: (entries: Map<string, GgufValue>, names: Set<string>) => void,
  ): Promise<void> => {
    await saveGguf(files, await folderWith(configs["llama with linear scaling"]!), path, {
      dtype: "f32",
    });
    const file = await GgufFile.open(files, path);
    const entries = new Map(file.metadata);
    const names = new Set(file.tensors.keys());
    change(entries, names);
    const kept = [...file.tensors.values()].filter(({ name }) => names.has(name));
    const data = await Promise.all(kept.map(({ name }) => file.readBytes(name)));
    await file.close();
    await createGguf(files, path, [...entries], kept, (_, i) => data[i]!);
  };

  it.each<[string, (entries: Map<string, GgufValue>, names: Set<string>) => void]>([
    [
      'the architecture "mamba" is not supported — supported are llama,',
      (entries) => entries.set("general.architecture", text("mamba")),
    ],
    ["holds an adapter and no model", (entries) => entries.set("general.type", text("adapter"))],
    [
      "is one of 3 parts of a model",
      (entries) => entries.set("split.count", { type: "uint16", value: 3 }),
    ],
    [
      'metadata "llama.attention.head_count" must be one number, got 2 × int32',
      (entries) => entries.set("llama.attention.head_count", { type: "int32", value: [4, 4] }),
    ],
    [
      'llama: "num_hidden_layers" must be a whole number from 1 to 4096, got 4294967295',
      (entries) => entries.set("llama.block_count", { type: "uint32", value: 2 ** 32 - 1 }),
    ],
    [
      "Missing: model.layers.1.mlp.up_proj.weight.",
      (_, names) => names.delete("blk.1.ffn_up.weight"),
    ],
    [
      'the tokenizer "rwkv" is not known',
      (entries) => {
        entries.set("tokenizer.ggml.model", text("rwkv"));
        entries.set("tokenizer.ggml.tokens", { type: "string", value: ["a"] });
      },
    ],
    [
      'the pre-tokenizer "tekken" is not known — known are gpt-2,',
      (entries) => {
        entries.set("tokenizer.ggml.model", text("gpt2"));
        entries.set("tokenizer.ggml.pre", text("tekken"));
        entries.set("tokenizer.ggml.tokens", { type: "string", value: ["a"] });
      },
    ],
    [
      'metadata "tokenizer.ggml.eos_token_id" is 7, the vocabulary has 1 tokens',
      (entries) => {
        entries.set("tokenizer.ggml.model", text("gpt2"));
        entries.set("tokenizer.ggml.tokens", { type: "string", value: ["a"] });
        entries.set("tokenizer.ggml.merges", { type: "string", value: [] });
        entries.set("tokenizer.ggml.eos_token_id", { type: "uint32", value: 7 });
      },
    ],
  ])("is refused: %s", async (sentence, change) => {
    await write(change);
    await expect(loadModel(files, path)).rejects.toThrow(sentence);
    await expect(loadModel(files, path)).rejects.toThrow(path);
  });
});
