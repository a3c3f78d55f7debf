import { describe, expect, it } from "vitest";
import { fixture, type RawTensor } from "../../test/support/fixture.ts";
import { OptionError, StateError } from "../errors.ts";
import { Rng } from "../tensor/rng.ts";
import {
  argMaxOf,
  checkSampling,
  choiceOf,
  decide,
  logprobsOf,
  type SampleOptions,
  sample,
  TokenHistory,
} from "./sample.ts";

/** Token 1 is the likeliest, then 3, 0, 2. */
const probabilities = [0.2, 0.4, 0.1, 0.3];
const logits = Float32Array.from(probabilities, Math.log);
const draws = 3000;

/** How often each token is drawn. */
function frequencies(options: SampleOptions, from: ArrayLike<number> = logits): number[] {
  const rng = new Rng(11);
  const counts = new Array<number>(from.length).fill(0);
  for (let i = 0; i < draws; i++) counts[sample(from, options, rng)]!++;
  return counts;
}

/** Each count within four deviations of a fair draw of these weights, and 0 where the weight is. */
function expectShares(counts: readonly number[], weights: readonly number[]): void {
  const total = weights.reduce((a, b) => a + b, 0);
  weights.forEach((weight, id) => {
    const p = weight / total;
    const deviation = Math.sqrt(draws * p * (1 - p));
    expect(Math.abs(counts[id]! - draws * p), `token ${id}`).toBeLessThanOrEqual(4 * deviation);
  });
}

describe("sample", () => {
  it("takes the likeliest at temperature 0, the first among equals, and draws nothing", () => {
    const rng = new Rng(1);
    const before = rng.state;
    expect(sample(logits, {}, rng)).toBe(1);
    expect(sample([0, 2, -1, 2], { temperature: 0, topK: 3 }, rng)).toBe(1);
    expect(rng.state).toEqual(before);
  });

  it.each<[string, SampleOptions, number[]]>([
    ["temperature 1 as the logits say", { temperature: 1 }, probabilities],
    // p^(1/2) and p^2: flatter and steeper.
    ["temperature 2 flatter", { temperature: 2 }, probabilities.map(Math.sqrt)],
    ["temperature 0.5 steeper", { temperature: 0.5 }, probabilities.map((p) => p * p)],
    ["top-k 2 from the two likeliest", { temperature: 1, topK: 2 }, [0, 0.4, 0, 0.3]],
    ["top-k beyond the vocabulary from all", { temperature: 1, topK: 9 }, probabilities],
    // 0.4 reaches 0.35; 0.4 + 0.3 reaches 0.65; 0.4 + 0.3 + 0.2 reaches 0.75.
    ["top-p 0.35 from one", { temperature: 1, topP: 0.35 }, [0, 1, 0, 0]],
    ["top-p 0.65 from two", { temperature: 1, topP: 0.65 }, [0, 0.4, 0, 0.3]],
    ["top-p 0.75 from three", { temperature: 1, topP: 0.75 }, [0.2, 0.4, 0, 0.3]],
    // Shares of the likeliest: 0.5, 1, 0.25, 0.75.
    ["min-p 0.6 from two", { temperature: 1, minP: 0.6 }, [0, 0.4, 0, 0.3]],
    ["min-p 0.3 from three", { temperature: 1, minP: 0.3 }, [0.2, 0.4, 0, 0.3]],
    ["min-p 0.999 from the likeliest", { temperature: 1, minP: 0.999 }, [0, 1, 0, 0]],
    // At temperature 2 the share of token 0 is √0.5 = 0.71.
    [
      "min-p after the temperature",
      { temperature: 2, minP: 0.6 },
      [0.2, 0.4, 0, 0.3].map(Math.sqrt),
    ],
    // At temperature 0.5 the likeliest has 0.16 of 0.3, more than half.
    ["top-p after the temperature", { temperature: 0.5, topP: 0.5 }, [0, 1, 0, 0]],
    // Of the two that top-k leaves, the first has 4/7 = 0.57.
    ["top-p of what top-k leaves", { temperature: 1, topK: 2, topP: 0.55 }, [0, 1, 0, 0]],
    [
      "the narrowest of all three",
      { temperature: 1, topK: 3, topP: 0.9, minP: 0.7 },
      [0, 0.4, 0, 0.3],
    ],
  ])("draws at %s", (_, options, weights) => {
    expectShares(frequencies(options), weights);
  });

  it("keeps the earlier of equal tokens where top-k cuts between them", () => {
    expectShares(frequencies({ temperature: 1, topK: 2 }, [1, 1, 1]), [1, 1, 0]);
  });

  it("never draws a token that is ruled out, however many are left", () => {
    const ruled = [-Infinity, 0, -Infinity, 0];
    expectShares(frequencies({ temperature: 1 }, ruled), [0, 1, 0, 1]);
    expectShares(frequencies({ temperature: 1, topP: 0.999 }, ruled), [0, 1, 0, 1]);
  });

  it("stands logits and temperatures at the ends of their range", () => {
    expectShares(frequencies({ temperature: 1e-30 }), [0, 1, 0, 0]);
    expectShares(frequencies({ temperature: 1 }, [1e30, -1e30, 1e30]), [1, 0, 1]);
  });

  it("draws the same from the same seed", () => {
    const run = (seed: number): number[] => {
      const rng = new Rng(seed);
      return Array.from({ length: 20 }, () => sample(logits, { temperature: 1 }, rng));
    };
    expect(run(1)).toEqual(run(1));
    expect(run(1)).not.toEqual(run(2));
  });
});

describe("choiceOf", () => {
  const recorded = fixture<{
    prompt: readonly number[];
    cases: readonly {
      options: Readonly<Record<string, number>>;
      logits: RawTensor;
      probabilities: RawTensor;
    }[];
  }>("sampling");
  const camel = (name: string): string =>
    name.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());

  it.each(recorded.cases)("leaves what transformers leaves at $options", (one) => {
    const options = Object.fromEntries(
      Object.entries(one.options).map(([name, value]) => [camel(name), value]),
    );
    const history = new TokenHistory(recorded.prompt);
    const { ids, probabilities } = choiceOf(one.logits.data, options, history);
    const expected = one.probabilities.data;
    expect([...ids]).toEqual([...expected.keys()].filter((id) => expected[id]! > 0));
    // Their sums are in float32, ours in float64.
    ids.forEach((id, i) => {
      expect(Math.abs(probabilities[i]! - expected[id]!)).toBeLessThan(1e-6);
    });
  });

  it("gives the same with filters that let everything through as without", () => {
    const rng = new Rng(3);
    const many = rng.normals(1000, 2);
    const all = { temperature: 1, topK: 1000, topP: 1, minP: 0, typicalP: 1 };
    expect(choiceOf(many, all)).toEqual(choiceOf(many, { temperature: 1 }));
    const draw = (options: SampleOptions): number[] => {
      const own = new Rng(9);
      return Array.from({ length: 50 }, () => sample(many, options, own));
    };
    expect(draw(all)).toEqual(draw({ temperature: 1 }));
  });

  it("keeps ties at the border of typical, and breaks those of top-p by id", () => {
    // Equal tokens: each is as near to the entropy as the others.
    expect([...choiceOf([1, 1, 1, 1], { typicalP: 0.5 }).ids]).toEqual([0, 1, 2, 3]);
    expect([...choiceOf([1, 1, 1, 1], { topP: 0.5 }).ids]).toEqual([0, 1]);
  });

  it("can leave the likeliest token out, as typical sampling is meant to", () => {
    // Entropy 1.639: -log p is 0.916 for the first token and 2.120 for the five others, distances 0.722
    // and 0.482, so the others come first.
    const p = [0.4, 0.12, 0.12, 0.12, 0.12, 0.12];
    expect([...choiceOf(p.map(Math.log), { typicalP: 0.3 }).ids]).toEqual([1, 2, 3, 4, 5]);
  });

  it("refuses logits that are not numbers", () => {
    const sentence =
      "sample: the logits hold NaN or nothing above -∞ — the model's weights may be broken.";
    expect(() => choiceOf([0, Number.NaN, 1], {})).toThrow(new StateError(sentence));
    expect(() => choiceOf([-Infinity, -Infinity], {})).toThrow(new StateError(sentence));
    // At temperature 0 too, where nothing is drawn.
    const none = [Number.NaN, Number.NaN];
    expect(() => sample(none, {}, new Rng(0))).toThrow(new StateError(sentence));
  });
});

describe("penalties", () => {
  const made = (...tokens: number[]): TokenHistory => {
    const history = new TokenHistory([0]);
    for (const token of tokens) history.add(token);
    return history;
  };
  const rng = new Rng(0);
  const greedy = (from: number[], options: SampleOptions, history?: TokenHistory): number =>
    sample(from, options, rng, history);

  it("of repetition divide positive logits and multiply negative ones, of prompt and made", () => {
    // 3 / 2 = 1.5 < 2; 2 is not seen.
    expect(greedy([3, 2], { repetitionPenalty: 2 }, made())).toBe(1);
    expect(greedy([3, 2], { repetitionPenalty: 1.4 }, made())).toBe(0);
    // -1 · 2 = -2 < -1.5
    expect(greedy([-9, -1, -1.5], { repetitionPenalty: 2 }, made(1))).toBe(2);
  });

  it("of presence and frequency count made tokens alone, not the prompt's", () => {
    expect(greedy([3, 2.5], { presencePenalty: 2 }, made())).toBe(0);
    // Made twice: 3 - 0.2 - 2 · 0.2 = 2.4 < 2.5; made once: 3 - 0.4 = 2.6.
    const options = { presencePenalty: 0.2, frequencyPenalty: 0.2 };
    expect(greedy([3, 2.5], options, made(0, 0))).toBe(1);
    expect(greedy([3, 2.5], options, made(0))).toBe(0);
    // Below 0 they encourage.
    expect(greedy([3, 2.5], { frequencyPenalty: -0.3 }, made(1, 1))).toBe(1);
  });

  it("come after each other: repetition, then presence", () => {
    // 4 / 2 - 1 = 1 > 0.9; (4 - 1) / 2 = 1.5 > 1.2 would be the other order.
    const options = { temperature: 1, repetitionPenalty: 2, presencePenalty: 1 };
    const { probabilities } = choiceOf([4, 0], options, made(0));
    expect(probabilities[0]! / probabilities[1]!).toBeCloseTo(Math.E, 10);
  });

  it("leave the logits as they were", () => {
    const own = Float32Array.of(1, 2);
    sample(own, { repetitionPenalty: 3, presencePenalty: 2 }, rng, made(0, 1));
    expect([...own]).toEqual([1, 2]);
  });
});

describe("logprobsOf", () => {
  it("gives the chosen token's and those of the likeliest, in falling order", () => {
    const { token, logprob, top } = logprobsOf([...logits, -40, -40], 2, 3);
    expect([token, Math.exp(logprob)]).toEqual([2, expect.closeTo(0.1, 6)]);
    expect(top.map(({ token: id }) => id)).toEqual([1, 3, 0]);
    expect(top.map((one) => Math.exp(one.logprob))).toEqual(
      [0.4, 0.3, 0.2].map((p) => expect.closeTo(p, 6)),
    );
    expect(logprobsOf(logits, 0, 0).top).toEqual([]);
    expect(logprobsOf([2, 2, 2], 1, 2).top.map((one) => one.token)).toEqual([0, 1]);
  });
});

describe("argMaxOf", () => {
  it("gives the first of the largest", () => {
    expect(argMaxOf([-3, -1, -1])).toBe(1);
    expect(argMaxOf([-Infinity, -Infinity])).toBe(0);
  });
});

describe("checkSampling", () => {
  it.each<[SampleOptions, string]>([
    [{ temperature: -0.1 }, "temperature must be in [0, 100], got -0.1."],
    [{ temperature: 101 }, "temperature must be in [0, 100], got 101."],
    [{ temperature: Number.NaN }, "temperature must be in [0, 100], got NaN."],
    [{ topK: 0 }, "topK must be a whole number from 1, got 0."],
    [{ topK: 1.5 }, "topK must be a whole number from 1, got 1.5."],
    [{ topP: 0 }, "topP must be in (0, 1], got 0."],
    [{ topP: 1.01 }, "topP must be in (0, 1], got 1.01."],
    [{ minP: 1 }, "minP must be in [0, 1), got 1."],
    [{ minP: -0.5 }, "minP must be in [0, 1), got -0.5."],
    [{ typicalP: 0 }, "typicalP must be in (0, 1], got 0."],
    [{ repetitionPenalty: 0 }, "repetitionPenalty must be in (0, 100], got 0."],
    [{ presencePenalty: 2.1 }, "presencePenalty must be in [-2, 2], got 2.1."],
    [{ frequencyPenalty: -3 }, "frequencyPenalty must be in [-2, 2], got -3."],
  ])("refuses %j", (options, sentence) => {
    expect(() => checkSampling(options)).toThrow(new OptionError(sentence));
  });

  it("takes the ends of each range that belong to it", () => {
    checkSampling({});
    checkSampling({ temperature: 0, topK: 1, topP: 1, minP: 0 });
    checkSampling({ temperature: 100 });
  });
});

describe("decide", () => {
  it("gives the distance to the next logit at temperature 0, after penalties", () => {
    const rng = new Rng(1);
    expect(decide([1, 3, 2.5], {}, rng)).toEqual({ token: 1, margin: 0.5 });
    const history = new TokenHistory([1]);
    // 3 / 1.5 = 2 is below 2.5.
    expect(decide([1, 3, 2.5], { repetitionPenalty: 1.5 }, rng, history)).toEqual({
      token: 2,
      margin: 0.5,
    });
    expect(decide([2, 2], {}, rng)).toEqual({ token: 0, margin: 0 });
    expect(decide([2], {}, rng).margin).toBe(Infinity);
  });

  it("gives the distance of the draw to the borders of its share, in logits", () => {
    // Shares end at 0.2, 0.6, 0.7 and 1.
    const ends = [0, 0.2, 0.6, 0.7, 1];
    const [rng, same] = [new Rng(11), new Rng(11)];
    for (let i = 0; i < 200; i++) {
      const { token, margin } = decide(logits, { temperature: 1 }, rng);
      const drawn = same.uniform();
      const below = token === 0 ? Infinity : drawn - ends[token]!;
      const above = token === 3 ? Infinity : ends[token + 1]! - drawn;
      expect(margin).toBeCloseTo(4 * Math.min(below, above), 5);
    }
  });

  it("takes no other token while logits move by less than the margin", () => {
    const noise = new Rng(3);
    for (const temperature of [0, 0.5, 1.3]) {
      for (let seed = 0; seed < 300; seed++) {
        const made = Array.from({ length: 12 }, () => 3 * noise.normal());
        const { token, margin } = decide(made, { temperature }, new Rng(seed));
        const most = 0.999 * Math.min(margin, 0.5);
        const moved = made.map((logit) => logit + most * (noise.uniform() - 0.5));
        expect(decide(moved, { temperature }, new Rng(seed)).token).toBe(token);
      }
    }
  });
});
