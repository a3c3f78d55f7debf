/** Types of numbers. Compute types are float32, float64 (reference), int32 and bool; the rest are storage. */
import { DtypeError } from "../errors.ts";

export type Dtype =
  | "float32"
  | "float64"
  | "float16"
  | "bfloat16"
  | "int32"
  | "int64"
  | "int8"
  | "uint8"
  | "bool";

/** The array that holds each type. float16 and bfloat16 are kept as their 16 bits; bool as 0 and 1. */
export interface ArrayOf {
  float32: Float32Array<ArrayBuffer>;
  float64: Float64Array<ArrayBuffer>;
  float16: Uint16Array<ArrayBuffer>;
  bfloat16: Uint16Array<ArrayBuffer>;
  int32: Int32Array<ArrayBuffer>;
  int64: BigInt64Array<ArrayBuffer>;
  int8: Int8Array<ArrayBuffer>;
  uint8: Uint8Array<ArrayBuffer>;
  bool: Uint8Array<ArrayBuffer>;
}

export type TensorData = ArrayOf[Dtype];

const arrays = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int32: Int32Array,
  int64: BigInt64Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
} as const;

/** Bytes of one element. */
export function byteSize(dtype: Dtype): number {
  return arrays[dtype].BYTES_PER_ELEMENT;
}

/** A zeroed array for `size` elements. */
export function allocate<D extends Dtype>(dtype: D, size: number): ArrayOf[D] {
  return new arrays[dtype](size) as ArrayOf[D];
}

/** A view of `size` elements on `buffer`, which must be aligned to the element. */
export function viewOn<D extends Dtype>(
  dtype: D,
  buffer: ArrayBufferLike,
  byteOffset: number,
  size: number,
): ArrayOf[D] {
  return new arrays[dtype](buffer as ArrayBuffer, byteOffset, size) as ArrayOf[D];
}

export function isFloat(dtype: Dtype): boolean {
  return dtype === "float32" || dtype === "float64" || dtype === "float16" || dtype === "bfloat16";
}

/** @throws DtypeError unless `data` is the array that `dtype` is kept in. */
export function checkData(dtype: Dtype, data: TensorData): void {
  if (!(data instanceof arrays[dtype])) {
    throw new DtypeError(
      `tensor: ${dtype} data must be a ${arrays[dtype].name}, got ${(data as object).constructor.name}.`,
    );
  }
}
