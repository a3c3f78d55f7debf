/** Confidence intervals of means and ratios by resampling examples. */
import { OptionError } from "../../errors.ts";
import type { Rng } from "../../tensor/rng.ts";

export interface Interval {
  readonly low: number;
  readonly high: number;
}

export interface BootstrapOptions {
  /** Samples drawn, 100 to 100 000; default 1000. */
  readonly resamples?: number;
  /** Share of samples inside the interval, in (0, 1); default 0.95. */
  readonly level?: number;
}

/**
 * The percentile interval of Σ numerators / Σ denominators when examples are drawn anew with replacement
 * (Efron 1979; Efron & Tibshirani 1993, §13.3). A token-level mean resampled by example accounts for
 * tokens of one text being alike. Denominators of 1 give the interval of a mean.
 * @param numerators one an example
 * @throws OptionError when there are no examples, lengths differ, or a setting is outside its range.
 */
export function bootstrapRatio(
  numerators: ArrayLike<number>,
  denominators: ArrayLike<number>,
  rng: Rng,
  options: BootstrapOptions = {},
): Interval {
  const { resamples = 1000, level = 0.95 } = options;
  const size = numerators.length;
  if (size === 0) throw new OptionError("bootstrap: there are no examples.");
  if (denominators.length !== size) {
    throw new OptionError(
      `bootstrap: ${size} numerators, but ${denominators.length} denominators.`,
    );
  }
  if (!(Number.isInteger(resamples) && resamples >= 100 && resamples <= 1e5)) {
    throw new OptionError(
      `bootstrap: resamples must be a whole number from 100 to 100000, got ${resamples}.`,
    );
  }
  if (!(level > 0 && level < 1)) {
    throw new OptionError(`bootstrap: level must be in (0, 1), got ${level}.`);
  }
  const ratios = new Float64Array(resamples);
  for (let r = 0; r < resamples; r++) {
    let [above, below] = [0, 0];
    for (let i = 0; i < size; i++) {
      const chosen = rng.integer(size);
      above += numerators[chosen]!;
      below += denominators[chosen]!;
    }
    ratios[r] = above / below;
  }
  ratios.sort();
  return { low: quantile(ratios, (1 - level) / 2), high: quantile(ratios, (1 + level) / 2) };
}

/** By linear interpolation between the two nearest of sorted values. */
function quantile(sorted: Float64Array, share: number): number {
  const at = share * (sorted.length - 1);
  const below = Math.floor(at);
  const above = Math.min(sorted.length - 1, below + 1);
  return sorted[below]! + (at - below) * (sorted[above]! - sorted[below]!);
}
