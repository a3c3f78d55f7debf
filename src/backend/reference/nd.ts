/** Arrays of the reference backend: every float is a float64, whatever type the graph gives it. */
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import { type Dtype, isFloat } from "../../tensor/dtype.ts";
import { type StaticShape, sizeOf, stridesOf } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";

export type Numbers =
  | Float64Array<ArrayBuffer>
  | Int32Array<ArrayBuffer>
  | Int8Array<ArrayBuffer>
  | Uint8Array<ArrayBuffer>;

export interface StaticSpec {
  readonly shape: StaticShape;
  readonly dtype: Dtype;
}

/** A value while a program runs. Kernels never write to one that they were given. */
export interface Nd extends StaticSpec {
  readonly data: Numbers;
}

/** From the inputs of a node to its outputs, whose shapes and types are known. */
export type Kernel<O extends OpName> = (
  inputs: readonly Nd[],
  attrs: AttrsOf[O],
  outputs: readonly StaticSpec[],
) => readonly Nd[];

export type Kernels = { readonly [O in OpName]?: Kernel<O> };

/** An array of zeros. Storing into an integer array wraps around as the type does. */
export function make({ shape, dtype }: StaticSpec): Nd {
  const size = sizeOf(shape);
  if (dtype === "int32") return { shape, dtype, data: new Int32Array(size) };
  if (dtype === "int8") return { shape, dtype, data: new Int8Array(size) };
  if (dtype === "uint8" || dtype === "bool") return { shape, dtype, data: new Uint8Array(size) };
  return { shape, dtype, data: new Float64Array(size) };
}

/** The tensor's numbers; shared where they already have the form. */
export function fromTensor(tensor: Tensor): Nd {
  const { dtype, shape } = tensor;
  const widened = dtype === "int64" || (isFloat(dtype) && dtype !== "float64");
  const data = widened ? Float64Array.from(tensor.numbers()) : (tensor.data as Numbers);
  return { dtype, shape, data };
}

/** Visits every index of a shape in row-major order. The array is reused between visits. */
export function eachIndex(
  shape: StaticShape,
  visit: (index: readonly number[], flat: number) => void,
): void {
  const size = sizeOf(shape);
  const index = new Array<number>(shape.length).fill(0);
  for (let flat = 0; flat < size; flat++) {
    visit(index, flat);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      if (++index[axis]! < shape[axis]!) break;
      index[axis] = 0;
    }
  }
}

/** Where an index lies. */
export function offsetOf(index: readonly number[], strides: readonly number[]): number {
  let offset = 0;
  for (let axis = 0; axis < strides.length; axis++) offset += index[axis]! * strides[axis]!;
  return offset;
}

/** Strides by which an array is read as if it were broadcast to `rank` dimensions: 0 where repeated. */
export function broadcastStrides(shape: StaticShape, rank: number): number[] {
  const own = stridesOf(shape).map((stride, axis) => (shape[axis] === 1 ? 0 : stride));
  return [...new Array<number>(rank - shape.length).fill(0), ...own];
}

/** Visits the lines along an axis: element i of a line lies at `start + i * stride`. */
export function eachLine(
  shape: StaticShape,
  axis: number,
  visit: (start: number, stride: number, line: number) => void,
): void {
  const stride = sizeOf(shape.slice(axis + 1));
  const outer = sizeOf(shape.slice(0, axis));
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < stride; i++) visit(o * stride * shape[axis]! + i, stride, o * stride + i);
  }
}
