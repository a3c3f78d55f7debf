/** Which entries of a task vector are kept, and what they are multiplied by. */
import { OptionError, ShapeError } from "../../../errors.ts";
import { type Change, markBand, ranksOf } from "../../../tensor/magnitude.ts";
import type { Rng } from "../../../tensor/rng.ts";
import type { StaticShape } from "../../../tensor/shape.ts";

/** Kept entries of a task vector; `undefined` keeps all as they are. */
export type Kept =
  | {
      /** Factor of each entry: 0 and 1, or factors of their own. */
      readonly factors: Uint8Array | Float32Array;
      /** Factor of all of them. */
      readonly scale: number;
    }
  | undefined;

/** Entries along the last dimension, or all of them. */
export type Granularity = "tensor" | "row";

/** Length of a row: of one tensor of numbers without rows, all of it. */
export function rowLength(shape: StaticShape, granularity: Granularity): number {
  const size = shape.reduce((product, dim) => product * dim, 1);
  return granularity === "row" && shape.length > 1 ? shape[shape.length - 1] : size;
}

/**
 * Keeps the largest entries: floor(density · size) of them, and one at least.
 * @param change a task vector, as the two models that it lies between
 * @param density in (0, 1]
 */
export function keepLargest(change: Change, density: number): Kept {
  const size = change.model.length;
  if (density >= 1 || size === 0) return undefined;
  const factors = new Uint8Array(size);
  markBand(change, 0, Math.max(1, Math.floor(density * size)), factors);
  return { factors, scale: 1 };
}

/**
 * The band of a density: floor(top · size) are left out at the top, fewer where the density needs room, and
 * floor(density · size) kept after them, one at least.
 */
export function bandOf(size: number, density: number, top: number): readonly [number, number] {
  const kept = Math.max(1, Math.floor(density * size));
  const first = Math.min(Math.floor(top * size), size - kept);
  return [first, first + kept];
}

/**
 * Keeps a band of each row: the largest are left out, those after them are kept, the small ones left out.
 * @param band places in the order from the largest that are kept, from the first to before the last
 * @param row entries that are ranked among each other, a divisor of the length
 */
export function keepBand(
  change: Change,
  row: number,
  [first, last]: readonly [number, number],
): Kept {
  const size = change.model.length;
  if (size === 0 || (first <= 0 && last >= row)) return undefined;
  const factors = new Uint8Array(size);
  for (let start = 0; start < size; start += row) {
    markBand(change, first, last, factors, start, row);
  }
  return { factors, scale: 1 };
}

/**
 * Keeps each entry with a chance (DARE).
 * @param density the chance, in (0, 1]
 */
export function keepByChance(size: number, density: number, isRescaled: boolean, rng: Rng): Kept {
  if (density >= 1) return undefined;
  const factors = new Uint8Array(size);
  const limit = density * 2 ** 32;
  for (let i = 0; i < size; i++) if (rng.bits() < limit) factors[i] = 1;
  return { factors, scale: isRescaled ? 1 / density : 1 };
}

/** @throws OptionError unless both ends of the chances lie inside (0, 1). */
export function checkSpread(where: string, density: number, epsilon: number): void {
  if (density >= 1 || (density + epsilon < 1 && density - epsilon > 0)) return;
  throw new OptionError(
    `${where}: density ${density} and epsilon ${epsilon} give chances from ${density - epsilon} to ${density + epsilon}, which must lie inside (0, 1) — take a smaller epsilon.`,
  );
}

/**
 * Chances that grow with the rank of an entry in its row (DELLA): density - epsilon for the smallest, density +
 * epsilon for the largest.
 * @param row entries of an output: what stands behind one index of the first dimension
 * @throws ShapeError for rows above 2^21.
 */
export function chancesByRank(
  delta: Float32Array,
  row: number,
  density: number,
  epsilon: number,
): Float32Array {
  if (row > 2 ** 21) {
    throw new ShapeError(
      `della: a row of ${row} entries cannot be ranked, at most ${2 ** 21} are — take dare-ties for this model.`,
    );
  }
  const chances = new Float32Array(delta.length);
  const ranks = new Uint32Array(row);
  for (let start = 0; start < delta.length; start += row) {
    ranksOf(delta.subarray(start, start + row), ranks);
    for (let i = 0; i < row; i++) {
      const share = row === 1 ? 0.5 : ranks[i] / (row - 1);
      chances[start + i] = density - epsilon + 2 * epsilon * share;
    }
  }
  return chances;
}

/** Keeps each entry with a chance of its own, and divides it by that chance where asked (DELLA). */
export function keepByRank(
  delta: Float32Array,
  row: number,
  options: { readonly density: number; readonly epsilon: number; readonly rescale: boolean },
  rng: Rng,
): Kept {
  const { density, epsilon, rescale } = options;
  if (density >= 1 || delta.length === 0) return undefined;
  const factors = chancesByRank(delta, row, density, epsilon);
  for (let i = 0; i < factors.length; i++) {
    const chance = factors[i];
    factors[i] = rng.bits() < chance * 2 ** 32 ? (rescale ? 1 / chance : 1) : 0;
  }
  return { factors, scale: 1 };
}
