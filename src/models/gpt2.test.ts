import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectRecorded,
  fixture,
  parityBackend,
  relativeDifference,
  replay,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { valueAndGrad } from "../autodiff/grad.ts";
import { evaluate, spec, trace } from "../backend/compile.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice } from "../ir/layout.ts";
import { type ContextOptions, crossEntropy, type TensorRecord } from "../nn/index.ts";
import type { ValueRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type Gpt2, gpt2FromConfig } from "./gpt2.ts";

const record = fixture<TrainingRecord>("gpt2-train");
const model = gpt2FromConfig(record.config);
const [batch, length] = [2, 8];

/** Mean cross-entropy of the tokens that follow, ids (B, T + 1). */
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

describe("GPT-2", () => {
  test("names the parameters of transformers' checkpoints", () => {
    const names = Object.keys(model.specs().params).sort();
    expect(names).toEqual(Object.keys(record.weights).sort());
  });

  test("gives transformers' logits", async () => {
    const logits = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, ids: Value) =>
        model.apply(p, {}, (context) => model.forward(context, slice(ids, 1, 0, -1)).logits)[0],
      tensorsOf(record.weights),
      tensorOf(record.inputs["ids"]!),
    );
    const expected = tensorOf(record.logits).reshape([batch * length, 33]);
    expect(relativeDifference(logits, expected)).toBeLessThan(tolerance.float32);
  });

  test("trains five AdamW steps as PyTorch does", async () => {
    const replayed = await replay(record, (p, _, x) => [loss(p, x["ids"]!), {}]);
    expectRecorded(record, replayed);
  });

  test("gives the same gradients when its blocks are checkpointed", async () => {
    const run = async (checkpoint: boolean): Promise<[Tensor, TensorRecord]> =>
      evaluate<[Tensor, TensorRecord]>(
        await parityBackend(),
        (p: ValueRecord, ids: Value) =>
          valueAndGrad((q: ValueRecord) => loss(q, ids, { checkpoint }))(p),
        tensorsOf(record.weights),
        tensorOf(record.inputs["ids"]!),
      );
    const [[plainLoss, plain], [againLoss, again]] = [await run(false), await run(true)];
    expect(againLoss.item()).toBe(plainLoss.item());
    for (const [name, gradient] of Object.entries(plain)) {
      allclose(again[name]!, gradient, tolerance.float32, name);
    }
  });

  test("with a past gives what it gives over the joined sequence", async () => {
    const ids = tensorOf(record.inputs["ids"]!);
    const params = tensorsOf(record.weights);
    const [whole, split] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord, x: Value, mask: Value, positions: Value) => {
        const context = model.context(p);
        const early = model.forward(context, slice(x, 1, 0, 5));
        const late = model.forward(context, slice(x, 1, 5), {
          past: { layers: early.present, mask },
          positions,
        });
        const joined = reshape(model.forward(context, x).logits, [batch, 9, 33]);
        return [slice(joined, 1, 5), reshape(late.logits, [batch, 4, 33])];
      },
      params,
      ids,
      Tensor.from(new Float32Array(10), [batch, 1, 1, 5]),
      Tensor.from([5, 6, 7, 8, 5, 6, 7, 8], [batch, 4], "int32"),
    );
    allclose(split, whole, tolerance.float32);
  });

  test("can be traced for any length", async () => {
    const params = tensorsOf(record.weights);
    const traced = trace(
      ((p: ValueRecord, x: Value) => model.forward(model.context(p), x).logits) as never,
      [params, spec(["rows", "length"], "int32")],
    );
    const any = await (await parityBackend()).load(traced.program);
    const ids = Tensor.from(
      Array.from(
        { length: 16 },
        (_, i) => record.inputs["ids"]!.data[Math.floor(i / 8) * 9 + (i % 8)]!,
      ),
      [2, 8],
      "int32",
    );
    const [logits] = await any.run([...Object.values(params), ids]);
    await any.release();
    expect(relativeDifference(logits as Tensor, tensorOf(record.logits))).toBeLessThan(
      tolerance.float32,
    );
  });
});

describe("gpt2FromConfig", () => {
  const broken = (change: Record<string, unknown>): (() => Gpt2) => {
    return () => gpt2FromConfig({ ...record.config, ...change });
  };

  test("refuses what it does not compute", () => {
    expect(broken({ activation_function: "relu" })).toThrow(
      'gpt2: activation_function "relu" is not supported.',
    );
    expect(broken({ scale_attn_weights: false })).toThrow(
      "gpt2: scale_attn_weights false is not supported.",
    );
    expect(broken({ quantization_config: { quant_method: "awq" } })).toThrow(
      "gpt2: quantization_config (awq) is not supported — give the folder with float weights.",
    );
    expect(broken({ n_head: 3 })).toThrow("gpt2: dModel 8 must be a multiple of nHeads 3.");
    expect(broken({ n_embd: -1 })).toThrow(
      'gpt2: "n_embd" must be a whole number from 1 to 16777216, got -1.',
    );
  });
});
