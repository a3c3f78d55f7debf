/**
 * A made-up corpus in the form of Brown's, for the quick budget: sentences of a small grammar with Brown's tags,
 * and words that some genres use more than others.
 */
import { Rng } from "../../tensor/rng.ts";
import type { BrownFile, TaggedSentence } from "./brown.ts";

const consonants = "bdfghjklmnprstvz";
const vowels = "aeiou";

/** A word of two or three syllables that is the same for the same number. */
function word(kind: string, index: number): string {
  const rng = new Rng(index).fold("word", kind);
  return Array.from(
    { length: 2 + rng.integer(2) },
    () => consonants[rng.integer(consonants.length)]! + vowels[rng.integer(vowels.length)]!,
  ).join("");
}

const kinds = { nn: 60, jj: 24, vbd: 30, rb: 10 } as const;
type Kind = keyof typeof kinds;

/** A word of a kind; half the time one of those that the genre prefers. */
function pick(kind: Kind, genre: number, rng: Rng): [string, string] {
  const count = kinds[kind];
  const own = Math.floor(count / 5);
  const index =
    rng.uniform() < 0.5
      ? (genre * own + rng.integer(own)) % count
      : Math.floor(count * rng.uniform() ** 2);
  return [word(kind, index), kind];
}

function sentence(genre: number, rng: Rng): TaggedSentence {
  const out: [string, string][] = [];
  const nounPhrase = (): void => {
    out.push(rng.uniform() < 0.7 ? ["the", "at"] : ["a", "at"]);
    if (rng.uniform() < 0.4) out.push(pick("jj", genre, rng));
    out.push(pick("nn", genre, rng));
    if (rng.uniform() < 0.2) {
      out.push(["of", "in"]);
      out.push(["the", "at"], pick("nn", genre, rng));
    }
  };
  nounPhrase();
  if (rng.uniform() < 0.3) out.push(pick("rb", genre, rng));
  out.push(pick("vbd", genre, rng));
  nounPhrase();
  if (rng.uniform() < 0.3) {
    out.push(["and", "cc"], pick("vbd", genre, rng));
    nounPhrase();
  }
  out.push([".", "."]);
  return { words: out.map(([text]) => text), tags: out.map(([, tag]) => tag) };
}

/** Genres a to r as Brown has them, three files each. */
export function madeUpBrown(perGenre = 3, sentences = 60): readonly BrownFile[] {
  return [..."abcdefghjklmnpr"].flatMap((genre, g) =>
    Array.from({ length: perGenre }, (_, i): BrownFile => {
      const rng = new Rng(g).fold("made-up brown", i);
      return {
        name: `c${genre}${String(i + 1).padStart(2, "0")}`,
        genre,
        sentences: Array.from({ length: sentences }, () => sentence(g, rng)),
      };
    }),
  );
}
