/** Products of thin matrices on the host, in double precision and rounded once. */
import { Tensor } from "../tensor/tensor.ts";

/**
 * W + scale · B A, in double precision and rounded once; transposed where the layer stores inputs
 * first. Row by row, so that the inner loop runs along memory: about 1e9 products a second.
 */
export function addProduct(
  weight: Tensor,
  b: Tensor,
  a: Tensor,
  scale: number,
  inputsFirst: boolean,
): Tensor<"float32"> {
  const [rows, columns] = weight.shape as [number, number];
  const rank = Math.ceil(b.shape[1]! / 4) * 4;
  // (rows of W, rank) and (rank, columns of W); more rank than there is counts as zeros.
  const left = inputsFirst ? padded(a, rows, rank, true) : padded(b, rows, rank, false);
  const right = inputsFirst ? padded(b, rank, columns, true) : padded(a, rank, columns, false);
  const result = Float32Array.from(weight.numbers());
  const sums = new Float64Array(columns);
  for (let row = 0; row < rows; row++) {
    sums.fill(0);
    // Four at a time: the sums are read and written a quarter as often.
    for (let r = 0; r < rank; r += 4) {
      const at = row * rank + r;
      const l0 = left[at]!;
      const l1 = left[at + 1]!;
      const l2 = left[at + 2]!;
      const l3 = left[at + 3]!;
      const r0 = r * columns;
      const r1 = r0 + columns;
      const r2 = r1 + columns;
      const r3 = r2 + columns;
      for (let i = 0; i < columns; i++) {
        sums[i]! +=
          l0 * right[r0 + i]! + l1 * right[r1 + i]! + l2 * right[r2 + i]! + l3 * right[r3 + i]!;
      }
    }
    const start = row * columns;
    for (let i = 0; i < columns; i++) {
      result[start + i] = result[start + i]! + scale * sums[i]!;
    }
  }
  return new Tensor("float32", weight.shape, result);
}

/** A matrix, or its transpose, in double precision, with zeros up to the size. */
function padded(matrix: Tensor, rows: number, columns: number, isTurned: boolean): Float64Array {
  const [m, n] = matrix.shape as [number, number];
  const numbers = matrix.numbers();
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      result[isTurned ? j * columns + i : i * columns + j] = numbers[i * n + j]!;
    }
  }
  return result;
}

/**
 * scale · B A, row-major (out, in), or turned: (in, out).
 * @param b its numbers lie as (out, rank) @param a as (rank, in)
 */
export function matrixProduct(
  b: Tensor,
  a: Tensor,
  rank: number,
  scale: number,
  isTurned: boolean,
): Float64Array {
  const [out, width] = [b.size / rank, a.size / rank];
  const zeros = new Tensor("float32", [out, width], new Float32Array(out * width));
  const flat = addProduct(
    zeros,
    reshaped(b, [out, rank]),
    reshaped(a, [rank, width]),
    scale,
    false,
  );
  const numbers = flat.data;
  const result = new Float64Array(out * width);
  for (let o = 0; o < out; o++) {
    for (let i = 0; i < width; i++) {
      result[isTurned ? i * out + o : o * width + i] = numbers[o * width + i]!;
    }
  }
  return result;
}

function reshaped(tensor: Tensor, shape: readonly number[]): Tensor {
  return new Tensor("float32", shape, tensor.to("float32").data);
}
