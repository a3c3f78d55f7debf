import { describe, expect, it } from "vitest";
import { Rng } from "../../tensor/rng.ts";
import { type SampleOptions, sample, TokenHistory } from "../sample.ts";
import { Drawer } from "./draw.ts";

const vocabSize = 500;
const cases: readonly SampleOptions[] = [
  {},
  { temperature: 1 },
  { temperature: 0.3 },
  { temperature: 5 },
  { temperature: 1, topK: 1 },
  { temperature: 1, topK: 40 },
  { temperature: 1, topK: 1000 },
  { temperature: 1, topP: 0.9 },
  { temperature: 0.7, topP: 0.999999 },
  { temperature: 2, topP: 1e-9 },
  { temperature: 1, minP: 0.05 },
  { temperature: 1, minP: 1e-12 },
  { temperature: 1, topK: 40, topP: 0.8, minP: 0.02 },
  { temperature: 1, topP: 0.8, minP: 0.02 },
  { temperature: 1, typicalP: 0.7 },
  { temperature: 1, topP: 0.9, frequencyPenalty: 1, repetitionPenalty: 1.3 },
  { repetitionPenalty: 1.3 },
];

describe("Drawer", () => {
  it.each(cases)("chooses as sample does: %o", (options) => {
    const drawer = new Drawer(vocabSize);
    for (let seed = 0; seed < 60; seed++) {
      const rng = new Rng(seed);
      // Sharp and flat, with equal logits and with forbidden tokens.
      const spread = [0.01, 1, 4, 30][seed % 4]!;
      const logits = Float32Array.from({ length: vocabSize }, () => spread * rng.normal());
      if (seed % 3 === 0) for (let i = 0; i < vocabSize; i += 3) logits[i] = logits[3]!;
      if (seed % 5 === 0) logits.fill(-Infinity, 100, 300);
      if (seed % 7 === 0) logits.fill(-Infinity, vocabSize - 20);
      const history = new TokenHistory([1, 2, 3]);
      history.add(7);
      const [a, b] = [new Rng(seed).fold("draw"), new Rng(seed).fold("draw")];
      for (let i = 0; i < 10; i++) {
        expect(drawer.draw(logits, options, a, history)).toBe(sample(logits, options, b, history));
      }
      expect(a.state).toEqual(b.state);
    }
  });

  it("refuses logits that are no numbers", () => {
    const drawer = new Drawer(3);
    for (const options of [{}, { temperature: 1 }, { temperature: 1, topP: 0.5 }]) {
      for (const logits of [
        [NaN, NaN, NaN],
        [-Infinity, -Infinity, -Infinity],
      ]) {
        const own = Float32Array.from(logits);
        expect(() => drawer.draw(own, options, new Rng(0), undefined)).toThrow(
          "sample: the logits hold NaN or nothing above -∞ — the model's weights may be broken.",
        );
      }
    }
  });
});
