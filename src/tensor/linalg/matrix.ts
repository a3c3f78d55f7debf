/** Matrices of doubles for linear algebra on the host, row after row. */
import { ShapeError } from "../../errors.ts";
import { showShape } from "../shape.ts";
import { Tensor } from "../tensor.ts";

/** (rows, columns), the entry (i, j) at i · columns + j. */
export interface Matrix {
  readonly rows: number;
  readonly columns: number;
  readonly data: Float64Array;
}

/** A matrix over numbers that are there, or of zeros. */
export function matrix(
  rows: number,
  columns: number,
  data: Float64Array = new Float64Array(rows * columns),
): Matrix {
  if (data.length !== rows * columns) {
    throw new ShapeError(
      `matrix: ${rows} rows of ${columns} hold ${rows * columns} numbers, got ${data.length}.`,
    );
  }
  return { rows, columns, data };
}

export function identity(size: number): Matrix {
  const result = matrix(size, size);
  for (let i = 0; i < size; i++) result.data[i * size + i] = 1;
  return result;
}

/** A copy in double precision. @throws ShapeError for what has not two axes. */
export function matrixOf(tensor: Tensor): Matrix {
  const [rows, columns] = tensor.shape;
  if (tensor.shape.length === 2) {
    return matrix(rows!, columns!, Float64Array.from(tensor.numbers()));
  }
  throw new ShapeError(`matrix: needs two axes, got shape ${showShape(tensor.shape)}.`);
}

/** Rounded once to float32. */
export function tensorOf({ rows, columns, data }: Matrix): Tensor<"float32"> {
  return new Tensor("float32", [rows, columns], Float32Array.from(data));
}

export function transpose({ rows, columns, data }: Matrix): Matrix {
  const result = matrix(columns, rows);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) result.data[j * rows + i] = data[i * columns + j]!;
  }
  return result;
}

export interface MultiplyOptions {
  /** Aᵀ in place of A; default false. */
  readonly transA?: boolean;
  readonly transB?: boolean;
}

/**
 * A B, with inner loops along memory.
 * @throws ShapeError when inner sizes differ.
 */
export function multiply(a: Matrix, b: Matrix, options: MultiplyOptions = {}): Matrix {
  const [left, right] = [options.transA ? transpose(a) : a, options.transB ? transpose(b) : b];
  if (left.columns !== right.rows) {
    throw new ShapeError(
      `multiply: inner sizes differ, ${showShape([left.rows, left.columns])} × ${showShape([right.rows, right.columns])}.`,
    );
  }
  const [inner, columns] = [left.columns, right.columns];
  const result = matrix(left.rows, columns);
  const [x, y, out] = [left.data, right.data, result.data];
  for (let i = 0; i < left.rows; i++) {
    const row = i * columns;
    let k = 0;
    // Four rows at a time: the sums are read and written a quarter as often.
    for (; k + 3 < inner; k += 4) {
      const at = i * inner + k;
      const [x0, x1, x2, x3] = [x[at]!, x[at + 1]!, x[at + 2]!, x[at + 3]!];
      const y0 = k * columns;
      const [y1, y2, y3] = [y0 + columns, y0 + 2 * columns, y0 + 3 * columns];
      for (let j = 0; j < columns; j++) {
        out[row + j]! += x0 * y[y0 + j]! + x1 * y[y1 + j]! + x2 * y[y2 + j]! + x3 * y[y3 + j]!;
      }
    }
    for (; k < inner; k++) {
      const factor = x[i * inner + k]!;
      for (let j = 0; j < columns; j++) out[row + j]! += factor * y[k * columns + j]!;
    }
  }
  return result;
}

/** Rows from `from` up to `to`, copied. */
export function rowsOf({ rows, columns, data }: Matrix, from = 0, to: number = rows): Matrix {
  return matrix(to - from, columns, data.slice(from * columns, to * columns));
}

/** Columns from `from` up to `to`, copied. */
export function columnsOf(a: Matrix, from = 0, to: number = a.columns): Matrix {
  const result = matrix(a.rows, to - from);
  for (let i = 0; i < a.rows; i++) {
    const start = i * a.columns;
    result.data.set(a.data.subarray(start + from, start + to), i * (to - from));
  }
  return result;
}

/** The square root of the sum of squares (Frobenius). */
export function frobenius({ data }: Matrix): number {
  let sum = 0;
  for (const x of data) sum += x * x;
  return Math.sqrt(sum);
}

/**
 * The matrix divided by a power of two, which changes no digit, so that its largest entry is about 1 and
 * squares stay away from the ends of the range.
 */
export function scaled(a: Matrix): { readonly scale: number; readonly inner: Matrix } {
  const largest = a.data.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  const power = largest > 0 ? Math.ceil(Math.log2(largest)) : 0;
  const scale = 2 ** Math.min(1000, Math.max(-1000, power));
  return {
    scale,
    inner: matrix(
      a.rows,
      a.columns,
      a.data.map((x) => x / scale),
    ),
  };
}

/** @throws ShapeError for numbers that are not finite, which no decomposition has. */
export function checkFinite(where: string, { data, columns }: Matrix): void {
  const at = data.findIndex((x) => !Number.isFinite(x));
  if (at < 0) return;
  throw new ShapeError(
    `${where}: entry (${Math.floor(at / columns)}, ${at % columns}) is ${data[at]} — a matrix of finite numbers is needed.`,
  );
}
