/** What a case of an operator is, and awkward shapes and numbers to make them of. */
import { grad } from "../../../src/autodiff/grad.ts";
import type { BinaryOp, BitwiseOp, CompareOp, LogicalOp, OpName } from "../../../src/ir/attrs.ts";
import { mul, tanh } from "../../../src/ir/elementwise.ts";
import { emit } from "../../../src/ir/emit.ts";
import type { Value } from "../../../src/ir/graph.ts";
import { sum } from "../../../src/ir/reduce.ts";
import type { Dtype } from "../../../src/tensor/dtype.ts";
import { Rng } from "../../../src/tensor/rng.ts";
import { type Shape, type StaticShape, sizeOf } from "../../../src/tensor/shape.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";

export interface OperatorCase {
  readonly name: string;
  readonly fn: (...inputs: Value[]) => Value | readonly Value[];
  /** Inputs of each run; all runs use one session. */
  readonly runs: readonly (readonly Tensor[])[];
  /** Shapes with symbols, where the runs differ in size. */
  readonly shapes?: readonly Shape[];
  /** Inputs that are stored in the program, the same in all runs. */
  readonly frozen?: readonly number[];
  /** What targets without a kernel say when the program is loaded. */
  readonly unsupported?: RegExp;
}

/** Cases by operator. */
export type Cases<O extends OpName> = { readonly [K in O]: readonly OperatorCase[] };

export type Fn = OperatorCase["fn"];

export type ComputeType = "float32" | "float64" | "int32";

export const rng: Rng = new Rng(11);

/** Numbers with few digits, so that sums are exact and ties occur. */
export function numbers(shape: StaticShape, dtype: Dtype = "float32", low = -3, high = 3): Tensor {
  const step = dtype === "int32" ? 1 : 8;
  const values = Float64Array.from({ length: sizeOf(shape) }, () =>
    dtype === "bool" ? rng.integer(2) : low + rng.integer((high - low) * step + 1) / step,
  );
  return Tensor.from(values, shape, dtype);
}

export function normals(shape: StaticShape, dtype: Dtype = "float32"): Tensor {
  return Tensor.from(
    Float64Array.from({ length: sizeOf(shape) }, () => rng.normal()),
    shape,
    dtype,
  );
}

export const ints = (values: number[], shape: StaticShape = [values.length]): Tensor =>
  Tensor.from(values, shape, "int32");

export const bools = (values: number[], shape: StaticShape = [values.length]): Tensor =>
  Tensor.from(values, shape, "bool");

export function once(name: string, fn: Fn, ...inputs: readonly Tensor[]): OperatorCase {
  return { name, fn, runs: [inputs] };
}

/** Empty, scalar and size-1 axes. */
export const shapes: readonly StaticShape[] = [
  [],
  [1],
  [0],
  [2, 0, 3],
  [3, 4],
  [1, 5, 1],
  [2, 3, 2, 2],
];

/** Shapes that broadcast from one side, the other, and both. */
export const pairs: readonly (readonly [StaticShape, StaticShape])[] = [
  [
    [2, 3],
    [2, 3],
  ],
  [[], [2, 3]],
  [[2, 3], []],
  [[3], [2, 3]],
  [
    [2, 1],
    [1, 3],
  ],
  [
    [2, 1, 4],
    [3, 1],
  ],
  [
    [2, 0],
    [1, 1],
  ],
  [[1], [0]],
  [[], []],
];

/** One program with the operator applied to every shape. */
export function onShapes(
  name: string,
  fn: (x: Value) => Value,
  of: (s: StaticShape) => Tensor,
): OperatorCase {
  return once(name, (...inputs) => inputs.map(fn), ...shapes.map(of));
}

export function onPairs(
  name: string,
  fn: (a: Value, b: Value) => Value,
  of: (s: StaticShape) => Tensor,
  other: (s: StaticShape) => Tensor = of,
): OperatorCase {
  return once(
    name,
    (...inputs) => pairs.map((_, i) => fn(inputs[2 * i]!, inputs[2 * i + 1]!)),
    ...pairs.flatMap(([a, b]) => [of(a), other(b)]),
  );
}

export const specials: readonly number[] = [
  0,
  -0,
  1,
  -1,
  0.5,
  -0.5,
  1.5,
  2.5,
  -2.5,
  1e-30,
  80,
  -80,
  NaN,
  Infinity,
  -Infinity,
];

export const noKernel = (op: string, dtype: Dtype): RegExp =>
  new RegExp(`^cannot lower op "${op}" on ${dtype}: ONNX Runtime has no such kernel — `);

export function pairwise(
  op: BinaryOp | CompareOp | LogicalOp | BitwiseOp,
): (a?: Value, b?: Value) => Value {
  return (a, b) => emit(op, [a!, b!], {});
}

export const odd: Tensor = normals([2, 3, 5]);

/** Differentiable functions whose forward and backward are compared through a fused operator. */
export const withGradient = (fn: (x: Value, w: Value, b: Value) => Value): Fn => {
  return (...inputs) => {
    const weigh = (y: Value): Value => sum(mul(y, tanh(y)));
    const all = (p: readonly Value[]): Value => fn(p[0]!, p[1]!, p[2]!);
    return [all(inputs), ...(grad((p: Value[]) => weigh(all(p)))(inputs) as Value[])];
  };
};
