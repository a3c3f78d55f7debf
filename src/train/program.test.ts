import { afterAll, describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { lora } from "../adapters/lora.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Example } from "../data/examples.ts";
import { StateError } from "../errors.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Llama } from "../models/llama.ts";
import type { TensorRecord } from "../nn/module.ts";
import { sgd } from "../optim/sgd.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { makeBatch } from "./batches.ts";
import { type Batch, type ProgramOptions, type Trainee, TrainProgram } from "./program.ts";
import { Updater } from "./updater.ts";

const backend = await nodeOrt({ threads: 1 });
const vocabSize = 23;

/** Weights larger than new ones, so that every part of the model has a say. */
function loud(params: TensorRecord): TensorRecord {
  for (const tensor of Object.values(params)) {
    if (tensor.shape.length < 2) continue;
    for (let i = 0; i < tensor.size; i++) (tensor.data as Float32Array)[i]! *= 15;
  }
  return params;
}

function llamaTrainee(): Trainee {
  const model = new Llama({
    vocabSize,
    dModel: 16,
    dFeedForward: 24,
    nLayers: 2,
    nHeads: 2,
    nKvHeads: 1,
    maxPositions: 64,
  });
  return { model, frozen: {}, trained: loud(model.init(new Rng(1)).params) };
}

function gptTrainee(dropout: number): Trainee {
  const model = new Gpt2({
    vocabSize,
    dModel: 16,
    nLayers: 2,
    nHeads: 2,
    maxPositions: 32,
    dropout,
  });
  return { model, frozen: {}, trained: loud(model.init(new Rng(1)).params) };
}

function loraTrainee(dropout: number): Trainee {
  const { model, trained } = llamaTrainee();
  const adapter = lora(model, { rank: 2, dropout, targetModules: "all-linear" });
  const params = adapter.init(new Rng(2));
  const rng = new Rng(3);
  for (const tensor of Object.values(params)) {
    (tensor.data as Float32Array).set(rng.normals(tensor.size, 0.5));
  }
  return {
    model,
    frozen: trained,
    trained: params,
    adapt: (values) => adapter.context(values),
  };
}

const draw = new Rng(7);
const examples: readonly Example[] = [9, 4, 15, 6].map((length) => ({
  ids: Int32Array.from({ length }, () => draw.integer(vocabSize)),
  mask: Uint8Array.from({ length }, (_, i) => (i > 0 && i % 3 !== 1 ? 1 : 0)),
}));
const total = examples.flatMap(({ mask }) => [...mask]).reduce((a, b) => a + b, 0);

interface Pass {
  readonly loss: number;
  readonly gradients: TensorRecord;
}

const open: TrainProgram[] = [];
afterAll(async () => {
  for (const program of open) await program.release();
});

function programOf(trainee: Trainee, options: ProgramOptions = {}): TrainProgram {
  const program = new TrainProgram(trainee, backend, options);
  open.push(program);
  return program;
}

async function pass(
  program: TrainProgram,
  { trained }: Trainee,
  batch: Batch,
  rng: Rng = new Rng(0),
): Promise<Pass> {
  const gradients = Object.fromEntries(
    Object.entries(trained).map(([path, { shape }]) => [path, Tensor.zeros(shape, "float32")]),
  );
  const loss = await program.lossAndGradients(batch, trained, gradients, total, rng);
  return { loss, gradients };
}

function near(actual: Pass, expected: Pass, allowed: number): void {
  expect(Math.abs(actual.loss - expected.loss)).toBeLessThan(allowed * expected.loss);
  for (const [path, gradient] of Object.entries(expected.gradients)) {
    allclose(actual.gradients[path]!, gradient, allowed, path);
  }
}

function same(actual: Pass, expected: Pass): void {
  expect(actual.loss).toBe(expected.loss);
  expect(actual.gradients).toEqual(expected.gradients);
}

const llama = llamaTrainee();
const llamaProgram = programOf(llama);
const batch = makeBatch(examples, { rows: 4 });

describe("the loss and gradients of a batch", () => {
  it("do not depend on padding, in length, in rows or in places with loss", async () => {
    const first = await pass(llamaProgram, llama, batch);
    const wide = makeBatch(examples, { rows: 9, lengthMultiple: 32 });
    expect([batch.ids.shape, wide.ids.shape]).toEqual([
      [4, 16],
      [9, 32],
    ]);
    near(await pass(llamaProgram, llama, wide), first, 1e-6);
  });

  it("do not depend on the order of the examples", async () => {
    const turned = makeBatch(examples.toReversed(), { rows: 4 });
    near(await pass(llamaProgram, llama, turned), await pass(llamaProgram, llama, batch), 1e-6);
  });

  it("are those of full logits with the weight of other places 0", async () => {
    const [rows, length] = batch.ids.shape as [number, number];
    const targets = new Int32Array(rows * length);
    const weights = new Float32Array(rows * length);
    examples.forEach(({ ids, mask }, row) => {
      for (let i = 1; i < ids.length; i++) {
        targets[row * length + i - 1] = ids[i]!;
        weights[row * length + i - 1] = mask[i]!;
      }
    });
    const full: Batch = {
      ids: batch.ids,
      targets: new Tensor("int32", [rows * length], targets),
      weights: new Tensor("float32", [rows * length], weights),
    };
    const gathered = await pass(llamaProgram, llama, batch);
    expect(gathered.loss).toBeGreaterThan(1);
    near(await pass(llamaProgram, llama, full), gathered, 1e-6);
    const [ofRows, ofAll] = [
      await llamaProgram.evaluate(batch, llama.trained),
      await llamaProgram.evaluate(full, llama.trained),
    ];
    expect(Math.abs(ofRows.loss / total - gathered.loss)).toBeLessThan(1e-6 * gathered.loss);
    expect(Math.abs(ofAll.loss - ofRows.loss)).toBeLessThan(1e-6 * ofRows.loss);
    expect([ofAll.metrics["correct"], ofAll.weight]).toEqual([ofRows.metrics["correct"], total]);
  });

  it.each([
    ["one by one", [[0], [1], [2], [3]]],
    ["in two uneven parts", [[2], [0, 1, 3]]],
  ])("add up over parts (%s)", async (_, parts) => {
    const whole = await pass(llamaProgram, llama, batch);
    const groups = [{ paths: Object.keys(llama.trained), optimizer: sgd() }];
    const updater = new Updater(llama.trained, groups, backend, { accumulates: true });
    let loss = 0;
    for (const [i, indices] of parts.entries()) {
      if (i > 0) updater.accumulate();
      const part = makeBatch(
        indices.map((index) => examples[index]!),
        { rows: 3 },
      );
      const { params, gradients } = updater;
      loss += await llamaProgram.lossAndGradients(part, params, gradients, total, new Rng(0));
    }
    const { gradientNorm } = await updater.step(1);
    // Gradient descent with rate 1 moves each parameter by its gradient.
    const gradients: TensorRecord = {};
    let squares = 0;
    for (const [path, { shape, data }] of Object.entries(llama.trained)) {
      const moved = updater.params[path]!.data.map((x, j) => (data as Float32Array)[j]! - x);
      gradients[path] = new Tensor("float32", shape, moved);
      for (const x of whole.gradients[path]!.data as Float32Array) squares += x * x;
    }
    near({ loss, gradients }, whole, 2e-6);
    expect(Math.abs(gradientNorm - Math.sqrt(squares))).toBeLessThan(1e-5 * gradientNorm);
    await updater.release();
  });
});

describe("checkpoint", () => {
  it.each<[string, Trainee]>([
    ["a Llama", llama],
    ["GPT-2 with dropout", gptTrainee(0.1)],
    ["LoRA with dropout", loraTrainee(0.2)],
  ])(
    "recomputes the blocks of %s to the same loss and gradients, noise included",
    async (_, trainee) => {
      const kept = await pass(programOf(trainee), trainee, batch, new Rng(5));
      const again = await pass(
        programOf(trainee, { checkpoint: true }),
        trainee,
        batch,
        new Rng(5),
      );
      near(again, kept, tolerance.float32 / 10);
    },
  );
});

describe.each<[string, (rate: number) => Trainee]>([
  ["GPT-2's dropout", gptTrainee],
  ["LoRA's dropout", loraTrainee],
])("%s", (_, make) => {
  const trainee = make(0.1);
  const program = programOf(trainee);

  it("has the same bits with the same source of noise and others with another", async () => {
    const first = await pass(program, trainee, batch, new Rng(5));
    same(await pass(program, trainee, batch, new Rng(5)), first);
    const other = await pass(program, trainee, batch, new Rng(6));
    expect(other.loss).not.toBe(first.loss);
  });

  it("depends on the key of the source alone, not on what it gave before, and does not move it", async () => {
    const rng = new Rng(5);
    const first = await pass(program, trainee, batch, rng);
    expect(rng.state).toEqual(new Rng(5).state);
    rng.uniforms(100);
    same(await pass(program, trainee, batch, rng), first);
    const other = await pass(program, trainee, batch, rng.fold("noise", 4));
    expect(other.loss).not.toBe(first.loss);
  });

  it("is off in evaluation, and keeps the loss right on average", async () => {
    const without = make(0);
    const evaluated = await program.evaluate(batch, trainee.trained);
    const plain = await programOf(without).evaluate(batch, without.trained);
    expect(evaluated).toEqual(plain);
    let mean = 0;
    for (let i = 0; i < 20; i++) {
      mean += (await pass(program, trainee, batch, new Rng(100 + i))).loss / 20;
    }
    const quiet = plain.loss / total;
    expect(Math.abs(mean - quiet)).toBeLessThan(0.15 * quiet);
    expect(mean).not.toBe(quiet);
  });
});

describe("programs of many shapes", () => {
  /** The engine, and how many of its sessions are open. */
  function counted(): { backend: Backend; live: () => number; loads: () => number } {
    let [live, loads] = [0, 0];
    const load: Backend["load"] = async (program, options) => {
      const executable = await backend.load(program, options);
      live++;
      loads++;
      const counting: Executable = {
        inputs: executable.inputs,
        outputs: executable.outputs,
        run: (inputs, into) => executable.run(inputs, into),
        release: async () => {
          live--;
          await executable.release();
        },
      };
      return counting;
    };
    return { backend: { name: "counted", load }, live: () => live, loads: () => loads };
  }

  it("are loaded once each, released beyond the bound, the least recently used first, and all at the end", async () => {
    const { backend: engine, live, loads } = counted();
    const program = new TrainProgram(llama, engine, { cacheSize: 2 });
    const shapes = [1, 2, 3].map((rows) => makeBatch([examples[0]!], { rows }));
    const use = async (...indices: number[]): Promise<[loads: number, live: number]> => {
      for (const i of indices) await program.evaluate(shapes[i]!, llama.trained);
      return [loads(), live()];
    };
    expect(await use(0, 0, 1, 0)).toEqual([2, 2]);
    // The second was not used for longest.
    expect(await use(2)).toEqual([3, 2]);
    expect(await use(0)).toEqual([3, 2]);
    expect(await use(1)).toEqual([4, 2]);
    await program.release();
    expect(live()).toBe(0);
  });

  it("say that they were released", async () => {
    const program = new TrainProgram(llama, backend);
    await program.release();
    await expect(program.evaluate(batch, llama.trained)).rejects.toThrow(
      new StateError("train: the program was released."),
    );
  });
});
