import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { objectiveNames, objectiveOptions } from "./objective-options.ts";
import { chooseObjective } from "./objectives.ts";

describe("--objective", () => {
  it.each([...objectiveNames])("%s is in the table", (name) => {
    expect(chooseObjective({ objective: name }).name).toBe(name);
  });

  it("has no option that belongs to no objective", () => {
    const taken = objectiveNames.flatMap((name) => chooseObjective({ objective: name }).takes);
    const known = Object.keys(objectiveOptions).filter((name) => name !== "objective");
    expect([...new Set(taken)].sort()).toEqual(known.sort());
  });

  it.each([
    [
      { objective: "orpo", teacher: "x" },
      "finetune: --teacher is not of --objective orpo — it is of distill, gkd.",
    ],
    [
      { objective: "sft", beta: 0.1 },
      "finetune: --beta is not of --objective sft — it is of dpo, ipo, orpo, simpo, kto, distill, grpo, gkd.",
    ],
    [
      { objective: "reward", full: true },
      "finetune: --objective reward trains a head beside an adapter — leave --full out.",
    ],
    [
      { objective: "grpo", packing: true },
      "finetune: --objective grpo packs no answers — leave --packing out.",
    ],
  ] as const)("refuses %o", (options, message) => {
    expect(() => chooseObjective(options)).toThrow(new OptionError(message));
  });
});
