import { describe, expect, it } from "vitest";
import { compile } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Value } from "../ir/graph.ts";
import { argMax } from "../ir/reduce.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { wireInduction } from "./induction.ts";
import { Llama } from "./llama.ts";

const config = {
  vocabSize: 500,
  dModel: 192,
  dFeedForward: 64,
  nLayers: 2,
  nHeads: 4,
  nKvHeads: 2,
  headDim: 48,
  maxPositions: 128,
  tieEmbeddings: true,
};

/** Share of right guesses in the second half of random sequences that repeat. */
async function copyAccuracy(model: Llama, params: TensorRecord): Promise<number> {
  const [rows, length] = [4, 30];
  const rng = new Rng(3);
  const sequences = Array.from({ length: rows }, () => {
    const part = Array.from({ length }, () => rng.integer(config.vocabSize));
    return [...part, ...part];
  });
  const ids = Tensor.from(sequences.flat(), [rows, 2 * length], "int32");
  const guess = await compile<Tensor>(
    ((p: ValueRecord, x: Value) => argMax(model.forward(model.context(p), x).logits)) as never,
    [params, ids],
    { backend: await nodeOrt({ threads: 1 }) },
  );
  const guesses = (await guess.run(params, ids)).numbers();
  await guess.release();
  let right = 0;
  for (let row = 0; row < rows; row++) {
    for (let i = length; i < 2 * length - 1; i++) {
      right += Number(guesses[row * 2 * length + i] === sequences[row]![i + 1]);
    }
  }
  return right / (rows * (length - 1));
}

describe("wireInduction", () => {
  it("makes a new model copy what it has seen before, which it cannot otherwise", async () => {
    const model = new Llama(config);
    const { params } = model.init(new Rng(1));
    expect(await copyAccuracy(model, params)).toBeLessThan(0.05);
    wireInduction(model, params, new Rng(2));
    expect(await copyAccuracy(model, params)).toBeGreaterThan(0.6);
  });

  it("refuses a model without room for the circuit", () => {
    const model = new Llama({ ...config, nLayers: 1 });
    const { params } = model.init(new Rng(1));
    expect(() => wireInduction(model, params, new Rng(2))).toThrow(
      /^induction: needs two layers and room for 48 dimensions of tokens beside \d+, got 1 layers of width 192\.$/,
    );
  });
});
