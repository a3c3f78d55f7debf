import { afterAll, describe, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { FormatError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import type { JsonObject } from "../io/json.ts";
import { loadModel } from "../models/folder.ts";
import { answerChoices, isChoiceRecord, toQuestion } from "./choices.ts";
import { Scorer } from "./score.ts";

const read = (record: JsonObject) => toQuestion({ record, where: "q.jsonl:1" });

describe("toQuestion", () => {
  it("takes the answer as a place or as the choice's text", () => {
    const expected = { prompt: "p", choices: ["x", "y"], answer: 1 };
    expect(read({ prompt: "p", choices: ["x", "y"], answer: 1 })).toEqual(expected);
    expect(read({ prompt: "p", choices: ["x", "y"], answer: "y" })).toEqual(expected);
    expect(isChoiceRecord({ record: { choices: 1 }, where: "" })).toBe(true);
    expect(isChoiceRecord({ record: { prompt: "" }, where: "" })).toBe(false);
  });

  it.each<[JsonObject, string]>([
    [
      { prompt: "p", choices: ["x", "y"] },
      'a question needs "prompt", "choices" (a list of texts) and "answer"',
    ],
    [{ prompt: "p", choices: ["x"], answer: 0 }, '"choices" must hold 2 to 256 texts, got 1.'],
    [
      { prompt: "p", choices: ["x", ""], answer: 0 },
      '"choices" must hold texts that are not empty, got "".',
    ],
    [{ prompt: "p", choices: ["x", "x"], answer: 0 }, '"choices" holds the same text twice.'],
    [
      { prompt: "p", choices: ["x", "y"], answer: 2 },
      '"answer" must be a choice or its place from 0 to 1, got 2.',
    ],
    [
      { prompt: "p", choices: ["x", "y"], answer: "z" },
      '"answer" must be a choice or its place from 0 to 1, got "z".',
    ],
  ])("refuses %j", (record, sentence) => {
    expect(() => read(record)).toThrow(FormatError);
    expect(() => read(record)).toThrow(`q.jsonl:1: ${sentence}`);
  });
});

describe("answerChoices", async () => {
  const folder = new URL("../../models/builtin", import.meta.url).pathname;
  const { files } = nodeHost();
  const { model, params } = await loadModel(files, folder);
  const tokenizer = await loadTokenizer(files, folder);
  const scorer = new Scorer(model, params, await nodeOrt({ threads: 1 }));
  afterAll(() => scorer.release());
  const questions = [
    { prompt: "He went to the", choices: [" door", " zqx"], answer: 0 },
    { prompt: "She did not know what to", choices: [" the the", " do", " purple"], answer: 1 },
    { prompt: "It was", choices: [" a", " xylophone quartz vex"], answer: 1 },
  ];
  const options = { template: "{prompt}" };

  it("chooses what the model finds likeliest", async () => {
    const report = await answerChoices(scorer, tokenizer, questions, options);
    expect(report.results.map(({ chosen }) => chosen)).toEqual([0, 1, 0]);
    expect(report.accuracy.value).toBeCloseTo(2 / 3, 12);
    expect(report.chance).toBeCloseTo((1 / 2 + 1 / 3 + 1 / 2) / 3, 12);
    for (const { probabilities } of report.results) {
      expect(probabilities.reduce((a, b) => a + b)).toBeCloseTo(1, 12);
    }
    // The last answer is wrong and sure of itself: its score is near 2.
    expect(report.calibration.brier).toBeGreaterThan(0.6);
    expect(report.calibration.expectedError).toBeGreaterThan(0.3);
  });

  it("sums log-probabilities of the choice alone, and divides as asked", async () => {
    const { prompt, choices } = questions[1]!;
    const before = tokenizer.encode(prompt);
    const own = await scorer.score(
      choices.map((choice) => {
        const ids = Int32Array.from([...before, ...tokenizer.encode(choice)]);
        return { ids, mask: Uint8Array.from(ids, (_, i) => (i >= before.length ? 1 : 0)) };
      }),
    );
    const totals = own.map(({ logprobs }) => logprobs.reduce((a, b) => a + b, 0));
    const expectedOf = (divisors: readonly number[]): number[] => {
      const weights = totals.map((total, i) => Math.exp(total / divisors[i]!));
      const sum = weights.reduce((a, b) => a + b);
      return weights.map((w) => w / sum);
    };
    for (const [normalize, divisors] of [
      ["none", [1, 1, 1]],
      ["tokens", own.map(({ logprobs }) => logprobs.length)],
      ["bytes", choices.map((choice) => choice.length)],
    ] as const) {
      const report = await answerChoices(scorer, tokenizer, [questions[1]!], {
        ...options,
        normalize,
      });
      report.results[0]!.probabilities.forEach((p, i) => {
        expect(p, normalize).toBeCloseTo(expectedOf(divisors)[i]!, 5);
      });
    }
  });

  it("refuses a prompt without tokens", async () => {
    const empty = [{ prompt: "", choices: ["a", "b"], answer: 0 }];
    await expect(answerChoices(scorer, tokenizer, empty, options)).rejects.toThrow(
      "choices: the prompt of question 0 is empty.",
    );
  });
});
