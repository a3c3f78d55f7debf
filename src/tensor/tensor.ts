import { ShapeError } from "../errors.ts";
import { type ArrayOf, allocate, checkData, type Dtype } from "./dtype.ts";
import { bfloatToFloat, floatToBfloat, floatToHalf, halfToFloat } from "./half.ts";
import { type StaticShape, showShape, sizeOf } from "./shape.ts";

/** A value: numbers in row-major order with their type and shape. The data is not copied. */
export class Tensor<D extends Dtype = Dtype> {
  readonly dtype: D;
  readonly shape: StaticShape;
  readonly data: ArrayOf[D];

  /**
   * @throws ShapeError when the data's length is not the shape's size.
   * @throws DtypeError when the array is not the one that `dtype` is kept in.
   */
  constructor(dtype: D, shape: StaticShape, data: ArrayOf[D]) {
    for (const dim of shape) {
      if (!Number.isSafeInteger(dim) || dim < 0) {
        throw new ShapeError(
          `tensor: sizes must be whole numbers from 0, got ${showShape(shape)}.`,
        );
      }
    }
    checkData(dtype, data);
    if (data.length !== sizeOf(shape)) {
      throw new ShapeError(
        `tensor: shape ${showShape(shape)} holds ${sizeOf(shape)} elements, got ${data.length}.`,
      );
    }
    this.dtype = dtype;
    this.shape = shape;
    this.data = data;
  }

  get size(): number {
    return this.data.length;
  }

  static zeros<D extends Dtype>(shape: StaticShape, dtype: D): Tensor<D> {
    return new Tensor(dtype, shape, allocate(dtype, sizeOf(shape)));
  }

  static scalar<D extends Dtype = "float32">(value: number, dtype?: D): Tensor<D> {
    return Tensor.from([value], [], dtype);
  }

  /** Converts plain numbers; float16 and bfloat16 round to nearest even. */
  static from<D extends Dtype = "float32">(
    values: ArrayLike<number>,
    shape: StaticShape = [values.length],
    dtype: D = "float32" as D,
  ): Tensor<D> {
    const data = allocate(dtype, values.length);
    writeNumbers(dtype, data, values);
    return new Tensor(dtype, shape, data);
  }

  /** The same numbers under another shape, sharing the data. */
  reshape(shape: StaticShape): Tensor<D> {
    return new Tensor(this.dtype, shape, this.data);
  }

  /** The numbers in another type; shares the data when the type is the same. */
  to<E extends Dtype>(dtype: E): Tensor<E> {
    if ((this.dtype as Dtype) === dtype) return this as unknown as Tensor<E>;
    return Tensor.from(this.numbers(), this.shape, dtype);
  }

  /** The elements as JavaScript numbers; the data itself where it already holds such. */
  numbers(): ArrayLike<number> {
    const data = this.data;
    if (this.dtype === "float16") return Float32Array.from(data as Uint16Array, halfToFloat);
    if (this.dtype === "bfloat16") return Float32Array.from(data as Uint16Array, bfloatToFloat);
    if (data instanceof BigInt64Array) return Float64Array.from(data, Number);
    return data as ArrayLike<number>;
  }

  /** The only element. */
  item(): number {
    if (this.size !== 1) {
      throw new ShapeError(`item: needs one element, got shape ${showShape(this.shape)}.`);
    }
    return this.numbers()[0]!;
  }

  clone(): Tensor<D> {
    return new Tensor(this.dtype, this.shape, this.data.slice() as ArrayOf[D]);
  }
}

/** Writes plain numbers into an array kept for `dtype`. */
export function writeNumbers<D extends Dtype>(
  dtype: D,
  into: ArrayOf[D],
  values: ArrayLike<number>,
): void {
  if (into instanceof BigInt64Array) {
    for (let i = 0; i < into.length; i++) into[i] = BigInt(Math.trunc(values[i]!));
  } else if (dtype === "float16") {
    for (let i = 0; i < into.length; i++) into[i] = floatToHalf(values[i]!);
  } else if (dtype === "bfloat16") {
    for (let i = 0; i < into.length; i++) into[i] = floatToBfloat(values[i]!);
  } else if (dtype === "bool") {
    for (let i = 0; i < into.length; i++) into[i] = values[i] ? 1 : 0;
  } else if (ArrayBuffer.isView(values) && into.constructor === values.constructor) {
    (into as Float32Array).set(values as unknown as Float32Array);
  } else {
    for (let i = 0; i < into.length; i++) into[i] = values[i]!;
  }
}
