/** Weights that this side and `scripts/parity/decoders.py` compute by one rule, so that no file holds them. */
import type { TensorRecord } from "../../src/nn/module.ts";
import type { StaticShape } from "../../src/tensor/shape.ts";
import { sizeOf } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

/** Numbers in [-1, 1): murmur3's finalizer on FNV-1a of the name plus a stride. */
export function ruleNumbers(name: string, size: number): Float64Array {
  let seed = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) seed = Math.imul(seed ^ byte, 0x01000193);
  return Float64Array.from({ length: size }, (_, i) => {
    let x = (Math.imul(i, 0x9e3779b1) + seed) | 0;
    x ^= x >>> 16;
    x = Math.imul(x, 0x85ebca6b);
    x ^= x >>> 13;
    x = Math.imul(x, 0xc2b2ae35);
    x ^= x >>> 16;
    return (x >>> 8) / 2 ** 23 - 1;
  });
}

/**
 * Matrices ±0.4; scales of norms about `normMean` and biases about 0, ±0.3.
 * @param nameOf how the other side names a parameter; default as here
 */
export function ruleWeights(
  specs: Readonly<Record<string, { readonly shape: StaticShape }>>,
  normMean: number,
  nameOf: (path: string) => string = (path) => path,
): TensorRecord {
  return Object.fromEntries(
    Object.entries(specs).map(([path, { shape }]) => {
      const mean = path.endsWith("weight") ? normMean : 0;
      const numbers = ruleNumbers(nameOf(path), sizeOf(shape));
      const scaled = numbers.map((u) => (shape.length >= 2 ? 0.4 * u : 0.3 * u + mean));
      return [path, new Tensor("float32", shape, Float32Array.from(scaled))];
    }),
  );
}
