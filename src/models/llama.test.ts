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
import { type Llama, llamaFromConfig } from "./llama.ts";

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
      'llama: rope scaling "yarn" is not supported.',
    );
  });
});
