import { describe, expect, it } from "vitest";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Clock } from "../host/host.ts";
import { KvCache } from "../infer/cache.ts";
import { Llama } from "../models/llama.ts";
import { Rng } from "../tensor/rng.ts";
import { estimateMemory } from "./estimate.ts";
import { estimatePolicy, estimatePolicyMemory, rolloutBytes } from "./estimate-policy.ts";
import { grpoPolicy, ppoPolicy } from "./objectives/policies.ts";
import { type PolicyOptions, type PolicyPrompt, trainPolicy } from "./policy.ts";
import { traineeOf } from "./trainee.ts";

const backend = await nodeOrt({ threads: 1 });
const model = new Llama({
  vocabSize: 64,
  dModel: 48,
  nLayers: 2,
  nHeads: 4,
  dFeedForward: 96,
  maxPositions: 96,
});
const base = model.init(new Rng(1)).params;
const adapter = lora(model, { rank: 4, targetModules: "all-linear" });
const trainee = traineeOf(model, base, { adapter, params: adapter.init(new Rng(3)) });
const prompts: readonly PolicyPrompt[] = Array.from({ length: 8 }, (_, i) => ({
  ids: Int32Array.from({ length: 3 + (i % 5) }, (_x, j) => (7 * i + j) % 64),
  prompt: "",
  expected: "",
}));
const options: PolicyOptions = {
  method: grpoPolicy({ groupSize: 8 }),
  decode: (ids) => Array.from(ids).join(" "),
  reward: ({ tokens }) => tokens / 40,
  ...{ batchSize: 4, steps: 12, maxNewTokens: 40, partSize: 16, iterations: 2, seed: 5 },
};
/** Time that this process computes for: others on the machine do not count. */
const clock: Clock = {
  now: () => 0,
  monotonic: () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  },
};

describe("estimatePolicy", () => {
  it.each([
    ["GRPO", options],
    ["PPO", { ...options, method: ppoPolicy({ dModel: 48, groupSize: 8 }) }],
  ] as const)("is within a factor of two of what %s takes", async (_, settings) => {
    // The clock counts what else this process does: the middle one of some attempts.
    const ratios: number[] = [];
    let estimate = await estimatePolicy(trainee, prompts, backend, settings, {
      ...{ clock, residentBytes: 0 },
    });
    expect([estimate.steps, estimate.rollouts]).toEqual([12, 6]);
    for (let attempt = 0; attempt < 5; attempt++) {
      const start = clock.monotonic();
      await trainPolicy(trainee, prompts, backend, settings);
      const taken = (clock.monotonic() - start) / 1000;
      ratios.push(estimate.seconds / taken);
      estimate = await estimatePolicy(trainee, prompts, backend, settings, {
        ...{ clock, residentBytes: 0 },
      });
    }
    const ratio = ratios.sort((x, y) => x - y)[2]!;
    expect(ratio).toBeGreaterThan(1 / 2);
    expect(ratio).toBeLessThan(2);
    // The answers are part of it: steps alone would be too little.
    expect(estimate.secondsPerRollout).toBeGreaterThan(0);
    expect(estimate.seconds).toBeGreaterThan(12 * estimate.secondsPerStep);
  });

  it("counts the answers' cache, within a factor of two of what it holds", () => {
    const rows = 4 * 8;
    const cache = new KvCache(model.sizes, rows, 7 + 40);
    const held = cache.inputs.reduce((sum, { data }) => sum + data.byteLength, 0);
    const bytes = rolloutBytes(model, prompts, options);
    expect(bytes).toBeGreaterThan(held);
    expect(bytes).toBeLessThan(2 * held);
    // Answers together bound it, not those of a whole rollout.
    expect(rolloutBytes(model, prompts, { ...options, decodeSize: 8 })).toBeCloseTo(bytes / 4, 0);
  });

  it("is more than a training on the data's answers of the same length takes", async () => {
    const memory = estimatePolicyMemory(trainee, prompts, backend, options, 1e6);
    expect(memory.totalBytes).toBe(
      1e6 + memory.trainedBytes + memory.sessionBytes + memory.rolloutBytes,
    );
    const examples = prompts.map(({ ids }) => ({
      ids: Int32Array.from({ length: ids.length + 40 }, (_, i) => i % 64),
      mask: Uint8Array.from({ length: ids.length + 40 }, () => 1),
    }));
    const plain = await estimateMemory(trainee, examples, backend, { batchSize: 4, steps: 2 }, 1e6);
    expect(memory.totalBytes).toBeGreaterThan(plain.totalBytes);
    expect(memory.rolloutBytes).toBeGreaterThan(1e5);
  });
});
