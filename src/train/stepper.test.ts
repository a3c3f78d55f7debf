import { describe, expect, it } from "vitest";
import { withHostDevice } from "../../test/support/host-device.ts";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Example } from "../data/examples.ts";
import { MissingError, OptionError, StateError, UnsupportedError } from "../errors.ts";
import { Gpt2 } from "../models/gpt2.ts";
import type { TensorRecord } from "../nn/module.ts";
import {
  adafactor,
  adamW,
  decayGroups,
  lion,
  matrixGroups,
  muon,
  type ParameterGroup,
  sgd,
} from "../optim/index.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { makeBatch } from "./batches.ts";
import { DeviceStepper } from "./device-stepper.ts";
import { HostStepper } from "./host-stepper.ts";
import type { Trainee } from "./program.ts";
import { makeStepper, type StepPart, type Stepper, type StepperOptions } from "./stepper.ts";

const engine = await nodeOrt({ threads: 1 });
const vocabSize = 19;
const draw = new Rng(3);
const examples: readonly Example[] = [9, 6, 12, 5].map((length) => ({
  ids: Int32Array.from({ length }, () => draw.integer(vocabSize)),
  mask: Uint8Array.from({ length }, (_, i) => (i > 0 ? 1 : 0)),
}));

function gpt(): Trainee {
  const model = new Gpt2({
    vocabSize,
    dModel: 16,
    nLayers: 1,
    nHeads: 2,
    maxPositions: 16,
    dropout: 0.1,
  });
  return { model, frozen: {}, trained: model.init(new Rng(1)).params };
}

function withLora(): Trainee {
  const { model, trained } = gpt();
  const adapter = lora(model, { rank: 2, dropout: 0.1 });
  return {
    model,
    frozen: trained,
    trained: adapter.init(new Rng(2)),
    adapt: (values) => adapter.context(values),
  };
}

/** One part, or two of unequal length. */
function partsOf(step: number, count: number): StepPart[] {
  const noise = (i: number): Rng => new Rng(5).fold("noise", step, i);
  if (count === 1) return [{ batch: makeBatch(examples, { rows: 4 }), noise: noise(0) }];
  return [examples.slice(0, 1), examples.slice(1)].map((some, i) => ({
    batch: makeBatch(some, { rows: 3 }),
    noise: noise(i),
  }));
}

async function train(stepper: Stepper, steps: number, parts = 1, rate = 0.01): Promise<number[]> {
  const told: number[] = [];
  for (let i = 0; i < steps; i++) {
    const { loss, gradientNorm, isApplied } = await stepper.step(
      partsOf(stepper.stepCount, parts),
      rate * (1 - i / 10),
    );
    expect(isApplied).toBe(true);
    told.push(loss, gradientNorm);
  }
  return told;
}

async function everything(stepper: Stepper): Promise<TensorRecord> {
  const { step, tensors } = await stepper.state();
  return { ...(await stepper.params()), ...tensors, step: Tensor.scalar(step) };
}

function farthest(a: TensorRecord, b: TensorRecord): number {
  expect(Object.keys(a)).toEqual(Object.keys(b));
  let most = 0;
  for (const [name, { data }] of Object.entries(a)) {
    const other = b[name]!.data as Float32Array;
    expect(data.length).toBe(other.length);
    (data as Float32Array).forEach((x, i) => {
      most = Math.max(most, Math.abs(x - other[i]!) / Math.max(1, Math.abs(other[i]!)));
    });
  }
  return most;
}

const all = (trainee: Trainee, optimizer: ParameterGroup["optimizer"]): ParameterGroup[] => [
  { paths: Object.keys(trainee.trained), optimizer },
];

function halfMasks(trainee: Trainee): Record<string, Tensor> {
  const [path, { shape, size }] = Object.entries(trainee.trained).find(
    ([, tensor]) => tensor.shape.length === 2,
  )!;
  return {
    [path]: Tensor.from(
      Array.from({ length: size }, (_, i) => i % 2),
      shape,
    ),
  };
}

/**
 * The gradient of the keys' bias is zero but for rounding, which Adam would bring to full size: an ε above
 * it keeps the comparison to numbers that mean something.
 */
const calmAdamW = (weightDecay = 0.01): ParameterGroup["optimizer"] =>
  adamW({ weightDecay, epsilon: 1e-6 });

interface Case {
  readonly name: string;
  readonly trainee?: () => Trainee;
  readonly groups: (trainee: Trainee) => ParameterGroup[];
  readonly options?: (trainee: Trainee) => StepperOptions;
  readonly parts?: number;
}

const cases: readonly Case[] = [
  { name: "AdamW", groups: (t) => all(t, calmAdamW()), options: () => ({ clipNorm: 0.5 }) },
  {
    name: "AdamW on LoRA, in parts, with a running mean",
    trainee: withLora,
    groups: (t) => all(t, calmAdamW()),
    options: () => ({ clipNorm: 1, accumulates: true, ema: 0.9 }),
    parts: 2,
  },
  {
    name: "AdamW in groups of two rates, recomputing blocks",
    groups: (t) =>
      decayGroups(t.trained, { weightDecay: 0.1 }, (weightDecay) => calmAdamW(weightDecay)).map(
        (group, i) => ({ ...group, learningRateScale: i === 0 ? 1 : 0.5 }),
      ),
    options: () => ({ checkpoint: true }),
  },
  {
    name: "SGD with momentum and masks",
    groups: (t) => all(t, sgd({ momentum: 0.9, nesterov: true })),
    options: (t) => ({ masks: halfMasks(t), clipNorm: 0.5 }),
  },
  { name: "SGD without state", groups: (t) => all(t, sgd()) },
  { name: "Lion", groups: (t) => all(t, lion({ weightDecay: 0.1 })) },
  {
    name: "Adafactor with a running mean",
    groups: (t) => all(t, adafactor()),
    options: () => ({ ema: 0.5, clipNorm: 0.5 }),
  },
  {
    name: "Muon beside AdamW",
    groups: (t) => matrixGroups(t.trained, { matrices: muon(), others: calmAdamW() }),
    options: () => ({ clipNorm: 0.5 }),
  },
];

describe("the step on a device agrees with the step on the host", () => {
  it.each(cases)("$name", async ({ trainee: make = gpt, groups, options, parts = 1 }) => {
    const trainee = make();
    const loads = { open: 0 };
    const backend = withHostDevice(engine, loads);
    const settings = options?.(trainee) ?? {};
    const host = new HostStepper(trainee, groups(trainee), engine, settings);
    const device = await makeStepper(trainee, groups(trainee), backend, settings);
    expect(device).toBeInstanceOf(DeviceStepper);
    const [told, expected] = [await train(device, 5, parts), await train(host, 5, parts)];
    told.forEach((x, i) => {
      expect(Math.abs(x / expected[i]! - 1)).toBeLessThan(1e-6);
    });
    const [is, should] = [await everything(device), await everything(host)];
    expect(farthest(is, should)).toBeLessThan(1e-6);
    expect(farthest(await device.params(), trainee.trained)).toBeGreaterThan(1e-3);
    const means = await device.ema();
    if (settings.ema === undefined) expect(means).toBeUndefined();
    else expect(farthest(means!, (await host.ema())!)).toBeLessThan(1e-6);
    const batch = makeBatch(examples, { rows: 4 });
    const [scored, score] = [await device.evaluate(batch), await host.evaluate(batch)];
    expect(Math.abs(scored.loss / score.loss - 1)).toBeLessThan(1e-6);
    expect(scored.metrics["correct"]).toBe(score.metrics["correct"]);
    await host.release();
    await device.release();
    await device.release();
    expect(backend.device.stats).toMatchObject({ tensors: 0, bytes: 0 });
    expect(loads.open).toBe(0);
  });
});

describe("state", () => {
  it.each([
    ["the host", "the device"],
    ["the device", "the host"],
  ])("goes from %s to %s, and the run goes on as it would have", async (from) => {
    const trainee = withLora();
    const groups = all(trainee, adamW());
    const options = { ema: 0.9, clipNorm: 1 };
    const backend = withHostDevice(engine);
    const make = async (onDevice: boolean): Promise<Stepper> =>
      makeStepper(trainee, groups, onDevice ? backend : engine, options);
    const isFromDevice = from === "the device";
    const [first, second] = [await make(isFromDevice), await make(!isFromDevice)];
    await train(first, 3);
    await second.load(await first.params(), await first.state());
    expect(second.stepCount).toBe(3);
    expect(farthest(await everything(second), await everything(first))).toBe(0);
    await train(first, 2);
    await train(second, 2);
    expect(farthest(await everything(second), await everything(first))).toBeLessThan(1e-6);
    await first.release();
    await second.release();
    expect(backend.device.stats.tensors).toBe(0);
  });

  it("of another optimizer is refused, and nothing changes", async () => {
    const trainee = withLora();
    const backend = withHostDevice(engine);
    const stepper = await makeStepper(trainee, all(trainee, adamW()), backend);
    const other = await makeStepper(trainee, all(trainee, sgd({ momentum: 0.5 })), engine);
    await train(stepper, 1);
    const before = await everything(stepper);
    const path = Object.keys(trainee.trained)[0]!;
    const params = await stepper.params();
    await expect(stepper.load(params, await other.state())).rejects.toThrow(
      new MissingError(`updater: the checkpoint lacks "${path}.exp_avg".`),
    );
    const { tensors } = await stepper.state();
    const more = { step: 1, tensors: { ...tensors, more: Tensor.scalar(0) } };
    await expect(stepper.load(params, more)).rejects.toThrow(
      'updater: the checkpoint has "more", which is not kept here — use the optimizer and options that wrote it.',
    );
    const turned = { ...params, [path]: Tensor.zeros([3], "float32") };
    await expect(stepper.load(turned, { step: 1, tensors })).rejects.toThrow(
      `updater: "${path}" must have shape`,
    );
    expect(farthest(await everything(stepper), before)).toBe(0);
    await stepper.release();
    await other.release();
    expect(backend.device.stats.tensors).toBe(0);
  });
});

describe.each([
  ["on the host", engine],
  ["on a device", withHostDevice(engine)],
])("a step %s", (_, backend) => {
  it("with a gradient that is not finite is not applied, and the next one is", async () => {
    const trainee = withLora();
    const stepper = await makeStepper(trainee, all(trainee, adamW()), backend, { ema: 0.5 });
    await train(stepper, 1);
    const before = await everything(stepper);
    const [part] = partsOf(1, 1);
    const weights = part!.batch.weights.clone();
    weights.data[0] = Infinity;
    const broken = { ...part!, batch: { ...part!.batch, weights } };
    const { isApplied, gradientNorm } = await stepper.step([broken], 0.01);
    expect([isApplied, Number.isFinite(gradientNorm)]).toEqual([false, false]);
    expect(farthest(await everything(stepper), before)).toBe(0);
    expect((await stepper.step([part!], 0.01)).isApplied).toBe(true);
    expect(stepper.stepCount).toBe(2);
    await stepper.release();
  });

  it("refuses a rate, parts or a moment that cannot be", async () => {
    const trainee = withLora();
    const stepper = await makeStepper(trainee, all(trainee, adamW()), backend);
    await expect(stepper.step(partsOf(0, 1), -1)).rejects.toThrow(
      new OptionError("updater: learning rate must be a number from 0, got -1."),
    );
    await expect(stepper.step([], 0.1)).rejects.toThrow(
      new OptionError("step: needs at least one part of a batch."),
    );
    await expect(stepper.step(partsOf(0, 2), 0.1)).rejects.toThrow(
      new StateError("step: no room to add up 2 parts — set the option accumulates."),
    );
    expect(stepper.stepCount).toBe(0);
    await stepper.release();
    await expect(stepper.step(partsOf(0, 1), 0.1)).rejects.toThrow(StateError);
  });
});

describe("on a device", () => {
  it("only batch and scalars go in, and loss and norm come out", async () => {
    const trainee = withLora();
    const backend = withHostDevice(engine);
    const { device } = backend;
    const groups = all(trainee, adamW());
    const stepper = await makeStepper(trainee, groups, backend, { accumulates: true });
    const sizeOf = (tensors: object): number =>
      Object.values(tensors).reduce((n, tensor: Tensor) => n + tensor.data.byteLength, 0);
    const weights = sizeOf(trainee.frozen) + sizeOf(trainee.trained);
    expect(device.stats.uploadedBytes).toBe(weights);
    // Frozen once; of what is trained parameters and two moments, each twice, and two gradients.
    expect(device.stats.bytes).toBe(sizeOf(trainee.frozen) + 8 * sizeOf(trainee.trained));
    const { tensors } = device.stats;
    for (const count of [1, 2, 2]) {
      const before = device.stats;
      const parts = partsOf(stepper.stepCount, count);
      await stepper.step(parts, 0.01);
      const went = device.stats.uploadedBytes - before.uploadedBytes;
      // Beside the batch, the total of weights for each part, three numbers of AdamW, and the noise.
      const known = parts.reduce((n, { batch }) => n + sizeOf(batch) + 4, 3 * 4);
      const noise = went - known;
      expect(noise).toBeGreaterThan(0);
      expect(noise % 4).toBe(0);
      expect(noise).toBeLessThan(parts.length * 30_000);
      expect(device.stats.downloadedBytes - before.downloadedBytes).toBe(4 * count + 4);
      expect(device.stats.tensors).toBe(tensors);
    }
    await stepper.release();
    expect(device.stats.tensors).toBe(0);
  });

  it("frozen weights of a type that it does not keep stay on the host", async () => {
    const { frozen, ...rest } = withLora();
    const [path, weight] = Object.entries(frozen).find(([, { shape }]) => shape.length === 2)!;
    const trainee = { ...rest, frozen: { ...frozen, [path]: weight.to("float16") } };
    const backend = withHostDevice(engine);
    const stepper = await makeStepper(trainee, all(trainee, adamW()), backend);
    const bytes = Object.entries(frozen).reduce(
      (n, [name, { size }]) => n + (name === path ? 0 : 4 * size),
      0,
    );
    const own = Object.values(trainee.trained).reduce((n, { size }) => n + 4 * size, 0);
    expect(backend.device.stats.bytes).toBe(bytes + 7 * own);
    await stepper.release();
    expect(backend.device.stats.bytes).toBe(0);
  });

  it("what was uploaded is freed when something does not fit", async () => {
    const trainee = withLora();
    const backend = withHostDevice(engine);
    const { device } = backend;
    let room = 5;
    const upload: typeof device.upload = (tensor) =>
      room-- > 0 ? device.upload(tensor) : Promise.reject(new StateError("device: no room."));
    const allocate: typeof device.allocate = (shape, dtype) => device.allocate(shape, dtype);
    const small = {
      ...backend,
      device: { stats: device.stats, keeps: device.keeps, allocate, upload },
    };
    await expect(makeStepper(trainee, all(trainee, adamW()), small)).rejects.toThrow("no room");
    expect(device.stats.tensors).toBe(0);
  });

  it("needs a backend that has one", async () => {
    const trainee = withLora();
    await expect(DeviceStepper.make(trainee, all(trainee, adamW()), engine)).rejects.toThrow(
      new UnsupportedError(
        "stepper: onnxruntime-node cpu keeps no tensors on a device — use HostStepper.",
      ),
    );
    expect(await makeStepper(trainee, all(trainee, adamW()), engine)).toBeInstanceOf(HostStepper);
  });
});
