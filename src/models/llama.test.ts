import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectRecorded,
  fixture,
  parityBackend,
  type RawTensor,
  relativeDifference,
  replay,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { valueAndGrad } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice } from "../ir/layout.ts";
import {
  type ContextOptions,
  crossEntropy,
  inverseFrequencies,
  type TensorRecord,
  type ValueRecord,
} from "../nn/index.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Llama, llamaFromConfig } from "./llama.ts";

interface LlamaRecord extends TrainingRecord {
  readonly greedy: { readonly prompt: RawTensor; readonly tokens: RawTensor };
  readonly untiedScaled: TrainingRecord & {
    readonly inverseFrequencies: RawTensor;
    readonly spread: { readonly positionIds: RawTensor; readonly logits: RawTensor };
  };
}

const record = fixture<LlamaRecord>("llama-train");
const model = llamaFromConfig(record.config);

function loss(params: ValueRecord, ids: Value, options: ContextOptions = {}): Value {
  return model.apply(
    params,
    {},
    (context) => {
      const { logits } = model.forward(context, slice(ids, 1, 0, -1));
      return crossEntropy(logits, reshape(slice(ids, 1, 1), [-1]));
    },
    options,
  )[0];
}

async function logitsOf(
  llama: Llama,
  params: TensorRecord,
  ids: Tensor,
  positions?: Tensor,
): Promise<Tensor> {
  const rows = await evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, x: Value, at: Value[]) =>
      llama.apply(
        p,
        {},
        (context) => llama.forward(context, x, at[0] ? { positions: at[0] } : {}).logits,
      )[0],
    params,
    ids,
    positions ? [positions] : [],
  );
  return rows.reshape([...ids.shape, llama.sizes.vocabSize]);
}

describe("Llama", () => {
  test("names the parameters of transformers' checkpoints", () => {
    const names = Object.keys(model.specs().params).sort();
    expect(names).toEqual(Object.keys(record.weights).sort());
  });

  test("gives transformers' logits, with grouped keys and tied embeddings", async () => {
    const ids = tensorOf(record.inputs["ids"]!);
    const inputs = Tensor.from(
      Array.from({ length: 16 }, (_, i) => ids.data[Math.floor(i / 8) * 9 + (i % 8)] as number),
      [2, 8],
      "int32",
    );
    const logits = await logitsOf(model, tensorsOf(record.weights), inputs);
    expect(relativeDifference(logits, tensorOf(record.logits))).toBeLessThan(tolerance.float32);
  });

  test("trains five clipped AdamW steps as PyTorch does", async () => {
    const replayed = await replay(record, (p, _, x) => [loss(p, x["ids"]!), {}]);
    expectRecorded(record, replayed);
  });

  test("continues a prompt with transformers' tokens", async () => {
    const params = tensorsOf(record.weights);
    const ids = [...record.greedy.prompt.data];
    for (let i = 0; i < record.greedy.tokens.data.length; i++) {
      const logits = await logitsOf(model, params, Tensor.from(ids, [1, ids.length], "int32"));
      const last = (logits.data as Float32Array).subarray(-37);
      ids.push(last.indexOf(Math.max(...last)));
    }
    expect(ids.slice(4)).toEqual(record.greedy.tokens.data);
  });

  test("stretches low frequencies as Llama 3 does", async () => {
    const { untiedScaled: scaled } = record;
    const llama = llamaFromConfig(scaled.config);
    const frequencies = inverseFrequencies({
      headDim: 8,
      theta: 500000,
      maxPositions: 131072,
      scaling: {
        type: "llama3",
        factor: 8,
        lowFreqFactor: 1,
        highFreqFactor: 4,
        originalMaxPositions: 8192,
      },
    });
    expect(
      relativeDifference(Tensor.from(frequencies), tensorOf(scaled.inverseFrequencies)),
    ).toBeLessThan(1e-6);
    const params = tensorsOf(scaled.weights);
    const ids = tensorOf(scaled.inputs["ids"]!);
    const logits = await logitsOf(llama, params, ids);
    expect(relativeDifference(logits, tensorOf(scaled.logits))).toBeLessThan(tolerance.float32);
    const row = Tensor.from(
      Int32Array.from(ids.data as Int32Array).subarray(0, 8),
      [1, 8],
      "int32",
    );
    const spread = await logitsOf(llama, params, row, tensorOf(scaled.spread.positionIds));
    const expected = tensorOf(scaled.spread.logits);
    expect(relativeDifference(spread, expected)).toBeLessThan(tolerance.float32);
  });

  test("gives the same gradients when its blocks are checkpointed", async () => {
    const run = async (checkpoint: boolean): Promise<TensorRecord> =>
      evaluate<TensorRecord>(
        await parityBackend(),
        (p: ValueRecord, ids: Value) =>
          valueAndGrad((q: ValueRecord) => loss(q, ids, { checkpoint }))(p)[1],
        tensorsOf(record.weights),
        tensorOf(record.inputs["ids"]!),
      );
    const [plain, again] = [await run(false), await run(true)];
    for (const [name, gradient] of Object.entries(plain)) {
      allclose(again[name]!, gradient, tolerance.float32, name);
    }
  });

  test("with a past gives what it gives over the joined sequence", async () => {
    const [whole, late] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord, x: Value, mask: Value, positions: Value) => {
        const context = model.context(p);
        const early = model.forward(context, slice(x, 1, 0, 5));
        const rest = model.forward(context, slice(x, 1, 5), {
          past: { layers: early.present, mask },
          positions,
        });
        const joined = reshape(model.forward(context, x).logits, [2, 9, 37]);
        return [slice(joined, 1, 5), reshape(rest.logits, [2, 4, 37])];
      },
      tensorsOf(record.weights),
      tensorOf(record.inputs["ids"]!),
      Tensor.from(new Float32Array(10), [2, 1, 1, 5]),
      Tensor.from([5, 6, 7, 8, 5, 6, 7, 8], [2, 4], "int32"),
    );
    allclose(late, whole, tolerance.float32);
  });
});

describe("llamaFromConfig", () => {
  test("refuses what it does not compute", () => {
    const broken = (change: Record<string, unknown>): (() => Llama) => {
      return () => llamaFromConfig({ ...record.config, ...change });
    };
    expect(broken({ hidden_act: "gelu" })).toThrow('llama: hidden_act "gelu" is not supported.');
    expect(broken({ num_key_value_heads: 3 })).toThrow(
      "llama: nHeads 4 must be a multiple of nKvHeads 3.",
    );
    expect(broken({ rope_scaling: { rope_type: "yarn" } })).toThrow(
      'llama: rope_scaling: "factor" is missing.',
    );
    expect(broken({ rope_scaling: { rope_type: "axial" } })).toThrow(
      'llama: rope scaling "axial" is not supported — known are linear, dynamic, yarn, llama3, longrope.',
    );
    expect(broken({ rope_scaling: "linear" })).toThrow(
      'llama: rope scaling must be an object, got "linear".',
    );
    expect(broken({ partial_rotary_factor: 0.5 })).toThrow(
      "llama: partial_rotary_factor is not supported.",
    );
    expect(broken({ layer_types: ["full_attention", "full_attention"] })).toThrow(
      "llama: layer_types is not supported.",
    );
    expect(broken({ quantization_config: { quant_method: "gptq" } })).toThrow(
      "llama: quantization_config (gptq) is not supported — give the folder with float weights.",
    );
  });

  test("refuses what the families that are settings of it do not have", () => {
    const broken = (family: string, change: Record<string, unknown>): (() => Llama) => {
      const { config } = fixture<{ config: Record<string, unknown> }>(`decoders/${family}`);
      return () => llamaFromConfig({ ...config, ...change });
    };
    expect(broken("mistral", { attention_bias: true })).toThrow(
      "mistral: attention_bias is not supported.",
    );
    expect(broken("qwen2", { layer_types: ["full_attention"] })).toThrow(
      'qwen2: "layer_types" must name 2 layers, got ["full_attention"].',
    );
    expect(broken("qwen3", { layer_types: ["full_attention", "linear_attention"] })).toThrow(
      'qwen3: layer_types "linear_attention" is not supported — known are full_attention and sliding_attention.',
    );
    expect(broken("qwen3", { layer_types: ["full_attention", "sliding_attention"] })).toThrow(
      'qwen3: "layer_types" names sliding_attention, but there is no sliding window — set use_sliding_window and sliding_window.',
    );
    expect(() => new Llama({ ...sizes, slidingWindow: 4 })).toThrow(
      "llama: has no slidingWindow, got 4.",
    );
    expect(() => new Llama({ ...sizes, family: "qwen2", slidingLayers: [true] })).toThrow(
      "qwen2: slidingLayers must name 2 layers, got 1.",
    );
  });

  test("takes each family's defaults where config.json is silent", () => {
    const { config } = fixture<{ config: Record<string, unknown> }>("decoders/mistral");
    const { sliding_window: _, ...silent } = config;
    expect(llamaFromConfig(silent).config["sliding_window"]).toBe(4096);
    expect(llamaFromConfig({ ...config, sliding_window: null }).config["sliding_window"]).toBe(
      null,
    );
    const qwen3 = fixture<{ config: Record<string, unknown> }>("decoders/qwen3").config;
    const { head_dim: __, ...short } = qwen3;
    expect(llamaFromConfig(short).sizes.headDim).toBe(128);
    const qwen2 = fixture<{ config: Record<string, unknown> }>("decoders/qwen2").config;
    const off = llamaFromConfig({ ...qwen2, use_sliding_window: false });
    expect(off.config["layer_types"]).toEqual(["full_attention", "full_attention"]);
  });
});

const sizes = {
  vocabSize: 11,
  dModel: 8,
  dFeedForward: 8,
  nLayers: 2,
  nHeads: 2,
  maxPositions: 16,
} as const;
