import { describe, expect, it } from "vitest";
import {
  checkObjective,
  example,
  loud,
  tinyAdapter,
  tinyBase,
  tinyLora,
  tinyModel,
} from "../../../test/support/objective.ts";
import { compile } from "../../backend/compile.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import type { Value } from "../../ir/graph.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { Finetuner } from "../../train/finetune.ts";
import { traineeOf, withObjective } from "../../train/trainee.ts";
import { followsOld, muscle, muscleMasks } from "./muscle.ts";

const models = {
  old: { model: tinyModel, params: loud(tinyBase, 31) },
  new: { model: tinyModel, params: loud(tinyBase, 32) },
};
const examples = [example([1, 2, 3, 4], 2), example([3, 9, 8, 2, 10], 1), example([5, 6, 7, 1], 2)];

describe("the mask", () => {
  // Rows: student right and sure, student wrong, student right and old wrong.
  const student = Tensor.from([3, 0, 0, 0, 3, 0, 0, 0, 2], [3, 3]);
  const old = Tensor.from([1, 0, 0, 2, 0, 0, 5, 0, 0], [3, 3]);
  const targets = Tensor.from(Int32Array.of(0, 0, 2), [3], "int32");
  it.each([
    ["student", [0, 1, 0]],
    ["old", [1, 1, 1]],
    ["new", [0, 0, 0]],
    ["old-correct", [1, 1, 0]],
    // The second answer has e^0 of the student's mass and e^2 of the old one's.
    ["likelihood", [0, 1, 0]],
  ] as const)("%s", async (mask, expected) => {
    const compiled = await compile<Tensor>(
      ((a: Value, b: Value, c: Value) => followsOld(mask, a, b, c)) as never,
      [student, old, targets],
      { backend: await nodeOrt() },
    );
    const found = await compiled.run(student, old, targets);
    await compiled.release();
    expect(Array.from(found.data as Float32Array)).toEqual(expected);
  });
});

describe("gradients are those of central differences", () => {
  it.each(muscleMasks.map((mask) => [mask] as const))("mask %s", async (mask) => {
    const objective = muscle(models, { mask, temperature: 1.5, ceWeight: 0.3 });
    const batch = objective.batch(examples, { rows: 3, lengthMultiple: 4 });
    expect(await checkObjective(objective, batch)).toBeGreaterThan(0);
  });
});

const trainee = (options = {}) =>
  withObjective(
    traineeOf(tinyModel, tinyBase, { adapter: tinyAdapter, params: tinyLora }),
    muscle(models, options),
  );

it("is the divergence from the old model where it is always followed, else from the new one", async () => {
  const backend = await nodeOrt();
  const lossOf = async (options: object): Promise<number> => {
    const tuner = await Finetuner.create(trainee(options), examples, backend, { steps: 1 });
    const { nll, metrics } = await tuner.evaluate(examples);
    await tuner.release();
    const follows = metrics["followsOld"]!;
    expect(follows).toBeGreaterThanOrEqual(0);
    expect(follows).toBeLessThanOrEqual(1);
    return nll;
  };
  const [mixed, old, next] = [
    await lossOf({}),
    await lossOf({ mask: "old" }),
    await lossOf({ mask: "new" }),
  ];
  expect(mixed).not.toBeCloseTo(old, 3);
  // With both other models alike the mask makes no difference.
  const twins = { old: models.old, new: { ...models.old, params: { ...models.old.params } } };
  const same = withObjective(
    traineeOf(tinyModel, tinyBase, { adapter: tinyAdapter, params: tinyLora }),
    muscle(twins),
  );
  const tuner = await Finetuner.create(same, examples, backend, { steps: 1 });
  expect((await tuner.evaluate(examples)).nll).toBeCloseTo(old, 5);
  await tuner.release();
  expect(next).toBeGreaterThan(0);
});

it("learns to repeat the new model where it is right", async () => {
  const tuner = await Finetuner.create(trainee(), examples, await nodeOrt(), {
    steps: 80,
    batchSize: 3,
    learningRate: 2e-2,
  });
  const before = (await tuner.evaluate(examples)).nll;
  while (await tuner.next());
  expect((await tuner.evaluate(examples)).nll).toBeLessThan(0.6 * before);
  await tuner.release();
});

it.each([
  [models, { temperature: 0 }, "muscle: temperature must be a number from 0.01 to 100, got 0."],
  [
    models,
    { mask: "none" },
    "muscle: mask must be student or old or new or old-correct or likelihood",
  ],
  [{ old: models.old, new: models.old }, {}, "muscle: the old and the new model are one"],
])("refuses what does not fit", (both, options, sentence) => {
  expect(() => muscle(both, options as never)).toThrow(sentence);
});
