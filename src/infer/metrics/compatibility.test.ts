import { expect, it } from "vitest";
import { choiceCompatibility, textCompatibility } from "./compatibility.ts";

it("counts flips of choices by hand", () => {
  // right:  a b c d e f
  const right = ["a", "b", "c", "d", "e", "f"];
  const old = ["a", "b", "x", "x", "y", "f"];
  const next = ["a", "x", "c", "x", "z", "f"];
  const report = choiceCompatibility(old, next, right);
  expect(report.items).toBe(6);
  // Old right: a, b, f; new right: a, c, f.
  expect(report.old.value).toBeCloseTo(3 / 6, 12);
  expect(report.new.value).toBeCloseTo(3 / 6, 12);
  expect(report.negativeFlips.value).toBeCloseTo(1 / 6, 12);
  expect(report.positiveFlips.value).toBeCloseTo(1 / 6, 12);
  // b became x, e went from y to z; d is wrong as before.
  expect(report.inconsistentMistakes.value).toBeCloseTo(2 / 6, 12);
});

it("measures gains and losses of texts by hand", () => {
  const length = (answer: string): number => answer.length;
  const report = textCompatibility(["", "abc", "ab"], ["ab", "a", "ab"], ["x", "y", "z"], length);
  expect(report.positiveFlips.value).toBeCloseTo(1 / 3, 12);
  expect(report.negativeFlips.value).toBeCloseTo(1 / 3, 12);
  expect([report.gain, report.regression]).toEqual([2, 2]);
  expect(report.old.value).toBeCloseTo(5 / 3, 12);
  expect(report.new.value).toBeCloseTo(5 / 3, 12);
});

it("finds no flip where nothing changed", () => {
  const report = choiceCompatibility([1, 2], [1, 2], [1, 3]);
  expect(report.negativeFlips.value + report.positiveFlips.value).toBe(0);
  expect(report.inconsistentMistakes.value).toBe(0);
});

it("holds that accuracies differ by the difference of flips", () => {
  const right = Array.from({ length: 40 }, (_, i) => i % 4);
  const old = right.map((x, i) => (i % 3 === 0 ? 9 : x));
  const next = right.map((x, i) => (i % 5 === 0 ? 8 : x));
  const { old: before, new: after, ...flips } = choiceCompatibility(old, next, right);
  expect(after.value - before.value).toBeCloseTo(
    flips.positiveFlips.value - flips.negativeFlips.value,
    12,
  );
});

it.each([
  [[], [], [], "compatibility: there are no items."],
  [
    [1],
    [1, 2],
    [1],
    "compatibility: old and new answers and what is right must be as many, got 1, 1, 2.",
  ],
])("refuses %j, %j, %j", (old, next, right, sentence) => {
  expect(() => choiceCompatibility(old, next, right)).toThrow(sentence);
});
