import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectCall,
  expectRecorded,
  fixture,
  parityBackend,
  type RawTensor,
  type RecordedCall,
  relativeDifference,
  replay,
  type TrainingRecord,
  tensorOf,
  tensorsOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import type { Value } from "../ir/graph.ts";
import { concat, reshape, slice } from "../ir/layout.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Embedding } from "./embedding.ts";
import { Linear } from "./linear.ts";
import { crossEntropy } from "./losses.ts";
import { type Context, Module, type ValueRecord } from "./module.ts";
import { Gru, Lstm, type LstmResult } from "./recurrent.ts";

interface LstmRecord extends TrainingRecord {
  readonly lastHidden: RawTensor;
  readonly lastCell: RawTensor;
  readonly gru: RecordedCall & {
    readonly weights: Record<string, RawTensor>;
    readonly lastHidden: RawTensor;
  };
}

const record = fixture<LstmRecord>("lstm-train");

/** The model of `scripts/parity/lstm-train.py`. */
class Model extends Module {
  readonly embed = this.child("embed", new Embedding(29, 6));
  readonly lstm = this.child("lstm", new Lstm(6, 8, { nLayers: 2 }));
  readonly head = this.child("head", new Linear(8, 29));

  forward(context: Context, ids: Value): LstmResult & { logits: Value } {
    const result = this.lstm.forward(context, this.embed.forward(context, ids));
    return { ...result, logits: this.head.forward(context, result.output) };
  }
}

describe("Lstm", () => {
  const model = new Model();

  test("equals PyTorch's outputs and last states", async () => {
    const found = await evaluate<{ logits: Tensor; hidden: Tensor; cell: Tensor }>(
      await parityBackend(),
      (p: ValueRecord, ids: Value) => {
        const { logits, hidden, cell } = model.forward(model.context(p), slice(ids, 1, 0, -1));
        return { logits, hidden, cell };
      },
      tensorsOf(record.weights),
      tensorOf(record.inputs["ids"]!),
    );
    expect(relativeDifference(found.logits, tensorOf(record.logits))).toBeLessThan(1e-5);
    allclose(found.hidden, tensorOf(record.lastHidden), tolerance.float32);
    allclose(found.cell, tensorOf(record.lastCell), tolerance.float32);
  });

  test("trains five AdamW steps as PyTorch does", async () => {
    const replayed = await replay(record, (p, _, x) => {
      const ids = x["ids"]!;
      const { logits } = model.forward(model.context(p), slice(ids, 1, 0, -1));
      const targets = reshape(slice(ids, 1, 1), [-1]);
      return [crossEntropy(reshape(logits, [-1, 29]), targets), {}];
    });
    expectRecorded(record, replayed);
  });

  test("with open gates adds up its inputs", async () => {
    // i = f = o = σ(100) = 1 and g = tanh(x): c_t = Σ tanh(x), h_t = tanh(c_t)
    const lstm = new Lstm(1, 1);
    const params = {
      weight_ih_l0: Tensor.from([0, 0, 1, 0], [4, 1]),
      weight_hh_l0: Tensor.zeros([4, 1], "float32"),
      bias_ih_l0: Tensor.from([100, 100, 0, 100]),
      bias_hh_l0: Tensor.zeros([4], "float32"),
    };
    const y = await evaluate<Tensor>(
      await parityBackend(),
      (p: ValueRecord, x: Value) => lstm.forward(lstm.context(p), x).output,
      params,
      Tensor.from([0.5, -0.2, 1], [1, 3, 1]),
    );
    const [a, b, c] = [0.5, -0.2, 1].map(Math.tanh) as [number, number, number];
    const expected = [Math.tanh(a), Math.tanh(a + b), Math.tanh(a + b + c)];
    allclose(y, Tensor.from(expected, [1, 3, 1]), tolerance.float32);
  });

  test("goes on from the states it returned", async () => {
    const lstm = new Lstm(3, 4, { nLayers: 2, bias: false });
    const { params } = lstm.init(new Rng(1));
    const [whole, parts] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (p: ValueRecord, x: Value) => {
        const context = lstm.context(p);
        const first = lstm.forward(context, slice(x, 1, 0, 3));
        const second = lstm.forward(context, slice(x, 1, 3), first);
        return [lstm.forward(context, x).output, concat([first.output, second.output], 1)];
      },
      params,
      new Tensor("float32", [2, 5, 3], new Rng(2).normals(30)),
    );
    allclose(parts, whole, tolerance.float32);
  });

  test("refuses inputs of other sizes", async () => {
    const lstm = new Lstm(3, 4);
    const wrong = evaluate(
      await parityBackend(),
      (p: ValueRecord, x: Value) => lstm.forward(lstm.context(p), x).output,
      lstm.init(new Rng(1)).params,
      Tensor.zeros([2, 5, 4], "float32"),
    );
    await expect(wrong).rejects.toThrow("recurrent: needs (B, T, 3), got (2, 5, 4).");
    expect(() => new Lstm(3, 4, { nLayers: 0 })).toThrow(
      "nLayers must be a whole number from 1, got 0.",
    );
  });
});

describe("Gru", () => {
  test("equals PyTorch's outputs, last state and gradients", async () => {
    const { gru } = record;
    const layer = new Gru(6, 5);
    const call = { ...gru, options: {}, inputs: { ...gru.inputs, ...gru.weights } };
    await expectCall(
      call,
      ({ x, h0, ...params }) => layer.forward(layer.context(params), x!, h0!).output,
    );
    const hidden = await evaluate<Tensor>(
      await parityBackend(),
      ({ x, h0, ...params }: ValueRecord) => layer.forward(layer.context(params), x!, h0!).hidden,
      tensorsOf(call.inputs),
    );
    allclose(hidden, tensorOf(gru.lastHidden), tolerance.float32);
  });

  test("keeps its state where its update gate is open, and replaces it where closed", async () => {
    const gru = new Gru(1, 1, { bias: true });
    const run = async (gate: number): Promise<number> => {
      const y = await evaluate<Tensor>(
        await parityBackend(),
        (p: ValueRecord, x: Value, h: Value) => gru.forward(gru.context(p), x, h).output,
        {
          weight_ih_l0: Tensor.from([0, 0, 1], [3, 1]),
          weight_hh_l0: Tensor.zeros([3, 1], "float32"),
          bias_ih_l0: Tensor.from([0, gate, 0]),
          bias_hh_l0: Tensor.zeros([3], "float32"),
        },
        Tensor.from([0.5], [1, 1, 1]),
        Tensor.from([0.9], [1, 1, 1]),
      );
      return y.item();
    };
    expect(await run(100)).toBeCloseTo(0.9, 6);
    expect(await run(-100)).toBeCloseTo(Math.tanh(0.5), 6);
  });
});
