import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { nearestNeighbour, type PromptCompletion } from "./nearest.ts";

describe("nearestNeighbour", () => {
  it("answers with the completion of the prompt itself when it is there", () => {
    const train = [
      { prompt: "feed the dog", completion: "A" },
      { prompt: "feed the cat", completion: "B" },
    ];
    expect(nearestNeighbour(train, ["Feed the cat?", "feed the dog"])).toEqual(["B", "A"]);
  });

  it("weighs a rare word above a common one", () => {
    // N = 3; idf(play) = ln(4/4) + 1 = 1; idf of a word in one prompt = ln(4/2) + 1 = 1.6931.
    // "play drum": length² of "play horn" = 1 + 1.6931² = 3.8667, dot = 1 → 0.5086;
    // "play loud slow drum": length² = 1 + 3 · 1.6931² = 9.6001, dot = 1 + 1.6931² = 3.8667 → 1.2480.
    const train = [
      { prompt: "play horn", completion: "horn" },
      { prompt: "play loud slow drum", completion: "drum" },
      { prompt: "play flute", completion: "flute" },
    ];
    expect(nearestNeighbour(train, ["play drum"])).toEqual(["drum"]);
  });

  it("divides by the length of the training prompt", () => {
    // N = 2; idf(sun) = ln(3/3) + 1 = 1. "sun": 1/1 = 1. "sun sun rain": tf 2, idf(rain) =
    // ln(3/2) + 1 = 1.4055, length = sqrt(4 + 1.9754) = 2.4445, 2 / 2.4445 = 0.8182 < 1.
    // Without the division the second, 2, would win.
    const train = [
      { prompt: "sun sun rain", completion: "long" },
      { prompt: "sun", completion: "short" },
    ];
    expect(nearestNeighbour(train, ["sun"])).toEqual(["short"]);
  });

  it("takes the earliest of equal prompts, and the first when nothing matches", () => {
    const train = [
      { prompt: "a b", completion: "1" },
      { prompt: "b a", completion: "2" },
    ];
    expect(nearestNeighbour(train, ["a b", "z", ""])).toEqual(["1", "1", "1"]);
  });

  it("refuses an empty training set", () => {
    expect(() => nearestNeighbour([], ["a"])).toThrow(
      new OptionError("nearestNeighbour: train is empty — give at least one example."),
    );
  });
});

function load(name: string): PromptCompletion[] {
  const url = new URL(`../../data/commands/${name}.jsonl`, import.meta.url);
  return readFileSync(url, "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as PromptCompletion);
}

const CALL = /^([a-z]+)\(([a-z]+: [^,:()]+(?:, [a-z]+: [^,:()]+)*)\)$/;

/** Values of a call such as `alarm(time: 6 am, label: the fair)`. */
function values(completion: string): string[] {
  const match = CALL.exec(completion);
  if (!match) throw new Error(`not a call: ${completion}`);
  return match[2]!.split(", ").map((pair) => pair.slice(pair.indexOf(": ") + 2));
}

const plain = (text: string): string =>
  ` ${(text.toLowerCase().match(/[a-z0-9']+/g) ?? []).join(" ")} `;

describe("data/commands", () => {
  const train = load("train");
  const heldout = load("heldout");
  const trainText = train
    .map((item) => plain(item.prompt) + "\n" + plain(item.completion))
    .join("\n");

  it("has the sizes the README states", () => {
    expect(train.length).toBe(4800);
    expect(heldout.length).toBe(300);
    const calls = new Set(train.map((item) => CALL.exec(item.completion)![1]));
    expect(calls.size).toBe(8);
  });

  it("copies every value from its prompt letter for letter", () => {
    for (const { prompt, completion } of [...train, ...heldout]) {
      for (const value of values(completion)) expect(prompt).toContain(value);
    }
  });

  it("has no prompt twice, in one file or across the two", () => {
    const prompts = [...train, ...heldout].map((item) => plain(item.prompt));
    expect(new Set(prompts).size).toBe(prompts.length);
  });

  it("holds a value in every held-out item that the training file has nowhere", () => {
    for (const { completion } of heldout) {
      const unseen = values(completion).filter((value) => !trainText.includes(plain(value)));
      expect(unseen, completion).not.toHaveLength(0);
    }
  });

  it("holds a word in a third of the held-out items that the training file has nowhere", () => {
    const known = new Set(trainText.split(/\s+/));
    const fresh = heldout.filter((item) =>
      values(item.completion).some((value) =>
        plain(value)
          .trim()
          .split(" ")
          .some((word) => !known.has(word)),
      ),
    );
    expect(fresh.length).toBeGreaterThanOrEqual(100);
  });

  it("is not solved by copying the nearest training answer", () => {
    const answers = nearestNeighbour(
      train,
      heldout.map((item) => item.prompt),
    );
    const exact = heldout.filter((item, i) => item.completion === answers[i]).length;
    // No answer can be exact: one of its values is nowhere in the training file.
    expect(exact).toBe(0);
    // The baseline does find the right call, so it is not an idle opponent.
    const call = (text: string): string => text.slice(0, text.indexOf("("));
    const rightCall = heldout.filter(
      (item, i) => call(item.completion) === call(answers[i]!),
    ).length;
    expect(rightCall / heldout.length).toBeGreaterThan(0.9);
  });
});
