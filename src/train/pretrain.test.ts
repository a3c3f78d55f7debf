import { describe, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { OptionError, StateError } from "../errors.ts";
import { Gpt2 } from "../models/gpt2.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { cosineRate, meanNll, type PretrainOptions, pretrain, type Snapshot } from "./pretrain.ts";
import { TrainProgram } from "./program.ts";

const backend = await nodeOrt({ threads: 1 });

const text = "the cat sat on the mat and the rat sat on the cat. ".repeat(12);
const letters = [...new Set(text)].sort();
const tokens = Int32Array.from(text, (letter) => letters.indexOf(letter));
const heldOut = tokens.subarray(0, 70);

// With dropout, so that the noise of a step has to be the same after a resume.
const model = new Gpt2({
  vocabSize: letters.length,
  dModel: 16,
  nLayers: 1,
  nHeads: 2,
  maxPositions: 24,
  dropout: 0.1,
});

const options: PretrainOptions = {
  steps: 8,
  batchSize: 2,
  seqLen: 16,
  learningRate: 5e-3,
  repeats: 0.5,
  seed: 3,
};

function copied(params: Readonly<Record<string, Tensor>>): TensorRecord {
  return Object.fromEntries(Object.entries(params).map(([name, t]) => [name, t.clone()]));
}

function copiedSnapshot({ params, state }: Snapshot): Snapshot {
  return { params: copied(params), state: { ...state, tensors: copied(state.tensors) } };
}

describe("cosineRate", () => {
  it("rises along a line, then falls along a cosine to a tenth", () => {
    const rates = [0, 1, 2, 6, 10, 14].map((step) => cosineRate(step, 10, 2, 0.2));
    // (1 + 1/10) / 2 of the peak half way down.
    const expected = [0.1, 0.2, 0.2, 0.11, 0.02, 0.02];
    rates.forEach((rate, i) => {
      expect(rate).toBeCloseTo(expected[i]!, 12);
    });
  });
});

describe("pretrain", () => {
  it("lowers the loss on a tiny text, from that of guessing", async () => {
    const losses: number[] = [];
    const evals: [number, number][] = [];
    const { heldOutNll } = await pretrain(model, tokens, heldOut, backend, {
      ...options,
      steps: 60,
      batchSize: 8,
      evalEvery: 25,
      onStep: ({ step, steps, tokens: seen, loss }) => {
        losses.push(loss);
        expect([step, steps, seen]).toEqual([losses.length, 60, losses.length * 128]);
      },
      onEval: (step, nll) => evals.push([step, nll]),
    });
    const guess = Math.log(letters.length);
    expect(Math.abs(losses[0]! - guess)).toBeLessThan(0.1 * guess);
    expect(losses.at(-1)).toBeLessThan(0.75 * guess);
    expect(evals.map(([step]) => step)).toEqual([25, 50, 60]);
    expect(evals[2]![1]).toBe(heldOutNll);
    expect(heldOutNll).toBeLessThan(evals[0]![1]);
    expect(evals[0]![1]).toBeLessThan(guess);
  });

  it("goes on from a snapshot to the same bits as a run that was not stopped", async () => {
    const saved: Snapshot[] = [];
    const whole: number[] = [];
    const straight = await pretrain(model, tokens, heldOut, backend, {
      ...options,
      saveEvery: 3,
      onStep: ({ loss }) => whole.push(loss),
      onSave: async (snapshot) => {
        saved.push(copiedSnapshot(snapshot));
      },
    });
    expect(saved.map(({ state }) => state.step)).toEqual([3, 6]);
    for (const resume of saved) {
      const rest: number[] = [];
      const resumed = await pretrain(model, tokens, heldOut, backend, {
        ...options,
        resume,
        onStep: ({ loss }) => rest.push(loss),
      });
      expect(rest).toEqual(whole.slice(resume.state.step));
      expect(copied(resumed.params)).toEqual(copied(straight.params));
      expect(resumed.heldOutNll).toBe(straight.heldOutNll);
    }
  });

  it("stops after the step in which its signal comes, saves, and goes on to the same bits", async () => {
    const straight = await pretrain(model, tokens, heldOut, backend, options);
    const controller = new AbortController();
    const saved: Snapshot[] = [];
    const stopped = await pretrain(model, tokens, heldOut, backend, {
      ...options,
      signal: controller.signal,
      onStep: ({ step }) => {
        if (step === 5) controller.abort();
      },
      onSave: async (snapshot) => {
        saved.push(copiedSnapshot(snapshot));
      },
    });
    expect([stopped.isStopped, straight.isStopped]).toEqual([true, false]);
    expect(saved.map(({ state }) => state.step)).toEqual([5]);
    expect(copied(stopped.params)).toEqual(saved[0]!.params);
    const resumed = await pretrain(model, tokens, heldOut, backend, {
      ...options,
      resume: saved[0]!,
    });
    expect(copied(resumed.params)).toEqual(copied(straight.params));
  });

  it("draws other noise at each step", async () => {
    // A text of one window and a rate of 0: only noise can change the loss.
    const losses: number[] = [];
    await pretrain(model, tokens.subarray(0, 17), heldOut, backend, {
      ...options,
      steps: 3,
      batchSize: 1,
      repeats: 0,
      learningRate: 0,
      onStep: ({ loss }) => losses.push(loss),
    });
    expect(new Set(losses).size).toBe(3);
  });

  it("has other bits with another seed", async () => {
    const short = { ...options, steps: 2 };
    const params = copied(model.init(new Rng(1)).params);
    const run = (seed: number) =>
      pretrain(model, tokens, heldOut, backend, { ...short, params, seed });
    const [first, again, other] = [await run(1), await run(1), await run(2)];
    expect(copied(again.params)).toEqual(copied(first.params));
    expect(other.heldOutNll).not.toBe(first.heldOutNll);
  });

  it("leaves the first numbers that it is given as they were", async () => {
    const { params } = model.init(new Rng(1));
    const before = copied(params);
    await pretrain(model, tokens, heldOut, backend, { ...options, steps: 1, params });
    expect(params).toEqual(before);
  });

  it("names the step when the loss is not a number", async () => {
    const { params } = model.init(new Rng(1));
    (params["transformer.ln_f.bias"]!.data as Float32Array)[0] = Number.NaN;
    await expect(pretrain(model, tokens, heldOut, backend, { ...options, params })).rejects.toThrow(
      new StateError("pretrain: the loss at step 1 is NaN — lower the learning rate (0.005)."),
    );
  });
});

describe("meanNll", () => {
  it("gives each token of a text but the first the same weight, however it is cut", async () => {
    const { params } = model.init(new Rng(1));
    // Without what comes before and without places, a token's loss depends on the one before it alone.
    for (const [path, tensor] of Object.entries(params)) {
      if (/wpe|c_proj/.test(path)) (tensor.data as Float32Array).fill(0);
    }
    const program = new TrainProgram({ model, frozen: {}, trained: params }, backend);
    const cuts: [number, number][] = [
      [1, 16],
      [3, 7],
      [8, 24],
    ];
    const values: number[] = [];
    for (const [batchSize, seqLen] of cuts) {
      values.push(
        await meanNll((batch) => program.evaluate(batch, params), heldOut, batchSize, seqLen),
      );
    }
    await program.release();
    for (const value of values) expect(value).toBeCloseTo(values[0]!, 5);
  });

  it("refuses a text in which nothing is predicted", async () => {
    const { params } = model.init(new Rng(1));
    const program = new TrainProgram({ model, frozen: {}, trained: params }, backend);
    await expect(
      meanNll((batch) => program.evaluate(batch, params), heldOut.subarray(0, 1), 1, 8),
    ).rejects.toThrow(
      new OptionError(
        "pretrain: the held-out text has 1 tokens — it needs 2 or more, as the first is not predicted.",
      ),
    );
    await program.release();
  });
});
