/** Initialisers: numbers for new parameters. */
import type { Rng } from "../tensor/rng.ts";
import { type StaticShape, sizeOf } from "../tensor/shape.ts";
import type { Initializer } from "./module.ts";

/** Inputs and outputs of one unit; kernels multiply both. The first axis counts outputs. */
export function fans(shape: StaticShape): { fanIn: number; fanOut: number } {
  const [out = 1, inputs = 1, ...kernel] = shape;
  const field = sizeOf(kernel);
  return { fanIn: inputs * field, fanOut: out * field };
}

export const zeros: Initializer = (_, shape) => new Float32Array(sizeOf(shape));

export const ones: Initializer = (_, shape) => new Float32Array(sizeOf(shape)).fill(1);

export function constant(value: number): Initializer {
  return (_, shape) => new Float32Array(sizeOf(shape)).fill(value);
}

export function normal(deviation = 0.02): Initializer {
  return (rng, shape) => rng.normals(sizeOf(shape), deviation);
}

/** Uniform in [-bound, bound). */
export function uniform(bound: number | ((shape: StaticShape) => number)): Initializer {
  return (rng, shape) => {
    const limit = typeof bound === "number" ? bound : bound(shape);
    return rng.uniforms(sizeOf(shape)).map((u) => limit * (2 * u - 1));
  };
}

/** Glorot and Bengio 2010: bound √(6 / (fanIn + fanOut)). */
export const xavierUniform: Initializer = uniform((shape) => {
  const { fanIn, fanOut } = fans(shape);
  return Math.sqrt(6 / (fanIn + fanOut));
});

/** He et al. 2015 as PyTorch's layers use it (a = √5): bound 1 / √fanIn. */
export const kaimingUniform: Initializer = uniform((shape) => 1 / Math.sqrt(fans(shape).fanIn));

/** He et al. 2015 for ReLU: deviation √(2 / fanIn). */
export const kaimingNormal: Initializer = (rng, shape) =>
  rng.normals(sizeOf(shape), Math.sqrt(2 / fans(shape).fanIn));

/** A random matrix with orthonormal rows or columns (Saxe et al. 2014), by Gram–Schmidt. */
export const orthogonal: Initializer = (rng: Rng, shape) => {
  const rows = shape[0] ?? 1;
  const columns = sizeOf(shape) / rows;
  const [count, length] = rows <= columns ? [rows, columns] : [columns, rows];
  const vectors: Float64Array[] = [];
  for (let i = 0; i < count; i++) {
    const vector = Float64Array.from(rng.normals(length));
    // Twice, since once loses orthogonality to rounding.
    for (let pass = 0; pass < 2; pass++) {
      for (const other of vectors) {
        const along = vector.reduce((sum, x, j) => sum + x * other[j]!, 0);
        for (let j = 0; j < length; j++) vector[j]! -= along * other[j]!;
      }
    }
    const size = Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
    vectors.push(vector.map((x) => x / size));
  }
  const result = new Float32Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      result[i * columns + j] = rows <= columns ? vectors[i]![j]! : vectors[j]![i]!;
    }
  }
  return result;
};
