import { describe, expect, it } from "vitest";
import { withHostDevice } from "../../test/support/host-device.ts";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { OptionError, StateError } from "../errors.ts";
import { Llama } from "../models/llama.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import type { FinetuneState } from "./finetune.ts";
import { gkdPolicy, grpoPolicy, type PolicyMethod, ppoPolicy } from "./objectives/policies.ts";
import {
  type PolicyOptions,
  type PolicyPrompt,
  PolicyTrainer,
  promptSet,
  trainPolicy,
} from "./policy.ts";
import type { Reward } from "./rewards.ts";
import { traineeOf } from "./trainee.ts";

const backend = await nodeOrt({ threads: 1 });
const letters = "0123456789abcdefghij";
const model = new Llama({
  vocabSize: 20,
  dModel: 16,
  nLayers: 1,
  nHeads: 2,
  dFeedForward: 24,
  maxPositions: 24,
  initializerRange: 0.2,
});
const base = model.init(new Rng(1)).params;
const adapter = lora(model, { rank: 4, targetModules: "all-linear" });
const fresh = () => traineeOf(model, base, { adapter, params: adapter.init(new Rng(3)) });
const decode = (ids: ArrayLike<number>): string => Array.from(ids, (id) => letters[id]!).join("");
const prompts: readonly PolicyPrompt[] = Array.from({ length: 6 }, (_, i) => ({
  ids: Int32Array.of(10 + i, 11 + i),
  prompt: decode([10 + i, 11 + i]),
  expected: "7",
  example: {
    ids: Int32Array.of(10 + i, 11 + i, 7, 7, 7),
    mask: Uint8Array.of(0, 0, 1, 1, 1),
  },
}));
/** The share of the answer that is digits. */
const digits: Reward = ({ answer }) =>
  answer.length === 0 ? 0 : [...answer].filter((c) => c < "a").length / answer.length;
const settings = (method: PolicyMethod): PolicyOptions => ({
  method,
  decode,
  reward: digits,
  batchSize: 3,
  steps: 24,
  maxNewTokens: 4,
  learningRate: 2e-2,
  schedule: "constant",
  partSize: 8,
  seed: 5,
});
const meanOf = (values: readonly number[]): number =>
  values.reduce((a, b) => a + b, 0) / values.length;

describe("a policy learns what is rewarded", () => {
  it.each([
    ["GRPO", grpoPolicy({ groupSize: 8 }), {}],
    [
      "GRPO with a KL term and two updates a rollout",
      grpoPolicy({ groupSize: 8, beta: 0.01 }),
      { iterations: 2 },
    ],
    [
      "Dr. GRPO",
      grpoPolicy({ groupSize: 8, scale: "none", normalize: "length", maxLength: 4 }),
      { steps: 40 },
    ],
    ["PPO", ppoPolicy({ dModel: 16, groupSize: 8 }), { iterations: 2, steps: 40 }],
  ] as const)("%s makes it answer in digits", async (_, method, more) => {
    const { rewards } = await trainPolicy(fresh(), prompts, backend, {
      ...settings(method),
      ...more,
    });
    expect(meanOf(rewards.slice(0, 2))).toBeLessThan(0.75);
    expect(meanOf(rewards.slice(-4))).toBeGreaterThan(meanOf(rewards.slice(0, 2)) + 0.2);
  });

  it("trains all parameters of a model too", async () => {
    const method = grpoPolicy({ groupSize: 8 });
    const { rewards } = await trainPolicy(traineeOf(model, base), prompts, backend, {
      ...settings(method),
      learningRate: 5e-3,
    });
    expect(meanOf(rewards.slice(-4))).toBeGreaterThan(meanOf(rewards.slice(0, 2)) + 0.2);
  });

  it.each([
    ["an adapter", fresh],
    ["all parameters", () => traineeOf(model, base)],
  ])("has the same losses where weights stay on a device: %s", async (_, start) => {
    const method = grpoPolicy({ groupSize: 4, beta: 0 });
    const options = { ...settings(method), steps: 3, learningRate: 1e-3 };
    const host = await trainPolicy(start(), prompts, backend, options);
    const device = await trainPolicy(start(), prompts, withHostDevice(backend), options);
    expect(device.rewards).toEqual(host.rewards);
    for (const [i, loss] of host.losses.entries()) expect(device.losses[i]).toBeCloseTo(loss, 5);
  });

  it("distils a teacher on the student's own answers", async () => {
    const teacher = { model, params: model.init(new Rng(9)).params };
    const method = gkdPolicy({ teacher, onPolicy: 0.5 });
    const { losses } = await trainPolicy(fresh(), prompts, backend, {
      ...settings(method),
      steps: 40,
    });
    expect(meanOf(losses.slice(-5))).toBeLessThan(0.6 * meanOf(losses.slice(0, 5)));
  });
});

const copied = (params: Readonly<Record<string, { clone(): unknown }>>): TensorRecord =>
  Object.fromEntries(
    Object.entries(params).map(([name, tensor]) => [name, tensor.clone()]),
  ) as TensorRecord;
const kept = ({ params, optimizer, tokens }: FinetuneState): FinetuneState => ({
  params: copied(params),
  optimizer: { step: optimizer.step, tensors: copied(optimizer.tensors) },
  tokens,
});

describe("a training that is saved and loaded", () => {
  it.each([
    ["GRPO", () => grpoPolicy({ groupSize: 4, beta: 0.05 })],
    ["PPO", () => ppoPolicy({ dModel: 16, groupSize: 2 })],
  ])("goes on with the same bits, also in the middle of a rollout: %s", async (_, make) => {
    const options = { ...settings(make()), steps: 6, iterations: 3 };
    const whole = await PolicyTrainer.create(fresh(), prompts, backend, options);
    const states: FinetuneState[] = [kept(await whole.state())];
    const losses: number[] = [];
    for (let info = await whole.next(); info; info = await whole.next()) {
      losses.push(info.loss);
      states.push(kept(await whole.state()));
    }
    await whole.release();
    expect(losses).toHaveLength(6);
    for (const at of [2, 3, 4]) {
      const later = await PolicyTrainer.create(fresh(), prompts, backend, options);
      await later.load(states[at]!);
      const rest: number[] = [];
      for (let info = await later.next(); info; info = await later.next()) rest.push(info.loss);
      expect(rest).toEqual(losses.slice(at));
      expect(kept(await later.state()).params).toEqual(states.at(-1)!.params);
      await later.release();
    }
  });

  it("stops when its signal is given, and judges by greedy answers", async () => {
    const stop = new AbortController();
    const method = grpoPolicy({ groupSize: 4 });
    const result = await trainPolicy(fresh(), prompts, backend, {
      ...settings(method),
      signal: stop.signal,
      onStep: ({ step }) => step === 2 && stop.abort(),
    });
    expect([result.steps, result.isStopped]).toEqual([2, true]);
    const one = await PolicyTrainer.create(fresh(), prompts, backend, settings(method));
    const score = await one.evaluate(promptSet(prompts));
    expect(score!.accuracy).toBeGreaterThanOrEqual(0);
    expect(score!.nll).toBe(-score!.accuracy);
    expect(await one.evaluate(promptSet(prompts))).toEqual(score);
    await one.release();
  });
});

describe("what a policy refuses", () => {
  const method = grpoPolicy({ groupSize: 2 });
  it.each([
    [{ temperature: 0 }, "policy: temperature must be in (0, 100], got 0."],
    [{ batchSize: 0 }, "policy: batchSize must be a whole number from 1, got 0."],
  ])("%o", async (more, message) => {
    await expect(
      PolicyTrainer.create(fresh(), prompts, backend, { ...settings(method), ...more }),
    ).rejects.toThrow(new OptionError(message));
  });

  it("a reward that is missing or no number", async () => {
    const { reward: _, ...bare } = settings(method);
    await expect(PolicyTrainer.create(fresh(), prompts, backend, bare)).rejects.toThrow(
      new OptionError("policy: grpo learns from rewards — give one."),
    );
    await expect(
      trainPolicy(fresh(), prompts, backend, { ...settings(method), reward: () => Number.NaN }),
    ).rejects.toThrow(StateError);
  });
});
