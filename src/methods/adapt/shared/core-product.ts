/**
 * A convolution's weight from a small core and two matrices, as FedPara (arXiv:2108.06098, proposition 3) and
 * LyCORIS have it: W[o, i, k] = Σ_{p,q} T[p, q, k] X[p, o] Y[q, i].
 */
import type { Value } from "../../../ir/graph.ts";
import { reshape, transpose } from "../../../ir/layout.ts";
import { dot } from "../../../ir/linear.ts";
import { type Matrix, matrix } from "../../../tensor/linalg/index.ts";
import type { Tensor } from "../../../tensor/tensor.ts";

/**
 * @param t (r, r, …kernel) @param x (r, out) @param y (r, in) @param kernel its size
 * @returns (out, in · kernel)
 */
export function coreProduct(t: Value, x: Value, y: Value, kernel: number): Value {
  const [rank, out] = x.shape as [number, number];
  const inputs = y.shape[1] as number;
  // (q, in)ᵀ (q, p · kernel) → (in, p, kernel) → (p, in · kernel)
  const core = reshape(transpose(reshape(t, [rank, rank, kernel]), [1, 0, 2]), [
    rank,
    rank * kernel,
  ]);
  const inner = transpose(
    reshape(dot(y, core, { transA: true }), [inputs, rank, kernel]),
    [1, 0, 2],
  );
  return reshape(dot(x, reshape(inner, [rank, inputs * kernel]), { transA: true }), [
    out,
    inputs * kernel,
  ]);
}

/** The same on the host, in double precision. */
export function coreProductOf(t: Tensor, x: Tensor, y: Tensor, kernel: number): Matrix {
  const [rank, out] = x.shape as [number, number];
  const inputs = y.shape[1]!;
  const [core, left, right] = [t.numbers(), x.numbers(), y.numbers()];
  const inner = new Float64Array(rank * inputs * kernel);
  for (let p = 0; p < rank; p++) {
    for (let q = 0; q < rank; q++) {
      for (let i = 0; i < inputs; i++) {
        for (let k = 0; k < kernel; k++) {
          inner[(p * inputs + i) * kernel + k]! +=
            core[(p * rank + q) * kernel + k]! * right[q * inputs + i]!;
        }
      }
    }
  }
  const width = inputs * kernel;
  const result = matrix(out, width);
  for (let p = 0; p < rank; p++) {
    for (let o = 0; o < out; o++) {
      for (let i = 0; i < width; i++) {
        result.data[o * width + i]! += left[p * out + o]! * inner[p * width + i]!;
      }
    }
  }
  return result;
}
