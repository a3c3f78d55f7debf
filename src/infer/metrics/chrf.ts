/**
 * chrF: F-score of character n-grams, weighted to recall.
 *
 * Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015. As `sacrebleu` counts
 * it: n from 1 to 6, beta 2, white space left out, n-grams summed over the whole set, orders without an
 * n-gram on a side left out of the mean.
 */
import { OptionError } from "../../errors.ts";

const orders = 6;
const beta = 2;

function grams(text: string, n: number): Map<string, number> {
  const characters = [...text.replace(/\s+/gu, "")];
  const counts = new Map<string, number>();
  for (let i = 0; i + n <= characters.length; i++) {
    const gram = characters.slice(i, i + n).join("");
    counts.set(gram, (counts.get(gram) ?? 0) + 1);
  }
  return counts;
}

const total = (counts: Map<string, number>): number => {
  let sum = 0;
  for (const count of counts.values()) sum += count;
  return sum;
};

/**
 * From 0 to 100 over a set of answers with a reference each.
 * @throws OptionError for lists of different lengths, or none.
 */
export function chrf(answers: readonly string[], references: readonly string[]): number {
  if (answers.length !== references.length || answers.length === 0) {
    throw new OptionError(
      `chrf: needs a reference for each answer and at least one, got ${references.length} for ${answers.length}.`,
    );
  }
  let [precision, recall, used] = [0, 0, 0];
  for (let n = 1; n <= orders; n++) {
    let [hits, made, wanted] = [0, 0, 0];
    answers.forEach((answer, i) => {
      const [ours, theirs] = [grams(answer, n), grams(references[i]!, n)];
      made += total(ours);
      wanted += total(theirs);
      for (const [gram, count] of ours) hits += Math.min(count, theirs.get(gram) ?? 0);
    });
    if (made === 0 || wanted === 0) continue;
    precision += hits / made;
    recall += hits / wanted;
    used++;
  }
  if (used === 0) return 0;
  precision /= used;
  recall /= used;
  if (precision + recall === 0) return 0;
  return (100 * (1 + beta ** 2) * precision * recall) / (beta ** 2 * precision + recall);
}
