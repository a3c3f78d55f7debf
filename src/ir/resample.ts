/** Changing the sampling of images: resize, and sampling at given places. */
import { OptionError, ShapeError } from "../errors.ts";
import { showShape, toStatic } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { AttrsOf, ResizeAttrs } from "./attrs.ts";
import { add, and, cast, clamp, floor, greaterOrEqual, less, mul, sub } from "./elementwise.ts";
import { emit } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { gather, repeatInterleave } from "./indexing.ts";
import { alongAxis, fixedMatrix, type Row } from "./interpolate.ts";
import { reshape, slice, transpose, unsqueeze } from "./layout.ts";

export interface ResizeOptions {
  /** Size of each spatial axis, or of all. Give this or `scale`. */
  readonly size?: number | readonly number[];
  /** Factor of each spatial axis, or of all; sizes round down. */
  readonly scale?: number | readonly number[];
  /** "linear" is bilinear over two axes, "cubic" bicubic; both without antialiasing. */
  readonly mode: ResizeAttrs["mode"];
}

/**
 * Resizes the spatial axes: (N, C, spatial…) → (N, C, size…), with half-pixel centres
 * (PyTorch's interpolate with align_corners false). "cubic" is Keys' convolution with a = -0.75
 * (Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing").
 * @throws OptionError unless one of `size` and `scale` is given, positive.
 * @throws ShapeError when x has no spatial axis.
 */
export function resize(x: Operand, options: ResizeOptions): Value {
  const value = graphFor("resize", [x]).lift(x);
  if (value.rank < 3) {
    throw new ShapeError(`resize: needs (N, C, spatial…), got ${showShape(value.shape)}.`);
  }
  const inner = toStatic(value.shape.slice(2), "resize");
  const given = options.size ?? options.scale;
  const list = typeof given === "number" ? inner.map(() => given) : (given ?? []);
  const both = options.size !== undefined && options.scale !== undefined;
  if (both || list.length !== inner.length || list.some((n) => !(n > 0 && n < 2 ** 31))) {
    throw new OptionError(
      `resize: needs one of size and scale, ${inner.length} positive numbers, got [${list.join(", ")}].`,
    );
  }
  const bySize = options.size !== undefined;
  const sizes = inner.map((from, i) => (bySize ? list[i]! : Math.floor(from * list[i]!)));
  const steps = inner.map((from, i) => (bySize ? from / list[i]! : 1 / list[i]!));
  return emit("resize", [value], { mode: options.mode, sizes, steps });
}

/** Pixels of an axis that position i of the result reads, with their shares. */
const readers: Record<ResizeAttrs["mode"], (from: number, step: number) => (i: number) => Row> = {
  nearest: (from, step) => (i) => [[Math.min(from - 1, Math.floor(i * step)), 1]],
  linear: (from, step) => (i) => {
    const place = Math.max(0, (i + 0.5) * step - 0.5);
    const low = Math.min(from - 1, Math.floor(place));
    const share = Math.min(1, place - low);
    return [
      [low, 1 - share],
      [Math.min(from - 1, low + 1), share],
    ];
  },
  cubic: (from, step) => (i) => {
    const place = (i + 0.5) * step - 0.5;
    const low = Math.floor(place);
    return [-1, 0, 1, 2].map((k) => [
      Math.max(0, Math.min(from - 1, low + k)),
      keys(Math.abs(place - low - k)),
    ]);
  },
};

/** Weight of a pixel at a distance below 2, a = -0.75. */
function keys(d: number): number {
  const a = -0.75;
  if (d <= 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
}

/** How one axis is resampled: left as it is, each pixel repeated, pixels picked, or pixels mixed. */
export type AxisPlan =
  | { readonly kind: "same" }
  | { readonly kind: "repeat"; readonly times: number }
  | { readonly kind: "pick"; readonly sources: Tensor }
  | { readonly kind: "mix"; readonly matrix: (isTransposed: boolean) => Tensor };

/** The plan of spatial axis i of an input. */
export function axisPlan(x: Value, { mode, sizes, steps }: ResizeAttrs, i: number): AxisPlan {
  const from = x.shape[i + 2] as number;
  const [to, step] = [sizes[i]!, steps[i]!];
  if (to === from && step === 1) return { kind: "same" };
  const rows = readers[mode](from, step);
  if (mode === "nearest") {
    if (to % from === 0 && step === from / to) return { kind: "repeat", times: to / from };
    const sources = Array.from({ length: to }, (_, k) => rows(k)[0]![0]);
    return { kind: "pick", sources: Tensor.from(sources, [to], "int32") };
  }
  return {
    kind: "mix",
    matrix: (isTransposed) => {
      const name = `${mode}${step}`;
      if (!isTransposed) return fixedMatrix(name, to, from, x.dtype, rows);
      const columns: [number, number][][] = Array.from({ length: from }, () => []);
      for (let k = 0; k < to; k++) for (const [c, w] of rows(k)) columns[c]!.push([k, w]);
      return fixedMatrix(`${name}T`, from, to, x.dtype, (k) => columns[k]!);
    },
  };
}

export function expandResize([x]: readonly Value[], attrs: ResizeAttrs): Value[] {
  return [
    attrs.sizes.reduce((y, _, i) => {
      const plan = axisPlan(y, attrs, i);
      if (plan.kind === "repeat") return repeatInterleave(y, plan.times, i + 2);
      if (plan.kind === "pick") return gather(y, plan.sources, i + 2);
      return plan.kind === "mix" ? alongAxis(y, i + 2, plan.matrix(false)) : y;
    }, x!),
  ];
}

export interface GridSampleOptions {
  /** -1 and 1 are the centres of the outer pixels instead of their outer edges; default false. */
  readonly alignCorners?: boolean;
}

/**
 * Bilinear samples of images at places given as (x, y) from -1 to 1; outside are zeros
 * (Jaderberg et al. 2015, "Spatial Transformer Networks"; PyTorch's grid_sample).
 * @param x (N, C, H, W)
 * @param grid (N, H', W', 2)
 * @returns (N, C, H', W')
 * @throws ShapeError when the two do not fit.
 */
export function gridSample(x: Operand, grid: Operand, options: GridSampleOptions = {}): Value {
  return emit("gridSample", [x, grid], { alignCorners: options.alignCorners ?? false });
}

/** One of the four pixels around a place. */
export interface Corner {
  /** Whether it is the right, the lower one. */
  readonly right: boolean;
  readonly lower: boolean;
  /** Shares of the pixel along x and y, (N, H', W'). */
  readonly shareX: Value;
  readonly shareY: Value;
  /** 1 inside the image, 0 outside. */
  readonly inside: Value;
  /** Which pixel of (N·H·W, C), int32. */
  readonly index: Value;
}

/** A pixel's colours together: (N, C, H, W) → (N·H·W, C). */
export function pixelRows(x: Value): Value {
  const [n, c, height, width] = x.shape as number[];
  return reshape(transpose(x, [0, 2, 3, 1]), [n! * height! * width!, c!]);
}

/** Pixels between -1 and 1 of the grid, by two: what a step of the grid is in pixels. */
export function gridScale(size: number, { alignCorners }: AttrsOf["gridSample"]): number {
  return (alignCorners ? size - 1 : size) / 2;
}

export function cornersOf(x: Value, grid: Value, attrs: AttrsOf["gridSample"]): Corner[] {
  const [n, , height, width] = x.shape as [number, number, number, number];
  const shape = grid.shape.slice(0, 3);
  const place = (axis: number, size: number): Value => {
    const moved = mul(
      add(reshape(slice(grid, 3, axis, axis + 1), shape), 1),
      gridScale(size, attrs),
    );
    return attrs.alignCorners ? moved : sub(moved, 0.5);
  };
  const [px, py] = [place(0, width), place(1, height)];
  const [left, top] = [floor(px), floor(py)];
  const first = Tensor.from(
    Array.from({ length: n }, (_, i) => i * height * width),
    [n, 1, 1],
    "int32",
  );
  return [0, 1, 2, 3].map((k) => {
    const [right, lower] = [k % 2 === 1, k >= 2];
    const [column, row] = [add(left, k % 2), add(top, k >> 1)];
    const inside = and(within(column, width), within(row, height));
    return {
      right,
      lower,
      shareX: right ? sub(px, left) : sub(add(left, 1), px),
      shareY: lower ? sub(py, top) : sub(add(top, 1), py),
      inside: cast(inside, x.dtype),
      index: add(add(mul(pixelIndex(row, height), width), pixelIndex(column, width)), first),
    };
  });
}

function within(place: Value, size: number): Value {
  return and(greaterOrEqual(place, 0), less(place, size));
}

function pixelIndex(place: Value, size: number): Value {
  return cast(clamp(place, 0, size - 1), "int32");
}

/** How much of a corner's pixel a sample holds: (N, H', W', 1). */
export function cornerWeight(corner: Corner): Value {
  return unsqueeze(mul(mul(corner.shareX, corner.shareY), corner.inside), 3);
}

export function expandGridSample(
  [x, grid]: readonly Value[],
  attrs: AttrsOf["gridSample"],
): Value[] {
  const pixels = pixelRows(x!);
  const parts = cornersOf(x!, grid!, attrs).map((corner) =>
    mul(gather(pixels, corner.index), cornerWeight(corner)),
  );
  return [
    transpose(
      parts.reduce((a, b) => add(a, b)),
      [0, 3, 1, 2],
    ),
  ];
}
