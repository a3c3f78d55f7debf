/**
 * ROUGE: how much of a reference a summary holds, by n-grams and by longest common subsequences.
 *
 * Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", ACL workshop 2004, §2-3. Words, ties and
 * the count against double hits follow the package `rouge_score` without stemming: lower case, and only
 * a-z and 0-9 make words, so that texts in other scripts have none.
 */
import { OptionError } from "../../errors.ts";

export interface RougeScore {
  readonly precision: number;
  readonly recall: number;
  readonly f1: number;
}

export interface RougeScores {
  /** Single words. */
  readonly rouge1: RougeScore;
  /** Pairs of neighbours. */
  readonly rouge2: RougeScore;
  /** Longest common subsequence of the whole texts. */
  readonly rougeL: RougeScore;
  /** The same sentence by sentence, where a line is a sentence (§3.2). */
  readonly rougeLsum: RougeScore;
}

/** Cells of one table of common subsequences. */
const maxCells = 2 ** 26;

/** The words that ROUGE compares. */
export function rougeWords(text: string): string[] {
  return text
    .toLowerCase()
    .split(/[^a-z0-9]+/)
    .filter(Boolean);
}

function scoreOf(hits: number, made: number, wanted: number): RougeScore {
  const precision = hits / Math.max(made, 1);
  const recall = hits / Math.max(wanted, 1);
  const both = precision + recall;
  return { precision, recall, f1: both > 0 ? (2 * precision * recall) / both : 0 };
}

function counted(items: Iterable<string>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const item of items) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

function ngrams(words: readonly string[], n: number): string[] {
  return Array.from({ length: Math.max(0, words.length - n + 1) }, (_, i) =>
    words.slice(i, i + n).join(" "),
  );
}

function rougeN(made: readonly string[], wanted: readonly string[], n: number): RougeScore {
  const [a, b] = [ngrams(made, n), ngrams(wanted, n)];
  const have = counted(a);
  let hits = 0;
  for (const [gram, count] of counted(b)) hits += Math.min(count, have.get(gram) ?? 0);
  return scoreOf(hits, a.length, b.length);
}

/** Positions in `wanted` of one longest common subsequence. */
function commonPositions(wanted: readonly string[], made: readonly string[]): number[] {
  const width = made.length + 1;
  if ((wanted.length + 1) * width > maxCells) {
    throw new OptionError(
      `rouge: texts of ${wanted.length} and ${made.length} words are too long to compare — cut them.`,
    );
  }
  const table = new Uint32Array((wanted.length + 1) * width);
  for (let i = 1; i <= wanted.length; i++) {
    for (let j = 1; j < width; j++) {
      const at = i * width + j;
      table[at] =
        wanted[i - 1] === made[j - 1]
          ? table[at - width - 1]! + 1
          : Math.max(table[at - width]!, table[at - 1]!);
    }
  }
  const positions: number[] = [];
  let [i, j] = [wanted.length, made.length];
  while (i > 0 && j > 0) {
    if (wanted[i - 1] === made[j - 1]) {
      positions.push(--i);
      j--;
    } else if (table[i * width + j - 1]! > table[(i - 1) * width + j]!) j--;
    else i--;
  }
  return positions.reverse();
}

function rougeLsum(made: string, wanted: string): RougeScore {
  const sentences = (text: string): string[][] => text.split("\n").map(rougeWords);
  const [ours, theirs] = [sentences(made), sentences(wanted)];
  const [left, leftWanted] = [counted(ours.flat()), counted(theirs.flat())];
  let hits = 0;
  for (const sentence of theirs) {
    const union = new Set(ours.flatMap((other) => commonPositions(sentence, other)));
    for (const position of [...union].sort((a, b) => a - b)) {
      const word = sentence[position]!;
      const [a, b] = [left.get(word) ?? 0, leftWanted.get(word) ?? 0];
      if (a === 0 || b === 0) continue;
      hits++;
      left.set(word, a - 1);
      leftWanted.set(word, b - 1);
    }
  }
  return scoreOf(hits, ours.flat().length, theirs.flat().length);
}

/**
 * All four scores of a text against its reference.
 * @throws OptionError when the texts are too long for a table of common subsequences (2^26 cells).
 */
export function rouge(text: string, reference: string): RougeScores {
  const [made, wanted] = [rougeWords(text), rougeWords(reference)];
  return {
    rouge1: rougeN(made, wanted, 1),
    rouge2: rougeN(made, wanted, 2),
    rougeL: scoreOf(commonPositions(wanted, made).length, made.length, wanted.length),
    rougeLsum: rougeLsum(text, reference),
  };
}
