import { describe, expect, it } from "vitest";
import type { Example } from "../../data/example.ts";
import { OptionError } from "../../errors.ts";
import type { TokenScores } from "../score.ts";
import { likelihoodReport } from "./likelihood.ts";

/** Ids are letters; 9 is the token for the end. */
const letters = ["a", "b", "é", "€"];
const tokenizer = {
  decode: (ids: ArrayLike<number>): string => Array.from(ids, (id) => letters[id] ?? "").join(""),
};

const example = (ids: readonly number[], from = 1): Example => ({
  ids: Int32Array.from(ids),
  mask: Uint8Array.from(ids, (_, i) => (i >= from ? 1 : 0)),
});

/** Scores by the probability of each token; the likeliest has it too, or more. */
function scores(positions: readonly number[], p: readonly number[], top = p): TokenScores {
  return {
    positions: Int32Array.from(positions),
    logprobs: Float32Array.from(p, Math.log),
    topProbabilities: Float32Array.from(top),
    isTop: Uint8Array.from(p, (x, i) => (x === top[i] ? 1 : 0)),
    // Of two tokens.
    squares: Float32Array.from(top, (x) => x ** 2 + (1 - x) ** 2),
  };
}

describe("likelihoodReport", () => {
  const report = likelihoodReport(
    [example([0, 1, 2, 9]), example([0, 0, 3], 2)],
    [scores([1, 2, 3], [0.5, 0.25, 0.125], [0.5, 0.75, 0.875]), scores([2], [0.5])],
    tokenizer,
  );

  it("means over tokens, and exponentiates", () => {
    // (1 + 2 + 3 + 1) / 4 bits
    expect(report.tokens).toBe(4);
    expect(report.loss.value).toBeCloseTo(1.75 * Math.LN2, 6);
    expect(report.perplexity.value).toBeCloseTo(2 ** 1.75, 6);
    expect(report.tokenAccuracy.value).toBe(0.5);
  });

  it("gives the interval of examples drawn anew: the first alone, or the second", () => {
    expect(report.loss.interval.low).toBeCloseTo(Math.LN2, 6);
    expect(report.loss.interval.high).toBeCloseTo(2 * Math.LN2, 6);
    expect(report.perplexity.interval.low).toBeCloseTo(2, 6);
    expect(report.perplexity.interval.high).toBeCloseTo(4, 6);
  });

  it("counts bits by the bytes that scored tokens spell, the end left out", () => {
    // "b" of 1 byte and "é" of 2 take 1 + 2 bits; "€" of 3 takes 1; the first tokens are not scored.
    expect(report.bitsPerByte!.value).toBeCloseTo(4 / 6, 6);
    const end = likelihoodReport([example([0, 9])], [scores([1], [0.5])], tokenizer);
    expect(end.bitsPerByte).toBeUndefined();
  });

  it("holds the likeliest token's probability against how often it is right", () => {
    const { table, brier, expectedError } = report.calibration;
    // Confidences 0.5, 0.75, 0.875, 0.5; right: the two of 0.5.
    expect(table[4]).toEqual({ low: 0.4, high: 0.5, count: 2, confidence: 0.5, accuracy: 1 });
    expect(expectedError).toBeCloseTo((2 * 0.5 + 0.75 + 0.875) / 4, 6);
    // Two of 0.5: 0.5 each; (0.75, 0.25) with 0.25 right: 2 · 0.75²; (0.875, 0.125): 2 · 0.875².
    expect(brier).toBeCloseTo((0.5 + 1.125 + 1.53125 + 0.5) / 4, 6);
  });

  it("refuses examples without loss", () => {
    expect(() => likelihoodReport([example([1], 1)], [scores([], [])], tokenizer)).toThrow(
      new OptionError("likelihood: no token carries loss."),
    );
  });
});
