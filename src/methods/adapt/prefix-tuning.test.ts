import { describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { backend, noisy, tiny, tinyParams } from "../../../test/support/contract.ts";
import { fixture } from "../../../test/support/fixture.ts";
import { adaptedContext } from "../../adapters/adapted.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import { evaluate } from "../../backend/compile.ts";
import type { Value } from "../../ir/graph.ts";
import { families } from "../../models/families.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { ValueRecord } from "../../nn/module.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { bindPrefixTuning, prefixTuningKind } from "./prefix-tuning.ts";

const ids = Tensor.from([5, 9, 7, 8, 6, 10], [2, 3], "int32");
const logits = ({ adapter, params }: LoadedAdapter): Promise<Tensor> =>
  evaluate<Tensor>(
    backend,
    (p: ValueRecord, q: ValueRecord, x: Value) =>
      tiny.forward(tiny.context(p, {}, adaptedContext(adapter, tiny, q)), x).logits,
    tinyParams,
    params,
    ids,
  );

describe("prefix tuning", () => {
  it("lays keys and values of each layer out as PEFT does", async () => {
    const adapter = bindPrefixTuning(tiny, { tokens: 2 });
    // Two layers of two heads of eight: number i stands for (token, layer, key or value, head, place).
    const flat = Tensor.from(Float32Array.from({ length: 2 * 64 }, (_, i) => i)).reshape([2, 64]);
    const layers = await evaluate<Tensor[]>(
      backend,
      (values: ValueRecord) =>
        adapter.past!(values, tiny, tiny.context({})).flatMap(({ keys, values: own }) => [
          keys,
          own,
        ]),
      { prompt_embeddings: flat },
    );
    expect(layers.map(({ shape }) => shape)).toEqual(Array(4).fill([1, 2, 2, 8]));
    const at = (which: number, head: number, token: number): number =>
      layers[which]!.numbers()[(head * 2 + token) * 8]!;
    // Token 1, layer 1, values, head 1: 64 + (2·1 + 1) · 16 + 8.
    expect(at(3, 1, 1)).toBe(64 + 48 + 8);
    expect(at(2, 0, 1)).toBe(64 + 32);
    expect(at(1, 1, 0)).toBe(16 + 8);
  });

  it("is folded into keys and values when it is written", async () => {
    const adapter = bindPrefixTuning(tiny, { tokens: 3, projection: true, encoderWidth: 4 });
    const params = noisy(adapter.init(new Rng(2)), 3);
    const stored = adapter.file!.pack({ params, buffers: {} });
    expect(Object.entries(stored).map(([name, { shape }]) => [name, shape])).toEqual([
      ["prompt_embeddings", [3, 64]],
    ]);
    const options = prefixTuningKind.read(JSON.parse(JSON.stringify(adapter.config())), "x", tiny);
    const again = bindPrefixTuning(tiny, options);
    expect(again.config()).toEqual(adapter.config());
    const read = again.file!.unpack(stored, "x");
    allclose(
      await logits({ adapter: again, params: read.params }),
      await logits({ adapter, params }),
      1e-5,
    );
  });

  it("begins with zeros where it is told so", () => {
    const zero = (projection: boolean): number[] => {
      const adapter = bindPrefixTuning(tiny, { tokens: 2, projection, start: "zero" });
      const params = adapter.init(new Rng(1));
      const packed = adapter.file!.pack({ params, buffers: {} });
      return Array.from(packed["prompt_embeddings"]!.numbers());
    };
    expect(zero(false)).toEqual(Array(128).fill(0));
    expect(zero(true)).toEqual(Array(128).fill(0));
    expect(bindPrefixTuning(tiny, { start: "zero" }).config()).toMatchObject({
      init_weights: "zero",
    });
  });

  it("refuses models that it does not fit, by a sentence", () => {
    const mamba = families["mamba"]!({
      model_type: "mamba",
      ...{ vocab_size: 20, hidden_size: 8, state_size: 4, num_hidden_layers: 1 },
      ...{ expand: 2, conv_kernel: 3, time_step_rank: 2 },
    });
    expect(() => bindPrefixTuning(mamba)).toThrow(
      "prefix-tuning: a mamba carries a state in place of keys and values — take another adapter.",
    );
    const { config } = fixture<{ config: Record<string, unknown> }>("decoders/phi3-long");
    const long = families["phi3"]!(config) as LanguageModel;
    expect(long.cacheLimit).toBe(8);
    expect(() => bindPrefixTuning(long)).toThrow(
      "prefix-tuning: this phi3 turns positions by other angles beyond 8 tokens (LongRoPE), which virtual tokens would not follow — take another adapter.",
    );
  });

  it("refuses files that say something else, by a sentence", () => {
    const config = bindPrefixTuning(tiny, { tokens: 2 }).config() as Record<string, never>;
    const read = (change: object): unknown =>
      prefixTuningKind.read({ ...config, ...change } as never, "x", tiny);
    expect(read({})).toMatchObject({ tokens: 2, projection: false });
    expect(() => read({ token_dim: 8 })).toThrow(
      "x: token_dim is 8, the model has 16 — was the adapter made for another model?",
    );
    expect(() => read({ task_type: "SEQ_CLS" })).toThrow(
      `x: task_type "SEQ_CLS" is not supported.`,
    );
    expect(() => read({ prefix_projection: 1 })).toThrow(
      "x: prefix_projection must be true or false, got 1.",
    );
    expect(() => read({ init_weights: "ones" })).toThrow(
      `x: init_weights must be null or "zero", got "ones".`,
    );
  });
});
