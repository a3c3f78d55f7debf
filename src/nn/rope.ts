/**
 * Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split layout of Llama, and the
 * ways of published checkpoints to stretch it over longer contexts. Formulas and defaults are those of
 * `transformers` (modeling_rope_utils.py).
 */
import { OptionError } from "../errors.ts";
import { add, cast, less, minimum, mul, sub, where } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { chunk, concat, reshape, split, unsqueeze } from "../ir/layout.ts";
import { max } from "../ir/reduce.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Every frequency divided by `factor` (Chen et al. 2023, arXiv:2306.15595). */
export interface LinearRope {
  readonly type: "linear";
  readonly factor: number;
}

/** The base grows with the sequence ("NTK-aware"), from `maxPositions` on. */
export interface DynamicRope {
  readonly type: "dynamic";
  readonly factor: number;
}

/** Peng et al. 2023, arXiv:2309.00071: slow dimensions are interpolated, fast ones stay. */
export interface YarnRope {
  readonly type: "yarn";
  readonly factor: number;
  readonly originalMaxPositions: number;
  /** Turns over the original context that end the ramp; default 32 and 1. */
  readonly betaFast?: number;
  readonly betaSlow?: number;
  /** On cos and sin; default 0.1 ln(factor) + 1, or by the two numbers below. */
  readonly attentionFactor?: number;
  readonly mscale?: number;
  readonly mscaleAllDim?: number;
  /** Ends of the ramp at whole dimensions; default true. */
  readonly truncate?: boolean;
}

/** Llama 3's stretch of low frequencies, as its config states it. */
export interface Llama3Rope {
  readonly type: "llama3";
  readonly factor: number;
  /** Default 1. */
  readonly lowFreqFactor?: number;
  /** Default 4. */
  readonly highFreqFactor?: number;
  /** Default 8192. */
  readonly originalMaxPositions?: number;
}

/**
 * Ding et al. 2024, arXiv:2402.13753, as in Phi-3: a divisor for each pair of dimensions, of one list up to
 * the original context and of another list for longer sequences.
 */
export interface LongRope {
  readonly type: "longrope";
  readonly shortFactor: readonly number[];
  readonly longFactor: readonly number[];
  readonly originalMaxPositions: number;
  /** Default maxPositions / originalMaxPositions; only for the attention factor. */
  readonly factor?: number;
  /** On cos and sin; default √(1 + ln factor / ln originalMaxPositions), 1 for a factor up to 1. */
  readonly attentionFactor?: number;
}

export type RopeScaling = LinearRope | DynamicRope | YarnRope | Llama3Rope | LongRope;

export interface RopeOptions {
  /** Dimensions of a head that are turned: the first ones where they are fewer than the head has. */
  readonly headDim: number;
  /** Base of the wavelengths; Llama 2 has 10000. */
  readonly theta: number;
  readonly maxPositions: number;
  readonly scaling?: RopeScaling;
}

/**
 * Angle per position of each pair: headDim / 2 numbers.
 * @param length of the sequence, on which "dynamic" and "longrope" depend; default 0, a short one
 * @throws OptionError for a headDim that is odd or 0, or factors of another number than headDim / 2.
 */
export function inverseFrequencies(options: RopeOptions, length = 0): number[] {
  const { headDim, theta, scaling, maxPositions } = options;
  if (headDim % 2 !== 0) throw new OptionError(`rope: headDim must be even, got ${headDim}.`);
  if (headDim < 2) throw new OptionError(`rope: headDim must be at least 2, got ${headDim}.`);
  // Rounded to float32 where the reference implementation does: a last bit of a frequency is a
  // thousandth of a turn at position 100,000.
  const from = (base: number): number[] =>
    Array.from({ length: headDim / 2 }, (_, i) =>
      Math.fround(1 / Math.fround(base ** Math.fround((2 * i) / headDim))),
    );
  const plain = from(theta);
  switch (scaling?.type) {
    case undefined:
      return plain;
    case "linear":
      return plain.map((f) => f / scaling.factor);
    case "dynamic": {
      const { factor } = scaling;
      const stretch = (factor * Math.max(length, maxPositions)) / maxPositions - (factor - 1);
      return from(theta * stretch ** (headDim / (headDim - 2)));
    }
    case "llama3":
      return llama3Frequencies(plain, scaling);
    case "yarn":
      return yarnFrequencies(plain, theta, scaling);
    case "longrope": {
      const isLong = length > scaling.originalMaxPositions;
      const factors = isLong ? scaling.longFactor : scaling.shortFactor;
      if (factors.length !== plain.length) {
        throw new OptionError(
          `rope: ${isLong ? "longFactor" : "shortFactor"} must have ${plain.length} numbers, half of the dimensions that are turned, got ${factors.length}.`,
        );
      }
      return plain.map((f, i) => f / factors[i]!);
    }
  }
}

function llama3Frequencies(plain: readonly number[], scaling: Llama3Rope): number[] {
  const low = scaling.lowFreqFactor ?? 1;
  const high = scaling.highFreqFactor ?? 4;
  const context = scaling.originalMaxPositions ?? 8192;
  return plain.map((f) => {
    const wavelength = (2 * Math.PI) / f;
    if (wavelength < context / high) return f;
    if (wavelength > context / low) return f / scaling.factor;
    const smooth = (context / wavelength - low) / (high - low);
    return ((1 - smooth) * f) / scaling.factor + smooth * f;
  });
}

/** Peng et al. 2023, equations 17 to 23: a ramp between two dimensions, found by their turns. */
function yarnFrequencies(plain: readonly number[], theta: number, scaling: YarnRope): number[] {
  const headDim = 2 * plain.length;
  const dimensionOf = (turns: number): number =>
    (headDim * Math.log(scaling.originalMaxPositions / (turns * 2 * Math.PI))) /
    (2 * Math.log(theta));
  const whole = scaling.truncate ?? true;
  const ends = [dimensionOf(scaling.betaFast ?? 32), dimensionOf(scaling.betaSlow ?? 1)] as const;
  const low = Math.max(whole ? Math.floor(ends[0]) : ends[0], 0);
  let high = Math.min(whole ? Math.ceil(ends[1]) : ends[1], headDim - 1);
  // transformers' way out of a division by zero.
  if (low === high) high += 0.001;
  return plain.map((f, i) => {
    const stretched = Math.min(1, Math.max(0, (i - low) / (high - low)));
    return (f / scaling.factor) * stretched + f * (1 - stretched);
  });
}

/** What cos and sin are multiplied by, so that long contexts attend sharply enough; 1 for most. */
export function ropeAttentionFactor({ scaling, maxPositions }: RopeOptions): number {
  if (scaling?.type === "yarn") {
    const { factor, mscale, mscaleAllDim } = scaling;
    const scaleOf = (by: number): number => (factor <= 1 ? 1 : 0.1 * by * Math.log(factor) + 1);
    return (
      scaling.attentionFactor ??
      (mscale && mscaleAllDim ? scaleOf(mscale) / scaleOf(mscaleAllDim) : scaleOf(1))
    );
  }
  if (scaling?.type === "longrope") {
    const factor = scaling.factor ?? maxPositions / scaling.originalMaxPositions;
    if (scaling.attentionFactor !== undefined) return scaling.attentionFactor;
    if (factor <= 1) return 1;
    return Math.sqrt(1 + Math.log(factor) / Math.log(scaling.originalMaxPositions));
  }
  return 1;
}

export interface RopeTable {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/**
 * cos and sin of every position's angles: (positions, headDim / 2) each.
 * @param length of the sequence that the positions are of; default `positions`
 */
export function ropeTable(
  options: RopeOptions,
  positions: number,
  length: number = positions,
): RopeTable {
  const frequencies = inverseFrequencies(options, length);
  const factor = ropeAttentionFactor(options);
  const half = frequencies.length;
  const [cos, sin] = [new Float32Array(positions * half), new Float32Array(positions * half)];
  for (let k = 0; k < half; k++) {
    // The reference implementation forms the angle in float32.
    const frequency = Math.fround(frequencies[k]!);
    for (let at = 0; at < positions; at++) {
      const angle = Math.fround(frequency * at);
      cos[at * half + k] = Math.cos(angle) * factor;
      sin[at * half + k] = Math.sin(angle) * factor;
    }
  }
  const shape = [positions, half];
  return { cos: new Tensor("float32", shape, cos), sin: new Tensor("float32", shape, sin) };
}

export interface Rotation {
  readonly cos: Value | Tensor;
  readonly sin: Value | Tensor;
}

/** Rotations for position ids (B, T), shaped (B, 1, T, headDim / 2) to broadcast over heads. */
export function rotationAt(table: RopeTable, positions: Value): Rotation {
  const at = (numbers: Tensor): Value =>
    unsqueeze(gather(positions.graph.lift(numbers), positions), 1);
  return { cos: at(table.cos), sin: at(table.sin) };
}

/** The same from two tables, row by row: `short` where it has every position of the row, else `long`. */
export function rotationByLength(short: RopeTable, long: RopeTable, positions: Value): Rotation {
  const rows = short.cos.shape[0]!;
  // In float32, which every target can compare; whole numbers up to 2^24 are exact.
  const last = max(cast(positions, "float32"), -1, { keepDims: true });
  const isShort = reshape(less(last, rows), [positions.shape[0]!, 1, 1, 1]);
  const near = rotationAt(short, minimum(positions, rows - 1));
  const far = rotationAt(long, positions);
  return { cos: where(isShort, near.cos, far.cos), sin: where(isShort, near.sin, far.sin) };
}

/**
 * x (B, H, T, D) turned pairwise: (x1, x2) → (x1 cos - x2 sin, x2 cos + x1 sin). Where the rotation has
 * fewer than D / 2 angles, the first dimensions are turned and the others stay.
 */
export function rotate(x: Value, { cos, sin }: Rotation): Value {
  const turned = 2 * (cos.shape.at(-1) as number);
  const width = x.shape.at(-1) as number;
  if (turned < width) {
    const [first, rest] = split(x, [turned, width - turned], -1);
    return concat([rotate(first!, { cos, sin }), rest!], -1);
  }
  const [x1, x2] = chunk(x, 2, -1);
  return concat([sub(mul(x1!, cos), mul(x2!, sin)), add(mul(x2!, cos), mul(x1!, sin))], -1);
}
