/**
 * Learning a sketch of a weight matrix: few values for each group of a row, and a code for each weight. The
 * equations stand in the header of `sketchtune.ts`.
 */
import { OptionError } from "../../errors.ts";
import {
  frobenius,
  inverseFactor,
  type Matrix,
  matrix,
  multiply,
  svd,
} from "../../tensor/linalg/index.ts";
import type { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";

/** How weights get their codes. */
export type CodeRule = "feedback" | "nearest" | "random";

export interface SketchSettings {
  readonly bits: 2 | 3 | 4;
  readonly groupsPerRow: number;
  /** Added to the diagonal of H, as a share of its mean. */
  readonly damp: number;
  /** p: how strongly columns that matter draw the values; 0 is plain k-means. */
  readonly power: number;
  readonly codes: CodeRule;
}

/** A matrix as values and codes. */
export interface Sketch {
  /** (out, groups, 2^bits), ascending in each group. */
  readonly values: Tensor<"float32">;
  /** (out, groups, in / groups) */
  readonly codes: Tensor<"uint8">;
}

const maxRounds = 100;

/**
 * Weighted k-means of numbers on a line, by Lloyd's rounds from values in equal steps over the range. A value
 * that no number is nearest to moves to the number that is served worst.
 * @param weights not negative, one for each number; default 1 each
 * @returns k values, ascending
 */
export function kMeansLine(
  numbers: ArrayLike<number>,
  k: number,
  weights?: ArrayLike<number>,
): Float64Array<ArrayBuffer> {
  const count = numbers.length;
  const order = Array.from({ length: count }, (_, i) => i).sort(
    (i, j) => numbers[i]! - numbers[j]!,
  );
  const sorted = Float64Array.from(order, (i) => numbers[i]!);
  const own = Float64Array.from(order, (i) => weights?.[i] ?? 1);
  // Sums up to each place: a value's mean is a difference of two.
  const [mass, moment] = [new Float64Array(count + 1), new Float64Array(count + 1)];
  for (let i = 0; i < count; i++) {
    mass[i + 1] = mass[i]! + own[i]!;
    moment[i + 1] = moment[i]! + own[i]! * sorted[i]!;
  }
  const [low, high] = [sorted[0]!, sorted[count - 1]!];
  const values = Float64Array.from({ length: k }, (_, c) =>
    k === 1 ? (low + high) / 2 : low + ((high - low) * c) / (k - 1),
  );
  const ends = new Int32Array(k);
  for (let round = 0; round < maxRounds; round++) {
    let at = 0;
    for (let c = 0; c < k - 1; c++) {
      const border = (values[c]! + values[c + 1]!) / 2;
      while (at < count && sorted[at]! <= border) at++;
      ends[c] = at;
    }
    ends[k - 1] = count;
    let moved = 0;
    const idle: number[] = [];
    for (let c = 0, from = 0; c < k; from = ends[c]!, c++) {
      const total = mass[ends[c]!]! - mass[from]!;
      if (!(total > 0)) {
        idle.push(c);
        continue;
      }
      const mean = (moment[ends[c]!]! - moment[from]!) / total;
      moved = Math.max(moved, Math.abs(mean - values[c]!));
      values[c] = mean;
    }
    if (idle.length > 0 && round < maxRounds / 2) {
      moved += relocate(values, idle, sorted, own, ends);
    }
    if (!(moved > 1e-9 * (high - low))) break;
  }
  return values.sort();
}

/** Puts idle values on numbers that are far from theirs; says how far the farthest was. */
function relocate(
  values: Float64Array,
  idle: readonly number[],
  sorted: Float64Array,
  weights: Float64Array,
  ends: Int32Array,
): number {
  const errors = new Float64Array(sorted.length);
  for (let c = 0, from = 0; c < values.length; from = ends[c]!, c++) {
    for (let i = from; i < ends[c]!; i++) errors[i] = weights[i]! * (sorted[i]! - values[c]!) ** 2;
  }
  let far = 0;
  for (const c of idle) {
    let worst = 0;
    for (let i = 1; i < errors.length; i++) if (errors[i]! > errors[worst]!) worst = i;
    if (!(errors[worst]! > 0)) break;
    far = Math.max(far, Math.abs(sorted[worst]! - values[c]!));
    values[c] = sorted[worst]!;
    errors[worst] = 0;
  }
  values.sort();
  return far;
}

/** The place of the nearest of ascending values; the lower of two that are as near. */
export function nearest(
  values: ArrayLike<number>,
  x: number,
  from = 0,
  to: number = values.length,
): number {
  let [low, high] = [from, to - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (x > (values[middle]! + values[middle + 1]!) / 2) low = middle + 1;
    else high = middle;
  }
  return low - from;
}

/**
 * Sketches a matrix.
 * @param weight W (out, in)
 * @param moments H = X Xᵀ (in, in) of the layer's inputs; not looked at with power 0 and codes not "feedback"
 * @param rng for random codes
 * @throws OptionError for groups that do not divide the columns.
 */
export function learnSketch(
  weight: Matrix,
  moments: Matrix | undefined,
  settings: SketchSettings,
  rng: Rng,
): Sketch {
  const { bits, groupsPerRow, damp, power, codes: rule } = settings;
  const { rows, columns } = weight;
  const width = columns / groupsPerRow;
  if (!Number.isInteger(width)) {
    throw new OptionError(
      `sketchtune: groupsPerRow ${groupsPerRow} does not divide the ${columns} inputs of a layer.`,
    );
  }
  const k = 2 ** bits;
  const factor = moments && inverseFactor(damped(moments, damp));
  // What an error in a column costs after those behind it have made up for it: 1 / U_jj².
  const importance =
    factor && power > 0
      ? Float64Array.from({ length: columns }, (_, j) => factor.data[j * columns + j]! ** -power)
      : undefined;
  const values = Tensor.zeros([rows, groupsPerRow, k], "float32");
  const codes = Tensor.zeros([rows, groupsPerRow, width], "uint8");
  const drawn = rule === "random" ? rng.uniforms(rows * columns) : undefined;
  for (let i = 0; i < rows; i++) {
    const row = weight.data.slice(i * columns, (i + 1) * columns);
    const own = codes.data.subarray(i * columns, (i + 1) * columns);
    const grid = values.data.subarray(i * groupsPerRow * k, (i + 1) * groupsPerRow * k);
    if (drawn) {
      for (let j = 0; j < columns; j++) own[j] = Math.floor(drawn[i * columns + j]! * k);
      setMeans(grid, row, own, k, width, importance);
      continue;
    }
    for (let g = 0; g < groupsPerRow; g++) {
      const [from, to] = [g * width, (g + 1) * width];
      grid.set(kMeansLine(row.subarray(from, to), k, importance?.subarray(from, to)), g * k);
    }
    assign(row, own, grid, k, width, rule === "feedback" ? factor : undefined);
  }
  return { values, codes };
}

/** H with a share of its mean diagonal added to it; the unit matrix where nothing was seen. */
export function damped(moments: Matrix, damp: number): Matrix {
  const n = moments.rows;
  const result = matrix(n, n, moments.data.slice());
  let mean = 0;
  for (let i = 0; i < n; i++) mean += result.data[i * n + i]! / n;
  for (let i = 0; i < n; i++) result.data[i * n + i]! += mean > 0 ? damp * mean : 1;
  return result;
}

/**
 * Gives each weight of a row the code of the nearest value, column after column; with a factor U the error of a
 * column is made up for by those behind it. The row is changed.
 */
export function assign(
  row: Float64Array,
  codes: Uint8Array,
  grid: Float32Array,
  k: number,
  width: number,
  factor: Matrix | undefined,
): void {
  const n = row.length;
  for (let j = 0; j < n; j++) {
    const from = Math.floor(j / width) * k;
    const code = nearest(grid, row[j]!, from, from + k);
    codes[j] = code;
    if (!factor) continue;
    const u = factor.data.subarray(j * n, (j + 1) * n);
    const error = (row[j]! - grid[from + code]!) / u[j]!;
    for (let t = j + 1; t < n; t++) row[t]! -= error * u[t]!;
  }
}

/** Values as (weighted) means of the weights that have their code; 0 where none has. */
function setMeans(
  grid: Float32Array,
  row: Float64Array,
  codes: Uint8Array,
  k: number,
  width: number,
  weights: Float64Array | undefined,
): void {
  const [sums, masses] = [new Float64Array(grid.length), new Float64Array(grid.length)];
  for (let j = 0; j < row.length; j++) {
    const at = Math.floor(j / width) * k + codes[j]!;
    const weight = weights?.[j] ?? 1;
    sums[at]! += weight * row[j]!;
    masses[at]! += weight;
  }
  for (let at = 0; at < grid.length; at++) {
    grid[at] = masses[at]! > 0 ? sums[at]! / masses[at]! : 0;
  }
}

/** Ŵ (out, in) of values and codes. */
export function dequantizeSketch({ values, codes }: Sketch): Matrix {
  const [rows, groups, width] = codes.shape as readonly [number, number, number];
  const k = values.shape[2]!;
  const columns = groups * width;
  const result = matrix(rows, columns);
  for (let i = 0; i < result.data.length; i++) {
    result.data[i] = values.data[Math.floor(i / width) * k + codes.data[i]!]!;
  }
  return result;
}

/** ‖(W - Ŵ) X‖ / ‖W X‖ (Frobenius) with H = X Xᵀ. */
export function reconstructionError(weight: Matrix, other: Matrix, moments: Matrix): number {
  const difference = matrix(
    weight.rows,
    weight.columns,
    weight.data.map((x, i) => x - other.data[i]!),
  );
  const energy = (a: Matrix): number => {
    const product = multiply(a, moments).data;
    return a.data.reduce((sum, x, i) => sum + x * product[i]!, 0);
  };
  return Math.sqrt(Math.max(0, energy(difference)) / Math.max(Number.MIN_VALUE, energy(weight)));
}

/** Codes of each row, one behind the other from the lowest bit of each byte: (out, ⌈in · bits / 8⌉). */
export function packCodes(codes: Tensor<"uint8">, bits: number): Tensor<"uint8"> {
  const [rows, groups, width] = codes.shape as readonly [number, number, number];
  const columns = groups * width;
  const bytes = Math.ceil((columns * bits) / 8);
  const packed = Tensor.zeros([rows, bytes], "uint8");
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const at = j * bits;
      const code = codes.data[i * columns + j]! << (at & 7);
      packed.data[i * bytes + (at >> 3)]! |= code & 255;
      if (code > 255) packed.data[i * bytes + (at >> 3) + 1]! |= code >> 8;
    }
  }
  return packed;
}

/** The way back: (out, bytes) → (out, groups, width). */
export function unpackCodes(
  packed: Tensor<"uint8">,
  bits: number,
  groups: number,
  width: number,
): Tensor<"uint8"> {
  const [rows, bytes] = packed.shape as readonly [number, number];
  const columns = groups * width;
  const codes = Tensor.zeros([rows, groups, width], "uint8");
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      const at = j * bits;
      const place = i * bytes + (at >> 3);
      const both = packed.data[place]! | ((packed.data[place + 1] ?? 0) << 8);
      codes.data[i * columns + j] = (both >> (at & 7)) & (2 ** bits - 1);
    }
  }
  return codes;
}

/** What two kinds of updates cannot say of one. */
export interface UpdateClasses {
  /** ‖Δ‖² */
  readonly energy: number;
  /** ‖Δ‖² - Σ n_b mean_b² over the buckets of weights that share a value. */
  readonly sketchResidual: number;
  /** Σ_{i>r} σ_i², for each rank asked for. */
  readonly lowRankResidual: readonly number[];
}

/**
 * How well a measured change of a weight fits the codes of a sketch, and ranks.
 * @param delta (out, in)
 * @param codes (out, groups, in / groups)
 * @throws OptionError for shapes that do not fit each other.
 */
export function compareUpdateClasses(
  delta: Matrix,
  codes: Tensor<"uint8">,
  ranks: readonly number[],
): UpdateClasses {
  const [rows, groups, width] = codes.shape as readonly [number, number, number];
  if (delta.rows !== rows || delta.columns !== groups * width) {
    throw new OptionError(
      `compareUpdateClasses: codes of (${rows}, ${groups * width}) do not fit a change of (${delta.rows}, ${delta.columns}).`,
    );
  }
  const energy = frobenius(delta) ** 2;
  const [sums, counts] = [new Float64Array(256), new Float64Array(256)];
  let explained = 0;
  for (let group = 0; group < rows * groups; group++) {
    sums.fill(0);
    counts.fill(0);
    for (let i = group * width; i < (group + 1) * width; i++) {
      sums[codes.data[i]!]! += delta.data[i]!;
      counts[codes.data[i]!]!++;
    }
    for (let c = 0; c < 256; c++) if (counts[c]! > 0) explained += sums[c]! ** 2 / counts[c]!;
  }
  const { s } = svd(delta);
  return {
    energy,
    sketchResidual: Math.max(0, energy - explained),
    lowRankResidual: ranks.map((rank) => s.slice(rank).reduce((all, x) => all + x * x, 0)),
  };
}
