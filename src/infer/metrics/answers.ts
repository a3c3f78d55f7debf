/** Answers beside expected ones: exact match and token F1, as SQuAD counts them. */

/** The set of `string.punctuation` in Python, which SQuAD's script removes. */
const punctuation = /[!-/:-@[-`{-~]/g;
/** Articles as whole words: `\b` of JavaScript knows ASCII letters alone. */
const articles = /(?<![\p{L}\p{N}_])(?:a|an|the)(?![\p{L}\p{N}_])/gu;

/**
 * Lower case, without punctuation, articles and spare white space.
 * Rajpurkar et al. 2016, arXiv:1606.05250, §4.1 and its script `normalize_answer`.
 */
export function normalizeAnswer(text: string): string {
  return text
    .toLowerCase()
    .replace(punctuation, "")
    .replace(articles, " ")
    .split(/\s+/)
    .filter((word) => word !== "")
    .join(" ");
}

/** 1 where the normalized answers are equal, else 0. */
export function exactMatch(answer: string, expected: string): number {
  return normalizeAnswer(answer) === normalizeAnswer(expected) ? 1 : 0;
}

/**
 * 2PR / (P + R) over the words that both share, each counted as often as in the one that has fewer. Where
 * one has no words at all: 1 if both have none, as in SQuAD 2.0's script.
 */
export function tokenF1(answer: string, expected: string): number {
  const words = (text: string): string[] => normalizeAnswer(text).split(" ").filter(Boolean);
  const [made, wanted] = [words(answer), words(expected)];
  if (made.length === 0 || wanted.length === 0) return made.length === wanted.length ? 1 : 0;
  const left = new Map<string, number>();
  for (const word of wanted) left.set(word, (left.get(word) ?? 0) + 1);
  let shared = 0;
  for (const word of made) {
    const count = left.get(word) ?? 0;
    if (count === 0) continue;
    left.set(word, count - 1);
    shared++;
  }
  return (2 * shared) / (made.length + wanted.length);
}

/** The best of a measure over several expected answers, as SQuAD takes it; 0 where there are none. */
export function bestOf(
  measure: (answer: string, expected: string) => number,
  answer: string,
  expected: readonly string[],
): number {
  return expected.reduce((best, one) => Math.max(best, measure(answer, one)), 0);
}
