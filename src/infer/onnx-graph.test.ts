/** The exported graph of every architecture against the engine: read at once, in parts, and with padding. */
import { describe, expect, it } from "vitest";
import { fixture } from "../../test/support/fixture.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { OrtBackend } from "../backend/ort/ort.ts";
import { nodeHost } from "../host/node.ts";
import { families } from "../models/families.ts";
import type { LanguageModel } from "../models/model.ts";
import { Rng } from "../tensor/rng.ts";
import { type VerifiedExport, verifyOnnxExport } from "./export-onnx.ts";

const { files } = nodeHost();
const backend: OrtBackend = await nodeOrt();
const recorded = ["gemma3", "gpt-neox", "llama-bias", "mistral", "phi3", "phi3-long", "qwen2"];
const sizes = { vocab_size: 23, hidden_size: 16, num_hidden_layers: 2 };
const configs: Readonly<Record<string, Readonly<Record<string, unknown>>>> = {
  gpt2: { model_type: "gpt2", vocab_size: 23, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 40 },
  ...Object.fromEntries(
    recorded.map((name) => [
      name,
      fixture<{ config: Readonly<Record<string, unknown>> }>(`decoders/${name}`).config,
    ]),
  ),
};

async function exported(config: Readonly<Record<string, unknown>>): Promise<VerifiedExport> {
  const model = families[config["model_type"] as string]!(config) as LanguageModel;
  const { params } = model.init(new Rng(1));
  return verifyOnnxExport(files, backend, { model, params, config, path: "none" });
}

describe("languageModelGraph", () => {
  it.each(Object.entries(configs))("gives the logits of %s", async (_, config) => {
    const [variant] = (await exported(config)).variants;
    expect(variant!.difference.maxRelative).toBeLessThan(1e-6);
    expect(variant!.difference.rows).toBeGreaterThanOrEqual(60);
  });

  it("refuses a model that carries a state", async () => {
    await expect(exported({ model_type: "mamba", ...sizes })).rejects.toThrow(
      "mamba: carries a state from token to token and has no keys and values",
    );
  });
});
