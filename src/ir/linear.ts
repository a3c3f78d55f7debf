/** Products of matrices, convolutions and pools. */
import { ShapeError } from "../errors.ts";
import { broadcastShapes, mulDims, showShape } from "../tensor/shape.ts";
import type { PoolAttrs } from "./attrs.ts";
import { emit, emitAll } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { expand, reshape, unsqueeze } from "./layout.ts";

export interface DotOptions {
  /** Read `a` with its last two axes exchanged. */
  readonly transA?: boolean;
  /** Read `b` with its last two axes exchanged. */
  readonly transB?: boolean;
  /** Scale on the product. */
  readonly alpha?: number;
}

/** alpha · a × b for two matrices, or stacks of equal size: (…, M, K) × (…, K, N) → (…, M, N). */
export function dot(a: Operand, b: Operand, options: DotOptions = {}): Value {
  return emit("dot", [a, b], {
    transA: options.transA ?? false,
    transB: options.transB ?? false,
    alpha: options.alpha ?? 1,
  });
}

/** NumPy's matmul: stacks broadcast, vectors are rows or columns. */
export function matmul(a: Operand, b: Operand): Value {
  const graph = graphFor("matmul", [a, b]);
  let x = graph.lift(a);
  let y = graph.lift(b);
  if (x.rank === 0 || y.rank === 0) {
    throw new ShapeError("matmul: needs at least one dimension each — use mul for scalars.");
  }
  const [isRow, isColumn] = [x.rank === 1, y.rank === 1];
  if (isRow) x = unsqueeze(x, 0);
  if (isColumn) y = unsqueeze(y, 1);
  let result: Value;
  if (y.rank === 2 && x.rank > 2) {
    // One product over all rows.
    result = reshape(dot(asRows(x), y), [...x.shape.slice(0, -1), y.shape[1]!]);
  } else {
    const stacked = broadcastShapes("matmul", x.shape.slice(0, -2), y.shape.slice(0, -2));
    result = dot(
      expand(x, [...stacked, ...x.shape.slice(-2)]),
      expand(y, [...stacked, ...y.shape.slice(-2)]),
    );
  }
  if (isRow)
    result = reshape(
      result,
      result.shape.filter((_, i) => i !== result.rank - 2),
    );
  if (isColumn) result = reshape(result, result.shape.slice(0, -1));
  return result;
}

export interface ConvOptions {
  /** One number for all spatial axes, or one each; default 1. */
  readonly stride?: number | readonly number[];
  /** Zeros on both sides of each spatial axis; default 0. */
  readonly padding?: number | readonly number[];
  readonly dilation?: number | readonly number[];
  readonly groups?: number;
}

function each(
  value: number | readonly number[] | undefined,
  spatial: number,
  missing: number,
): number[] {
  if (value === undefined || typeof value === "number") {
    return new Array<number>(spatial).fill(value ?? missing);
  }
  return [...value];
}

/** Cross-correlation: x (N, C, spatial…), weight (O, C/groups, kernel…) → (N, O, spatial…). */
export function conv(x: Operand, weight: Operand, options: ConvOptions = {}): Value {
  const graph = graphFor("conv", [x, weight]);
  const value = graph.lift(x);
  const spatial = value.rank - 2;
  const padding = each(options.padding, spatial, 0);
  return emit("conv", [value, weight], {
    strides: each(options.stride, spatial, 1),
    pads: [...padding, ...padding],
    dilations: each(options.dilation, spatial, 1),
    groups: options.groups ?? 1,
  });
}

/** The transpose of `conv`: x (N, C, spatial…), weight (C, O/groups, kernel…) → (N, O, spatial…). */
export function convTranspose(
  x: Operand,
  weight: Operand,
  options: ConvOptions & { readonly outputPadding?: number | readonly number[] } = {},
): Value {
  const graph = graphFor("convTranspose", [x, weight]);
  const value = graph.lift(x);
  const spatial = value.rank - 2;
  const padding = each(options.padding, spatial, 0);
  return emit("convTranspose", [value, weight], {
    strides: each(options.stride, spatial, 1),
    pads: [...padding, ...padding],
    dilations: each(options.dilation, spatial, 1),
    groups: options.groups ?? 1,
    outputPadding: each(options.outputPadding, spatial, 0),
  });
}

export interface PoolOptions {
  readonly kernel: number | readonly number[];
  /** Default: the kernel. */
  readonly stride?: number | readonly number[];
  readonly padding?: number | readonly number[];
}

function poolAttrs(value: Value, options: PoolOptions): PoolAttrs {
  const spatial = value.rank - 2;
  const kernel = each(options.kernel, spatial, 1);
  const padding = each(options.padding, spatial, 0);
  return {
    kernel,
    strides: options.stride === undefined ? kernel : each(options.stride, spatial, 1),
    pads: [...padding, ...padding],
  };
}

/** Largest element of each window: (N, C, spatial…). */
export function maxPool(x: Operand, options: PoolOptions): Value {
  const value = graphFor("maxPool", [x]).lift(x);
  return emitAll("maxPool", [value], poolAttrs(value, options))[0]!;
}

/** Mean of each window: (N, C, spatial…). */
export function avgPool(
  x: Operand,
  options: PoolOptions & {
    /** Padding counts as elements; default true. */ readonly countIncludePad?: boolean;
  },
): Value {
  const value = graphFor("avgPool", [x]).lift(x);
  return emit("avgPool", [value], {
    ...poolAttrs(value, options),
    countIncludePad: options.countIncludePad ?? true,
  });
}

/** All axes but the last as rows: (…, C) → (rows, C). */
export function asRows(x: Value): Value {
  if (x.rank < 1) throw new ShapeError(`asRows: needs a dimension, got ${showShape(x.shape)}.`);
  return reshape(x, [mulDims(...x.shape.slice(0, -1)), x.shape.at(-1)!]);
}
