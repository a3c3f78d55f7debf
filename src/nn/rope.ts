/** Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split layout of Llama. */
import { OptionError } from "../errors.ts";
import { add, mul, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { chunk, concat, unsqueeze } from "../ir/layout.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Llama 3's stretch of low frequencies, as its config states it. */
export interface RopeScaling {
  readonly type: "linear" | "llama3";
  readonly factor: number;
  readonly lowFreqFactor?: number;
  readonly highFreqFactor?: number;
  readonly originalMaxPositions?: number;
}

export interface RopeOptions {
  readonly headDim: number;
  /** Base of the wavelengths; Llama 2 has 10000. */
  readonly theta: number;
  readonly maxPositions: number;
  readonly scaling?: RopeScaling;
}

/** Angle per position of each pair: headDim / 2 numbers. */
export function inverseFrequencies({ headDim, theta, scaling }: RopeOptions): number[] {
  if (headDim % 2 !== 0) throw new OptionError(`rope: headDim must be even, got ${headDim}.`);
  const base = Array.from({ length: headDim / 2 }, (_, i) => theta ** ((-2 * i) / headDim));
  if (!scaling) return base;
  if (scaling.type === "linear") return base.map((f) => f / scaling.factor);
  const low = scaling.lowFreqFactor ?? 1;
  const high = scaling.highFreqFactor ?? 4;
  const context = scaling.originalMaxPositions ?? 8192;
  return base.map((f) => {
    const wavelength = (2 * Math.PI) / f;
    if (wavelength < context / high) return f;
    if (wavelength > context / low) return f / scaling.factor;
    const smooth = (context / wavelength - low) / (high - low);
    return ((1 - smooth) * f) / scaling.factor + smooth * f;
  });
}

/** cos and sin of every position's angles: (positions, headDim / 2) each. */
export function ropeTable(options: RopeOptions, positions: number): { cos: Tensor; sin: Tensor } {
  const frequencies = inverseFrequencies(options);
  const half = frequencies.length;
  const angle = (i: number): number =>
    // The reference implementation forms the angle in float32.
    Math.fround(Math.fround(frequencies[i % half]!) * Math.floor(i / half));
  const size = positions * half;
  const cos = Float32Array.from({ length: size }, (_, i) => Math.cos(angle(i)));
  const sin = Float32Array.from({ length: size }, (_, i) => Math.sin(angle(i)));
  const shape = [positions, half];
  return { cos: new Tensor("float32", shape, cos), sin: new Tensor("float32", shape, sin) };
}

export interface Rotation {
  readonly cos: Value | Tensor;
  readonly sin: Value | Tensor;
}

/** Rotations for position ids (B, T), shaped (B, 1, T, headDim / 2) to broadcast over heads. */
export function rotationAt(table: { cos: Tensor; sin: Tensor }, positions: Value): Rotation {
  const at = (numbers: Tensor): Value =>
    unsqueeze(gather(positions.graph.lift(numbers), positions), 1);
  return { cos: at(table.cos), sin: at(table.sin) };
}

/** x (B, H, T, D) turned pairwise: (x1, x2) → (x1 cos - x2 sin, x2 cos + x1 sin). */
export function rotate(x: Value, { cos, sin }: Rotation): Value {
  const [x1, x2] = chunk(x, 2, -1);
  return concat([sub(mul(x1!, cos), mul(x2!, sin)), add(mul(x2!, cos), mul(x1!, sin))], -1);
}
