/** Exported folders, run by the libraries that they are for. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  AutoModelForCausalLM,
  AutoTokenizer,
  env,
  Tensor as HfTensor,
  type PreTrainedModel,
  type PreTrainedTokenizer,
  pipeline,
} from "@huggingface/transformers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lora } from "../src/adapters/lora.ts";
import { nodeOrt } from "../src/backend/ort/node.ts";
import type { OrtBackend } from "../src/backend/ort/ort.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../src/data/bpe.ts";
import { loadTokenizer, type Tokenizer } from "../src/data/tokenizer.ts";
import { nodeHost } from "../src/host/node.ts";
import { Decoder } from "../src/infer/decoder.ts";
import { exportTolerance, verifyOnnxExport } from "../src/infer/export-onnx.ts";
import { compareLogits, probeLogits } from "../src/infer/verify.ts";
import { decodeOnnx } from "../src/io/onnx-read.ts";
import { type LoadedModel, loadModel, saveModel } from "../src/models/folder.ts";
import { Gpt2 } from "../src/models/gpt2.ts";
import { Llama } from "../src/models/llama.ts";
import { Rng } from "../src/tensor/rng.ts";
import { Tensor } from "../src/tensor/tensor.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-export-"));
const builtin = fileURLToPath(new URL("../models/builtin", import.meta.url));
const prompts = ["It was a dark night", "The captain said", "A letter from my dear"] as const;

const before = { remote: env.allowRemoteModels, path: env.localModelPath };
let backend: OrtBackend;

beforeAll(async () => {
  env.allowRemoteModels = false;
  env.localModelPath = root;
  backend = await nodeOrt();
});

afterAll(() => {
  env.allowRemoteModels = before.remote;
  env.localModelPath = before.path;
  rmSync(root, { recursive: true, force: true });
});

/** A random GPT-2 with a tokenizer of bytes. */
async function tinyGpt2(): Promise<string> {
  const path = join(root, "source-gpt2");
  const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
  const model = new Gpt2({
    vocabSize: 257,
    dModel: 32,
    nLayers: 2,
    nHeads: 4,
    maxPositions: 64,
    dropout: 0,
  });
  const { params } = model.init(new Rng(3));
  // Larger than new weights are, so that texts differ.
  for (const [name, tensor] of Object.entries(params)) {
    if (name.endsWith("weight"))
      params[name] = Tensor.from(
        Array.from(tensor.numbers(), (x) => 6 * x),
        tensor.shape,
      );
  }
  await saveModel(files, path, model, params, {
    files: {
      "tokenizer.json": toTokenizerJson(bpe),
      "tokenizer_config.json": toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }),
    },
  });
  return path;
}

const int64 = (rows: readonly (readonly number[])[]): HfTensor =>
  new HfTensor("int64", BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0]!.length]);

describe.each([
  ["the shipped model", "builtin", async () => builtin],
  ["a random GPT-2", "gpt2", tinyGpt2],
] as const)("an ONNX export of %s", (_, name, source) => {
  let base: LoadedModel;
  let tokenizer: Tokenizer;
  let theirs: PreTrainedModel;
  let theirTokenizer: PreTrainedTokenizer;

  beforeAll(async () => {
    const path = await source();
    base = await loadModel(files, path);
    tokenizer = await loadTokenizer(files, path);
    const verified = await verifyOnnxExport(files, backend, base, { tokenizer });
    await verified.write(join(root, name));
    theirs = await AutoModelForCausalLM.from_pretrained(name, { dtype: "fp32" });
    theirTokenizer = await AutoTokenizer.from_pretrained(name);
  });

  afterAll(() => theirs.dispose());

  const ourTexts = async (newTokens: number): Promise<string[]> => {
    const decoder = new Decoder(base.model, base.params, backend);
    const made = await decoder.generate(
      prompts.map((prompt) => tokenizer.encode(prompt)),
      { maxNewTokens: newTokens, stopIds: [tokenizer.eosId!] },
    );
    await decoder.release();
    return made.map((ids, i) => prompts[i] + tokenizer.decode(ids, { skipSpecial: true }));
  };

  it("gives transformers.js the same logits", async () => {
    const ids = Array.from(tokenizer.encode(prompts[0]));
    const { logits } = (await theirs({
      input_ids: int64([ids, ids]),
      attention_mask: int64([ids.map(() => 1), ids.map(() => 1)]),
    })) as { logits: HfTensor };
    expect(logits.dims).toEqual([2, ids.length, base.model.sizes.vocabSize]);
    const given = new Tensor(
      "float32",
      [2 * ids.length, base.model.sizes.vocabSize],
      Float32Array.from(logits.data as Float32Array),
    );
    const input = new Tensor("int32", [2, ids.length], Int32Array.from([...ids, ...ids]));
    const own = await probeLogits(backend, base.model, base.params, input);
    const difference = compareLogits(own, given);
    expect(difference.maxRelative).toBeLessThan(1e-4);
    // Numbers that were never computed would agree too.
    expect(Math.max(...(own.data as Float32Array))).toBeGreaterThan(0.1);
  });

  it("makes transformers.js write the same text, prompt by prompt", async () => {
    const generate = await pipeline("text-generation", name, { dtype: "fp32" });
    const theirTexts: string[] = [];
    for (const prompt of prompts) {
      const [made] = (await generate(prompt, { max_new_tokens: 20, do_sample: false })) as [
        { generated_text: string },
      ];
      theirTexts.push(made.generated_text);
    }
    await generate.dispose();
    expect(theirTexts).toEqual(await ourTexts(20));
    expect(new Set(theirTexts).size).toBe(3);
  });

  it("makes the same text in a batch with padding on the left", async () => {
    const pair = [prompts[1], `${prompts[0]}. ${prompts[2]}`];
    theirTokenizer.padding_side = "left";
    const inputs = theirTokenizer(pair, { padding: true }) as {
      input_ids: HfTensor;
      attention_mask: HfTensor;
    };
    expect(Array.from(inputs.attention_mask.data as BigInt64Array)).toContain(0n);
    const made = (await theirs.generate({
      ...inputs,
      max_new_tokens: 16,
      do_sample: false,
    } as never)) as HfTensor;
    const decoder = new Decoder(base.model, base.params, backend);
    const own = await decoder.generate(
      pair.map((prompt) => tokenizer.encode(prompt)),
      { maxNewTokens: 16, stopIds: [tokenizer.eosId!] },
    );
    await decoder.release();
    const start = inputs.input_ids.dims[1]!;
    const width = made.dims[1]!;
    const rows = own.map((ids, row) =>
      Array.from(
        (made.data as BigInt64Array).subarray(row * width + start, (row + 1) * width),
        Number,
      ).slice(0, ids.length),
    );
    expect(rows).toEqual(own.map((ids) => Array.from(ids)));
  });
});

describe("an ONNX export", () => {
  const small = new Llama({
    vocabSize: 96,
    dModel: 32,
    dFeedForward: 64,
    nLayers: 2,
    nHeads: 4,
    nKvHeads: 2,
    maxPositions: 48,
    attentionBias: true,
    initializerRange: 0.2,
  });
  let base: LoadedModel;

  beforeAll(async () => {
    const path = join(root, "source-llama");
    await saveModel(files, path, small, small.init(new Rng(5)).params);
    base = await loadModel(files, path);
  });

  it("has the inputs and outputs that transformers.js looks for, and open sizes", async () => {
    await (await verifyOnnxExport(files, backend, base)).write(join(root, "names"));
    const bytes = readFileSync(join(root, "names", "onnx", "model.onnx"));
    const { graph, opsets } = decodeOnnx(bytes, "model.onnx");
    expect(opsets).toEqual({ "": 21, "com.microsoft": 1 });
    expect(graph.inputs.slice(0, 5)).toEqual([
      { name: "input_ids", type: "int64", shape: ["batch_size", "sequence_length"] },
      { name: "attention_mask", type: "int64", shape: ["batch_size", "total_sequence_length"] },
      { name: "position_ids", type: "int64", shape: ["batch_size", "sequence_length"] },
      {
        name: "past_key_values.0.key",
        type: "float32",
        shape: ["batch_size", 2, "past_sequence_length", 8],
      },
      {
        name: "past_key_values.0.value",
        type: "float32",
        shape: ["batch_size", 2, "past_sequence_length", 8],
      },
    ]);
    expect(graph.inputs).toHaveLength(3 + 4);
    expect(graph.outputs.map((output) => output.name)).toEqual([
      "logits",
      "present.0.key",
      "present.0.value",
      "present.1.key",
      "present.1.value",
    ]);
  });

  it("writes every form of the weights, and transformers.js runs each", async () => {
    const variants = ["fp16", "q8", "q4"] as const;
    const verified = await verifyOnnxExport(files, backend, base, { variants, tolerance: 1 });
    await verified.write(join(root, "forms"));
    const reports = verified.variants;
    expect(reports.map(({ file }) => file)).toEqual([
      "model_fp16.onnx",
      "model_quantized.onnx",
      "model_q4.onnx",
    ]);
    for (const { graphDifference } of reports) {
      expect(graphDifference.maxRelative).toBeLessThan(1e-5);
    }
    const [half, q8, q4] = reports.map(({ difference }) => difference.maxRelative);
    expect(half).toBeLessThan(exportTolerance.fp16);
    expect(q8).toBeLessThan(exportTolerance.q8);
    expect(q4).toBeGreaterThan(q8!);
    const config = JSON.parse(readFileSync(join(root, "forms", "config.json"), "utf8"));
    expect(config["transformers.js_config"]).toEqual({ dtype: "fp16" });
    const ids = int64([[5, 17, 80, 2]]);
    const mask = int64([[1, 1, 1, 1]]);
    const own = await probeLogits(
      backend,
      base.model,
      base.params,
      new Tensor("int32", [1, 4], Int32Array.of(5, 17, 80, 2)),
    );
    for (const [dtype, allowed] of [
      [undefined, half! * 3],
      ["q8", q8! * 3],
      ["q4", q4! * 3],
    ] as const) {
      const model = await AutoModelForCausalLM.from_pretrained("forms", dtype ? { dtype } : {});
      const { logits } = (await model({ input_ids: ids, attention_mask: mask })) as {
        logits: HfTensor;
      };
      const given = Float32Array.from(logits.data as Float32Array);
      const difference = compareLogits(own, new Tensor("float32", own.shape, given));
      expect(difference.maxRelative).toBeLessThan(allowed);
      await model.dispose();
    }
  });

  it("puts large weights into files beside the model", async () => {
    const verified = await verifyOnnxExport(files, backend, base, {
      maxInlineBytes: 10_000,
      maxDataBytes: 40_000,
    });
    const [report] = verified.variants;
    expect(report!.dataFiles.slice(0, 2)).toEqual(["model.onnx_data", "model.onnx_data_1"]);
    await verified.write(join(root, "beside"));
    const model = await AutoModelForCausalLM.from_pretrained("beside");
    const { logits } = (await model({
      input_ids: int64([[1, 2, 3]]),
      attention_mask: int64([[1, 1, 1]]),
    })) as { logits: HfTensor };
    const own = await probeLogits(
      backend,
      base.model,
      base.params,
      new Tensor("int32", [1, 3], Int32Array.of(1, 2, 3)),
    );
    const given = Float32Array.from(logits.data as Float32Array);
    expect(compareLogits(own, new Tensor("float32", own.shape, given)).maxRelative).toBeLessThan(
      1e-4,
    );
    await model.dispose();
  });

  it("writes an adapter into the weights", async () => {
    const adapter = lora(base.model, { rank: 4, targetModules: "all-linear" });
    const params = adapter.init(new Rng(1));
    for (const [name, { shape }] of Object.entries(params)) {
      if (name.includes("lora_B"))
        params[name] = Tensor.from(
          new Rng(2).fold(name).normals(
            shape.reduce((a, b) => a * b),
            0.1,
          ),
          shape,
        );
    }
    const loaded = { adapter, params };
    const verified = await verifyOnnxExport(files, backend, base, { adapter: loaded });
    await verified.write(join(root, "adapted"));
    const model = await AutoModelForCausalLM.from_pretrained("adapted");
    const { logits } = (await model({
      input_ids: int64([[1, 2, 3]]),
      attention_mask: int64([[1, 1, 1]]),
    })) as { logits: HfTensor };
    const input = new Tensor("int32", [1, 3], Int32Array.of(1, 2, 3));
    const given = new Tensor("float32", [3, 96], Float32Array.from(logits.data as Float32Array));
    const withAdapter = await probeLogits(backend, base.model, base.params, input, loaded);
    const without = await probeLogits(backend, base.model, base.params, input);
    expect(compareLogits(withAdapter, given).maxRelative).toBeLessThan(1e-4);
    expect(compareLogits(without, given).maxRelative).toBeGreaterThan(1e-2);
    await model.dispose();
  });

  it("refuses, and writes nothing, above the tolerance", async () => {
    await expect(
      verifyOnnxExport(files, backend, base, { variants: ["q4"], tolerance: 1e-6 }),
    ).rejects.toThrow(
      /^export: model_q4\.onnx gives other logits than the model: max \|difference\| [\d.e-]+, relative [\d.e-]+, allowed is 0\.000001 — nothing was written/,
    );
  });

  it("refuses unknown variants", async () => {
    await expect(
      verifyOnnxExport(files, backend, base, { variants: ["q3" as never] }),
    ).rejects.toThrow('export: unknown variant "q3" — known are fp32, fp16, q8, q4.');
  });
});
