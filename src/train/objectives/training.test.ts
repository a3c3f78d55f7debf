/** What training with each objective does to a tiny model. */
import { describe, expect, it } from "vitest";
import { withHostDevice } from "../../../test/support/host-device.ts";
import { example } from "../../../test/support/objective.ts";
import { lora } from "../../adapters/lora.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { memoryPreferences, memorySet, type Preference } from "../../data/set.ts";
import { OptionError } from "../../errors.ts";
import { Llama } from "../../models/llama.ts";
import { Rng } from "../../tensor/rng.ts";
import { finetune, scoreExamples } from "../finetune.ts";
import type { AnyObjective } from "../objective.ts";
import type { Trainee } from "../program.ts";
import { traineeOf, withObjective, withReference } from "../trainee.ts";
import { distill } from "./distill.ts";
import { dpo } from "./dpo.ts";
import { ipo } from "./ipo.ts";
import { kto } from "./kto.ts";
import { orpo } from "./orpo.ts";
import { precomputeReference } from "./precompute.ts";
import { distillRecorded, recordTeacher } from "./recorded.ts";
import { replaySet } from "./replay.ts";
import { rewardModel } from "./reward.ts";
import { simpo } from "./simpo.ts";

const backend = await nodeOrt({ threads: 1 });
const sizes = { vocabSize: 20, dModel: 16, nLayers: 1, nHeads: 2, dFeedForward: 24 };
const model = new Llama({ ...sizes, maxPositions: 24, initializerRange: 0.2 });
const base = model.init(new Rng(1)).params;
const adapter = lora(model, { rank: 4, targetModules: "all-linear" });
const rng = new Rng(2);

/** The chosen answer repeats the prompt's last token, the rejected one does not. */
const pairs: readonly Preference[] = Array.from({ length: 16 }, (_, i) => {
  const [a, b, c] = Array.from(rng.fold(i).permutation(20)) as [number, number, number];
  return {
    chosen: example([a, b, b, b], 2),
    rejected: example(i % 2 === 0 ? [a, b, c, c] : [a, b, c], 2),
  };
});
const preferences = memoryPreferences({
  chosen: pairs.map(({ chosen }) => chosen),
  rejected: pairs.map(({ rejected }) => rejected),
});
const judged = memorySet(
  pairs.flatMap(({ chosen, rejected }) => [
    { ...chosen, isGood: true },
    { ...rejected, isGood: false },
  ]),
);

function trainee(objective: AnyObjective): Trainee {
  const params = adapter.init(new Rng(3));
  return withObjective(traineeOf(model, base, { adapter, params }), objective, new Rng(4));
}
const settings = { steps: 40, batchSize: 8, learningRate: 1e-2, schedule: "constant" };

describe("training on preferences", () => {
  it.each([
    ["DPO", dpo({ beta: 0.5 })],
    ["hinge DPO", dpo({ loss: "hinge", beta: 0.5 })],
    ["IPO", ipo({ beta: 0.2 })],
    ["ORPO", orpo({ beta: 1 })],
    ["SimPO", simpo()],
    ["a reward model", rewardModel({ dModel: 16 })],
  ])("%s raises the margin of chosen answers over rejected ones", async (_, objective) => {
    const start = trainee(objective);
    const before = await scoreExamples(start, preferences, backend);
    const { params } = await finetune(start, preferences, backend, settings);
    const after = await scoreExamples({ ...start, trained: params }, preferences, backend);
    expect(after.nll).toBeLessThan(before.nll);
    expect(after.metrics["margin"]).toBeGreaterThan(before.metrics["margin"]! + 0.1);
    expect(after.accuracy).toBeGreaterThan(0.9);
  });

  it("KTO raises rewards of good answers and lowers those of bad ones", async () => {
    const start = trainee(kto({ beta: 0.5 }));
    const before = await scoreExamples(start, judged, backend);
    const { params } = await finetune(start, judged, backend, settings);
    const after = await scoreExamples({ ...start, trained: params }, judged, backend);
    expect(after.metrics["goodReward"]! - after.metrics["badReward"]!).toBeGreaterThan(
      before.metrics["goodReward"]! - before.metrics["badReward"]! + 0.1,
    );
  });

  it("begins at margin 0 and loss log 2, since the adapter does nothing yet", async () => {
    const { nll, metrics } = await scoreExamples(trainee(dpo()), preferences, backend);
    expect(nll).toBeCloseTo(Math.log(2), 5);
    expect(metrics["margin"]).toBeCloseTo(0, 5);
  });

  it("gives the same losses with a reference recorded before", async () => {
    const start = trainee(dpo());
    const known = await precomputeReference(start, preferences, backend, { batchSize: 5 });
    const short = { ...settings, steps: 5 };
    const [inGraph, recorded] = [
      await finetune(start, preferences, backend, short),
      await finetune(start, known!, backend, short),
    ];
    for (const [i, loss] of inGraph.losses.entries()) {
      expect(recorded.losses[i]).toBeCloseTo(loss, 5);
    }
    expect(inGraph.losses.at(-1)).toBeLessThan(inGraph.losses[0]!);
  });

  it("compares all parameters with a copy of them, and refuses to without one", async () => {
    const full = withObjective(traineeOf(model, base), dpo());
    await expect(finetune(full, preferences, backend, { steps: 1 })).rejects.toThrow(
      new OptionError(
        "dpo: compares with the model as it was, and here its own parameters change — train an adapter, or keep a copy (withReference).",
      ),
    );
    const { losses } = await finetune(withReference(full, base), preferences, backend, {
      ...settings,
      steps: 10,
      learningRate: 3e-3,
    });
    expect(losses[0]).toBeCloseTo(Math.log(2), 5);
    expect(losses.at(-1)).toBeLessThan(0.6);
  });

  it("has the same losses where weights stay on a device", async () => {
    const short = { ...settings, steps: 4 };
    const start = () => trainee(dpo());
    const host = await finetune(start(), preferences, backend, short);
    const device = await finetune(start(), preferences, withHostDevice(backend), short);
    for (const [i, loss] of host.losses.entries()) expect(device.losses[i]).toBeCloseTo(loss, 5);
  });

  it("refuses to pack, since whole answers are compared", async () => {
    await expect(
      finetune(trainee(dpo()), preferences, backend, { ...settings, packing: 24 }),
    ).rejects.toThrow("dpo looks at whole examples and cannot pack several into a row");
  });
});

describe("distillation", () => {
  const deep = new Llama({ ...sizes, nLayers: 2, maxPositions: 24, initializerRange: 0.4 });
  const teacher = { model: deep, params: deep.init(new Rng(8)).params };
  const texts = memorySet(
    Array.from({ length: 24 }, (_, i) =>
      example(Array.from(rng.fold("text", i).permutation(20)).slice(0, 8), 1),
    ),
  );

  it.each(["forward", "jsd", "skew-reverse"] as const)(
    "%s brings the student to the teacher",
    async (divergence) => {
      const start = withObjective(traineeOf(model, base), distill({ teacher, divergence }));
      const before = await scoreExamples(start, texts, backend);
      const { params } = await finetune(start, texts, backend, { ...settings, steps: 60 });
      const after = await scoreExamples({ ...start, trained: params }, texts, backend);
      expect(after.metrics["divergence"]).toBeLessThan(0.5 * before.metrics["divergence"]!);
      expect(after.metrics["agreement"]).toBeGreaterThan(before.metrics["agreement"]!);
    },
  );

  it("learns the same from a recording of the whole vocabulary, and less loss from a part", async () => {
    const plain = withObjective(traineeOf(model, base), distill({ teacher, temperature: 1.5 }));
    const recorded = withObjective(traineeOf(model, base), distillRecorded({ temperature: 1.5 }));
    const of = async (k: number) =>
      (await recordTeacher(teacher, texts, backend, { k, temperature: 1.5, batchSize: 7 }))!;
    const expected = await scoreExamples(plain, texts, backend);
    const whole = await scoreExamples(recorded, await of(20), backend);
    const part = await scoreExamples(recorded, await of(5), backend);
    expect(whole.nll).toBeCloseTo(expected.nll, 4);
    expect(part.nll).toBeLessThan(expected.nll);
    const { params } = await finetune(recorded, await of(5), backend, { ...settings, steps: 40 });
    const after = await scoreExamples({ ...plain, trained: params }, texts, backend);
    expect(after.nll).toBeLessThan(0.5 * expected.nll);
  });

  it("refuses a teacher of another vocabulary", async () => {
    const other = new Llama({ ...sizes, vocabSize: 21, maxPositions: 24 });
    const objective = distill({ teacher: { model: other, params: other.init(new Rng(1)).params } });
    await expect(
      finetune(withObjective(traineeOf(model, base), objective), texts, backend, { steps: 1 }),
    ).rejects.toThrow("the teacher has 21 tokens and the model 20");
  });
});

describe("replay", () => {
  const one = (token: number, count: number) =>
    memorySet(Array.from({ length: count }, () => example([token, token, token], 1)));

  it("takes its share of every batch, each own example once an epoch", async () => {
    const set = replaySet(one(1, 21), one(2, 5), { share: 0.3 });
    const batches = set.batches!(10, new Rng(7).fold("epoch", 0));
    const tokens = await Promise.all(
      batches.map(async (batch) => (await set.get(batch)).map(({ ids }) => ids[0])),
    );
    expect(tokens.map((batch) => batch.filter((token) => token === 2).length)).toEqual([3, 3, 3]);
    expect(batches.flat().filter((index) => index < 21)).toHaveLength(21);
    expect(new Set(batches.flat().filter((index) => index >= 21)).size).toBe(5);
    expect(set.batches!(10, new Rng(7).fold("epoch", 0))).toEqual(batches);
    expect(set.batches!(10, new Rng(7).fold("epoch", 1))).not.toEqual(batches);
  });

  it("refuses shares that leave nothing", () => {
    expect(() => replaySet(one(1, 2), one(2, 2), { share: 1 })).toThrow(
      new OptionError("replay: share must be between 0 and 1, got 1."),
    );
  });
});
