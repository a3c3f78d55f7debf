/**
 * Statistics of paired runs: means, spread, the paired t test.
 *
 * The t distribution's tail is a regularised incomplete beta function, here by its continued fraction with
 * Lentz's method (Press et al., "Numerical Recipes", 3rd ed., section 6.4).
 */
import { OptionError } from "../errors.ts";

/** NaN of an empty list. */
export function mean(values: readonly number[]): number {
  return values.reduce((a, b) => a + b, 0) / values.length;
}

/** Of a sample: divided by n - 1; NaN below two values. */
export function standardDeviation(values: readonly number[]): number {
  if (values.length < 2) return Number.NaN;
  const centre = mean(values);
  const squares = values.reduce((sum, value) => sum + (value - centre) ** 2, 0);
  return Math.sqrt(squares / (values.length - 1));
}

/** Of the mean: sd / √n; NaN below two values. */
export function standardError(values: readonly number[]): number {
  return standardDeviation(values) / Math.sqrt(values.length);
}

// Lanczos's approximation with g = 7 and nine terms: 15 digits for x > 0.
const lanczos: readonly number[] = [
  0.99999999999980993, 676.5203681218851, -1259.1392167224028, 771.32342877765313,
  -176.61502916214059, 12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6,
  1.5056327351493116e-7,
];

function logGamma(x: number): number {
  if (x < 0.5) return Math.log(Math.PI / Math.sin(Math.PI * x)) - logGamma(1 - x);
  const z = x - 1;
  const series = lanczos.slice(1).reduce((sum, c, i) => sum + c / (z + i + 1), lanczos[0]!);
  const t = z + 7.5;
  return 0.5 * Math.log(2 * Math.PI) + (z + 0.5) * Math.log(t) - t + Math.log(series);
}

/** I_x(a, b) for a, b > 0 and x in [0, 1]. */
export function incompleteBeta(x: number, a: number, b: number): number {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  // The fraction converges quickly on this side of the mean, and by symmetry on the other.
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front =
    Math.exp(logGamma(a + b) - logGamma(a) - logGamma(b) + a * Math.log(x) + b * Math.log(1 - x)) /
    a;
  const tiny = 1e-300;
  const orTiny = (value: number): number => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / orTiny(1 - ((a + b) * x) / (a + 1));
  let sum = d;
  for (let m = 1; m <= 500; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / orTiny(1 + even * d);
    c = orTiny(1 + even / c);
    sum *= d * c;
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / orTiny(1 + odd * d);
    c = orTiny(1 + odd / c);
    const step = d * c;
    sum *= step;
    if (Math.abs(step - 1) < 1e-15) break;
  }
  return front * sum;
}

/** P(T ≥ t) of Student's distribution. */
export function upperTail(t: number, degreesOfFreedom: number): number {
  if (Number.isNaN(t)) return Number.NaN;
  if (!Number.isFinite(t)) return t > 0 ? 0 : 1;
  const half =
    0.5 * incompleteBeta(degreesOfFreedom / (degreesOfFreedom + t * t), degreesOfFreedom / 2, 0.5);
  return t >= 0 ? half : 1 - half;
}

export interface PairedTest {
  readonly t: number;
  readonly degreesOfFreedom: number;
  /** Of "the mean difference is not above 0": small where it is above. */
  readonly p: number;
}

/**
 * The one-sided paired t test: whether the mean of differences is above 0. Differences that are all one
 * positive number give p = 0; all zero, p = 1.
 * @throws OptionError below two differences.
 */
export function pairedT(differences: readonly number[]): PairedTest {
  if (differences.length < 2) {
    throw new OptionError(
      `paired t test: needs 2 or more pairs, got ${differences.length} — run more seeds.`,
    );
  }
  const centre = mean(differences);
  const error = standardError(differences);
  const degreesOfFreedom = differences.length - 1;
  if (error === 0) {
    const t = centre === 0 ? 0 : centre * Infinity;
    return { t, degreesOfFreedom, p: centre > 0 ? 0 : 1 };
  }
  const t = centre / error;
  return { t, degreesOfFreedom, p: upperTail(t, degreesOfFreedom) };
}
