import { describe, expect, it } from "vitest";
import { claim } from "../../test/support/robust-mean.ts";
import { checkNames, leaves, parseClaim } from "./claim.ts";

const parse = (changes: object) =>
  parseClaim(new TextEncoder().encode(JSON.stringify({ ...claim, ...changes })), "claim.json");

describe("a claim file", () => {
  it("gives rules the metric, direction, effect and test that they do not name", () => {
    expect(parse({}).predicted.rules).toEqual([
      {
        left: "trimmed",
        right: "mean",
        metric: "error",
        direction: "lower",
        atLeast: 0.2,
        relative: false,
        test: { kind: "pairedT", p: 0.05 },
        pairs: "seed",
      },
    ]);
  });

  it.each([
    [{ seed: 1 }, 'claim.json: does not know "seed".'],
    [{ direction: "up" }, 'claim.json: "direction" must be higher or lower, got "up".'],
    [{ seeds: [1, 2] }, 'claim.json: "seeds" must be a list of 3 to 64, got [1,2].'],
    [{ seeds: [1, 1, 2] }, 'claim.json: "seeds" must be different numbers, got [1,1,2].'],
    [{ tuningSeeds: [1] }, "claim.json: seed 1 is both for tuning and for the verdict"],
    [{ budget: { minutes: 90 } }, '"minutes" must be a number from 0.1 to 60, got 90.'],
    [{ headroom: { says: "x", rules: [] } }, '"rules" must be a list of 1 to 64, got [].'],
    [{ headroom: { says: "x", rules: [{ arm: "mean" }] } }, 'a level needs "atLeast", "atMost"'],
    [{ test: { kind: "anova" } }, '"kind" must be pairedT or bootstrap'],
    [
      { falsifier: { says: "x", rules: [{ left: "mean", right: "mean" }] } },
      'compares "mean" with itself.',
    ],
    [
      { falsifier: { says: "x", rules: [{ not: { not: { not: { not: { arm: "a" } } } } }] } },
      "more than 4 deep",
    ],
  ])("is refused with %j", (changes, message) => {
    expect(() => parse(changes)).toThrow(message);
  });

  it("must name arms, metrics and tasks of the experiment", () => {
    const known = { arms: ["mean", "trimmed"], metrics: ["error"], tasks: ["few"] };
    const check = (changes: object): void => checkNames(parse(changes), known, "claim.json");
    check({});
    expect(() => check({ metric: "eror" })).toThrow(
      'claim.json: a rule names metric "eror" — the experiment has error.',
    );
    expect(() => check({ headroom: { says: "x", rules: [{ arm: "mode", atLeast: 0 }] } })).toThrow(
      'a rule names arm "mode"',
    );
    expect(() =>
      check({ headroom: { says: "x", rules: [{ arm: "mean", atLeast: 0, tasks: ["all"] }] } }),
    ).toThrow('a rule names task "all"');
  });

  it("finds the rules inside rules", () => {
    const { falsifier } = parse({
      falsifier: {
        says: "x",
        rules: [{ any: [{ not: { left: "a", right: "b" } }, { all: [{ arm: "a", atMost: 1 }] }] }],
      },
    });
    expect(leaves(falsifier.rules)).toHaveLength(2);
  });
});
