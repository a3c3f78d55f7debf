import { type StaticShape, sameShape, showShape } from "../../src/tensor/shape.ts";
import type { Tensor } from "../../src/tensor/tensor.ts";

/** Where two arrays differ most, in the units of what is allowed: above 1 is too far. */
export interface Worst {
  readonly ratio: number;
  readonly flat: number;
}

/** NaN equals NaN, an infinity equals itself; else |a - e| is held against tolerance · max(1, |e|). */
export function worstOf(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
  tolerance: number,
): Worst {
  let worst: Worst = { ratio: 0, flat: 0 };
  for (let flat = 0; flat < expected.length; flat++) {
    const [a, e] = [actual[flat]!, expected[flat]!];
    if (a === e || (Number.isNaN(a) && Number.isNaN(e))) continue;
    const ratio = Math.abs(a - e) / (tolerance * Math.max(1, Math.abs(e)));
    if (!(ratio <= worst.ratio)) worst = { ratio: Number.isNaN(ratio) ? Infinity : ratio, flat };
  }
  return worst;
}

function indexOf(flat: number, shape: StaticShape): number[] {
  const index: number[] = [];
  let rest = flat;
  for (const dim of [...shape].reverse()) {
    index.unshift(rest % dim);
    rest = Math.floor(rest / dim);
  }
  return index;
}

/**
 * Asserts that a tensor has the expected shape and numbers.
 * @throws Error naming the element that is furthest off.
 */
export function allclose(
  actual: Tensor,
  expected: Tensor,
  tolerance: number,
  what: string = "result",
): void {
  if (!sameShape(actual.shape, expected.shape)) {
    throw new Error(
      `${what}: shape ${showShape(actual.shape)}, expected ${showShape(expected.shape)}.`,
    );
  }
  const [a, e] = [actual.numbers(), expected.numbers()];
  const { ratio, flat } = worstOf(a, e, tolerance);
  if (ratio > 1) {
    throw new Error(
      `${what}: element ${showShape(indexOf(flat, expected.shape))} is ${a[flat]}, expected ${e[flat]} — off by ${Math.abs(a[flat]! - e[flat]!)}, ${ratio.toPrecision(3)} times what ${tolerance} allows.`,
    );
  }
}
