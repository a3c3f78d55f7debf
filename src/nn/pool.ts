/** Pools over spatial axes: (N, C, spatial…). `maxPool` and `avgPool` are those of the graph. */
import { OptionError, ShapeError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { avgPool } from "../ir/linear.ts";
import { max, mean } from "../ir/reduce.ts";
import { showShape, toStatic } from "../tensor/shape.ts";
import { alongAxis, fixedMatrix } from "./interpolate.ts";

export { avgPool, maxPool, type PoolOptions } from "../ir/linear.ts";

function spatialAxes(where: string, x: Value): number[] {
  if (x.rank < 3) {
    throw new ShapeError(`${where}: needs (N, C, spatial…), got ${showShape(x.shape)}.`);
  }
  return x.shape.slice(2).map((_, i) => i + 2);
}

/** Mean over all positions: (N, C, spatial…) → (N, C). */
export function globalAvgPool(x: Value): Value {
  return mean(x, spatialAxes("globalAvgPool", x));
}

/** Largest of all positions: (N, C, spatial…) → (N, C). */
export function globalMaxPool(x: Value): Value {
  return max(x, spatialAxes("globalMaxPool", x));
}

/**
 * Means over windows chosen so that the output has the given size; window i of an axis covers
 * ⌊i n / size⌋ … ⌈(i + 1) n / size⌉ - 1, as in PyTorch.
 * @param size of each spatial axis, or of all
 * @throws OptionError when a size is not a whole number from 1.
 */
export function adaptiveAvgPool(x: Value, size: number | readonly number[]): Value {
  const axes = spatialAxes("adaptiveAvgPool", x);
  const inner = toStatic(x.shape.slice(2), "adaptiveAvgPool");
  const sizes = typeof size === "number" ? axes.map(() => size) : size;
  if (sizes.length !== axes.length || sizes.some((n) => !Number.isInteger(n) || n < 1)) {
    throw new OptionError(
      `adaptiveAvgPool: size must be ${axes.length} whole numbers from 1, got [${sizes.join(", ")}].`,
    );
  }
  if (inner.every((n, i) => n % sizes[i]! === 0)) {
    return avgPool(x, { kernel: inner.map((n, i) => n / sizes[i]!) });
  }
  return axes.reduce((y, axis, i) => {
    const [from, to] = [inner[i]!, sizes[i]!];
    const matrix = fixedMatrix("adaptive", to, from, x.dtype, (row) => {
      const start = Math.floor((row * from) / to);
      const count = Math.ceil(((row + 1) * from) / to) - start;
      return Array.from({ length: count }, (_, k) => [start + k, 1 / count] as const);
    });
    return alongAxis(y, axis, matrix);
  }, x);
}
