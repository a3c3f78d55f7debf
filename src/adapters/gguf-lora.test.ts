import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { readGgufHeader } from "../io/gguf-read.ts";
import { loadModel, readModelConfig } from "../models/folder.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { ggufLora, saveGgufLora } from "./gguf-lora.ts";
import { lora } from "./lora.ts";
import { loadAdapter } from "./peft.ts";

const { files } = nodeHost();
const parity = (name: string): string =>
  new URL(`../../test/parity/${name}`, import.meta.url).pathname;
const root = mkdtempSync(join(tmpdir(), "plasticity-gguf-lora-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe("a LoRA as GGUF", () => {
  it("is what llama.cpp's converter writes with the gguf package", async () => {
    const { model } = await loadModel(files, parity("hf-llama"));
    const adapter = await loadAdapter(files, parity("peft-lora"), model);
    const path = join(root, "llama.gguf");
    await saveGgufLora(files, path, model, adapter);
    const [own, recorded] = await Promise.all(
      [path, parity("gguf-lora.gguf")].map((file) => readGgufHeader(files, file)),
    );
    expect(Object.fromEntries(own!.metadata)).toEqual(Object.fromEntries(recorded!.metadata));
    expect([...own!.tensors.keys()].sort()).toEqual([...recorded!.tensors.keys()].sort());
    const [bytes, wanted] = [readFileSync(path), readFileSync(parity("gguf-lora.gguf"))];
    for (const [name, tensor] of own!.tensors) {
      const other = recorded!.tensors.get(name)!;
      expect([tensor.type, tensor.shape]).toEqual([other.type, other.shape]);
      const cut = (from: Buffer, at: number): Buffer => from.subarray(at, at + tensor.bytes!);
      expect(cut(bytes, tensor.offset).equals(cut(wanted, other.offset))).toBe(true);
    }
  });

  it("keeps the factors of a GPT-2, whose layers are turned in GGUF", async () => {
    const { model } = await loadModel(files, parity("hf-gpt2"));
    const adapter = await loadAdapter(files, parity("peft-lora-gpt2"), model);
    const { metadata, tensors } = ggufLora(model, adapter, { name: "tuned", dtype: "float16" });
    expect(Object.fromEntries(metadata)).toMatchObject({
      "general.architecture": { value: "gpt2" },
      "general.name": { value: "tuned" },
      "general.file_type": { value: 1 },
    });
    const layer = model.targets.get("transformer.h.1.attn.c_attn")!;
    const shapes = Object.fromEntries(tensors.map(([name, tensor]) => [name, tensor.shape]));
    expect(shapes["blk.1.attn_qkv.weight.lora_a"]).toEqual([4, layer.inFeatures]);
    expect(shapes["blk.1.attn_qkv.weight.lora_b"]).toEqual([layer.outFeatures, 4]);
    expect(tensors.every(([, { dtype }]) => dtype === "float16")).toBe(true);
  });

  it("gives every layer its own scale, though the file has one alpha", async () => {
    const { model } = await readModelConfig(files, parity("hf-llama"));
    const adapter = lora(model, {
      rank: 4,
      alpha: 8,
      rankStabilized: true,
      targetModules: ["o_proj", "v_proj"],
      rankPattern: { v_proj: 2 },
    });
    const params = adapter.init(new Rng(1));
    for (const [name, tensor] of Object.entries(params)) {
      if (name.includes("lora_B")) {
        params[name] = Tensor.from(new Rng(2).fold(name).normals(tensor.size), tensor.shape);
      }
    }
    const { metadata, tensors } = ggufLora(model, { adapter, params });
    const alpha = Object.fromEntries(metadata)["adapter.lora.alpha"]!.value as number;
    const byName = Object.fromEntries(tensors);
    for (const [path, llamaName] of [
      ["model.layers.0.self_attn.o_proj", "blk.0.attn_output"],
      ["model.layers.0.self_attn.v_proj", "blk.0.attn_v"],
    ] as const) {
      const { scale, rank, b } = adapter.layers.get(path)!;
      const written = byName[`${llamaName}.weight.lora_b`]!.numbers();
      const wanted = params[b]!.numbers();
      for (let i = 0; i < written.length; i++) {
        expect((alpha / rank) * written[i]!).toBeCloseTo(scale * wanted[i]!, 5);
      }
    }
  });

  it("refuses an adapter without effect", async () => {
    const { model } = await readModelConfig(files, parity("hf-llama"));
    const adapter = lora(model, { alpha: 0 });
    expect(() => ggufLora(model, { adapter, params: adapter.init(new Rng(0)) })).toThrow(
      "gguf: the adapter's alpha is 0, which llama.cpp reads as no scaling at all",
    );
  });
});
