/**
 * A tri-gram model that stands in for a language model: rows by the last two tokens, by the last one, and one
 * for all, asked in this order (back-off).
 */
import { OptionError } from "../../../errors.ts";
import { NextTokenRows, type RowsOptions } from "./next-token-rows.ts";

/** Contexts are numbers below 2^53: pairs of tokens, tokens, and one for all. */
const maxVocabSize = 2 ** 26;

/** Tokens of a corpus at most: sorting them takes 16 bytes each. */
export const maxCorpusTokens: number = 2 ** 24;

/** No token: before a text of one token stands none. */
export const noToken = -1;

export class TrigramRepresentative {
  readonly rows: NextTokenRows;
  readonly #vocabSize: number;

  /** @throws OptionError for a vocabulary beyond 2^26, or memory that holds no rows. */
  constructor(vocabSize: number, options: RowsOptions) {
    if (vocabSize > maxVocabSize) {
      throw new OptionError(
        `table: takes vocabularies of at most ${maxVocabSize} tokens, got ${vocabSize}.`,
      );
    }
    this.#vocabSize = vocabSize;
    this.rows = new NextTokenRows(options);
  }

  /** Where the row for what follows tokens u, v is: of both, of v alone, of any text; -1 for none. */
  find(u: number, v: number): number {
    if (u !== noToken) {
      const place = this.rows.find(this.#pair(u, v));
      if (place >= 0) return place;
    }
    const place = this.rows.find(this.#single(v));
    return place >= 0 ? place : this.rows.find(this.#any);
  }

  #pair(u: number, v: number): number {
    return u * this.#vocabSize + v;
  }

  #single(v: number): number {
    return this.#vocabSize * this.#vocabSize + v;
  }

  get #any(): number {
    return this.#vocabSize * (this.#vocabSize + 1);
  }

  /**
   * Takes shares from counts in a corpus: P(w | u, v) = count(u, v, w) / count(u, v). A row that is there is
   * replaced. Frequent contexts are written last, so that in a full table rare ones make room.
   * @throws OptionError for a corpus of more than 2^24 tokens, or tokens beyond the vocabulary.
   */
  fit(corpus: Int32Array): void {
    if (corpus.length > maxCorpusTokens) {
      throw new OptionError(
        `table: a corpus of ${corpus.length} tokens is too long, at most ${maxCorpusTokens} are taken — give a part of it.`,
      );
    }
    for (const token of corpus) {
      if (token >= 0 && token < this.#vocabSize) continue;
      throw new OptionError(
        `table: token ${token} of the corpus is not among the model's ${this.#vocabSize}.`,
      );
    }
    const at = (from: number, context: (i: number) => number): void => {
      const count = Math.max(0, corpus.length - from);
      const contexts = Float64Array.from({ length: count }, (_, i) => context(i + from));
      this.#count(contexts, corpus.subarray(from));
    };
    at(2, (i) => this.#pair(corpus[i - 2]!, corpus[i - 1]!));
    at(1, (i) => this.#single(corpus[i - 1]!));
    at(0, () => this.#any);
  }

  /** Rows of contexts from what followed each. */
  #count(contexts: Float64Array, next: Int32Array): void {
    const distinct = contexts.slice().sort();
    let kinds = 0;
    for (const context of distinct) {
      if (kinds === 0 || distinct[kinds - 1] !== context) distinct[kinds++] = context;
    }
    const rankOf = (context: number): number => {
      let [low, high] = [0, kinds - 1];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (distinct[middle]! < context) low = middle + 1;
        else high = middle;
      }
      return low;
    };
    const joint = contexts.map((context, i) => rankOf(context) * this.#vocabSize + next[i]!).sort();
    const starts = new Int32Array(kinds + 1).fill(joint.length);
    for (let i = joint.length - 1; i >= 0; i--) {
      starts[Math.floor(joint[i]! / this.#vocabSize)] = i;
    }
    const sizeOf = (kind: number): number => starts[kind + 1]! - starts[kind]!;
    const order = Int32Array.from({ length: kinds }, (_, kind) => kind);
    order.sort((a, b) => sizeOf(a) - sizeOf(b) || a - b);
    for (const kind of order) {
      const tokens: number[] = [];
      const counts: number[] = [];
      for (let i = starts[kind]!; i < starts[kind + 1]!; i++) {
        const token = joint[i]! % this.#vocabSize;
        if (tokens.at(-1) === token) counts[counts.length - 1]!++;
        else {
          tokens.push(token);
          counts.push(1);
        }
      }
      this.rows.write(distinct[kind]!, tokens, counts);
    }
  }

  /**
   * R[u, v] ← (1 - rate) · R[u, v] + rate · P, and the row of v alone at half the rate: it meets many u.
   * @param shares the model's probabilities of these tokens, divided by their sum
   */
  update(
    u: number,
    v: number,
    tokens: ArrayLike<number>,
    shares: ArrayLike<number>,
    rate: number,
  ): void {
    if (u !== noToken) this.rows.blend(this.#pair(u, v), tokens, shares, rate);
    this.rows.blend(this.#single(v), tokens, shares, rate / 2);
  }
}

/** The `count` likeliest tokens by logits, in falling order, and their probabilities among themselves. */
export function likeliest(
  logits: Float32Array,
  count: number,
): { readonly tokens: number[]; readonly shares: number[] } {
  const tokens: number[] = [];
  for (let id = 0; id < logits.length; id++) {
    const logit = logits[id]!;
    if (tokens.length === count && !(logit > logits[tokens[count - 1]!]!)) continue;
    if (tokens.length === count) tokens.pop();
    let at = tokens.length;
    while (at > 0 && logits[tokens[at - 1]!]! < logit) at--;
    tokens.splice(at, 0, id);
  }
  const top = logits[tokens[0]!]!;
  const weights = tokens.map((id) => Math.exp(logits[id]! - top));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return { tokens, shares: weights.map((weight) => weight / sum) };
}
