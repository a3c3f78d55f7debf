/** Changing the sampling of images: resize, and sampling at given places. */
import { OptionError, ShapeError } from "../errors.ts";
import { add, and, cast, clamp, floor, greaterOrEqual, less, mul, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather, repeatInterleave } from "../ir/indexing.ts";
import { reshape, slice, transpose, unsqueeze } from "../ir/layout.ts";
import { showShape, toStatic } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { alongAxis, fixedMatrix } from "./interpolate.ts";

export interface ResizeOptions {
  /** Size of each spatial axis, or of all. Give this or `scale`. */
  readonly size?: number | readonly number[];
  /** Factor of each spatial axis, or of all; sizes round down. */
  readonly scale?: number | readonly number[];
  /** "linear" is bilinear over two axes, without antialiasing. */
  readonly mode: "nearest" | "linear";
}

/**
 * Resizes the spatial axes: (N, C, spatial…) → (N, C, size…), with half-pixel centres
 * (PyTorch's interpolate with align_corners false).
 * @throws OptionError unless one of `size` and `scale` is given, positive.
 * @throws ShapeError when x has no spatial axis.
 */
export function resize(x: Value, options: ResizeOptions): Value {
  if (x.rank < 3) {
    throw new ShapeError(`resize: needs (N, C, spatial…), got ${showShape(x.shape)}.`);
  }
  const inner = toStatic(x.shape.slice(2), "resize");
  const given = options.size ?? options.scale;
  const list = typeof given === "number" ? inner.map(() => given) : (given ?? []);
  const both = options.size !== undefined && options.scale !== undefined;
  if (both || list.length !== inner.length || list.some((n) => !(n > 0))) {
    throw new OptionError(
      `resize: needs one of size and scale, ${inner.length} positive numbers, got [${list.join(", ")}].`,
    );
  }
  return inner.reduce((y, from, i) => {
    const to = options.size === undefined ? Math.floor(from * list[i]!) : list[i]!;
    const step = options.size === undefined ? 1 / list[i]! : from / to;
    return options.mode === "nearest"
      ? nearest(y, i + 2, from, to, step)
      : linear(y, i + 2, from, to, step);
  }, x);
}

/** Position i reads ⌊i · step⌋. */
function nearest(x: Value, axis: number, from: number, to: number, step: number): Value {
  if (to === from && step === 1) return x;
  if (to % from === 0 && step === from / to) return repeatInterleave(x, to / from, axis);
  const sources = Array.from({ length: to }, (_, i) => Math.min(from - 1, Math.floor(i * step)));
  return gather(x, Tensor.from(sources, [to], "int32"), axis);
}

/** Position i reads at (i + ½) · step - ½, between its two neighbours. */
function linear(x: Value, axis: number, from: number, to: number, step: number): Value {
  if (to === from && step === 1) return x;
  const matrix = fixedMatrix(`linear${step}`, to, from, x.dtype, (i) => {
    const place = Math.max(0, (i + 0.5) * step - 0.5);
    const low = Math.min(from - 1, Math.floor(place));
    const share = Math.min(1, place - low);
    return [
      [low, 1 - share],
      [Math.min(from - 1, low + 1), share],
    ];
  });
  return alongAxis(x, axis, matrix);
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
export function gridSample(x: Value, grid: Value, options: GridSampleOptions = {}): Value {
  if (x.rank !== 4 || grid.rank !== 4 || grid.shape[3] !== 2 || x.shape[0] !== grid.shape[0]) {
    throw new ShapeError(
      `gridSample: needs x (N, C, H, W) and grid (N, H', W', 2), got ${showShape(x.shape)} and ${showShape(grid.shape)}.`,
    );
  }
  const [n, c, height, width] = toStatic(x.shape, "gridSample") as [number, number, number, number];
  const [, outHeight, outWidth] = toStatic(grid.shape, "gridSample") as [number, number, number];
  const shape = [n, outHeight, outWidth];
  // A pixel's colours lie together: (N, C, H, W) → (N·H·W, C)
  const pixels = reshape(transpose(x, [0, 2, 3, 1]), [n * height * width, c]);
  const place = (axis: number, size: number): Value => {
    const g = reshape(slice(grid, 3, axis, axis + 1), shape);
    return options.alignCorners
      ? mul(add(g, 1), (size - 1) / 2)
      : sub(mul(add(g, 1), size / 2), 0.5);
  };
  const [px, py] = [place(0, width), place(1, height)];
  const [left, top] = [floor(px), floor(py)];
  const first = Tensor.from(
    Array.from({ length: n }, (_, i) => i * height * width),
    [n, 1, 1],
    "int32",
  );
  let total: Value | undefined;
  for (const [dy, dx] of [
    [0, 0],
    [0, 1],
    [1, 0],
    [1, 1],
  ] as const) {
    const [column, row] = [add(left, dx), add(top, dy)];
    const share = mul(
      dx ? sub(px, left) : sub(add(left, 1), px),
      dy ? sub(py, top) : sub(add(top, 1), py),
    );
    const inside = and(within(column, width), within(row, height));
    const index = add(add(mul(pixelIndex(row, height), width), pixelIndex(column, width)), first);
    const weight = unsqueeze(mul(share, cast(inside, x.dtype)), 3);
    const part = mul(gather(pixels, index), weight);
    total = total ? add(total, part) : part;
  }
  return transpose(total!, [0, 3, 1, 2]);
}

function within(place: Value, size: number): Value {
  return and(greaterOrEqual(place, 0), less(place, size));
}

function pixelIndex(place: Value, size: number): Value {
  return cast(clamp(place, 0, size - 1), "int32");
}
