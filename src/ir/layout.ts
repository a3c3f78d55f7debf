/** Moving elements: reshape, transpose, expand, slice, concat, split, pad, flip. */
import { ShapeError } from "../errors.ts";
import {
  type Dim,
  mulDims,
  normalizeAxis,
  type Shape,
  sameShape,
  showShape,
  splitDim,
} from "../tensor/shape.ts";
import { emit, emitAll } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";

/** Another shape over the same elements; one size may be -1 and is worked out. */
export function reshape(x: Operand, shape: Shape): Value {
  const value = graphFor("reshape", [x]).lift(x);
  const at = shape.indexOf(-1);
  let target = shape;
  if (at >= 0) {
    const rest = mulDims(...shape.filter((_, i) => i !== at));
    const total = mulDims(...value.shape);
    const missing =
      typeof total === "number" && typeof rest === "number" ? total / rest : divideDim(total, rest);
    if (missing === undefined || (typeof missing === "number" && !Number.isInteger(missing))) {
      throw new ShapeError(
        `reshape: ${showShape(value.shape)} cannot become ${showShape(shape)} — the other sizes must divide it.`,
      );
    }
    target = shape.map((dim, i) => (i === at ? missing : dim));
  }
  return sameShape(value.shape, target) ? value : emit("reshape", [value], { shape: target });
}

/** total / rest for products of symbols. */
function divideDim(total: Dim, rest: Dim): Dim | undefined {
  const parse = (dim: Dim): { factor: number; symbols: string[] } => {
    const product = typeof dim === "number" ? String(dim) : String(mulDims(1, dim));
    const bare = splitDim(product, "+").length > 1 ? [`(${product})`] : splitDim(product, "*");
    const isNumber = /^\d+$/.test(bare[0]!);
    return { factor: isNumber ? Number(bare[0]) : 1, symbols: isNumber ? bare.slice(1) : bare };
  };
  const over = parse(total);
  const under = parse(rest);
  for (const symbol of under.symbols) {
    const at = over.symbols.indexOf(symbol);
    if (at < 0) return undefined;
    over.symbols.splice(at, 1);
  }
  const factor = over.factor / under.factor;
  if (!Number.isInteger(factor)) return undefined;
  return mulDims(factor, ...over.symbols);
}

/** Axes in a new order; without one, reversed. */
export function transpose(x: Operand, perm?: readonly number[]): Value {
  const value = graphFor("transpose", [x]).lift(x);
  const order = (perm ?? value.shape.map((_, i) => value.rank - 1 - i)).map((axis) =>
    normalizeAxis("transpose", axis, value.rank),
  );
  if (order.every((axis, i) => axis === i) && order.length === value.rank) return value;
  return emit("transpose", [value], { perm: order });
}

/** Two axes exchanged. */
export function swapAxes(x: Operand, a = -1, b = -2): Value {
  const value = graphFor("swapAxes", [x]).lift(x);
  const perm = value.shape.map((_, i) => i);
  const [i, j] = [
    normalizeAxis("swapAxes", a, value.rank),
    normalizeAxis("swapAxes", b, value.rank),
  ];
  perm[i] = j;
  perm[j] = i;
  return transpose(value, perm);
}

/** Repeats along axes of size 1 (and new leading axes) to a shape. */
export function expand(x: Operand, shape: Shape): Value {
  const value = graphFor("expand", [x]).lift(x);
  return sameShape(value.shape, shape) ? value : emit("expand", [value], { shape });
}

/** A new axis of size 1. */
export function unsqueeze(x: Operand, axis: number): Value {
  const value = graphFor("unsqueeze", [x]).lift(x);
  const at = normalizeAxis("unsqueeze", axis, value.rank + 1);
  return reshape(value, [...value.shape.slice(0, at), 1, ...value.shape.slice(at)]);
}

/** Without an axis of size 1. */
export function squeeze(x: Operand, axis: number): Value {
  const value = graphFor("squeeze", [x]).lift(x);
  const at = normalizeAxis("squeeze", axis, value.rank);
  if (value.shape[at] !== 1) {
    throw new ShapeError(`squeeze: axis ${axis} of ${showShape(value.shape)} is not of size 1.`);
  }
  return reshape(
    value,
    value.shape.filter((_, i) => i !== at),
  );
}

/**
 * Elements start … end-1 of one axis, every `step`; `start` and `end` may count from the end. Without
 * `end` up to the last, or with a negative step down to the first.
 */
export function slice(x: Operand, axis: number, start: number, end?: number, step = 1): Value {
  const value = graphFor("slice", [x]).lift(x);
  const at = normalizeAxis("slice", axis, value.rank);
  const size = value.shape[at]!;
  const from = start < 0 ? start + (size as number) : start;
  const last = step < 0 ? -1 : size;
  const to = end === undefined ? last : end < 0 ? end + (size as number) : end;
  if (from === 0 && to === size && step === 1) return value;
  return emit("slice", [value], {
    starts: value.shape.map((_, i) => (i === at ? from : 0)),
    ends: value.shape.map((dim, i) => (i === at ? to : dim)),
    steps: value.shape.map((_, i) => (i === at ? step : 1)),
  });
}

/** Elements of one axis in reverse order. */
export function flip(x: Operand, axis: number): Value {
  const value = graphFor("flip", [x]).lift(x);
  const at = normalizeAxis("flip", axis, value.rank);
  if (value.shape[at] === 0) return value;
  return emit("slice", [value], {
    starts: value.shape.map((dim, i) => (i === at ? (dim as number) - 1 : 0)),
    ends: value.shape.map((dim, i) => (i === at ? -1 : dim)),
    steps: value.shape.map((_, i) => (i === at ? -1 : 1)),
  });
}

export function concat(values: readonly Operand[], axis = 0): Value {
  const graph = graphFor("concat", values);
  const lifted = values.map((value) => graph.lift(value));
  if (lifted.length === 1) return lifted[0]!;
  return emit("concat", lifted, {
    axis: normalizeAxis("concat", axis, lifted[0]?.rank ?? 0),
  });
}

/** Stacked along a new axis. */
export function stack(values: readonly Operand[], axis = 0): Value {
  return concat(
    values.map((value) => unsqueeze(value, axis)),
    axis,
  );
}

/** Parts of the given sizes along an axis. */
export function split(x: Operand, sizes: readonly number[], axis = -1): Value[] {
  const value = graphFor("split", [x]).lift(x);
  return emitAll("split", [value], { axis: normalizeAxis("split", axis, value.rank), sizes });
}

/** `parts` equal parts along an axis. */
export function chunk(x: Operand, parts: number, axis = -1): Value[] {
  const value = graphFor("chunk", [x]).lift(x);
  const size = value.shape[normalizeAxis("chunk", axis, value.rank)];
  if (typeof size !== "number" || size % parts !== 0) {
    throw new ShapeError(
      `chunk: axis ${axis} of ${showShape(value.shape)} does not divide into ${parts}.`,
    );
  }
  return split(value, new Array<number>(parts).fill(size / parts), axis);
}

/** Adds `before[i]` and `after[i]` elements of a constant to each axis. */
export function pad(
  x: Operand,
  before: readonly number[],
  after: readonly number[],
  value = 0,
): Value {
  const lifted = graphFor("pad", [x]).lift(x);
  if (before.length !== lifted.rank || after.length !== lifted.rank) {
    throw new ShapeError(
      `pad: needs sizes for ${lifted.rank} axes, got [${before.join(", ")}] and [${after.join(", ")}].`,
    );
  }
  if ([...before, ...after].every((size) => size === 0)) return lifted;
  return emit("pad", [lifted], { before, after, value });
}
