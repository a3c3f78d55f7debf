/**
 * Rotations of blocks of an input, from skew-symmetric matrices: in a graph, and on the host in double precision.
 *
 *   Cayley           R = (I - Q) (I + Q)⁻¹                           Qᵀ = -Q, so that Rᵀ R = I
 *   Cayley-Neumann   R = I + 2 Q + 2 Q² + … + 2 Qⁿ⁻² + Qⁿ⁻¹          ≈ (I + Q) (I - Q)⁻¹ for small Q
 *
 * Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", ICLR 2024,
 * arXiv:2311.06243; Qiu et al., "Orthogonal Finetuning Made Scalable", arXiv:2506.19847, for the series.
 */
import {
  add,
  cast,
  div,
  equal,
  floor,
  less,
  mul,
  stopGradient,
  sub,
} from "../../../ir/elementwise.ts";
import type { Value } from "../../../ir/graph.ts";
import { gather } from "../../../ir/indexing.ts";
import { expand, reshape, slice, transpose } from "../../../ir/layout.ts";
import { dot } from "../../../ir/linear.ts";
import { sort, sum } from "../../../ir/reduce.ts";
import type { Context } from "../../../nn/module.ts";
import {
  identity,
  type Matrix,
  matrix,
  multiply,
  solve,
  transpose as turned,
} from "../../../tensor/linalg/index.ts";
import { Tensor } from "../../../tensor/tensor.ts";

/** Newton steps of the inverse: enough for ‖Q‖² up to some 10⁵, and each doubles the digits. */
const newtonSteps = 20;

/** Ones on the diagonal, (1, b, b). */
function eye(size: number): Tensor<"float32"> {
  return new Tensor("float32", [1, size, size], Float32Array.from(identity(size).data));
}

/**
 * Skew-symmetric matrices from what lies above their diagonals, row after row.
 * @param above (D, b (b - 1) / 2) @returns (D, b, b)
 */
export function skewOf(above: Value, size: number): Value {
  const index = new Int32Array(size * size);
  const signs = new Float32Array(size * size);
  let at = 0;
  for (let i = 0; i < size; i++) {
    for (let j = i + 1; j < size; j++) {
      index[i * size + j] = index[j * size + i] = at++;
      signs[i * size + j] = 1;
      signs[j * size + i] = -1;
    }
  }
  const spread = gather(above, new Tensor("int32", [size * size], index), 1);
  const signed = mul(spread, new Tensor("float32", [1, size * size], signs));
  return reshape(signed, [above.shape[0]!, size, size]);
}

/**
 * (I + Q)⁻¹ by X ← X (2 I - A X) from Aᵀ 2 / (2 + ‖Q‖²), without a gradient, and one step more with it: at the
 * inverse that step's derivative is the inverse's own, - X dA X.
 */
function inverseOfOnePlus(q: Value, one: Value): Value {
  const a = stopGradient(add(one, q));
  // Eigenvalues of Q come in pairs ± i λ: λ² ≤ ‖Q‖² / 2.
  const bound = mul(sum(mul(q, q), [1, 2], { keepDims: true }), 0.5);
  let x = stopGradient(div(mul(transpose(a, [0, 2, 1]), 2), add(bound, 2)));
  const step = (of: Value): Value => sub(mul(x, 2), dot(x, dot(of, x)));
  for (let i = 0; i < newtonSteps; i++) x = stopGradient(step(a));
  return step(add(one, q));
}

/** R = (I - Q) (I + Q)⁻¹ of matrices (D, b, b). */
export function cayley(q: Value): Value {
  const [count, size] = q.shape as [number, number];
  const one = expand(q.graph.constant(eye(size)), [count, size, size]);
  return dot(sub(one, q), inverseOfOnePlus(q, one));
}

/** The series up to the power terms - 1, as PEFT sums it. @param terms from 2 */
export function cayleyNeumann(q: Value, terms: number): Value {
  let result = add(mul(q, 2), eye(q.shape[1] as number));
  if (terms === 2) return result;
  let power = dot(q, q);
  result = add(result, mul(power, 2));
  for (let i = 3; i < terms - 1; i++) {
    power = dot(power, q);
    result = add(result, mul(power, 2));
  }
  return add(result, dot(power, q));
}

/**
 * Rows times a block-diagonal matrix: x (N, in), blocks (D, b, b) with D b = in, or one block for all.
 * @returns (N, in)
 */
export function rotateBlocks(x: Value, blocks: Value): Value {
  const [count, size] = blocks.shape as [number, number];
  const inputs = x.shape[1] as number;
  if (count === 1) {
    const rows = dot(reshape(x, [-1, size]), reshape(blocks, [size, size]));
    return reshape(rows, x.shape);
  }
  const parts = transpose(reshape(x, [-1, count, size]), [1, 0, 2]); // (D, N, b)
  const rotated = transpose(dot(parts, blocks), [1, 0, 2]);
  return reshape(rotated, [x.shape[0]!, inputs]);
}

/**
 * Blocks of which some are the identity, by chance: ⌊share · D⌋ of the D blocks of one factor, which is drawn too.
 * One block alone stays.
 * @param blocks (factors · D, b, b) @param path names the noise
 */
export function withIdentity(
  blocks: Value,
  factors: number,
  share: number,
  path: string,
  context: Context,
): Value {
  const [all, size] = blocks.shape as [number, number];
  const count = all / factors;
  const replaced = Math.floor(share * count);
  const { noise } = context.options;
  if (replaced === 0 || count === 1 || !context.training || !noise) return blocks;
  const drawn = noise(`blocks.${path}`, [1, count]);
  const limit = slice(sort(drawn).values, 1, replaced, replaced + 1);
  let out = cast(less(drawn, limit), "float32");
  if (factors > 1) {
    const one = floor(mul(noise(`factor.${path}`, [1, 1]), factors));
    const places = new Tensor(
      "float32",
      [factors, 1],
      Float32Array.from({ length: factors }, (_, i) => i),
    );
    out = mul(out, cast(equal(one, places), "float32"));
  }
  return add(blocks, mul(reshape(out, [all, 1, 1]), sub(eye(size), blocks)));
}

/** On the host: one matrix, from what lies above its diagonal. */
export function skewMatrix(above: ArrayLike<number>, start: number, size: number): Matrix {
  const q = matrix(size, size);
  let at = start;
  for (let i = 0; i < size; i++) {
    for (let j = i + 1; j < size; j++) {
      q.data[i * size + j] = above[at]!;
      q.data[j * size + i] = -above[at++]!;
    }
  }
  return q;
}

function sum2(a: Matrix, b: Matrix, scale: number): Matrix {
  return matrix(
    a.rows,
    a.columns,
    a.data.map((x, i) => x + scale * b.data[i]!),
  );
}

export function cayleyMatrix(q: Matrix): Matrix {
  const one = identity(q.rows);
  // R (I + Q) = I - Q, and both sides turned.
  return turned(solve(turned(sum2(one, q, 1)), turned(sum2(one, q, -1))));
}

export function cayleyNeumannMatrix(q: Matrix, terms: number): Matrix {
  let result = sum2(identity(q.rows), q, 2);
  if (terms === 2) return result;
  let power = multiply(q, q);
  result = sum2(result, power, 2);
  for (let i = 3; i < terms - 1; i++) {
    power = multiply(power, q);
    result = sum2(result, power, 2);
  }
  return sum2(result, multiply(power, q), 1);
}

/**
 * W Rᵀ for a block-diagonal R: what a layer with a rotated input has as its weight.
 * @param blocks one for each, or one for all
 */
export function rotateWeight(weight: Matrix, blocks: readonly Matrix[]): Matrix {
  const { rows, columns } = weight;
  const size = blocks[0]!.rows;
  const result = matrix(rows, columns);
  for (let o = 0; o < rows; o++) {
    for (let start = 0; start < columns; start += size) {
      const { data } = blocks.length === 1 ? blocks[0]! : blocks[start / size]!;
      for (let k = 0; k < size; k++) {
        let total = 0;
        for (let c = 0; c < size; c++) {
          total += data[k * size + c]! * weight.data[o * columns + start + c]!;
        }
        result.data[o * columns + start + k] = total;
      }
    }
  }
  return result;
}
