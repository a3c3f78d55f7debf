/**
 * Shapes. A dimension is a number, or in inference graphs a named symbol such as `rows` or `past`.
 * Sums and products of symbols are kept as canonical text (`past+1`, `4*rows`).
 */
import { ShapeError } from "../errors.ts";

export type Dim = number | string;
export type Shape = readonly Dim[];

/** A shape whose every dimension is known. */
export type StaticShape = readonly number[];

export function isStatic(shape: Shape): shape is StaticShape {
  return shape.every((dim) => typeof dim === "number");
}

/** @throws ShapeError when a dimension is a symbol. */
export function toStatic(shape: Shape, where: string): StaticShape {
  if (isStatic(shape)) return shape;
  throw new ShapeError(
    `${where}: needs known sizes, got ${showShape(shape)} — bind the symbols, or compile for one shape.`,
  );
}

/** Elements of a shape; 1 for a scalar. */
export function sizeOf(shape: StaticShape): number {
  let size = 1;
  for (const dim of shape) size *= dim;
  return size;
}

/** The parts of a dimension between separators that stand outside brackets. */
export function splitDim(dim: string, separator: "+" | "*"): string[] {
  const parts = [""];
  let depth = 0;
  for (const letter of dim) {
    if (letter === "(") depth++;
    if (letter === ")") depth--;
    if (letter === separator && depth === 0) parts.push("");
    else parts[parts.length - 1] += letter;
  }
  return parts;
}

export function mulDims(...dims: readonly Dim[]): Dim {
  let factor = 1;
  const symbols: string[] = [];
  for (const dim of dims) {
    if (typeof dim === "number") factor *= dim;
    else if (splitDim(dim, "+").length > 1) symbols.push(`(${dim})`);
    else {
      for (const part of splitDim(dim, "*")) {
        if (/^\d+$/.test(part)) factor *= Number(part);
        else symbols.push(part);
      }
    }
  }
  if (symbols.length === 0 || factor === 0) return factor;
  // A sum alone needs no brackets.
  if (factor === 1 && symbols.length === 1) return symbols[0]!.replace(/^\((.*)\)$/, "$1");
  const text = symbols.sort().join("*");
  return factor === 1 ? text : `${factor}*${text}`;
}

export function addDims(...dims: readonly Dim[]): Dim {
  let constant = 0;
  const symbols: string[] = [];
  for (const dim of dims.flatMap((d): Dim[] => (typeof d === "number" ? [d] : splitDim(d, "+")))) {
    if (typeof dim === "number" || /^\d+$/.test(dim)) constant += Number(dim);
    else symbols.push(dim);
  }
  if (symbols.length === 0) return constant;
  const text = symbols.sort().join("+");
  return constant === 0 ? text : `${text}+${constant}`;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((dim, i) => dim === b[i]);
}

export function showShape(shape: Shape): string {
  return shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
}

/**
 * The shape to which all of `shapes` broadcast, NumPy's rule.
 * @throws ShapeError when two dimensions differ and neither is 1.
 */
export function broadcastShapes(where: string, ...shapes: readonly Shape[]): Shape {
  const rank = Math.max(0, ...shapes.map((shape) => shape.length));
  const result: Dim[] = new Array<Dim>(rank).fill(1);
  for (const shape of shapes) {
    for (let i = 0; i < shape.length; i++) {
      const at = rank - shape.length + i;
      const dim = shape[i]!;
      if (dim === 1 || dim === result[at]) continue;
      if (result[at] !== 1) {
        throw new ShapeError(
          `${where}: shapes do not broadcast, ${shapes.map(showShape).join(" and ")} — sizes must be equal or 1, counted from the right.`,
        );
      }
      result[at] = dim;
    }
  }
  return result;
}

/** Row-major strides, in elements. */
export function stridesOf(shape: StaticShape): number[] {
  const strides = new Array<number>(shape.length);
  let stride = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    strides[i] = stride;
    stride *= shape[i]!;
  }
  return strides;
}

/**
 * The axis counted from the front.
 * @throws ShapeError when it is outside the rank.
 */
export function normalizeAxis(where: string, axis: number, rank: number): number {
  const index = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || index < 0 || index >= rank) {
    throw new ShapeError(`${where}: axis ${axis} is outside a tensor of ${rank} dimensions.`);
  }
  return index;
}

export function normalizeAxes(
  where: string,
  axes: readonly number[] | number | undefined,
  rank: number,
): number[] {
  if (axes === undefined) return Array.from({ length: rank }, (_, i) => i);
  const list = typeof axes === "number" ? [axes] : axes;
  const normal = list.map((axis) => normalizeAxis(where, axis, rank)).sort((a, b) => a - b);
  if (new Set(normal).size !== normal.length) {
    throw new ShapeError(`${where}: axes repeat, got [${list.join(", ")}].`);
  }
  return normal;
}
