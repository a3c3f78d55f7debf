import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import {
  example,
  loud,
  tinyAdapter,
  tinyBase,
  tinyLora,
  tinyModel,
} from "../../../test/support/objective.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import { gradientOf } from "../../autodiff/grad.ts";
import type { Backend } from "../../backend/backend.ts";
import { compile } from "../../backend/compile.ts";
import { nodeOrt } from "../../backend/ort/node.ts";
import { reference } from "../../backend/reference/reference.ts";
import { div, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { Finetuner, finetune } from "../../train/finetune.ts";
import { divergenceRows } from "../../train/objectives/distill.ts";
import { traineeOf, withObjective } from "../../train/trainee.ts";
import { advance, taid, taidRows } from "./taid.ts";

interface Recorded {
  readonly loss: number;
  readonly gradient: readonly number[];
}
const facts = JSON.parse(
  readFileSync(new URL("../../../test/parity/taid.json", import.meta.url), "utf8"),
) as {
  readonly shape: [number, number];
  readonly student: number[];
  readonly teacher: number[];
  readonly mask: number[];
  readonly taid: Record<string, Recorded>;
  readonly tvd: Recorded;
  readonly fkl: Recorded;
  readonly losses: number[];
  readonly schedules: Record<
    string,
    { readonly options: Record<string, number | boolean>; readonly t: number[] }
  >;
};

/** Masked mean of a loss per row, and its gradient to the student's logits. */
async function masked(
  backend: Backend,
  rows: (student: Value, teacher: Value) => Value,
): Promise<{ loss: number; gradient: Tensor }> {
  const tensors = [
    Tensor.from(facts.student, facts.shape),
    Tensor.from(facts.teacher, facts.shape),
    Tensor.from(facts.mask),
  ] as const;
  const compiled = await compile<Tensor[]>(
    ((student: Value, teacher: Value, mask: Value) => {
      const loss = div(sum(mul(rows(student, teacher), mask)), sum(mask));
      return [loss, gradientOf(loss, { student })["student"]!];
    }) as never,
    [...tensors],
    { backend },
  );
  const [loss, gradient] = await compiled.run(...(tensors as unknown as never[]));
  await compiled.release();
  return { loss: loss!.item(), gradient: gradient! };
}

describe("losses equal the authors' release", () => {
  it.each(Object.entries(facts.taid))("TAID at t = %s", async (t, recorded) => {
    for (const backend of [reference(), await nodeOrt()]) {
      const { loss, gradient } = await masked(backend, (student, teacher) =>
        taidRows(student, teacher, student.graph.constant(Tensor.scalar(Number(t)))),
      );
      expect(Math.abs(loss / recorded.loss - 1)).toBeLessThan(1e-5);
      allclose(gradient, Tensor.from([...recorded.gradient], facts.shape), tolerance.float32);
    }
  });

  it("total variation", async () => {
    const { loss, gradient } = await masked(await nodeOrt(), (student, teacher) =>
      divergenceRows(student, teacher, { divergence: "tvd" }),
    );
    expect(Math.abs(loss / facts.tvd.loss - 1)).toBeLessThan(1e-5);
    allclose(gradient, Tensor.from([...facts.tvd.gradient], facts.shape), tolerance.float32);
  });

  it("forward KL, up to the teacher's entropy", async () => {
    const { gradient } = await masked(await nodeOrt(), (student, teacher) =>
      divergenceRows(student, teacher),
    );
    allclose(gradient, Tensor.from([...facts.fkl.gradient], facts.shape), tolerance.float32);
  });
});

it("weighs the adaptive divergence by gaps on the teacher's head and tail", async () => {
  // p = (1/2, 1/4, 1/4), q uniform; of ascending masses 1/4, 1/2, 1 the last two reach half: head is the
  // first and one of the others. Gaps: 1/6, 1/12, 1/12: head 3/4, tail 1/4.
  const logits = Tensor.from([Math.log(0.5), Math.log(0.25), Math.log(0.25)], [1, 3]);
  const flat = Tensor.from([0, 0, 0], [1, 3]);
  const compiled = await compile<Tensor>(
    ((student: Value, teacher: Value) =>
      divergenceRows(student, teacher, { divergence: "adaptive" })) as never,
    [flat, logits],
    { backend: await nodeOrt() },
  );
  const found = (await compiled.run(flat, logits)).item();
  await compiled.release();
  const third = 1 / 3;
  const forward = 0.5 * Math.log(0.5 / third) + 0.5 * Math.log(0.25 / third);
  const reverse = third * Math.log(third / 0.5) + 2 * third * Math.log(third / 0.25);
  expect(found).toBeCloseTo(0.75 * forward + 0.25 * reverse, 6);
});

describe("the schedule", () => {
  it.each(Object.entries(facts.schedules))("%s: t equals the authors' release", (_, schedule) => {
    const { options, t } = schedule;
    const settings = {
      tStart: Number(options["t_start"] ?? 0.4),
      tEnd: Number(options["t_end"] ?? 1),
      alpha: Number(options["alpha"] ?? 5e-4),
      beta: Number(options["beta"] ?? 0.99),
      adaptive: options["disable_adaptive"] !== true,
    };
    let state = { t: settings.tStart, loss: Infinity, momentum: 0 };
    facts.losses.forEach((loss, step) => {
      state = advance(state, loss, step / facts.losses.length, settings);
      expect(state.t).toBeCloseTo(t[step]!, 5);
    });
  });

  it("never falls and is never slower than linear", () => {
    const rng = new Rng(3);
    const settings = { tStart: 0.2, tEnd: 1, alpha: 0.3, beta: 0.9, adaptive: true };
    let state = { t: 0.2, loss: Infinity, momentum: 0 };
    for (let step = 0; step < 200; step++) {
      const next = advance(state, 1 + rng.uniform(), step / 200, settings);
      expect(next.t).toBeGreaterThanOrEqual(state.t);
      if (step > 0) expect(next.t).toBeGreaterThanOrEqual(0.2 + (0.8 * step) / 200 - 1e-12);
      expect(next.t).toBeLessThanOrEqual(1);
      state = next;
    }
  });
});

const examples = [
  example([1, 2, 3, 4, 5], 1),
  example([3, 9, 8, 2, 10], 2),
  example([5, 6, 7, 1, 4], 1),
];
const teacher = { model: tinyModel, params: loud(tinyBase, 21) };
const trainee = (options = {}) =>
  withObjective(
    traineeOf(tinyModel, tinyBase, { adapter: tinyAdapter, params: tinyLora }),
    taid(teacher, options),
  );
const settings = { steps: 6, batchSize: 2, learningRate: 1e-2, seed: 4 };

it("moves t with the steps, tells it, and goes on from a checkpoint to the same bits", async () => {
  const backend = await nodeOrt();
  const options = { alpha: 0.2, beta: 0.5 };
  const told: number[] = [];
  const whole = await finetune(trainee(options), examples, backend, {
    ...settings,
    onStep: ({ metrics }) => told.push(metrics!["t"]!),
  });
  expect(told[0]).toBeCloseTo(0.4, 6);
  expect(told.at(-1)!).toBeGreaterThan(0.4 + (0.6 * 5) / 6 - 1e-6);
  const first = await Finetuner.create(trainee(options), examples, backend, settings);
  for (let i = 0; i < 3; i++) await first.next();
  const state = structuredCloneState(await first.state());
  await first.release();
  const second = await Finetuner.create(trainee(options), examples, backend, settings);
  await second.load(state);
  const losses: number[] = [];
  for (let info = await second.next(); info; info = await second.next()) losses.push(info.loss);
  expect(losses).toEqual(whole.losses.slice(3));
  const params = await second.params();
  for (const [name, tensor] of Object.entries(whole.params)) {
    expect(params[name]!.data).toEqual(tensor.data);
  }
  expect((await second.state()).buffers!["taid.state"]!.data).toEqual(
    whole.buffers["taid.state"]!.data,
  );
  await second.release();
});

it("brings a student nearer to its teacher", async () => {
  const scores: number[] = [];
  const tuner = await Finetuner.create(trainee({ tStart: 0.9 }), examples, await nodeOrt(), {
    ...settings,
    steps: 60,
  });
  scores.push((await tuner.evaluate(examples)).metrics["divergence"]!);
  while (await tuner.next());
  scores.push((await tuner.evaluate(examples)).metrics["divergence"]!);
  await tuner.release();
  expect(scores[1]!).toBeLessThan(0.7 * scores[0]!);
});

it.each([
  [{ tStart: 1 }, "taid: tStart must be a number in [0, 1), got 1."],
  [{ alpha: -1 }, "taid: alpha must be a number from 0 to 1, got -1."],
  [{ speed: 2 }, 'taid: has no option "speed"'],
])("refuses %o", (options, sentence) => {
  expect(() => taid(teacher, options as never)).toThrow(sentence);
});

/** What a checkpoint would keep: copies. */
function structuredCloneState<T extends Awaited<ReturnType<Finetuner["state"]>>>(state: T): T {
  const copy = (record: Readonly<Record<string, Tensor>>): Record<string, Tensor> =>
    Object.fromEntries(Object.entries(record).map(([name, tensor]) => [name, tensor.clone()]));
  return {
    ...state,
    params: copy(state.params),
    optimizer: { ...state.optimizer, tensors: copy(state.optimizer.tensors) },
    buffers: copy(state.buffers!),
  };
}
