import { OptionError, StateError } from "../errors.ts";
import { cast, greaterOrEqual, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { toStatic } from "../tensor/shape.ts";
import { type Context, Module } from "./module.ts";

/**
 * Zeroes a share of the elements in training and scales the rest by 1 / (1 - rate) (Srivastava et
 * al. 2014). The random numbers come from outside, keyed by the site's path, so that a recomputed
 * region sees the same mask.
 */
export function dropout(context: Context, x: Value, rate: number, site: Module): Value {
  if (!(rate >= 0 && rate < 1)) throw new OptionError(`dropout must be in [0, 1), got ${rate}.`);
  if (rate === 0 || !context.training) return x;
  const { noise } = context.options;
  const path = context.path(site);
  if (!noise) {
    throw new StateError(`dropout: "${path}" trains with rate ${rate} but has no source of noise.`);
  }
  const kept = greaterOrEqual(noise(path, toStatic(x.shape, "dropout")), rate);
  return mul(x, mul(cast(kept, x.dtype), 1 / (1 - rate)));
}

/** `dropout` as a layer; its site is its own path. */
export class Dropout extends Module {
  readonly rate: number;

  /** @throws OptionError when the rate is not in [0, 1). */
  constructor(rate: number) {
    super();
    if (!(rate >= 0 && rate < 1)) throw new OptionError(`dropout must be in [0, 1), got ${rate}.`);
    this.rate = rate;
  }

  forward(context: Context, x: Value): Value {
    return dropout(context, x, this.rate, this);
  }
}
