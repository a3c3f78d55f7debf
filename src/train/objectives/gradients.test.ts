import { describe, expect, it } from "vitest";
import {
  checkObjective,
  example,
  loud,
  tinyBase,
  tinyModel,
} from "../../../test/support/objective.ts";
import type { Example } from "../../data/example.ts";
import type { Preference } from "../../data/set.ts";
import { distill } from "./distill.ts";
import { dpo } from "./dpo.ts";
import { grpo, type Rollout } from "./grpo.ts";
import { ipo } from "./ipo.ts";
import { kto } from "./kto.ts";
import { orpo } from "./orpo.ts";
import { ppo } from "./ppo.ts";
import { distillRecorded } from "./recorded.ts";
import { rewardModel } from "./reward.ts";
import { simpo } from "./simpo.ts";

const pairs: readonly Preference[] = [
  { chosen: example([1, 2, 3, 4], 2), rejected: example([1, 2, 5, 6, 7], 2) },
  { chosen: example([3, 9, 8, 2, 10], 1), rejected: example([3, 4], 1) },
];
const judged = [
  example([1, 2, 3, 4], 2, true),
  example([5, 6, 7], 1, false),
  example([2, 8, 9, 10, 4], 3, true),
];
const shape = { rows: 3, lengthMultiple: 4 };

describe("gradients of objectives over answers are those of central differences", () => {
  it.each([
    ["DPO", dpo()],
    ["DPO with label smoothing", dpo({ beta: 0.3, labelSmoothing: 0.1, sftWeight: 0.5 })],
    ["robust DPO", dpo({ loss: "robust", labelSmoothing: 0.2 })],
    ["hinge", dpo({ loss: "hinge", beta: 0.5 })],
    ["IPO", ipo({ beta: 0.4 })],
    ["ORPO", orpo({ beta: 0.7 })],
    ["SimPO", simpo({ labelSmoothing: 0.1, sftWeight: 0.2 })],
  ])("%s", async (_, objective) => {
    const loss = await checkObjective(objective, objective.batch(pairs, shape));
    expect(loss).toBeGreaterThan(0);
  });

  // The KL estimate carries no gradient, so it must not move: with one example it is 0.
  it.each([
    ["a good answer", judged.slice(0, 1)],
    ["a bad answer", judged.slice(1, 2)],
  ])("KTO, %s", async (_, examples) => {
    const objective = kto({ beta: 0.5, desirableWeight: 1.5, undesirableWeight: 0.7 });
    expect(await checkObjective(objective, objective.batch(examples, shape))).toBeGreaterThan(0);
  });

  it.each([
    ["alone", rewardModel({ dModel: 8 })],
    ["centred, with a margin", rewardModel({ dModel: 8, center: 0.1, margin: 0.3 })],
  ])("the reward model, %s", async (_, objective) => {
    expect(await checkObjective(objective, objective.batch(pairs, shape))).toBeGreaterThan(0);
  });

  const teacher = { model: tinyModel, params: loud(tinyBase, 77) };
  it.each(
    (["forward", "reverse", "jsd", "skew-forward", "skew-reverse"] as const).map(
      (divergence) => [divergence] as const,
    ),
  )("distillation by %s", async (divergence) => {
    const objective = distill({ teacher, divergence, beta: 0.3, temperature: 1.5, nllWeight: 0.2 });
    expect(await checkObjective(objective, objective.batch(judged, shape))).toBeGreaterThan(0);
  });

  it("distillation from a recording", async () => {
    const objective = distillRecorded({ temperature: 1.5 });
    const taught = judged.map((one, i) => {
      const count = one.mask.filter(Boolean).length;
      const topIds = Int32Array.from({ length: 2 * count }, (_, t) => (5 * (t % 2) + t + i) % 11);
      return { ...one, topIds, topLogProbs: Float32Array.from(topIds, (_, t) => -0.8 - (t % 2)) };
    });
    expect(await checkObjective(objective, objective.batch(taught, shape))).toBeGreaterThan(0);
  });

  const perToken = (examples: readonly Example[], scale: number): Float32Array[] =>
    examples.map(({ mask }, i) =>
      Float32Array.from(mask.filter(Boolean), (_, t) => scale * Math.sin(3 * i + t + 1)),
    );
  const [old, values, returns, advantages] = [-2, 1, 1.5, 1].map((scale) =>
    perToken(judged, scale),
  );
  const rollouts = judged.map(
    (one, i): Rollout => ({
      example: one,
      advantage: advantages![i]!,
      old: old![i]!.map((x) => x - 1),
      values: values![i]!,
      returns: returns![i]!,
    }),
  );

  it.each([
    ["GRPO", grpo({ clipLow: 0.9, clipHigh: 50 })],
    ["GRPO with a KL term", grpo({ beta: 0.3, normalize: "sequence", clipHigh: 50 })],
    ["Dr. GRPO by answers", grpo({ normalize: "length", maxLength: 5, ratio: "sequence" })],
    ["GRPO with a temperature", grpo({ temperature: 1.7, clipHigh: 50 })],
    ["PPO", ppo({ dModel: 8, clip: 0.9, valueClip: 5, valueWeight: 0.5 })],
  ])("%s", async (_, objective) => {
    const loss = await checkObjective(objective, objective.batch(rollouts, shape));
    expect(Math.abs(loss)).toBeGreaterThan(1e-3);
  });
});
