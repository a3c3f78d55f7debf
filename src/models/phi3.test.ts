import { describe, expect, test } from "vitest";
import { fixture } from "../../test/support/fixture.ts";
import { type Phi3, phi3FromConfig } from "./phi3.ts";

const { config } = fixture<{ config: Record<string, unknown> }>("decoders/phi3-long");

const broken = (change: Record<string, unknown>): (() => Phi3) => {
  return () => phi3FromConfig({ ...config, ...change });
};

describe("phi3FromConfig", () => {
  test("refuses what it does not compute", () => {
    expect(broken({ hidden_act: "gelu" })).toThrow('phi3: hidden_act "gelu" is not supported.');
    expect(broken({ attention_bias: true })).toThrow("phi3: attention_bias is not supported.");
    expect(broken({ head_dim: 4 })).toThrow(
      "phi3: head_dim 4 is not supported — it must be hidden_size / num_attention_heads, 8.",
    );
    expect(broken({ rope_scaling: { type: "linear", factor: 2 } })).toThrow(
      'phi3: rope scaling "linear" is not supported — known is longrope.',
    );
    expect(broken({ partial_rotary_factor: 1.5 })).toThrow(
      'phi3: "partial_rotary_factor" must be at most 1, got 1.5.',
    );
    expect(broken({ num_key_value_heads: 3 })).toThrow(
      "phi3: nHeads 4 must divide dModel 32 and be a multiple of nKvHeads 3.",
    );
  });

  test("refuses factors that do not fit the dimensions that are turned", () => {
    const { rope_scaling } = config as { rope_scaling: Record<string, unknown> };
    expect(broken({ rope_scaling: { ...rope_scaling, short_factor: [1, -1] } })).toThrow(
      'phi3: rope_scaling: "short_factor" must be a list of numbers above 0, got [1,-1].',
    );
    expect(broken({ rope_scaling: { ...rope_scaling, long_factor: [1, 2, 3] } })).toThrow(
      "rope: longFactor must have 2 numbers, half of the dimensions that are turned, got 3.",
    );
  });

  test("reads the names that older files have for LongRoPE", () => {
    const { rope_scaling } = config as { rope_scaling: Record<string, unknown> };
    const { rope_type: _, ...factors } = rope_scaling;
    for (const type of ["su", "yarn"]) {
      const model = phi3FromConfig({ ...config, rope_scaling: { type, ...factors } });
      expect(model.config).toEqual(phi3FromConfig(config).config);
    }
    expect(phi3FromConfig(config).cacheLimit).toBe(8);
  });
});
