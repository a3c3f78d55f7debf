/**
 * Beam search: the bookkeeping of one text's continuations, without a model.
 *
 * Each step extends all running beams by every token and keeps the best of them by the sum of log
 * probabilities. A beam that takes the ending token, or reaches the greatest length, is finished with the
 * score
 *
 *   s = (Σ log p) / length^λ        length: tokens made, the ending one among them; λ → lengthPenalty
 *
 * if it stands among the first `numBeams` of the step; the best `numBeams` finished ones are kept. When a
 * search ends is said by `earlyStopping`. The rules are those of transformers' `generate` (`_beam_search`,
 * version 5), so that its answers and scores are the same.
 */
import { OptionError } from "../errors.ts";
import { notNumbers } from "./sample.ts";

export interface BeamOptions {
  /** Beams that run side by side, 1 to 64; default 1: no search. */
  readonly numBeams?: number;
  /** Above 0 favours long answers, below 0 short ones; in [-10, 10], default 1. */
  readonly lengthPenalty?: number;
  /**
   * When `numBeams` beams are finished: true ends the search; false ends it where the best running beam
   * scores below all of them at its present length; "never" counts with the length that favours it most.
   * Default false.
   */
  readonly earlyStopping?: boolean | "never";
}

/** @throws OptionError naming the setting outside its range. */
export function checkBeams(options: BeamOptions): void {
  const { numBeams = 1, lengthPenalty = 1, earlyStopping = false } = options;
  if (!(Number.isInteger(numBeams) && numBeams >= 1 && numBeams <= 64)) {
    throw new OptionError(`numBeams must be a whole number from 1 to 64, got ${numBeams}.`);
  }
  if (!(lengthPenalty >= -10 && lengthPenalty <= 10)) {
    throw new OptionError(`lengthPenalty must be in [-10, 10], got ${lengthPenalty}.`);
  }
  if (typeof earlyStopping !== "boolean" && earlyStopping !== "never") {
    throw new OptionError(
      `earlyStopping must be true, false or "never", got ${JSON.stringify(earlyStopping)}.`,
    );
  }
}

/** A token and those before it. */
interface Link {
  readonly token: number;
  readonly before: Link | undefined;
}

interface Beam {
  readonly last: Link | undefined;
  /** Sum of log probabilities; of a finished beam over length^λ. */
  readonly score: number;
  /** Which running beam of the step before it extends. */
  readonly parent: number;
}

/** Where beams that do not run yet begin: all tokens of the first step are the first beam's. */
const nowhere = -1e9;

/** The search for one text. */
export class BeamSearch {
  readonly #count: number;
  readonly #penalty: number;
  readonly #earlyStopping: boolean | "never";
  readonly #maxLength: number;
  readonly #endId: number;
  #running: Beam[];
  #finished: Beam[] = [];
  #length = 0;
  #isDone = false;

  /** @param maxLength most tokens of an answer, the ending one among them; from 1 */
  constructor(options: BeamOptions, maxLength: number, endId: number) {
    checkBeams(options);
    this.#count = options.numBeams ?? 1;
    this.#penalty = options.lengthPenalty ?? 1;
    this.#earlyStopping = options.earlyStopping ?? false;
    this.#maxLength = maxLength;
    this.#endId = endId;
    this.#running = Array.from({ length: this.#count }, (_, i) => ({
      last: undefined,
      score: i === 0 ? 0 : nowhere,
      parent: i,
    }));
  }

  /** Nothing that may follow counts. */
  get isDone(): boolean {
    return this.#isDone;
  }

  /**
   * Takes what may follow each running beam.
   * @param logits (numBeams, V)
   * @returns of each beam that now runs the one it came from, and its new token; empty when all is done
   * @throws StateError when the logits are not numbers.
   */
  advance(logits: Float32Array): { readonly parents: number[]; readonly tokens: number[] } {
    const candidates = this.#best(logits, 2 * this.#count);
    this.#length++;
    const atEnd = this.#length >= this.#maxLength;
    const isFull = this.#finished.length === this.#count;
    const scale = this.#length ** this.#penalty;
    const running: Beam[] = [];
    for (const [rank, { token, parent, score }] of candidates.entries()) {
      const last = { token, before: this.#running[parent]!.last };
      if (token !== this.#endId && !atEnd) {
        if (running.length < this.#count) running.push({ last, score, parent });
      } else if (rank < this.#count && !(isFull && this.#earlyStopping === true)) {
        this.#finished.push({ last, score: score / scale, parent });
      }
    }
    this.#finished = this.#finished.sort((a, b) => b.score - a.score).slice(0, this.#count);
    this.#running = running;
    this.#isDone = atEnd || !this.#mayImprove();
    if (this.#isDone) return { parents: [], tokens: [] };
    return {
      parents: running.map(({ parent }) => parent),
      tokens: running.map(({ last }) => last!.token),
    };
  }

  /** Whether a running beam could become one of the best finished ones. */
  #mayImprove(): boolean {
    if (this.#finished.length < this.#count) return true;
    if (this.#earlyStopping === true) return false;
    const isOpen = this.#earlyStopping === "never" && this.#penalty > 0;
    const length = isOpen ? this.#maxLength : this.#length;
    return this.#running[0]!.score / length ** this.#penalty > this.#finished.at(-1)!.score;
  }

  /** The likeliest extensions of all running beams, best first. */
  #best(
    logits: Float32Array,
    count: number,
  ): { readonly token: number; readonly parent: number; readonly score: number }[] {
    const width = logits.length / this.#count;
    const best: { token: number; parent: number; score: number }[] = [];
    for (const [parent, beam] of this.#running.entries()) {
      const own = logits.subarray(parent * width, (parent + 1) * width);
      let top = -Infinity;
      for (let i = 0; i < width; i++) top = Math.max(top, own[i]!);
      let sum = 0;
      for (let i = 0; i < width; i++) sum += Math.exp(own[i]! - top);
      if (!(sum > 0)) throw notNumbers();
      const shift = beam.score - top - Math.log(sum);
      for (let token = 0; token < width; token++) {
        const score = own[token]! + shift;
        if (best.length === count && !(score > best[count - 1]!.score)) continue;
        let at = best.length;
        while (at > 0 && best[at - 1]!.score < score) at--;
        best.splice(at, 0, { token, parent, score });
        if (best.length > count) best.pop();
      }
    }
    return best;
  }

  /**
   * The best answer so far: a finished one where there is one.
   * @returns its tokens without the ending one, its score, and whether it ended by itself
   */
  get answer(): { readonly tokens: number[]; readonly score: number; readonly isEnded: boolean } {
    const finished = this.#finished[0];
    const { last, score } = finished ?? this.#running[0]!;
    const tokens: number[] = [];
    for (let link = last; link; link = link.before) tokens.push(link.token);
    tokens.reverse();
    const isEnded = tokens.at(-1) === this.#endId;
    return {
      tokens: isEnded ? tokens.slice(0, -1) : tokens,
      score: finished ? score : score / Math.max(1, tokens.length) ** this.#penalty,
      isEnded,
    };
  }
}
