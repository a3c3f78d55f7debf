import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lora } from "../adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../adapters/peft.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { OrtBackend } from "../backend/ort/ort.ts";
import { nodeHost } from "../host/node.ts";
import { SafetensorsFile } from "../io/safetensors.ts";
import { loadModel, saveModel } from "../models/folder.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Llama } from "../models/llama.ts";
import type { LanguageModel } from "../models/model.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { mergeAdapter } from "./merge-adapter.ts";
import { compareLogits, probeInputs, probeLogits } from "./verify.ts";

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-merge-"));
const at = (name: string): string => join(root, name);
afterAll(() => rmSync(root, { recursive: true, force: true }));

const models: Readonly<Record<string, LanguageModel>> = {
  llama: new Llama({
    vocabSize: 50,
    dModel: 24,
    dFeedForward: 40,
    nLayers: 2,
    nHeads: 4,
    nKvHeads: 2,
    maxPositions: 32,
    initializerRange: 0.2,
  }),
  gpt2: new Gpt2({
    vocabSize: 50,
    dModel: 24,
    nLayers: 2,
    nHeads: 4,
    maxPositions: 32,
    dropout: 0,
  }),
};

let backend: OrtBackend;

beforeAll(async () => {
  backend = await nodeOrt();
  for (const [name, model] of Object.entries(models)) {
    await saveModel(files, at(name), model, model.init(new Rng(1)).params, { dtype: "float16" });
    const loaded = (await loadModel(files, at(name))).model;
    const adapter = lora(loaded, { rank: 3, targetModules: "all-linear" });
    const params = adapter.init(new Rng(2));
    for (const [key, { shape, size }] of Object.entries(params)) {
      if (key.includes("lora_B")) {
        params[key] = Tensor.from(new Rng(3).fold(key).normals(size, 0.1), shape);
      }
    }
    await saveAdapter(files, at(`${name}-adapter`), adapter, params);
  }
  writeFileSync(join(at("llama"), "tokenizer_config.json"), '{"kept": true}');
  writeFileSync(join(at("llama"), "pytorch_model.bin"), "the old weights");
});

describe.each(["llama", "gpt2"])("a merge into %s", (name) => {
  const paths = (out: string): { model: string; adapter: string; out: string } => ({
    model: at(name),
    adapter: at(`${name}-adapter`),
    out: at(out),
  });

  it("gives the logits of base and adapter, in the types of the base", async () => {
    const report = await mergeAdapter(files, backend, paths(`${name}-merged`));
    expect(report.dtypes).toEqual(["F16"]);
    expect(report.tolerance).toBe(1e-2);
    const base = await loadModel(files, at(name));
    const adapter = await loadAdapter(files, at(`${name}-adapter`), base.model);
    const merged = await loadModel(files, at(`${name}-merged`));
    const ids = probeInputs(base.model.sizes, { seed: 9 });
    const wanted = await probeLogits(backend, base.model, base.params, ids, adapter);
    const given = await probeLogits(backend, merged.model, merged.params, ids);
    const unchanged = await probeLogits(backend, base.model, base.params, ids);
    expect(compareLogits(wanted, given).maxRelative).toBeLessThan(1e-2);
    expect(compareLogits(unchanged, given).maxRelative).toBeGreaterThan(3e-2);
    expect(merged.config).toEqual(base.config);
  });

  it("rounds nothing when it stores float32, whatever the base has", async () => {
    const out = `${name}-wide`;
    const report = await mergeAdapter(files, backend, paths(out), { dtype: "float32" });
    expect(report.tolerance).toBe(1e-4);
    expect(report.difference.maxRelative).toBeLessThan(1e-5);
    const config = JSON.parse(readFileSync(join(at(out), "config.json"), "utf8"));
    expect(config.dtype).toBe("float32");
  });

  it("writes the same weights in several files as in one", async () => {
    const out = `${name}-shards`;
    await mergeAdapter(files, backend, paths(out), { maxShardBytes: 4000 });
    const index = JSON.parse(
      readFileSync(join(at(out), "model.safetensors.index.json"), "utf8"),
    ) as { metadata: { total_size: number }; weight_map: Record<string, string> };
    const one = await SafetensorsFile.open(files, join(at(`${name}-merged`), "model.safetensors"));
    let total = 0;
    for (const [tensor, file] of Object.entries(index.weight_map)) {
      const shard = await SafetensorsFile.open(files, join(at(out), file));
      expect(await shard.readBytes(tensor)).toEqual(await one.readBytes(tensor));
      total += shard.entries.get(tensor)!.bytes;
      await shard.close();
    }
    expect(Object.keys(index.weight_map).sort()).toEqual([...one.entries.keys()].sort());
    expect(index.metadata.total_size).toBe(total);
    await one.close();
    const [a, b] = [await loadModel(files, at(out)), await loadModel(files, at(`${name}-merged`))];
    expect(a.params).toEqual(b.params);
  });
});

describe("a merge", () => {
  const paths = { model: at("llama"), adapter: at("llama-adapter") };

  it("keeps other files and leaves old weights behind", async () => {
    const report = await mergeAdapter(files, backend, { ...paths, out: at("beside") });
    expect(readdirSync(at("beside")).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "tokenizer_config.json",
    ]);
    expect(readFileSync(join(at("beside"), "tokenizer_config.json"), "utf8")).toBe(
      '{"kept": true}',
    );
    expect(report.leftOut).toEqual(["pytorch_model.bin"]);
  });

  it("leaves tensors that it does not change as they were, byte for byte", async () => {
    const [a, b] = await Promise.all(
      ["llama", "beside"].map((name) =>
        SafetensorsFile.open(files, join(at(name), "model.safetensors")),
      ),
    );
    for (const tensor of ["model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"]) {
      expect(await b!.readBytes(tensor)).toEqual(await a!.readBytes(tensor));
    }
    const changed = "model.layers.0.mlp.down_proj.weight";
    expect(await b!.readBytes(changed)).not.toEqual(await a!.readBytes(changed));
    await a!.close();
    await b!.close();
  });

  it("keeps the numbers of config.json as they are written", async () => {
    const base = at("written");
    cpSync(at("llama"), base, { recursive: true });
    const config = readFileSync(join(base, "config.json"), "utf8");
    const extra = '"a": 1.0,\n  "b": [\n    1e-05,\n    3\n  ],';
    const text = config.replace("{\n", `{\n  ${extra}\n`);
    writeFileSync(join(base, "config.json"), text);
    const out = at("written-merged");
    await mergeAdapter(files, backend, { ...paths, model: base, out }, { dtype: "float32" });
    expect(readFileSync(join(out, "config.json"), "utf8")).toBe(
      text.replace('"dtype": "float16"', '"dtype": "float32"'),
    );
  });

  it("refuses, and writes nothing, above the tolerance", async () => {
    const out = at("never");
    await expect(
      mergeAdapter(files, backend, { ...paths, out }, { dtype: "bfloat16", tolerance: 1e-6 }),
    ).rejects.toThrow(
      /^merge: the merged weights give other logits: max \|difference\| [\d.e-]+, relative [\d.e-]+, allowed is 0\.000001 — nothing was written/,
    );
    expect(readdirSync(root)).not.toContain("never");
  });
});

describe("compareLogits", () => {
  it("counts what is no number as infinitely far", () => {
    const reference = Tensor.from([1, -4], [1, 2]);
    expect(compareLogits(reference, Tensor.from([1, Number.NaN], [1, 2])).maxRelative).toBe(
      Infinity,
    );
    // |−2 − (−4)| = 2, and 2 / 4.
    expect(compareLogits(reference, Tensor.from([1, -2], [1, 2]))).toEqual({
      maxAbsolute: 2,
      maxRelative: 0.5,
      sameTop: 1,
      rows: 1,
    });
  });
});
