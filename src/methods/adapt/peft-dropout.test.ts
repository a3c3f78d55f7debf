/** Chance in training: what each kind leaves out, and that it does so in training alone. */
import { expect, it } from "vitest";
import { noisy } from "../../../test/support/contract.ts";
import { parityBackend } from "../../../test/support/fixture.ts";
import { type Adapter, newNumbers } from "../../adapters/adapter.ts";
import { Llama } from "../../models/llama.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { TrainProgram } from "../../train/program.ts";
import { traineeOf } from "../../train/trainee.ts";
import { adalora } from "./adalora.ts";
import { boft } from "./boft.ts";
import { oft } from "./oft.ts";
import { vera } from "./vera.ts";

const backend = await parityBackend();
const model = new Llama({
  ...{ vocabSize: 20, dModel: 16, dFeedForward: 24, nLayers: 1, nHeads: 2, maxPositions: 8 },
  initializerRange: 0.2,
});
const base = model.init(new Rng(1)).params;
const batch = {
  ids: Tensor.from([3, 1, 7, 9], [1, 4], "int32"),
  targets: Tensor.from([1, 7, 9, 2], [4], "int32"),
  weights: Tensor.from(new Float32Array(4).fill(1)),
};

/** Losses of training with three seeds, and without training. */
async function lossesOf(adapter: Adapter): Promise<{ trained: number[]; judged: number }> {
  const { params: first, buffers } = newNumbers(adapter, new Rng(1));
  const params = noisy(first, 4, 0.3);
  const program = new TrainProgram(traineeOf(model, base, { adapter, params, buffers }), backend);
  const gradients = Object.fromEntries(
    Object.entries(params).map(([name, { shape }]) => [name, Tensor.zeros(shape, "float32")]),
  );
  try {
    const trained: number[] = [];
    for (const seed of [2, 4, 5]) {
      const rng = new Rng(seed);
      trained.push(await program.lossAndGradients(batch, params, gradients, 4, rng));
    }
    return { trained, judged: (await program.evaluate(batch, params)).loss };
  } finally {
    await program.release();
  }
}

const targetModules = ["q_proj", "v_proj", "down_proj"];

it.each<readonly [string, (share: number) => Adapter]>([
  ["VeRA", (dropout) => vera(model, { targetModules, rank: 4, dropout })],
  [
    "AdaLoRA",
    (dropout) => adalora(model, { targetModules, initR: 4, targetR: 2, dropout, orthRegWeight: 0 }),
  ],
  ["OFT", (moduleDropout) => oft(model, { targetModules, blockSize: 4, moduleDropout })],
  ["BOFT", (dropout) => boft(model, { targetModules, blockSize: 4, factors: 2, dropout })],
])("%s leaves parts out in training, by the seed", async (_, bind) => {
  const [whole, some] = [await lossesOf(bind(0)), await lossesOf(bind(0.5))];
  for (const loss of whole.trained) expect(loss).toBeCloseTo(whole.judged / 4, 5);
  expect(some.judged).toBe(whole.judged);
  expect(new Set([...some.trained, whole.trained[0]]).size).toBe(4);
  expect(some.trained.every(Number.isFinite)).toBe(true);
});

it("OFT with nearly all blocks left as they are is almost the base", async () => {
  // All but one of 4 or 6 blocks: ⌊0.99 · D⌋ = D - 1.
  const [most, none] = [0.99, 0].map((moduleDropout) =>
    oft(model, { targetModules, blockSize: 4, moduleDropout }),
  );
  const bare = (await lossesOf(idle())).judged / 4;
  const far = Math.abs((await lossesOf(none!)).trained[0]! - bare);
  const near = (await lossesOf(most!)).trained.map((loss) => Math.abs(loss - bare));
  expect(near.reduce((a, b) => a + b, 0) / 3).toBeLessThan(far);
});

/** An adapter that does nothing, whatever its numbers are. */
function idle(): Adapter {
  return { ...oft(model, { targetModules, blockSize: 4 }), context: () => ({}) };
}
