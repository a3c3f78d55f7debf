import { describe, expect, it } from "vitest";
import { withHostDevice } from "../../test/support/host-device.ts";
import {
  example,
  tinyAdapter,
  tinyBase,
  tinyLora,
  tinyModel,
} from "../../test/support/objective.ts";
import type { StepHook } from "../adapters/hook.ts";
import type { Backend } from "../backend/backend.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";
import { causalLm } from "./causal-lm.ts";
import { Finetuner, type FinetuneState } from "./finetune.ts";
import { phasedSchedule } from "./hooks.ts";
import type { Trainee } from "./program.ts";
import { traineeOf } from "./trainee.ts";

const examples = [
  example([1, 2, 3, 4, 5], 1),
  example([3, 9, 8, 2, 10], 2),
  example([5, 6, 7, 1, 4], 1),
];
const settings = { steps: 6, batchSize: 2, learningRate: 1e-2, seed: 4, schedule: "constant" };

/** The loss times a factor that a hook sets; the hook sees what it is promised. */
function trainee(hook: StepHook, name = "factor"): Trainee {
  const plain = traineeOf(tinyModel, tinyBase, { adapter: tinyAdapter, params: tinyLora });
  return {
    ...plain,
    frozen: { ...plain.frozen, [name]: Tensor.from([1]) },
    objective: {
      ...causalLm,
      loss: (scene, batch) => {
        const { sum } = causalLm.loss(scene as never, batch);
        return { sum: mul(sum, add(0, scene.values[name]!)) };
      },
    },
    hooks: [hook],
  };
}

const doubling: StepHook = {
  changes: ["factor"],
  before: ({ step }) => ({ buffers: { factor: Tensor.from([step + 1]) } }),
};

const copy = (record: Readonly<Record<string, Tensor>>): TensorRecord =>
  Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, tensor.clone()]));

async function all(tuner: Finetuner): Promise<{ losses: number[]; state: FinetuneState }> {
  const losses: number[] = [];
  for (let info = await tuner.next(); info; info = await tuner.next()) losses.push(info.loss);
  const state = await tuner.state();
  const kept = { ...state, params: copy(state.params), buffers: copy(state.buffers ?? {}) };
  await tuner.release();
  return { losses, state: kept };
}

async function backends(): Promise<Backend[]> {
  const engine = await nodeOrt();
  return [engine, withHostDevice(engine)];
}

describe("a hook", () => {
  it("sets a tensor before each step, and the caller's own stays", async () => {
    const own = trainee(doubling);
    const { losses, state } = await all(
      await Finetuner.create(own, examples, await nodeOrt(), { ...settings, learningRate: 0 }),
    );
    const plain = await all(
      await Finetuner.create(trainee({ changes: ["factor"] }), examples, await nodeOrt(), {
        ...settings,
        learningRate: 0,
      }),
    );
    losses.forEach((loss, step) => {
      expect(loss / plain.losses[step]!).toBeCloseTo(step + 1, 4);
    });
    expect(state.buffers!["factor"]!.item()).toBe(6);
    expect(own.frozen["factor"]!.item()).toBe(1);
  });

  it("reads gradients and parameters where it asks for them", async () => {
    for (const backend of await backends()) {
      const seen: { params: string[]; gradients: string[]; norm: number }[] = [];
      const hook: StepHook = {
        changes: [],
        reads: { params: true, gradients: true },
        after: ({ params, gradients }) => {
          let squares = 0;
          for (const { data } of Object.values(gradients)) {
            for (const x of data as Float32Array) squares += x * x;
          }
          seen.push({
            params: Object.keys(params),
            gradients: Object.keys(gradients),
            norm: Math.sqrt(squares),
          });
          return undefined;
        },
      };
      const tuner = await Finetuner.create(trainee(hook), examples, backend, settings);
      const norms: number[] = [];
      for (let info = await tuner.next(); info; info = await tuner.next()) {
        norms.push(info.gradientNorm);
      }
      await tuner.release();
      expect(seen.map(({ norm }) => norm / norms[0]!)).toEqual(
        norms.map((norm) => expect.closeTo(norm / norms[0]!, 4)),
      );
      expect(seen[0]!.params).toEqual(Object.keys(tinyLora));
      expect(seen[0]!.gradients).toEqual(Object.keys(tinyLora));
    }
  });

  it("rewinds parameters and makes the optimiser forget: the steps after it are first steps", async () => {
    const back: StepHook = {
      changes: [],
      phases: (steps) => [3, steps - 3],
      after: ({ step }) =>
        step === 3 ? { params: copy(tinyLora), resetOptimizer: true } : undefined,
    };
    const results = await Promise.all(
      (await backends()).map(async (backend) =>
        all(await Finetuner.create(trainee(back), examples, backend, settings)),
      ),
    );
    // The same batches from the third step on, in a training that begins there.
    const engine = await nodeOrt();
    const fresh = await Finetuner.create(trainee({ changes: [] }), examples, engine, settings);
    const state = await fresh.state();
    const zeros = Object.fromEntries(
      Object.entries(state.optimizer.tensors).map(([name, { shape }]) => [
        name,
        Tensor.zeros(shape, "float32"),
      ]),
    );
    await fresh.load({
      params: copy(tinyLora),
      optimizer: { step: 3, origin: 3, tensors: zeros },
      tokens: 0,
    });
    const expected = await all(fresh);
    for (const { losses, state: found } of results) {
      expect(losses.slice(3)).toEqual(expected.losses.map((loss) => expect.closeTo(loss, 5)));
      expect(found.optimizer.origin).toBe(3);
    }
    for (const [name, tensor] of Object.entries(expected.state.params)) {
      expect(results[0]!.state.params[name]!.data).toEqual(tensor.data);
    }
  });

  it("on a device gives what it gives on the host, and leaves nothing there", async () => {
    const [engine, device] = await backends();
    const [host, there] = [
      await all(await Finetuner.create(trainee(doubling), examples, engine!, settings)),
      await all(await Finetuner.create(trainee(doubling), examples, device!, settings)),
    ];
    expect(there.losses).toEqual(host.losses.map((loss) => expect.closeTo(loss, 4)));
    expect(there.state.buffers!["factor"]!.item()).toBe(6);
    expect(device!.device!.stats.tensors).toBe(0);
  });

  it.each<[string, StepHook, string]>([
    [
      "changes what it did not name",
      { changes: [], before: () => ({ buffers: { factor: Tensor.from([1]) } }) },
      'hook: changes "factor" and did not say so.',
    ],
    [
      "changes a shape",
      { changes: ["factor"], before: () => ({ buffers: { factor: Tensor.from([1, 2]) } }) },
      'hook: "factor" must stay float32 (1,), got float32 (2,).',
    ],
    [
      "writes a parameter that is not there",
      { changes: [], after: () => ({ params: { other: Tensor.from([1]) } }) },
      'stepper: "other" is no trained parameter of this training.',
    ],
  ])("that %s is refused", async (_, hook, sentence) => {
    for (const backend of await backends()) {
      const tuner = await Finetuner.create(trainee(hook), examples, backend, settings);
      await expect(tuner.next()).rejects.toThrow(sentence);
      await tuner.release();
    }
  });

  it("that names a tensor which is not there is refused at once", async () => {
    await expect(
      Finetuner.create(trainee({ changes: ["scale"] }), examples, await nodeOrt(), settings),
    ).rejects.toThrow('hook: changes "scale", which is no frozen tensor of the training.');
  });

  it("finds its tensor in a checkpoint, or says that it is missing", async () => {
    const tuner = await Finetuner.create(trainee(doubling), examples, await nodeOrt(), settings);
    const { buffers: _, ...state } = await tuner.state();
    await expect(tuner.load(state)).rejects.toThrow('hook: the checkpoint lacks "factor".');
    await tuner.release();
  });
});

it("begins the schedule anew with each phase", () => {
  const scheduleOf = (steps: number) => (step: number) => 1 - step / steps;
  const hooks = [{ changes: [], phases: () => [2, 0, 4] }];
  const schedule = phasedSchedule({ hooks } as unknown as Trainee, 6, scheduleOf);
  expect(Array.from({ length: 6 }, (_, i) => schedule(i))).toEqual([1, 0.5, 1, 0.75, 0.5, 0.25]);
  const wrong = [{ changes: [], phases: () => [2, 3] }];
  expect(() => phasedSchedule({ hooks: wrong } as unknown as Trainee, 6, scheduleOf)).toThrow(
    "hook: phases [2, 3] of 1 hooks must be those of one and add up to 6 steps.",
  );
});
