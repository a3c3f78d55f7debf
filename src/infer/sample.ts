/**
 * Choosing the next token from its logits. What changes the logits and what narrows the choice apply in
 * the order of transformers (`GenerationMixin._get_logits_processor`): repetition penalty, then presence
 * and frequency, temperature, top-k, top-p, min-p, typical.
 */
import { OptionError, StateError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";
import { selectPrefix } from "./select.ts";

export interface SampleOptions {
  /** 0 takes the likeliest token; higher is more varied. In [0, 100], default 0. */
  readonly temperature?: number;
  /** Keep only this many likeliest tokens; default all. Of equal ones the lower ids stay. */
  readonly topK?: number;
  /** Keep the likeliest tokens that together reach this probability, in (0, 1]; default 1. */
  readonly topP?: number;
  /** Keep tokens at least this share as likely as the likeliest, in [0, 1); default 0. */
  readonly minP?: number;
  /**
   * Keep the tokens whose -log p is nearest to the entropy and that together reach this probability, in
   * (0, 1]; default 1. Meister et al. 2022, arXiv:2202.00666, §4.
   */
  readonly typicalP?: number;
  /**
   * Positive logits of tokens that are in the prompt or were made are divided by this, negative ones
   * multiplied; in (0, 100], default 1. Keskar et al. 2019, arXiv:1909.05858, §4.1.
   */
  readonly repetitionPenalty?: number;
  /** Taken from the logit of every token made so far, once; in [-2, 2], default 0. */
  readonly presencePenalty?: number;
  /** Taken from the logit of a token for each time that it was made; in [-2, 2], default 0. */
  readonly frequencyPenalty?: number;
}

/** The tokens of a row: penalties look at them. */
export class TokenHistory {
  /** In the prompt or made. */
  readonly seen: Set<number>;
  /** How often each was made. */
  readonly made: Map<number, number> = new Map();

  constructor(prompt: Iterable<number> = []) {
    this.seen = new Set(prompt);
  }

  /** Counts a new token. */
  add(token: number): void {
    this.seen.add(token);
    this.made.set(token, (this.made.get(token) ?? 0) + 1);
  }
}

const inRange = (name: string, value: number, low: number, high: number): void => {
  if (value >= low && value <= high) return;
  throw new OptionError(`${name} must be in [${low}, ${high}], got ${value}.`);
};

/** @throws OptionError naming the setting outside its range. */
export function checkSampling(options: SampleOptions): void {
  const { temperature = 0, topK, topP = 1, minP = 0, typicalP = 1 } = options;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  inRange("temperature", temperature, 0, 100);
  if (topK !== undefined && !(Number.isInteger(topK) && topK >= 1)) {
    throw new OptionError(`topK must be a whole number from 1, got ${topK}.`);
  }
  if (!(topP > 0 && topP <= 1)) throw new OptionError(`topP must be in (0, 1], got ${topP}.`);
  if (!(minP >= 0 && minP < 1)) throw new OptionError(`minP must be in [0, 1), got ${minP}.`);
  if (!(typicalP > 0 && typicalP <= 1)) {
    throw new OptionError(`typicalP must be in (0, 1], got ${typicalP}.`);
  }
  if (!(repetitionPenalty > 0 && repetitionPenalty <= 100)) {
    throw new OptionError(`repetitionPenalty must be in (0, 100], got ${repetitionPenalty}.`);
  }
  inRange("presencePenalty", presencePenalty, -2, 2);
  inRange("frequencyPenalty", frequencyPenalty, -2, 2);
}

/** Index of the largest; the first among equals. */
export function argMaxOf(logits: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

/** Logits after the penalties: the same object when there is nothing to change, else a copy. */
function penalized(
  logits: ArrayLike<number>,
  options: SampleOptions,
  history: TokenHistory | undefined,
): ArrayLike<number> {
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0 } = options;
  const repeats = repetitionPenalty !== 1;
  const counts = presencePenalty !== 0 || frequencyPenalty !== 0;
  if (!history || !(repeats || counts)) return logits;
  const own = Float64Array.from(logits);
  if (repeats) {
    for (const id of history.seen) {
      const logit = own[id]!;
      own[id] = logit < 0 ? logit * repetitionPenalty : logit / repetitionPenalty;
    }
  }
  if (counts) {
    for (const [id, times] of history.made) own[id]! -= presencePenalty + frequencyPenalty * times;
  }
  return own;
}

/** What is thrown where logits are no numbers. */
export function notNumbers(): StateError {
  return new StateError(
    "sample: the logits hold NaN or nothing above -∞ — the model's weights may be broken.",
  );
}

/** Token ids that may be drawn, ascending, and the probability of each. */
export interface Choice {
  readonly ids: Int32Array;
  readonly probabilities: Float64Array;
}

/**
 * What `sample` draws from at a temperature above 0.
 * @param logits (V,)
 * @throws StateError when the logits are not numbers, or all -∞.
 */
export function choiceOf(
  logits: ArrayLike<number>,
  options: SampleOptions,
  history?: TokenHistory,
): Choice {
  const { temperature = 1, topK, topP = 1, minP = 0, typicalP = 1 } = options;
  const own = penalized(logits, options, history);
  const top = own[argMaxOf(own)]!;
  const weights = new Float64Array(own.length);
  let kept = new Int32Array(own.length);
  let hasForbidden = false;
  for (let id = 0; id < own.length; id++) {
    weights[id] = Math.exp((own[id]! - top) / temperature);
    kept[id] = id;
    if (own[id] === -Infinity) hasForbidden = true;
  }
  const mass = (): number => massOf(kept, weights);
  if (!(mass() > 0)) throw notNumbers();
  const likelier = (a: number, b: number): number => own[b]! - own[a]! || a - b;
  if (topK !== undefined && topK < kept.length) {
    kept = kept.subarray(
      0,
      selectPrefix(kept, likelier, () => 1, topK),
    );
  }
  if (topP < 1) {
    kept = kept.subarray(
      0,
      selectPrefix(kept, likelier, (id) => weights[id]!, topP * mass()),
    );
  }
  if (minP > 0) kept = kept.filter((id) => weights[id]! >= minP);
  if (typicalP < 1) kept = typical(kept, weights, mass(), typicalP);
  if (hasForbidden || kept.length < own.length) {
    kept = kept.filter((id) => weights[id]! > 0).sort();
  }
  const total = mass();
  const probabilities = new Float64Array(kept.length);
  for (let i = 0; i < kept.length; i++) probabilities[i] = weights[kept[i]!]! / total;
  return { ids: kept, probabilities };
}

function massOf(ids: Int32Array, weights: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < ids.length; i++) sum += weights[ids[i]!]!;
  return sum;
}

/** Ids nearest to the entropy in -log p, up to a share of the mass; ties at the border all stay. */
function typical(
  ids: Int32Array<ArrayBuffer>,
  weights: Float64Array,
  total: number,
  share: number,
): Int32Array<ArrayBuffer> {
  const shifts = new Float64Array(weights.length);
  let entropy = 0;
  for (const id of ids) {
    const p = weights[id]! / total;
    if (p > 0) entropy -= p * Math.log(p);
  }
  for (const id of ids) shifts[id] = Math.abs(-Math.log(weights[id]! / total) - entropy);
  const nearer = (a: number, b: number): number => shifts[a]! - shifts[b]! || a - b;
  const order = Int32Array.from(ids);
  const count = selectPrefix(order, nearer, (id) => weights[id]!, share * total);
  const border = order.subarray(0, count).reduce((most, id) => Math.max(most, shifts[id]!), 0);
  return ids.filter((id) => shifts[id]! <= border);
}

/** A token, and how firmly it was chosen. */
export interface Decision {
  readonly token: number;
  /**
   * How much two logits must move against each other, at least, before another token is taken; where filters
   * keep the same tokens. At temperature 0 the largest logit less the next one; else 4 · temperature times the
   * distance from the number that was drawn to the nearer end of the token's share, since no share's end moves
   * by more than a quarter of logits' spread over the temperature.
   */
  readonly margin: number;
}

/**
 * One token id and its margin, by the options alone: nothing is drawn at temperature 0, else one number.
 * @param logits (V,)
 * @param history what the penalties look at; without it they do nothing.
 * @throws StateError when the logits are not numbers.
 */
export function decide(
  logits: ArrayLike<number>,
  options: SampleOptions,
  rng: Rng,
  history?: TokenHistory,
): Decision {
  const { temperature = 0 } = options;
  if (temperature === 0) {
    const own = penalized(logits, options, history);
    const best = argMaxOf(own);
    if (!(own[best]! > -Infinity)) throw notNumbers();
    let next = -Infinity;
    for (let i = 0; i < own.length; i++) if (i !== best && own[i]! > next) next = own[i]!;
    return { token: best, margin: own[best]! - next };
  }
  const { ids, probabilities } = choiceOf(logits, options, history);
  const end = ids.length - 1;
  let left = rng.uniform();
  for (let i = 0; i <= end; i++) {
    const share = probabilities[i]!;
    if (left >= share && i < end) {
      left -= share;
      continue;
    }
    const below = i === 0 ? Infinity : left;
    const above = i === end ? Infinity : share - left;
    return { token: ids[i]!, margin: 4 * temperature * Math.min(below, above) };
  }
  throw notNumbers();
}

/**
 * One token id, by the options alone: nothing is drawn at temperature 0.
 * @param logits (V,)
 * @param history what the penalties look at; without it they do nothing.
 * @throws StateError when the logits are not numbers.
 */
export function sample(
  logits: ArrayLike<number>,
  options: SampleOptions,
  rng: Rng,
  history?: TokenHistory,
): number {
  return decide(logits, options, rng, history).token;
}

/** A token and the natural logarithm of its probability. */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/**
 * Log-probabilities by the model itself, before penalties, temperature and filters: of the chosen token,
 * and of the `count` likeliest ones in falling order.
 * @param logits (V,)
 */
export function logprobsOf(
  logits: ArrayLike<number>,
  chosen: number,
  count: number,
): TokenLogprob & { readonly top: readonly TokenLogprob[] } {
  const top = logits[argMaxOf(logits)]!;
  let total = 0;
  for (let i = 0; i < logits.length; i++) total += Math.exp(logits[i]! - top);
  const shift = top + Math.log(total);
  const of = (token: number): TokenLogprob => ({ token, logprob: logits[token]! - shift });
  const likelier = (a: number, b: number): number => logits[b]! - logits[a]! || a - b;
  const ids = new Int32Array(count === 0 ? 0 : logits.length);
  for (let id = 0; id < ids.length; id++) ids[id] = id;
  const kept = count === 0 ? 0 : selectPrefix(ids, likelier, () => 1, count);
  return { ...of(chosen), top: Array.from(ids.subarray(0, kept).sort(likelier), of) };
}
