import { describe, expect, test } from "vitest";
import { fixture } from "../../test/support/fixture.ts";
import { Gemma3, gemma3FromConfig } from "./gemma3.ts";

const { config } = fixture<{ config: Record<string, unknown> }>("decoders/gemma3");

describe("gemma3FromConfig", () => {
  test("refuses what it does not compute", () => {
    const broken = (change: Record<string, unknown>): (() => Gemma3) => {
      return () => gemma3FromConfig({ ...config, ...change });
    };
    expect(broken({ hidden_activation: "silu" })).toThrow(
      'gemma3: hidden_activation "silu" is not supported.',
    );
    expect(broken({ use_bidirectional_attention: true })).toThrow(
      "gemma3: use_bidirectional_attention is not supported.",
    );
    expect(broken({ attn_logit_softcapping: 50 })).toThrow(
      "gemma3: attn_logit_softcapping is not supported.",
    );
    expect(broken({ tie_word_embeddings: false })).toThrow(
      "gemma3: tie_word_embeddings false is not supported.",
    );
    expect(broken({ num_key_value_heads: 3 })).toThrow(
      "gemma3: nHeads 4 must be a multiple of nKvHeads 3.",
    );
    expect(broken({ layer_types: ["full_attention"] })).toThrow(
      'gemma3: "layer_types" must name 3 layers, got ["full_attention"].',
    );
    expect(
      broken({ rope_parameters: { sliding_attention: { rope_type: "linear", factor: 2 } } }),
    ).toThrow("gemma3: a rope scaling of sliding_attention is not supported.");
    expect(broken({ quantization_config: {} })).toThrow(
      "gemma3: quantization_config is not supported — give the folder with float weights.",
    );
  });

  test("makes every sixth layer global where config.json is silent", () => {
    const { sliding_window_pattern: _, ...silent } = config;
    const model = gemma3FromConfig({ ...silent, num_hidden_layers: 7 });
    const types = model.config["layer_types"] as string[];
    expect(types.map((type) => type === "full_attention")).toEqual([
      false,
      false,
      false,
      false,
      false,
      true,
      false,
    ]);
  });

  test("starts with norms that change no scale", () => {
    const model = gemma3FromConfig(config);
    expect(model).toBeInstanceOf(Gemma3);
    expect(model.model.norm.weight.init(undefined as never, [3])).toEqual(new Float32Array(3));
  });
});
