import { describe, expect, it } from "vitest";
import { allclose } from "../../../../test/support/allclose.ts";
import { noisy } from "../../../../test/support/contract.ts";
import { parityBackend } from "../../../../test/support/fixture.ts";
import { newNumbers } from "../../../adapters/adapter.ts";
import { loraPart } from "../../../adapters/lora-layer.ts";
import { Llama } from "../../../models/llama.ts";
import type { PretrainedModel } from "../../../models/model.ts";
import { Conv2d, ConvTranspose2d } from "../../../nn/conv.ts";
import { Module } from "../../../nn/module.ts";
import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { TrainProgram } from "../../../train/program.ts";
import { quantizeModel, traineeOf, unpackedParams } from "../../../train/trainee.ts";
import { boft } from "../boft.ts";
import { ia3 } from "../ia3.ts";
import { oft } from "../oft.ts";
import { storedTensors, targetLayers } from "./peft-layers.ts";

const backend = await parityBackend();
const model = new Llama({
  ...{ vocabSize: 20, dModel: 32, dFeedForward: 64, nLayers: 1, nHeads: 2, maxPositions: 8 },
  initializerRange: 0.2,
});
const base = model.init(new Rng(1)).params;

describe("a base in 8 bits", () => {
  it.each([
    ["IA³", ia3],
    ["OFT", oft],
    ["BOFT", boft],
  ])("gives %s the same products as its weights as floats", async (_, bind) => {
    const adapter = bind(model, {});
    const { params: first, buffers } = newNumbers(adapter, new Rng(1));
    const params = noisy(first, 4);
    const quantize = { bits: 8, blockSize: 16 } as const;
    const floats = unpackedParams(model, quantizeModel(model, base, quantize).params);
    const batch = {
      ids: Tensor.from([3, 1, 7, 9], [1, 4], "int32"),
      targets: Tensor.from([1, 7, 9, 2], [4], "int32"),
      weights: Tensor.from(new Float32Array(4).fill(1)),
    };
    const losses: Tensor[] = [];
    for (const [weights, options] of [
      [base, { quantize }],
      [floats, {}],
    ] as const) {
      const trainee = traineeOf(model, weights, { adapter, params, buffers }, options);
      const program = new TrainProgram(trainee, backend);
      const { loss } = await program.evaluate(batch, params);
      losses.push(Tensor.from([loss]));
      await program.release();
    }
    allclose(losses[0]!, losses[1]!, 1e-4);
  });
});

/** Layers that no model of the zoo has where adapters sit. */
class Toy extends Module {
  readonly up: ConvTranspose2d = this.child("up", new ConvTranspose2d(2, 2, 2));
  readonly down: Conv2d = this.child("down", new Conv2d(2, 2, 2));
}

describe("layers that do not fit", () => {
  const toy = new Toy();
  const odd = Object.assign(toy, {
    family: "toy",
    targets: new Map(),
    defaultTargets: [],
  }) as unknown as PretrainedModel;

  it("are refused by what they are", () => {
    expect(() => targetLayers("x", odd, { targetModules: ["up"] }, [2])).toThrow(
      'x: "up" is a transposed convolution, which it does not fit — leave it out of targetModules.',
    );
    expect(() => targetLayers("x", odd, { targetModules: ["down"] }, [])).toThrow(
      'x: "down" is a convolution of 2 spatial axes, which it does not fit — leave it out of targetModules.',
    );
    const settings = {
      ...{ rank: 2, alpha: 2, scale: 1, dropout: 0 },
      ...{ isDora: false, hasBias: false },
    };
    expect(() => loraPart(odd, "up", toy.up, settings)).toThrow(
      'lora: "up" is a transposed convolution, which LoRA does not fit — leave it out of targetModules.',
    );
  });
});

describe("tensors of a file", () => {
  it("are all that is needed and nothing else", () => {
    const one = Tensor.from([1, 2]);
    expect(storedTensors({ a: one }, { a: [2] }, "here")["a"]).toEqual(one);
    expect(() => storedTensors({ b: one }, { a: [2] }, "here")).toThrow(
      "here: the tensors do not fit: missing [a], unexpected [b] — was the adapter made for another model?",
    );
    expect(() => storedTensors({ a: one }, { a: [3] }, "here")).toThrow(
      'here: "a" must have shape (3,), got (2,).',
    );
  });
});
