/** Adapters that reach into blocks, where blocks are recomputed in the backward pass. */
import { describe, expect, it } from "vitest";
import { allclose } from "../../../../test/support/allclose.ts";
import { backend, noisy } from "../../../../test/support/contract.ts";
import { adaptedContext } from "../../../adapters/adapted.ts";
import { type Adapter, newNumbers } from "../../../adapters/adapter.ts";
import { Gpt2 } from "../../../models/gpt2.ts";
import type { ValueRecord } from "../../../nn/module.ts";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { TrainProgram } from "../../../train/program.ts";
import { bindBottleneck } from "../bottleneck.ts";
import { bindPrefixTuning } from "../prefix-tuning.ts";
import { bindPromptTuning } from "../prompt-tuning.ts";

// With dropout: each pass draws noise of its own, and the recomputed one draws it again.
const model = new Gpt2({
  ...{ vocabSize: 20, dModel: 16, nLayers: 2, nHeads: 2, maxPositions: 24, dropout: 0.2 },
});
const frozen = noisy(model.init(new Rng(1)).params, 7, 0.2);
const ids = Tensor.from([5, 9, 7, 8, 6, 10], [2, 3], "int32");

async function step(adapter: Adapter, checkpoint: boolean) {
  const trained = noisy(newNumbers(adapter, new Rng(2)).params, 3, 0.2);
  const program = new TrainProgram(
    {
      model,
      frozen,
      trained,
      adapt: (values: ValueRecord) => adaptedContext(adapter, model, values),
    },
    backend,
    { checkpoint },
  );
  const gradients = Object.fromEntries(
    Object.entries(trained).map(([name, { shape }]) => [name, Tensor.zeros(shape, "float32")]),
  );
  const batch = {
    ids,
    targets: Tensor.from([9, 7, 3, 6, 10, 4], [6], "int32"),
    weights: Tensor.from(new Float32Array(6).fill(1)),
  };
  const loss = await program.lossAndGradients(batch, trained, gradients, 6, new Rng(5));
  await program.release();
  return { loss, gradients };
}

describe("recomputed blocks", () => {
  it.each([
    ["bottleneck", bindBottleneck(model, { style: "houlsby", width: 3, dropout: 0.3 })],
    ["prefix tuning", bindPrefixTuning(model, { tokens: 3, projection: true })],
    ["prompt tuning", bindPromptTuning(model, { tokens: 3 })],
  ])("give the loss and the gradients of kept ones (%s)", async (_, adapter) => {
    const [kept, again] = [await step(adapter, false), await step(adapter, true)];
    expect(again.loss).toBeCloseTo(kept.loss, 5);
    let largest = 0;
    for (const [name, gradient] of Object.entries(kept.gradients)) {
      allclose(again.gradients[name]!, gradient, 1e-5);
      largest = Math.max(largest, ...Array.from(gradient.numbers(), Math.abs));
    }
    expect(largest).toBeGreaterThan(1e-3);
  });
});
