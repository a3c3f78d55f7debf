import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import {
  constantWithWarmup,
  cosineDecay,
  inverseSqrt,
  linearDecay,
  polynomialDecay,
  type ScheduleOptions,
  scheduleByName,
  scheduleNames,
  warmupStableDecay,
} from "./schedule.ts";

const factors = (schedule: (step: number) => number, steps: readonly number[]): number[] =>
  steps.map((step) => Math.round(schedule(step) * 1e9) / 1e9);

describe("schedules", () => {
  it("rise over the warm-up and fall along a line", () => {
    const schedule = linearDecay({ totalSteps: 12, warmupSteps: 4 });
    expect(factors(schedule, [0, 1, 4, 8, 12, 20])).toEqual([0, 0.25, 1, 0.5, 0, 0]);
  });

  it("end a cosine at the least factor", () => {
    const schedule = cosineDecay({ totalSteps: 8, minFactor: 0.1 });
    expect(factors(schedule, [0, 4, 8])).toEqual([1, 0.55, 0.1]);
    // cos(π/4): ½(1 + √½)
    expect(factors(cosineDecay({ totalSteps: 8 }), [2])).toEqual([0.853553391]);
  });

  it("fall as often as asked with restarts", () => {
    const schedule = scheduleByName("cosine_with_restarts", { totalSteps: 8, cycles: 2 });
    expect(factors(schedule, [0, 2, 4, 6, 8])).toEqual([1, 0.5, 1, 0.5, 0]);
  });

  it("fall as a power of what remains, and stay at the end", () => {
    const schedule = polynomialDecay({ totalSteps: 4, power: 2, minFactor: 0.2 });
    // 0.2 + 0.8 · (½)² = 0.4
    expect(factors(schedule, [0, 2, 4, 9])).toEqual([1, 0.4, 0.2, 0.2]);
  });

  it("fall with the root of steps", () => {
    expect(factors(inverseSqrt({ warmupSteps: 4 }), [2, 4, 16])).toEqual([0.5, 1, 0.5]);
    expect(factors(inverseSqrt({ timescale: 3 }), [0, 9])).toEqual([1, 0.5]);
    expect(factors(inverseSqrt(), [30_000])).toEqual([0.5]);
  });

  it("rise, hold and fall", () => {
    const run = { totalSteps: 10, warmupSteps: 2, decaySteps: 4 };
    const steps = [0, 1, 2, 5, 6, 8, 10, 11];
    expect(factors(warmupStableDecay({ ...run, decayCurve: "linear" }), steps)).toEqual([
      0, 0.5, 1, 1, 1, 0.5, 0, 0,
    ]);
    expect(factors(warmupStableDecay({ ...run, minFactor: 0.2 }), [0, 1, 8, 10])).toEqual([
      0.2, 0.6, 0.6, 0.2,
    ]);
    // 1 − √(3/4), and on the way up 1 − √½
    const root = warmupStableDecay({ ...run, warmupCurve: "1-sqrt", decayCurve: "1-sqrt" });
    expect(factors(root, [1, 9])).toEqual([0.292893219, 0.133974596]);
    expect(factors(warmupStableDecay({ ...run, warmupCurve: "cosine" }), [1])).toEqual([0.5]);
  });

  it("hold after a warm-up, or from the start", () => {
    expect(factors(constantWithWarmup({ warmupSteps: 2 }), [0, 1, 2, 99])).toEqual([0, 0.5, 1, 1]);
    expect(factors(scheduleByName("constant", { totalSteps: 3, warmupSteps: 0 }), [0, 5])).toEqual([
      1, 1,
    ]);
  });

  it("stay between 0 and 1 and reach 1 when the warm-up ends", () => {
    const options = fc.record({ warmupSteps: fc.nat(50), rest: fc.integer({ min: 1, max: 200 }) });
    const names = scheduleNames.filter((name) => name !== "constant");
    fc.assert(
      fc.property(
        fc.constantFrom(...names),
        options,
        fc.nat(400),
        (name, { warmupSteps, rest }, at) => {
          const run: ScheduleOptions = { warmupSteps, totalSteps: warmupSteps + rest };
          const own = name === "warmup_stable_decay" ? { decaySteps: rest - 1 } : {};
          const schedule = scheduleByName(name, { ...run, ...own });
          expect(schedule(warmupSteps)).toBe(1);
          expect(schedule(at)).toBeGreaterThanOrEqual(0);
          expect(schedule(at)).toBeLessThanOrEqual(1);
        },
      ),
      { seed: 1, numRuns: 300 },
    );
  });
});

describe("schedules refuse", () => {
  const names =
    "constant, constant_with_warmup, linear, cosine, cosine_with_min_lr, cosine_with_restarts, polynomial, inverse_sqrt, warmup_stable_decay";

  it("unknown names, with the list", () => {
    expect(() => scheduleByName("cosin")).toThrow(
      new OptionError(`unknown schedule "cosin" — did you mean "cosine"? schedules are ${names}.`),
    );
    expect(() => scheduleByName("exponential")).toThrow(
      `unknown schedule "exponential" — schedules are ${names}.`,
    );
    expect(() => scheduleByName("toString")).toThrow('unknown schedule "toString"');
  });

  it("options that they do not have", () => {
    expect(() => scheduleByName("linear", { totalSteps: 9, power: 2 })).toThrow(
      'linear: unknown option "power" — its options are totalSteps, warmupSteps.',
    );
    expect(() => scheduleByName("constant", { warmupSteps: 5 })).toThrow(
      "constant: has no warm-up, got 5 steps — use constant_with_warmup.",
    );
  });

  it("counts that are missing or do not fit", () => {
    expect(() => scheduleByName("linear")).toThrow(
      "linear: totalSteps must be a whole number from 1, got undefined.",
    );
    expect(() => linearDecay({ totalSteps: 4, warmupSteps: 5 })).toThrow(
      "linear: warmupSteps must be at most totalSteps, got 5 of 4.",
    );
    expect(() => linearDecay({ totalSteps: 4, warmupSteps: 0.5 })).toThrow(
      "linear: warmupSteps must be a whole number from 0, got 0.5.",
    );
    expect(() => warmupStableDecay({ totalSteps: 4, warmupSteps: 2, decaySteps: 3 })).toThrow(
      "warmup_stable_decay: warmupSteps and decaySteps must fit into totalSteps, got 2 and 3 of 4.",
    );
    expect(() =>
      warmupStableDecay({ totalSteps: 4, decaySteps: 3, decayCurve: "sqrt" as never }),
    ).toThrow('warmup_stable_decay: decayCurve must be one of linear, cosine, 1-sqrt, got "sqrt".');
    expect(() => cosineDecay({ totalSteps: 4, minFactor: 1 })).toThrow(
      "cosine: minFactor must be in [0, 1), got 1.",
    );
  });
});
