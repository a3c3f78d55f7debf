import { describe, expect, it } from "vitest";
import { OptionError } from "../../errors.ts";
import { generationReport } from "./generation.ts";

describe("generationReport", () => {
  it("means each measure over answers, with its interval", () => {
    const report = generationReport([
      { answer: " red car\n", expected: "red car" },
      { answer: "The Red car!", expected: "red car" },
      { answer: "red", expected: "red car" },
      { answer: "blue", expected: "red car" },
    ]);
    expect(report.answers).toBe(4);
    expect(report.exactMatch.value).toBe(0.25);
    expect(report.normalizedMatch.value).toBe(0.5);
    // 1, 1, 2 · 1 / (1 + 2), 0
    expect(report.f1.value).toBeCloseTo((2 + 2 / 3) / 4, 12);
    // ROUGE keeps the article: 2 · 2 / (3 + 2).
    expect(report.rouge1.value).toBeCloseTo((1 + 4 / 5 + 2 / 3) / 4, 12);
    // One pair of one; one of two; none.
    expect(report.rouge2.value).toBeCloseTo((1 + 2 / 3) / 4, 12);
    expect(report.rougeL).toEqual(report.rouge1);
    const { low, high } = report.exactMatch.interval;
    expect([low, high]).toEqual([0, 0.75]);
  });

  it("refuses nothing", () => {
    expect(() => generationReport([])).toThrow(
      new OptionError("generation: there are no answers."),
    );
  });
});
