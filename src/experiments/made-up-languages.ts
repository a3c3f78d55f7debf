/**
 * A made-up multilingual world: one grammar behind six languages, each with words, endings and an order of its
 * own. A share of the words is common to all (cognates).
 *
 *   S → NP VP (conj NP VP) punct     NP → (det) (adj) noun | pron | num noun     VP → verb (adv) (NP) (adp NP)
 *
 * Number shows on nouns and verbs, tense on verbs. Lemmas follow Zipf's law.
 */
import { Rng } from "../tensor/rng.ts";

export const wordClasses = [
  "noun",
  "verb",
  "adj",
  "adv",
  "det",
  "pron",
  "adp",
  "conj",
  "num",
  "punct",
] as const;

export type WordClass = (typeof wordClasses)[number];

/** Lemmas of each class; digits and punctuation are the same in all languages. */
const counts: Readonly<Record<WordClass, number>> = {
  noun: 60,
  verb: 60,
  adj: 60,
  adv: 30,
  det: 6,
  pron: 8,
  adp: 10,
  conj: 5,
  num: 10,
  punct: 3,
};

export interface TaggedSentence {
  readonly words: readonly string[];
  /** Places in `wordClasses`. */
  readonly tags: readonly number[];
}

const orders = ["svo", "sov", "vso"] as const;

export interface Language {
  readonly id: number;
  sentence(rng: Rng): TaggedSentence;
}

type Word = readonly [text: string, tag: WordClass];

function spell(rng: Rng, syllables: number): string {
  const [consonants, vowels] = ["bdfgklmnprstvz", "aeiou"];
  return Array.from(
    { length: syllables },
    () => consonants![rng.integer(14)]! + vowels![rng.integer(5)]!,
  ).join("");
}

/** @param cognates share of lemmas that all languages have in common */
export function madeUpLanguage(id: number, cognates: number, seed = 0): Language {
  const world = new Rng(seed).fold("languages");
  const own = world.fold("language", id);
  const lexicon = (kind: WordClass): readonly string[] =>
    Array.from({ length: counts[kind] }, (_, i) => {
      if (kind === "num") return String(i);
      if (kind === "punct") return [".", "!", "?"][i]!;
      const isShared = world.fold("shared", kind, i).uniform() < cognates;
      const from = isShared ? world : own;
      return spell(from.fold("word", kind, i), counts[kind] > 20 ? 2 + (i % 2) : 1);
    });
  const words = Object.fromEntries(wordClasses.map((kind) => [kind, lexicon(kind)])) as Readonly<
    Record<WordClass, readonly string[]>
  >;
  const [plural, past, agreeing] = ["plural", "past", "agreeing"].map((name) =>
    spell(own.fold("ending", name), 1),
  ) as [string, string, string];
  const order = orders[id % orders.length]!;
  const isAdjectiveFirst = own.fold("adjective").uniform() < 0.5;

  const pick = (kind: WordClass, rng: Rng): string => {
    const list = words[kind];
    // Zipf: the i-th lemma about as 1 / i.
    return list[Math.min(list.length - 1, Math.floor(list.length ** rng.uniform() - 1 + 1e-9))]!;
  };
  const nounPhrase = (rng: Rng): { readonly words: Word[]; readonly isPlural: boolean } => {
    const isPlural = rng.uniform() < 0.4;
    if (rng.uniform() < 0.2) return { words: [[pick("pron", rng), "pron"]], isPlural };
    const noun: Word = [pick("noun", rng) + (isPlural ? plural : ""), "noun"];
    const made: Word[] = [noun];
    if (rng.uniform() < 0.35) {
      const adjective: Word = [pick("adj", rng), "adj"];
      if (isAdjectiveFirst) made.unshift(adjective);
      else made.push(adjective);
    }
    if (isPlural && rng.uniform() < 0.3) made.unshift([pick("num", rng), "num"]);
    else if (rng.uniform() < 0.7) made.unshift([pick("det", rng), "det"]);
    return { words: made, isPlural };
  };
  const clause = (rng: Rng): Word[] => {
    const subject = nounPhrase(rng);
    const ending = (rng.uniform() < 0.5 ? past : "") + (subject.isPlural ? agreeing : "");
    const verb: Word[] = [[pick("verb", rng) + ending, "verb"]];
    if (rng.uniform() < 0.3) verb.push([pick("adv", rng), "adv"]);
    const object = rng.uniform() < 0.6 ? nounPhrase(rng).words : [];
    if (rng.uniform() < 0.3) object.push([pick("adp", rng), "adp"], ...nounPhrase(rng).words);
    const parts = { s: subject.words, v: verb, o: object };
    return [...order].flatMap((part) => parts[part as "s" | "v" | "o"]);
  };
  return {
    id,
    sentence: (rng) => {
      const made = clause(rng);
      if (rng.uniform() < 0.25) made.push([pick("conj", rng), "conj"], ...clause(rng));
      made.push([pick("punct", rng), "punct"]);
      return {
        words: made.map(([text]) => text),
        tags: made.map(([, tag]) => wordClasses.indexOf(tag)),
      };
    },
  };
}

/** Sentences of a language by a stream of their own. */
export function sentencesOf(language: Language, count: number, rng: Rng): TaggedSentence[] {
  return Array.from({ length: count }, (_, i) => language.sentence(rng.fold(i)));
}
