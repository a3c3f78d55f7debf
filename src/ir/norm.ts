/** Norms over groups of channels and over the batch: (N, C, spatial…). */
import type { AttrsOf } from "./attrs.ts";
import { add, mul, rsqrt, square, sub } from "./elementwise.ts";
import { emit, emitAll } from "./emit.ts";
import type { Operand, Value } from "./graph.ts";
import { expand, reshape } from "./layout.ts";
import { mean } from "./reduce.ts";

/** Scale and shift of each channel, (C,) both. */
export interface Affine {
  readonly weight: Operand;
  readonly bias: Operand;
}

const affineOf = (affine: Affine | undefined): Operand[] =>
  affine ? [affine.weight, affine.bias] : [];

/**
 * Each group of channels of an example is normalised over its positions (Wu and He 2018,
 * arXiv:1803.08494): x (N, C, spatial…) → the same.
 * @throws ShapeError when the groups do not divide the channels, or the affine numbers do not fit.
 */
export function groupNorm(x: Operand, groups: number, affine?: Affine, epsilon = 1e-5): Value {
  return emit("groupNorm", [x, ...affineOf(affine)], { groups, epsilon });
}

/**
 * Batch normalisation with the statistics of the batch (Ioffe and Szegedy 2015, arXiv:1502.03167):
 * x (N, C, spatial…).
 * @returns y like x, and mean and variance (biased) of each channel, (C,) both
 * @throws ShapeError when the affine numbers do not fit.
 */
export function batchNorm(
  x: Operand,
  affine?: Affine,
  epsilon = 1e-5,
): { y: Value; mean: Value; variance: Value } {
  const inputs = [x, ...affineOf(affine)];
  const [y, center, spread] = emitAll("batchNorm", inputs, { epsilon, training: true });
  return { y: y!, mean: center!, variance: spread! };
}

/**
 * Batch normalisation with given statistics, (C,) both: x (N, C, spatial…) → the same.
 * @throws ShapeError when statistics or affine numbers do not fit.
 */
export function batchNormWith(
  x: Operand,
  statistics: { readonly mean: Operand; readonly variance: Operand },
  affine?: Affine,
  epsilon = 1e-5,
): Value {
  const inputs = [x, statistics.mean, statistics.variance, ...affineOf(affine)];
  return emit("batchNorm", inputs, { epsilon, training: false });
}

/** One number per channel beside (N, C, spatial…). */
export function perChannel(numbers: Value, rank: number): Value {
  return reshape(numbers, [1, -1, ...new Array<number>(rank - 2).fill(1)]);
}

/** All axes but that of the channels. */
export function otherAxes(x: Value): number[] {
  return x.shape.flatMap((_, i) => (i === 1 ? [] : [i]));
}

/** Each group of channels of an example as a row: (N, C, spatial…) → (N·groups, size). */
export function groupRows(x: Value, groups: number): Value {
  const [n, ...rest] = x.shape as number[];
  return reshape(x, [n! * groups, rest.reduce((a, b) => a * b, 1) / groups]);
}

/** y, and of each row of a group its mean and 1 / √(variance + ε), (N·groups, 1) both. */
export function expandGroupNorm(
  [x, weight, bias]: readonly Value[],
  { groups, epsilon }: AttrsOf["groupNorm"],
): Value[] {
  const rows = groupRows(x!, groups);
  const fill = (value: number): Value =>
    expand(x!.graph.lift(value, x!.dtype), rows.shape.slice(1));
  const [plain, center, inverse] = emitAll("layerNorm", [rows, fill(1), fill(0)], { epsilon });
  const y = reshape(plain!, x!.shape);
  if (!weight || !bias) return [y, center!, inverse!];
  const scaled = mul(y, perChannel(weight, x!.rank));
  return [add(scaled, perChannel(bias, x!.rank)), center!, inverse!];
}

export function expandBatchNorm(
  inputs: readonly Value[],
  { epsilon, training }: AttrsOf["batchNorm"],
): Value[] {
  const [x, ...rest] = inputs as [Value, ...Value[]];
  const channels = [x.shape[1]!];
  let center: Value;
  let spread: Value;
  if (training) {
    const axes = otherAxes(x);
    const wide = mean(x, axes, { keepDims: true });
    center = reshape(wide, channels);
    spread = reshape(mean(square(sub(x, wide)), axes, { keepDims: true }), channels);
  } else [center, spread] = rest.splice(0, 2) as [Value, Value];
  const [weight, bias] = rest;
  const inverse = rsqrt(add(spread, epsilon));
  const scale = weight ? mul(inverse, weight) : inverse;
  const scaled = mul(sub(x, perChannel(center, x.rank)), perChannel(scale, x.rank));
  const y = bias ? add(scaled, perChannel(bias, x.rank)) : scaled;
  return training ? [y, center, spread] : [y];
}
