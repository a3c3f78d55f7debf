import { expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import { madeUpLanguage, sentencesOf, wordClasses } from "./made-up-languages.ts";

const wordsOf = (id: number, cognates: number): Set<string> =>
  new Set(
    sentencesOf(madeUpLanguage(id, cognates), 800, new Rng(1)).flatMap(({ words, tags }) =>
      words.filter((_, i) => wordClasses[tags[i]!] === "adj"),
    ),
  );

it("gives every word a class, the same sentences again, and ends with punctuation", () => {
  const language = madeUpLanguage(2, 0.25);
  const sentences = sentencesOf(language, 50, new Rng(3));
  expect(sentencesOf(language, 50, new Rng(3))).toEqual(sentences);
  for (const { words, tags } of sentences) {
    expect(tags).toHaveLength(words.length);
    expect(wordClasses[tags.at(-1)!]).toBe("punct");
    expect(tags.every((tag) => tag >= 0 && tag < wordClasses.length)).toBe(true);
  }
});

it("shares words between languages as cognates say", () => {
  const shared = (cognates: number): number => {
    const [one, other] = [wordsOf(0, cognates), wordsOf(4, cognates)];
    return [...one].filter((word) => other.has(word)).length / one.size;
  };
  expect(shared(1)).toBe(1);
  expect(shared(0)).toBeLessThan(0.1);
  expect(shared(0.25)).toBeGreaterThan(0.1);
  expect(shared(0.25)).toBeLessThan(0.5);
});

it("orders words by the language", () => {
  // Third place of a plain clause: verbs are never first where the order is subject, object, verb.
  const isVerbFirst = (id: number): boolean =>
    sentencesOf(madeUpLanguage(id, 0.25), 40, new Rng(3)).some(
      ({ tags }) => wordClasses[tags[0]!] === "verb",
    );
  expect([0, 1, 2].map(isVerbFirst)).toEqual([false, false, true]);
});
