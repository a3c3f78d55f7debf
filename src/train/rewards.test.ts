import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { fitsSchema } from "../infer/grammar/validate.ts";
import type { JsonObject } from "../io/json.ts";
import {
  exactReward,
  type GivenAnswer,
  jsonReward,
  lastNumber,
  lengthReward,
  numberReward,
  rewardByName,
  sumRewards,
} from "./rewards.ts";

const given = (answer: string, expected = "", tokens = answer.length): GivenAnswer => ({
  prompt: "?",
  answer,
  expected,
  tokens,
  isEnded: true,
});

describe("rewards", () => {
  it("pay for the expected answer letter for letter", () => {
    expect(exactReward()(given(" yes\n", "yes"))).toBe(1);
    expect(exactReward()(given("Yes", "yes"))).toBe(0);
    expect(exactReward({ ignoreCase: true })(given("Yes", "yes"))).toBe(1);
  });

  it.each([
    ["so it is 1,234.5 kg", 1234.5],
    ["first 3, then -2e2", -200],
    ["version 1,23", 23],
    ["+7.", 7],
    ["none", undefined],
  ])("find the last number of %s", (text, value) => {
    expect(lastNumber(text)).toBe(value);
  });

  it("pay for the right number, whatever stands before it", () => {
    expect(numberReward()(given("2 + 2 = 4", "#### 4"))).toBe(1);
    expect(numberReward()(given("2 + 2 = 5", "4"))).toBe(0);
    expect(numberReward()(given("no idea", "4"))).toBe(0);
    expect(numberReward({ tolerance: 0.01 })(given("1005", "1000"))).toBe(1);
    expect(numberReward({ tolerance: 0.01 })(given("1011", "1000"))).toBe(0);
  });

  it("fall with length from the target to twice the target", () => {
    const reward = lengthReward({ target: 10 });
    expect([1, 10, 15, 20, 99].map((tokens) => reward(given("", "", tokens)))).toEqual([
      1, 1, 0.5, 0, 0,
    ]);
  });

  const schema: JsonObject = {
    type: "object",
    properties: {
      name: { type: "string", minLength: 1, maxLength: 3 },
      age: { type: "integer", minimum: 0, maximum: 150 },
      tags: { type: "array", items: { enum: ["a", "b"] }, minItems: 1, maxItems: 2 },
    },
    required: ["name"],
    additionalProperties: false,
  };

  it.each([
    ['{"name":"Al","age":3,"tags":["a"]}', true],
    ['{"name":"äöü"}', true],
    ['{"age":3}', false],
    ['{"name":"Alfred"}', false],
    ['{"name":""}', false],
    ['{"name":"Al","age":3.5}', false],
    ['{"name":"Al","age":151}', false],
    ['{"name":"Al","tags":[]}', false],
    ['{"name":"Al","tags":["c"]}', false],
    ['{"name":"Al","other":1}', false],
    ["[]", false],
    ["null", false],
  ])("know whether %s fits a schema", (text, fits) => {
    expect(fitsSchema(JSON.parse(text), schema)).toBe(fits);
    expect(jsonReward({ schema })(given(text))).toBe(fits ? 1 : 0.2);
  });

  it("look through a fence, and pay nothing for what is no JSON", () => {
    expect(jsonReward({ schema })(given('```json\n{"name":"Al"}\n```'))).toBe(1);
    expect(jsonReward()(given("{'name': 1}"))).toBe(0);
    expect(jsonReward()(given(`${"[".repeat(99)}${"]".repeat(99)}`))).toBe(0);
  });

  it("refuse a schema that they do not understand", () => {
    const deep = { type: "object", properties: { x: { pattern: "a+" } } };
    expect(() => jsonReward({ schema: deep })).toThrow(
      'rewards: the schema at $.x has "pattern", which is not understood — use type, properties',
    );
  });

  it("add up by name and weight", async () => {
    const reward = rewardByName("number + 0.5*length", { target: 4 });
    expect(await reward(given("4", "4", 6))).toBe(1.25);
    expect(await sumRewards([{ reward: () => 2, weight: 3 }])(given(""))).toBe(6);
    expect(() => rewardByName("exakt")).toThrow(
      new OptionError(
        'rewards: unknown reward "exakt" — known are exact, number, json, length, and sums as number+0.1*length.',
      ),
    );
    expect(() => rewardByName("x*exact")).toThrow('the weight in "x*exact" is no number');
  });
});
