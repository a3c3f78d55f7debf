/** Reading and writing by index. Indices are int32. */
import { normalizeAxis } from "../tensor/shape.ts";
import { cast, equal } from "./elementwise.ts";
import { emit } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";
import { expand, reshape, unsqueeze } from "./layout.ts";

/** 0 … length-1, int32. */
export function iota(length: number): Value {
  return emit("iota", [], { length });
}

/** Slices of `x` along an axis: x (…, n, …), indices (i…) → (…, i…, …). */
export function gather(x: Operand, indices: Operand, axis = 0): Value {
  const value = graphFor("gather", [x, indices]).lift(x);
  return emit("gather", [value, indices], { axis: normalizeAxis("gather", axis, value.rank) });
}

/** One element per index along an axis; `indices` has the shape of the result. */
export function gatherElements(x: Operand, indices: Operand, axis = -1): Value {
  const value = graphFor("gatherElements", [x, indices]).lift(x);
  return emit("gatherElements", [value, indices], {
    axis: normalizeAxis("gatherElements", axis, value.rank),
  });
}

type Reduction = "none" | "add";

/** `x` with updates written (or added) at indices (…, depth) of its first `depth` axes. */
export function scatterNd(
  x: Operand,
  indices: Operand,
  updates: Operand,
  reduction: Reduction = "none",
): Value {
  return emit("scatterNd", [x, indices, updates], { reduction });
}

/** `x` with one update per index along an axis. */
export function scatterElements(
  x: Operand,
  indices: Operand,
  updates: Operand,
  axis = -1,
  reduction: Reduction = "none",
): Value {
  const value = graphFor("scatterElements", [x, indices]).lift(x);
  return emit("scatterElements", [value, indices, updates], {
    axis: normalizeAxis("scatterElements", axis, value.rank),
    reduction,
  });
}

/** 1 at the index, else 0: indices (…) → float32 (…, depth). */
export function oneHot(indices: Operand, depth: number): Value {
  return cast(equal(unsqueeze(indices, -1), iota(depth)), "float32");
}

/** Every position (row, column) with column - row < `above`: bool (rows, columns). */
export function trilMask(rows: number, columns: number, above = 1): Value {
  const row = reshape(iota(rows), [rows, 1]);
  const column = reshape(iota(columns), [1, columns]);
  return emit("less", [emit("sub", [column, row], {}), above], {});
}

/** Each row repeated `times` along an axis, neighbours together. */
export function repeatInterleave(x: Operand, times: number, axis: number): Value {
  const value = graphFor("repeatInterleave", [x]).lift(x);
  const at = normalizeAxis("repeatInterleave", axis, value.rank);
  const before = value.shape.slice(0, at + 1);
  const after = value.shape.slice(at + 1);
  const wide = expand(unsqueeze(value, at + 1), [...before, times, ...after]);
  return reshape(wide, [...value.shape.slice(0, at), -1, ...after]);
}
