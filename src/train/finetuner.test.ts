import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Example } from "../data/example.ts";
import { StateError } from "../errors.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Llama } from "../models/llama.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import {
  type FinetuneOptions,
  Finetuner,
  type FinetuneState,
  finetune,
  finetuneSteps,
  scoreExamples,
} from "./finetune.ts";
import { quantizeModel, traineeOf } from "./trainee.ts";

const backend = await nodeOrt({ threads: 1 });
const sizes = { vocabSize: 40, dModel: 32, nLayers: 2, nHeads: 2, maxPositions: 32 };
const llama = new Llama({ ...sizes, dFeedForward: 32, initializerRange: 0.2 });
const gpt2 = new Gpt2(sizes);
const base = llama.init(new Rng(1)).params;

const rng = new Rng(2);
const examples: Example[] = Array.from({ length: 22 }, (_, i) => {
  const ids = Int32Array.from(rng.fold(i).permutation(3 + (i % 9)), (id) => id + i);
  return { ids, mask: Uint8Array.from(ids, (_id, at) => (at > i % 3 ? 1 : 0)) };
});

const adapter = lora(llama, { rank: 4, dropout: 0.2, targetModules: "all-linear" });
const fresh = () => traineeOf(llama, base, { adapter, params: adapter.init(new Rng(3)) });

function copied(params: TensorRecord): TensorRecord {
  return Object.fromEntries(Object.entries(params).map(([name, t]) => [name, t.clone()]));
}

function frozenState(state: FinetuneState): FinetuneState {
  const { params, optimizer, tokens } = state;
  return {
    params: copied({ ...params }),
    optimizer: { step: optimizer.step, tensors: copied({ ...optimizer.tensors }) },
    tokens,
  };
}

const settings: FinetuneOptions = { batchSize: 6, accumulate: 2, epochs: 3, learningRate: 1e-2 };
const opened: Finetuner[] = [];
async function tuner(options: FinetuneOptions = settings): Promise<Finetuner> {
  const made = await Finetuner.create(fresh(), examples, backend, options);
  opened.push(made);
  return made;
}
afterAll(async () => {
  await Promise.all(opened.map((one) => one.release()));
});

describe("a training that is saved and loaded", () => {
  it.each([
    ["as examples come", settings],
    ["packed", { ...settings, packing: 24 }],
  ])("goes on with the same bits, %s", async (_, options) => {
    const whole = await tuner(options);
    const states: FinetuneState[] = [frozenState(await whole.state())];
    const losses: number[] = [];
    for (let info = await whole.next(); info; info = await whole.next()) {
      losses.push(info.loss);
      states.push(frozenState(await whole.state()));
    }
    expect(losses.length).toBe(whole.steps);
    for (const at of [0, 1, Math.floor(whole.steps / 2), whole.steps - 1]) {
      const later = await tuner(options);
      await later.load(states[at]!);
      const rest: number[] = [];
      for (let info = await later.next(); info; info = await later.next()) rest.push(info.loss);
      expect(rest).toEqual(losses.slice(at));
      expect(frozenState(await later.state())).toEqual(states.at(-1));
    }
    // Back to an earlier state in the middle of another epoch.
    await whole.load(states[1]!);
    expect((await whole.next())!.loss).toBe(losses[1]);
  });

  it("refuses a state of more steps than the settings have", async () => {
    const one = await tuner();
    const state = frozenState(await one.state());
    await expect(
      one.load({ ...state, optimizer: { ...state.optimizer, step: 99 } }),
    ).rejects.toThrow(
      new StateError("finetune: the state is of step 99, these settings have 12 steps."),
    );
  });
});

describe("packing", () => {
  it.each([
    ["llama", llama],
    ["gpt2", gpt2],
  ])("gives every token of a %s the loss it has alone", async (_, model) => {
    const trainee = traineeOf(model, model.init(new Rng(4)).params);
    const run = (options: FinetuneOptions) =>
      finetune(trainee, examples, backend, {
        steps: 1,
        schedule: "constant",
        optimizer: "sgd",
        ...options,
      });
    // All examples in one step: alone in 22 rows, or packed in a few.
    const alone = await run({ batchSize: 22 });
    const packed = await run({ batchSize: 8, packing: 33 });
    expect(Math.abs(packed.losses[0]! - alone.losses[0]!)).toBeLessThan(1e-5);
    expect(packed.tokens).toBe(alone.tokens);
    for (const [name, tensor] of Object.entries(alone.params)) {
      allclose(packed.params[name]!, tensor, tolerance.float32);
    }
  });

  it("makes as many steps as the rows need", async () => {
    const one = await tuner({ batchSize: 2, epochs: 2, packing: 33 });
    // 22 examples of 3 to 11 tokens, 150 in all: at least five rows, three steps an epoch.
    expect(one.steps).toBe(6);
  });
});

describe("what is trained", () => {
  it("is only what freezing leaves", async () => {
    const trainee = traineeOf(llama, base, undefined, {
      freeze: ["embed_tokens", "layers.0", "norm"],
    });
    expect(Object.keys(trainee.trained).every((path) => /layers\.1\.|lm_head/.test(path))).toBe(
      true,
    );
    const { losses, params } = await finetune(trainee, examples, backend, { epochs: 6 });
    expect(Object.keys(params)).toEqual(Object.keys(trainee.trained));
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect(() => traineeOf(llama, base, undefined, { freeze: ["layer"] })).toThrow(
      'freeze: "layer" is part of no parameter\'s path — paths are like model.embed_tokens.weight.',
    );
    expect(() => traineeOf(llama, base, undefined, { freeze: ["model", "lm_head"] })).toThrow(
      "freeze: model, lm_head leave nothing to train.",
    );
  });

  it.each([4, 8] as const)("stands beside a base of %i bits", async (bits) => {
    const params = adapter.init(new Rng(3));
    const trainee = traineeOf(llama, base, { adapter, params }, { quantize: { bits } });
    const bytes = (record: Readonly<Record<string, { data: { byteLength: number } }>>) =>
      Object.values(record).reduce((sum, { data }) => sum + data.byteLength, 0);
    expect(bytes(trainee.frozen)).toBeLessThan(bytes(base) * (bits === 4 ? 0.5 : 0.6));
    const float = await scoreExamples(fresh(), examples, backend);
    const packed = await scoreExamples(trainee, examples, backend);
    expect(packed.nll).not.toBe(float.nll);
    expect(Math.abs(packed.nll - float.nll)).toBeLessThan(bits === 4 ? 0.1 : 0.01);
    const { losses } = await finetune(trainee, examples, backend, { ...settings, epochs: 6 });
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
    expect(() => traineeOf(llama, base, undefined, { quantize: { bits } })).toThrow(
      "quantize: weights of 4 or 8 bits take no gradient — train an adapter beside them.",
    );
    expect(Object.keys(quantizeModel(llama, base, { bits }).params)).toContain(
      "model.layers.0.mlp.up_proj.weight.packed",
    );
  });
});

describe("steps as they are made", () => {
  it("come one by one, and the loop may be left", async () => {
    const seen: number[] = [];
    for await (const { step } of finetuneSteps(fresh(), examples, backend, settings)) {
      seen.push(step);
      if (step === 3) break;
    }
    expect(seen).toEqual([1, 2, 3]);
  });
});
