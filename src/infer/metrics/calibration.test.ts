import { describe, expect, it } from "vitest";
import { OptionError } from "../../errors.ts";
import {
  brierScore,
  expectedCalibrationError,
  maximumCalibrationError,
  reliability,
} from "./calibration.ts";

const predictions = {
  confidences: [0.1, 0.2, 0.45, 0.55, 0.5, 0.9, 1, 0.95],
  correct: [0, 1, 0, 1, 1, 1, 1, 0],
};

describe("reliability", () => {
  it("puts confidences into steps of equal width, borders into the lower one", () => {
    const bins = reliability(predictions, "width", 2);
    expect(bins).toEqual([
      // 0.1, 0.2, 0.45, 0.5: two of four right, mean 1.25 / 4.
      { low: 0, high: 0.5, count: 4, confidence: expect.closeTo(0.3125, 12), accuracy: 0.5 },
      // 0.55, 0.9, 1, 0.95: three of four right, mean 3.4 / 4.
      { low: 0.5, high: 1, count: 4, confidence: expect.closeTo(0.85, 12), accuracy: 0.75 },
    ]);
    // (4/8) · 0.1875 + (4/8) · 0.1
    expect(expectedCalibrationError(bins)).toBeCloseTo(0.14375, 12);
    expect(maximumCalibrationError(bins)).toBeCloseTo(0.1875, 12);
  });

  it("puts as many into each bin of equal mass, as nearly as it can", () => {
    const bins = reliability(predictions, "mass", 3);
    expect(bins.map(({ low, high, count }) => [low, high, count])).toEqual([
      [0.1, 0.45, 3],
      [0.5, 0.9, 3],
      [0.95, 1, 2],
    ]);
    // 1/3 against 0.25; 1 against 1.95 / 3 = 0.65; 1/2 against 0.975.
    const expected = (3 / 8) * (1 / 3 - 0.25) + (3 / 8) * 0.35 + (2 / 8) * 0.475;
    expect(expectedCalibrationError(bins)).toBeCloseTo(expected, 12);
  });

  it("has no error where confidence and outcome agree, and empty bins do no harm", () => {
    const bins = reliability({ confidences: [1, 1, 0, 0], correct: [1, 1, 0, 0] });
    expect(bins.map(({ count }) => count)).toEqual([2, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    expect(expectedCalibrationError(bins)).toBe(0);
    expect(maximumCalibrationError(bins)).toBe(0);
    expect(expectedCalibrationError(reliability({ confidences: [], correct: [] }))).toBeNaN();
  });

  it.each<[() => unknown, string]>([
    [
      () => reliability({ confidences: [1], correct: [] }),
      "calibration: 1 confidences, but 0 outcomes.",
    ],
    [
      () => reliability({ confidences: [0.5, 1.2], correct: [0, 0] }),
      "calibration: confidence 1 is 1.2, not in [0, 1].",
    ],
    [
      () => reliability({ confidences: [Number.NaN], correct: [0] }),
      "calibration: confidence 0 is NaN, not in [0, 1].",
    ],
    [
      () => reliability(predictions, "width", 0),
      "calibration: bins must be a whole number from 1 to 1000, got 0.",
    ],
  ])("refuses what is no set of predictions", (make, sentence) => {
    expect(make).toThrow(new OptionError(sentence));
  });
});

describe("brierScore", () => {
  it("is the squared distance to the outcome", () => {
    // (0.7 - 1)² + 0.2² + 0.1²
    expect(brierScore([0.7, 0.2, 0.1], 0)).toBeCloseTo(0.14, 12);
    expect(brierScore([0, 1], 1)).toBe(0);
    expect(brierScore([1, 0], 1)).toBe(2);
  });
});
