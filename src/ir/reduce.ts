/** Reductions and cumulative sums. Without `axes` they run over all; axes may count from the end. */
import { normalizeAxes, normalizeAxis } from "../tensor/shape.ts";
import type { ReduceOp } from "./attrs.ts";
import { cast, exp, log, sqrt, square, sub } from "./elementwise.ts";
import { emit, emitAll } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";

export interface ReduceOptions {
  /** Keep reduced axes with size 1; default false. */
  readonly keepDims?: boolean;
}

type Reduce = (x: Operand, axes?: number | readonly number[], options?: ReduceOptions) => Value;

const reduce =
  (op: ReduceOp): Reduce =>
  (x, axes, { keepDims = false } = {}) => {
    const value = graphFor(op, [x]).lift(x);
    const list = normalizeAxes(op, axes, value.rank);
    if (list.length === 0) return value;
    return emit(op, [value], { axes: list, keepDims });
  };

export const sum: Reduce = reduce("sum");
export const mean: Reduce = reduce("mean");
/** Largest along the axes. */
export const max: Reduce = reduce("reduceMax");
/** Smallest along the axes. */
export const min: Reduce = reduce("reduceMin");
export const prod: Reduce = reduce("prod");

/** Mean squared distance from the mean (divides by n). */
export function variance(
  x: Operand,
  axes?: number | readonly number[],
  options: ReduceOptions = {},
): Value {
  return mean(square(sub(x, mean(x, axes, { keepDims: true }))), axes, options);
}

/** √Σx² */
export function norm(
  x: Operand,
  axes?: number | readonly number[],
  options: ReduceOptions = {},
): Value {
  return sqrt(sum(square(x), axes, options));
}

/** log Σ e^x, without overflow. */
export function logSumExp(x: Operand, axis = -1, options: ReduceOptions = {}): Value {
  const top = emit("stopGradient", [max(x, axis, { keepDims: true })], {});
  const kept = log(sum(exp(sub(x, top)), axis, { keepDims: true }));
  const total = emit("add", [kept, top], {});
  return options.keepDims ? total : sum(total, axis);
}

export interface CumulativeOptions {
  /** Leave out the element itself. */
  readonly exclusive?: boolean;
  /** From the last to the first. */
  readonly reverse?: boolean;
}

export function cumSum(x: Operand, axis = -1, options: CumulativeOptions = {}): Value {
  const value = graphFor("cumSum", [x]).lift(x);
  return emit("cumSum", [value], {
    axis: normalizeAxis("cumSum", axis, value.rank),
    exclusive: options.exclusive ?? false,
    reverse: options.reverse ?? false,
  });
}

/** Index of the largest element, int32; the first among equals. */
export function argMax(x: Operand, axis = -1): Value {
  const value = graphFor("argMax", [x]).lift(x);
  return emit("argMax", [value], { axis: normalizeAxis("argMax", axis, value.rank) });
}

/** Index of the smallest element, int32; the first among equals. */
export function argMin(x: Operand, axis = -1): Value {
  const value = graphFor("argMin", [x]).lift(x);
  return emit("argMin", [value], { axis: normalizeAxis("argMin", axis, value.rank) });
}

/** The k largest (or smallest) along an axis in order, with their indices (int32). */
export function topK(
  x: Operand,
  k: number,
  axis = -1,
  { largest = true }: { readonly largest?: boolean } = {},
): { values: Value; indices: Value } {
  const value = graphFor("topK", [x]).lift(x);
  const attrs = { k, axis: normalizeAxis("topK", axis, value.rank), largest };
  const [values, indices] = emitAll("topK", [value], attrs);
  return { values: values!, indices: indices! };
}

/** All elements along an axis in order, with their indices (int32). */
export function sort(
  x: Operand,
  axis = -1,
  { descending = false }: { readonly descending?: boolean } = {},
): { values: Value; indices: Value } {
  const value = graphFor("sort", [x]).lift(x);
  const size = value.shape[normalizeAxis("sort", axis, value.rank)] as number;
  return topK(value, size, axis, { largest: descending });
}

/** Share of elements for which a condition holds. */
export function meanOf(condition: Operand): Value {
  return mean(cast(condition, "float32"));
}
