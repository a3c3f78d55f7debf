/** How well what is wanted is found: ranks, and measures over them (Manning et al. 2008, chapter 8). */
import { OptionError } from "../../errors.ts";

/**
 * Document numbers by falling cosine or dot product, the smaller number first among equals.
 * @param queries (Q, D) and documents (N, D), row by row
 */
export function rankByProduct(
  queries: readonly ArrayLike<number>[],
  documents: readonly ArrayLike<number>[],
): Int32Array<ArrayBuffer>[] {
  return queries.map((query) => {
    const scores = Float64Array.from(documents, (document) => {
      let total = 0;
      for (let i = 0; i < query.length; i++) total += query[i]! * document[i]!;
      return total;
    });
    return Int32Array.from(documents, (_, i) => i).sort((a, b) => scores[b]! - scores[a]! || a - b);
  });
}

export interface RetrievalScores {
  /** Mean of 1 / rank of the first that is wanted, among the first k. */
  readonly mrr: number;
  /** Normalised discounted gain of the first k, each wanted document counting 1. */
  readonly ndcg: number;
  /** Share of the wanted that is among the first k. */
  readonly recall: number;
  /** Share of the first k that is wanted. */
  readonly precision: number;
  /** Share of queries of which one that is wanted is among the first k. */
  readonly accuracy: number;
  /** Mean over queries of the mean precision at each wanted document among the first k. */
  readonly map: number;
}

/**
 * Means over queries, cut at rank k.
 * @param ranked document numbers of each query, the best first
 * @param wanted document numbers of each query, at least one
 * @throws OptionError when a query wants nothing, or k is below 1.
 */
export function retrievalScores(
  ranked: readonly ArrayLike<number>[],
  wanted: readonly ReadonlySet<number>[],
  k: number,
): RetrievalScores {
  if (!(Number.isInteger(k) && k >= 1)) {
    throw new OptionError(`retrieval: k must be a whole number from 1, got ${k}.`);
  }
  if (ranked.length !== wanted.length || ranked.length === 0) {
    throw new OptionError(
      `retrieval: needs what is wanted of each query, got ${wanted.length} for ${ranked.length}.`,
    );
  }
  const sums = { mrr: 0, ndcg: 0, recall: 0, precision: 0, accuracy: 0, map: 0 };
  ranked.forEach((order, query) => {
    const right = wanted[query]!;
    if (right.size === 0) throw new OptionError(`retrieval: query ${query} wants no document.`);
    let [hits, gain, precisions, firstRank] = [0, 0, 0, 0];
    for (let rank = 1; rank <= Math.min(k, order.length); rank++) {
      if (!right.has(order[rank - 1]!)) continue;
      hits++;
      firstRank ||= rank;
      gain += 1 / Math.log2(rank + 1);
      precisions += hits / rank;
    }
    const most = Math.min(right.size, k);
    let ideal = 0;
    for (let rank = 1; rank <= most; rank++) ideal += 1 / Math.log2(rank + 1);
    sums.mrr += firstRank ? 1 / firstRank : 0;
    sums.ndcg += gain / ideal;
    sums.recall += hits / right.size;
    sums.precision += hits / k;
    sums.accuracy += hits > 0 ? 1 : 0;
    sums.map += precisions / most;
  });
  const mean = (total: number): number => total / ranked.length;
  return {
    mrr: mean(sums.mrr),
    ndcg: mean(sums.ndcg),
    recall: mean(sums.recall),
    precision: mean(sums.precision),
    accuracy: mean(sums.accuracy),
    map: mean(sums.map),
  };
}
