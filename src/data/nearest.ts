/**
 * The baseline a fine-tuned model has to beat: answer with the completion of the most similar
 * training prompt. Similarity is the cosine of TF-IDF word vectors,
 *
 *   w(t, d) = tf(t, d) · idf(t)      idf(t) = ln((1 + N) / (1 + df(t))) + 1
 *
 * tf(t, d): times word t stands in prompt d; df(t): training prompts with t; N: training prompts.
 * Words are runs of letters, digits and apostrophes in lower case. Words of a prompt that no
 * training prompt has cannot match and are left out. Of equal prompts the earliest answers.
 */

import { OptionError } from "../errors.ts";

export type PromptCompletion = { readonly prompt: string; readonly completion: string };

const words = (text: string): string[] => text.toLowerCase().match(/[\p{L}\p{N}']+/gu) ?? [];

function counts(text: string): Map<string, number> {
  const result = new Map<string, number>();
  for (const word of words(text)) result.set(word, (result.get(word) ?? 0) + 1);
  return result;
}

/**
 * The completion of the nearest training prompt, for each prompt.
 *
 * @throws OptionError when `train` is empty.
 */
export function nearestNeighbour(
  train: readonly PromptCompletion[],
  prompts: readonly string[],
): string[] {
  if (train.length === 0) {
    throw new OptionError("nearestNeighbour: train is empty — give at least one example.");
  }
  // Each word's training prompts with its weight there, divided by the length of their vector.
  const postings = new Map<string, { index: number; weight: number }[]>();
  train.forEach(({ prompt }, index) => {
    for (const [word, weight] of counts(prompt)) {
      const list = postings.get(word);
      if (list) list.push({ index, weight });
      else postings.set(word, [{ index, weight }]);
    }
  });
  const idf = (word: string): number =>
    Math.log((1 + train.length) / (1 + (postings.get(word)?.length ?? 0))) + 1;
  const squares = new Float64Array(train.length);
  for (const [word, list] of postings) {
    for (const posting of list) {
      posting.weight *= idf(word);
      squares[posting.index]! += posting.weight ** 2;
    }
  }

  return prompts.map((prompt) => {
    // The length of the prompt's own vector is the same for every candidate and is not divided out.
    const scores = new Float64Array(train.length);
    for (const [word, count] of counts(prompt)) {
      const weight = count * idf(word);
      for (const posting of postings.get(word) ?? []) {
        scores[posting.index]! += (weight * posting.weight) / Math.sqrt(squares[posting.index]!);
      }
    }
    let best = 0;
    for (let i = 1; i < scores.length; i++) if (scores[i]! > scores[best]!) best = i;
    return train[best]!.completion;
  });
}
