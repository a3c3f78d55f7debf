import { describe, expect, it } from "vitest";
import { bestOf, exactMatch, normalizeAnswer, tokenF1 } from "./answers.ts";

describe("normalizeAnswer", () => {
  it.each([
    ["The  Eiffel-Tower, an icon!", "eiffeltower icon"],
    ["a an the", ""],
    ["Theatre and anthem", "theatre and anthem"],
    ["thé à la café", "thé à la café"],
    ["$1,000.50", "100050"],
    ["a\tb\n c", "b c"],
  ])("makes %j into %j", (text, expected) => {
    expect(normalizeAnswer(text)).toBe(expected);
  });
});

describe("exactMatch", () => {
  it("looks past case, articles and punctuation, and at nothing else", () => {
    expect(exactMatch("The cat.", "cat")).toBe(1);
    expect(exactMatch("cats", "cat")).toBe(0);
    expect(exactMatch("", "the")).toBe(1);
  });
});

describe("tokenF1", () => {
  it("is the harmonic mean of precision and recall over shared words", () => {
    // Shared: "cat", "sat" once of two; P = 2/4, R = 2/3; 2PR/(P+R) = 4/7.
    expect(tokenF1("the cat sat sat down", "a cat sat here")).toBeCloseTo(4 / 7, 12);
    expect(tokenF1("x y", "x y")).toBe(1);
    expect(tokenF1("x", "y")).toBe(0);
  });

  it("is 1 for two empty answers and 0 for one", () => {
    expect(tokenF1("the", "")).toBe(1);
    expect(tokenF1("cat", "the")).toBe(0);
    expect(tokenF1("", "cat")).toBe(0);
  });

  it("takes the best of several", () => {
    expect(bestOf(tokenF1, "red", ["blue", "red car", "green"])).toBeCloseTo(2 / 3, 12);
    expect(bestOf(exactMatch, "red", [])).toBe(0);
  });
});
