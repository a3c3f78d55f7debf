/** Fixed linear maps along one axis: what resizing and adaptive pooling are made of. */

import type { Dtype } from "../tensor/dtype.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Value } from "./graph.ts";
import { reshape, swapAxes } from "./layout.ts";
import { asRows, dot } from "./linear.ts";

/** Entries (column, weight) of one row of a matrix; columns may repeat. */
export type Row = readonly (readonly [column: number, weight: number])[];

const matrices = new Map<string, Tensor>();

/** The matrix (rows, columns) with the given rows; one tensor per name, so that equal ones are one constant. */
export function fixedMatrix(
  name: string,
  rows: number,
  columns: number,
  dtype: Dtype,
  row: (i: number) => Row,
): Tensor {
  const key = `${name}|${rows}|${columns}|${dtype}`;
  const known = matrices.get(key);
  if (known) return known;
  const numbers = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (const [column, weight] of row(i)) numbers[i * columns + column]! += weight;
  }
  const matrix = Tensor.from(numbers, [rows, columns], dtype);
  if (matrices.size >= 64) matrices.delete(matrices.keys().next().value!);
  matrices.set(key, matrix);
  return matrix;
}

/** Each line of x along an axis times a matrix (out, in): (…, in, …) → (…, out, …). */
export function alongAxis(x: Value, axis: number, matrix: Tensor): Value {
  const last = x.rank - 1;
  const moved = axis === last ? x : swapAxes(x, axis, last);
  const product = dot(asRows(moved), matrix, { transB: true });
  const shaped = reshape(product, [...moved.shape.slice(0, -1), matrix.shape[0]!]);
  return axis === last ? shaped : swapAxes(shaped, axis, last);
}
