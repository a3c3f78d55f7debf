import { describe, expect, it } from "vitest";
import { BeamSearch, checkBeams } from "./beam.ts";

const end = 2;
/** Logits of probabilities, one row for each beam. */
const rows = (...probabilities: readonly number[][]): Float32Array =>
  Float32Array.from(probabilities.flat(), Math.log);

describe("BeamSearch", () => {
  it("finds the likelier text behind a less likely first token", () => {
    const search = new BeamSearch({ numBeams: 2 }, 4, end);
    // First 0 (0.6) or 1 (0.4); after 0 nothing is likely, after 1 the end is.
    expect(search.advance(rows([0.6, 0.4, 0], [1, 0, 0]))).toEqual({
      parents: [0, 0],
      tokens: [0, 1],
    });
    // [0, 0] 0.24, [0, 1] 0.18, [0, end] 0.18; [1, end] 0.36, [1, 0] 0.04.
    expect(search.advance(rows([0.4, 0.3, 0.3], [0.1, 0, 0.9]))).toEqual({
      parents: [0, 0],
      tokens: [0, 1],
    });
    const { tokens, score, isEnded } = search.answer;
    expect([tokens, isEnded]).toEqual([[1], true]);
    expect(score).toBeCloseTo(Math.log(0.36) / 2, 6);
  });

  it("ends by the rule that was asked for", () => {
    const ends = (earlyStopping: boolean | "never"): number => {
      const search = new BeamSearch({ numBeams: 2, earlyStopping, lengthPenalty: 1 }, 8, end);
      let steps = 0;
      while (!search.isDone) {
        search.advance(rows([0.55, 0.05, 0.4], [0.05, 0.55, 0.4]));
        steps++;
      }
      return steps;
    };
    // Step 1: the end of beam 1 is finished, log(0.4). Step 2 finishes a second one, log(0.22) / 2.
    expect(ends(true)).toBe(2);
    // Without: the running beam of step n scores log(0.55), above log(0.22) / 2 = -0.757 always; each later
    // end, (n - 1) log(0.55) + log(0.4) over n, is better still, and none can reach log(0.55).
    expect(ends(false)).toBe(8);
    expect(ends("never")).toBe(8);
  });

  it("takes what runs where the length is reached, and says that it did not end", () => {
    const search = new BeamSearch({ numBeams: 2, lengthPenalty: 0 }, 2, end);
    search.advance(rows([0.7, 0.3, 0], [1, 0, 0]));
    expect(search.advance(rows([0.9, 0.1, 0], [0.5, 0.5, 0]))).toEqual({ parents: [], tokens: [] });
    expect(search.isDone).toBe(true);
    expect(search.answer).toMatchObject({ tokens: [0, 0], isEnded: false });
    expect(search.answer.score).toBeCloseTo(Math.log(0.63), 6);
  });

  it("refuses logits that are no numbers", () => {
    const search = new BeamSearch({ numBeams: 2 }, 2, end);
    expect(() => search.advance(new Float32Array(6).fill(Number.NaN))).toThrow(
      "sample: the logits hold NaN or nothing above -∞ — the model's weights may be broken.",
    );
  });
});

describe("checkBeams", () => {
  it("names what is out of range", () => {
    expect(() => checkBeams({ numBeams: 65 })).toThrow(
      "numBeams must be a whole number from 1 to 64, got 65.",
    );
    expect(() => checkBeams({ lengthPenalty: Number.NaN })).toThrow(
      "lengthPenalty must be in [-10, 10], got NaN.",
    );
    expect(() => checkBeams({ earlyStopping: "often" as never })).toThrow(
      'earlyStopping must be true, false or "never", got "often".',
    );
  });
});
