import { describe, expect, it } from "vitest";
import { claim as base } from "../../test/support/robust-mean.ts";
import { type Claim, parseClaim } from "./claim.ts";
import { judge, type VerdictCell } from "./verdict.ts";

const claimOf = (changes: object): Claim =>
  parseClaim(
    new TextEncoder().encode(
      JSON.stringify({
        ...base,
        metric: "accuracy",
        direction: "higher",
        minimumEffect: 0.02,
        test: { kind: "pairedT" },
        predicted: { says: "p", rules: [{ left: "new", right: "old" }] },
        falsifier: {
          says: "f",
          rules: [{ left: "old", right: "new", atLeast: 0, test: { kind: "none" } }],
        },
        headroom: { says: "h", rules: [{ arm: "old", atMost: 0.98 }] },
        ...changes,
      }),
    ),
    "claim.json",
  );

/** Cells of arms by seed: one number each, or one a task. */
const cells = (arms: Readonly<Record<string, readonly (number | readonly number[])[]>>) =>
  Object.entries(arms).flatMap(([arm, seeds]) =>
    seeds.flatMap((values, seed) =>
      [values].flat().map(
        (accuracy, task): VerdictCell => ({
          arm,
          seed,
          task: String(task),
          metrics: { accuracy, other: 1 - accuracy },
        }),
      ),
    ),
  );

const old = [0.8, 0.82, 0.81, 0.79];
const better = old.map((x, i) => x + 0.03 + 0.002 * i);

describe("the verdict", () => {
  it("holds when the prediction passes by size and by test", () => {
    const { verdict, why, predicted } = judge(claimOf({}), cells({ old, new: better }));
    expect(verdict).toBe("holds");
    // Differences 0.030, 0.032, 0.034, 0.036: mean 0.033, sd √(2·(0.003² + 0.001²)/3).
    expect(predicted[0]!.numbers!["difference"]).toBeCloseTo(0.033, 12);
    expect(predicted[0]!.numbers!["sd"]).toBeCloseTo(Math.sqrt((2 * (9e-6 + 1e-6)) / 3), 12);
    expect(predicted[0]!.numbers!["n"]).toBe(4);
    expect(why).toMatch(
      /^As predicted: accuracy of new higher than old by at least 0\.02, paired t/,
    );
  });

  it("is undecided when the effect is too small, and when it is noise", () => {
    const small = judge(claimOf({}), cells({ old, new: old.map((x) => x + 0.01) }));
    expect(small.verdict).toBe("undecided");
    expect(small.why).toContain("Neither predicted nor falsified");
    const noisy = cells({ old, new: [0.95, 0.79, 0.93, 0.78] });
    expect(judge(claimOf({}), noisy).predicted[0]!.numbers!["difference"]).toBeGreaterThan(0.02);
    expect(judge(claimOf({}), noisy).verdict).toBe("undecided");
  });

  it("does not hold when a falsifier is true, even where the prediction passes", () => {
    expect(judge(claimOf({}), cells({ old, new: old.map((x) => x - 0.01) })).verdict).toBe(
      "doesNotHold",
    );
    const both = claimOf({
      falsifier: { says: "f", rules: [{ not: { left: "new", right: "old", atLeast: 0.5 } }] },
    });
    const { verdict, why } = judge(both, cells({ old, new: better }));
    expect(verdict).toBe("doesNotHold");
    expect(why).toContain("found 0.033");
  });

  it("is undecided without headroom, whatever the numbers say", () => {
    const { verdict, why } = judge(
      claimOf({ headroom: { says: "h", rules: [{ arm: "old", atMost: 0.5 }] } }),
      cells({ old, new: better }),
    );
    expect(verdict).toBe("undecided");
    expect(why).toMatch(/^No headroom: it failed that accuracy of old at most 0\.5 \(mean 0\.805/);
  });

  it("does not take too few pairs for evidence of either side", () => {
    const one = cells({ old: [0.8], new: [0.9] });
    expect(judge(claimOf({}), one)).toMatchObject({ verdict: "undecided" });
    const negated = claimOf({
      falsifier: { says: "f", rules: [{ not: { left: "new", right: "old" } }] },
    });
    const { verdict, falsifier } = judge(negated, one);
    expect(falsifier[0]!.passes).toBeNull();
    expect(verdict).toBe("undecided");
  });

  it("counts wins, standard errors and bootstrap intervals", () => {
    const passes = (test: object, arm: readonly number[], atLeast = 0): boolean | null =>
      judge(
        claimOf({
          predicted: { says: "p", rules: [{ left: "new", right: "old", atLeast, test }] },
        }),
        cells({ old, new: arm }),
      ).predicted[0]!.passes;
    const mixed = [0.9, 0.9, 0.9, 0.78];
    expect(passes({ kind: "seeds", n: 3 }, mixed)).toBe(true);
    expect(passes({ kind: "seeds", n: 4 }, mixed)).toBe(false);
    expect(passes({ kind: "seeds", n: 5 }, mixed)).toBeNull();
    // Differences 0.10, 0.08, 0.09, -0.01: mean 0.065, standard error 0.02533.
    expect(passes({ kind: "standardErrors", k: 2.5 }, mixed)).toBe(true);
    expect(passes({ kind: "standardErrors", k: 2.6 }, mixed)).toBe(false);
    expect(passes({ kind: "bootstrap" }, better)).toBe(true);
    expect(passes({ kind: "bootstrap" }, [0.83, 0.8, 0.83, 0.75])).toBe(false);
    expect(passes({ kind: "none" }, mixed, 0.0649)).toBe(true);
    expect(passes({ kind: "none" }, mixed, 0.0651)).toBe(false);
  });

  it("pairs by seed over tasks or by cell, on chosen tasks, and relative to the right arm", () => {
    const two = cells({
      old: [
        [0.4, 0.8],
        [0.5, 0.8],
      ],
      new: [
        [0.5, 0.8],
        [0.6, 0.8],
      ],
    });
    const numbers = (rule: object) =>
      judge(
        claimOf({ predicted: { says: "p", rules: [{ left: "new", right: "old", ...rule }] } }),
        two,
      ).predicted[0]!.numbers!;
    expect(numbers({})["n"]).toBe(2);
    expect(numbers({})["difference"]).toBeCloseTo(0.05, 12);
    expect(numbers({ pairs: "cell" })["n"]).toBe(4);
    expect(numbers({ tasks: ["0"] })["difference"]).toBeCloseTo(0.1, 12);
    // 0.1 / 0.4 and 0.1 / 0.5.
    expect(numbers({ tasks: ["0"], relative: true })["difference"]).toBeCloseTo(0.225, 12);
  });

  it("compares two metrics of one arm", () => {
    const rule = { left: "new", right: "new", rightMetric: "other" };
    const { predicted } = judge(
      claimOf({ predicted: { says: "p", rules: [rule] } }),
      cells({ old, new: better }),
    );
    // accuracy - (1 - accuracy) = 2 · 0.838 - 1.
    expect(predicted[0]!.numbers!["difference"]).toBeCloseTo(0.676, 12);
  });

  it("joins rules by all and any, unknown ones too", () => {
    const outcome = (rule: object) =>
      judge(claimOf({ predicted: { says: "p", rules: [rule] } }), cells({ old, new: better }))
        .predicted[0]!.passes;
    const [yes, no] = [
      { arm: "old", atMost: 1 },
      { arm: "old", atMost: 0 },
    ];
    const unknown = { arm: "nobody", atMost: 1 };
    expect(outcome({ all: [yes, no, unknown] })).toBe(false);
    expect(outcome({ all: [yes, unknown] })).toBeNull();
    expect(outcome({ any: [no, yes, unknown] })).toBe(true);
    expect(outcome({ any: [no, unknown] })).toBeNull();
  });

  it("refuses cells without the metric, and numbers that are none", () => {
    const broken = cells({ old, new: better }).map((cell) =>
      cell.arm === "new" ? { ...cell, metrics: { accuracy: Number.NaN } } : cell,
    );
    expect(() => judge(claimOf({}), broken)).toThrow(
      'verdict: new, seed 0, task 0 has a NaN as metric "accuracy" — the claim\'s rules need a finite number.',
    );
  });
});
