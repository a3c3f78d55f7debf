import { describe, expect, it } from "vitest";
import { fixture } from "../../../test/support/fixture.ts";
import { OptionError } from "../../errors.ts";
import { rouge, rougeWords } from "./rouge.ts";

interface Recorded {
  readonly cases: readonly {
    readonly text: string;
    readonly reference: string;
    readonly scores: Readonly<Record<string, readonly number[]>>;
  }[];
}

describe("rouge", () => {
  it.each(fixture<Recorded>("rouge").cases)("equals rouge_score on $text", (one) => {
    const scores = Object.entries(rouge(one.text, one.reference));
    expect(scores.map(([name]) => name)).toEqual(Object.keys(one.scores));
    for (const [name, { precision, recall, f1 }] of scores) {
      [precision, recall, f1].forEach((value, i) => {
        expect(value, name).toBeCloseTo(one.scores[name]![i]!, 12);
      });
    }
  });

  it("counts by hand what Lin's paper counts", () => {
    // §3.1: "police killed the gunman" against "police kill the gunman": 3 of 4 in order.
    const { rougeL, rouge2 } = rouge("police kill the gunman", "police killed the gunman");
    expect(rougeL).toEqual({ precision: 0.75, recall: 0.75, f1: 0.75 });
    expect(rouge2.f1).toBeCloseTo(1 / 3, 12);
  });

  it("refuses texts too long to compare", () => {
    const long = "x ".repeat(9000);
    expect(() => rouge(long, long)).toThrow(
      new OptionError("rouge: texts of 9000 and 9000 words are too long to compare — cut them."),
    );
  });

  it("reads words of letters and digits alone", () => {
    expect(rougeWords("It's 3,50 — ÉTÉ!")).toEqual(["it", "s", "3", "50", "t"]);
  });
});
