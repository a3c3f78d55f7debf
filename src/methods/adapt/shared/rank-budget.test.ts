import { describe, expect, it } from "vitest";
import { allclose } from "../../../../test/support/allclose.ts";
import { numbersByRule } from "../../../../test/support/by-rule.ts";
import { fixture, type RawTensors, tensorOf } from "../../../../test/support/fixture.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import { Rng } from "../../../tensor/rng.ts";
import type { StaticShape } from "../../../tensor/shape.ts";
import {
  budgetAt,
  budgetBuffers,
  budgetHook,
  keepHighest,
  maskName,
  type Triplets,
} from "./rank-budget.ts";

const { schedule } = fixture<{
  readonly schedule: {
    readonly options: Readonly<Record<string, number>>;
    readonly shapes: Readonly<Record<string, StaticShape>>;
    readonly steps: readonly {
      readonly budget: number;
      readonly chosen: boolean;
      readonly values: RawTensors;
    }[];
  };
}>("peft-kinds");
const { init_r, target_r, tinit, tfinal, deltaT, beta1, beta2, total_step } =
  schedule.options as Record<string, number>;
const options = {
  targetR: target_r!,
  tinit: tinit!,
  tfinal: tfinal!,
  deltaT: deltaT!,
  beta1: beta1!,
  beta2: beta2!,
};
const layers = Object.keys(schedule.shapes)
  .filter((name) => name.endsWith(".lora_A"))
  .map((a): Triplets => {
    const [e, b] = [a.replace("lora_A", "lora_E"), a.replace("lora_A", "lora_B")];
    const [rank, width] = schedule.shapes[a] as [number, number];
    return { a, e, b, rank, width, out: schedule.shapes[b]![0]! };
  });

describe("the budget", () => {
  it("is PEFT's at every step", () => {
    for (const [i, { budget, chosen }] of schedule.steps.entries()) {
      const first = init_r! * layers.length;
      const last = target_r! * layers.length;
      expect(budgetAt(i + 1, total_step!, first, last, options)).toEqual({
        budget,
        isChosen: chosen,
      });
    }
  });

  it("falls with the cube of what is left", () => {
    // 12 of 12 up to step 2; half-way, 4 + 8 · (1/2)³ = 5; then 4.
    const at = (step: number): number =>
      budgetAt(step, 12, 12, 4, { tinit: 2, tfinal: 2, deltaT: 1 }).budget;
    expect([1, 2, 6, 10, 11, 12].map(at)).toEqual([12, 12, 5, 4, 4, 4]);
  });
});

describe("the choice of triplets", () => {
  it("masks what PEFT's allocator masks, on the same weights and gradients", () => {
    const hook = budgetHook(layers, options);
    const ranks = layers.reduce((total, { rank }) => total + rank, 0);
    const buffers = budgetBuffers(layers, new Float32Array(ranks).fill(1));
    const masked: number[] = [];
    for (const [i, { values }] of schedule.steps.entries()) {
      const step = i + 1;
      const entries = Object.entries(schedule.shapes);
      const params = Object.fromEntries(
        entries.map(([name, shape]) => [name, numbersByRule(`${step}.${name}`, shape)]),
      );
      const gradients = Object.fromEntries(
        entries.map(([name, shape]) => [name, numbersByRule(`${step}.${name} gradient`, shape)]),
      );
      const changes = hook.after!({
        ...{ step, steps: total_step!, loss: 1, rng: new Rng(0) },
        ...{ buffers, params, gradients },
      })!;
      Object.assign(buffers, changes.buffers);
      const now: TensorRecord = { ...params, ...changes.params };
      for (const [name, raw] of Object.entries(values)) allclose(now[name]!, tensorOf(raw), 0);
      masked.push(ranks - changes.metrics!["ranks"]!);
    }
    // Nothing before tinit, and all but the target at the end.
    expect(masked[0]).toBe(0);
    expect(masked.at(-1)).toBe((init_r! - target_r!) * layers.length);
    expect(buffers[maskName]!.numbers()).toHaveLength(ranks);
  });

  it("keeps the highest scores and drops those that tie with the last to go", () => {
    expect([...keepHighest(Float64Array.of(3, 1, 2, 5), 2)]).toEqual([1, 0, 0, 1]);
    expect([...keepHighest(Float64Array.of(1, 1, 2), 1)]).toEqual([0, 0, 1]);
    expect([...keepHighest(Float64Array.of(1, 1, 2), 0)]).toEqual([1, 1, 1]);
  });

  it("says when a run is too short for its schedule", () => {
    const hook = budgetHook(layers, { ...options, tinit: 3, tfinal: 2 });
    const about = { step: 1, steps: 5, loss: 1, rng: new Rng(0) };
    expect(() => hook.after!({ ...about, buffers: {}, params: {}, gradients: {} })).toThrow(
      "adalora: 3 steps before and 2 after leave none of 5 to choose ranks in — train longer, or lower tinit and tfinal.",
    );
  });
});
