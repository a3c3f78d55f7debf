/** Choosing the next token from its logits. */
import { OptionError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";

export interface SampleOptions {
  /** 0 takes the likeliest token; higher is more varied. Default 0. */
  readonly temperature?: number;
  /** Keep only this many likeliest tokens; default all. */
  readonly topK?: number;
  /** Keep the likeliest tokens that together reach this probability, in (0, 1]; default 1. */
  readonly topP?: number;
  /** Keep tokens at least this share as likely as the likeliest, in [0, 1); default 0. */
  readonly minP?: number;
}

/** @throws OptionError naming the setting outside its range. */
export function checkSampling(options: SampleOptions): void {
  const { temperature = 0, topK, topP = 1, minP = 0 } = options;
  if (!(temperature >= 0 && temperature <= 100)) {
    throw new OptionError(`temperature must be in [0, 100], got ${temperature}.`);
  }
  if (topK !== undefined && !(Number.isInteger(topK) && topK >= 1)) {
    throw new OptionError(`topK must be a whole number from 1, got ${topK}.`);
  }
  if (!(topP > 0 && topP <= 1)) throw new OptionError(`topP must be in (0, 1], got ${topP}.`);
  if (!(minP >= 0 && minP < 1)) throw new OptionError(`minP must be in [0, 1), got ${minP}.`);
}

/** Index of the largest; the first among equals. */
export function argMaxOf(logits: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  return best;
}

/** One token id. Filters apply in the order top-k, top-p, min-p, after the temperature. */
export function sample(logits: ArrayLike<number>, options: SampleOptions, rng: Rng): number {
  const { temperature = 0, topK, topP = 1, minP = 0 } = options;
  if (temperature === 0) return argMaxOf(logits);
  const order = Array.from({ length: logits.length }, (_, i) => i);
  order.sort((a, b) => logits[b]! - logits[a]! || a - b);
  if (topK !== undefined) order.length = Math.min(order.length, topK);
  const top = logits[order[0]!]!;
  const weights = order.map((id) => Math.exp((logits[id]! - top) / temperature));
  let total = weights.reduce((a, b) => a + b, 0);
  let count = weights.length;
  if (topP < 1) {
    let mass = 0;
    count = 0;
    while (count < weights.length && mass < topP * total) mass += weights[count++]!;
  }
  while (count > 1 && weights[count - 1]! < minP) count--;
  total = 0;
  for (let i = 0; i < count; i++) total += weights[i]!;
  let left = rng.uniform() * total;
  for (let i = 0; i < count; i++) {
    left -= weights[i]!;
    if (left < 0) return order[i]!;
  }
  return order[count - 1]!;
}
