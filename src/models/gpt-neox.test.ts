import { describe, expect, test } from "vitest";
import { fixture } from "../../test/support/fixture.ts";
import { GptNeox, gptNeoxFromConfig } from "./gpt-neox.ts";

const { config } = fixture<{ config: Record<string, unknown> }>("decoders/gpt-neox");

describe("gptNeoxFromConfig", () => {
  test("refuses what it does not compute", () => {
    const broken = (change: Record<string, unknown>): (() => GptNeox) => {
      return () => gptNeoxFromConfig({ ...config, ...change });
    };
    expect(broken({ hidden_act: "relu" })).toThrow('gpt_neox: hidden_act "relu" is not supported.');
    expect(broken({ num_attention_heads: 5 })).toThrow(
      "gpt_neox: dModel 16 must be a multiple of nHeads 5.",
    );
    expect(broken({ rotary_pct: 0 })).toThrow(
      'gpt_neox: "rotary_pct" must be a number above 0, got 0.',
    );
  });

  test("skips the masks and tables of published checkpoints, and no weight", () => {
    const model = gptNeoxFromConfig(config);
    expect(model).toBeInstanceOf(GptNeox);
    const at = "gpt_neox.layers.0.attention";
    for (const name of ["bias", "masked_bias", "rotary_emb.inv_freq"]) {
      expect(model.ignored.test(`${at}.${name}`)).toBe(true);
    }
    const slots = [...model.slots()].map(([path]) => path);
    expect(slots.filter((path) => model.ignored.test(path))).toEqual([]);
  });
});
