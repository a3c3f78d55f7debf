/** What reader and writer of safetensors files share: the types of numbers, and limits. */
import type { Dtype } from "../tensor/dtype.ts";

/** Bits of one element, in the reference's order: its writer puts the last types first. */
export const bitsOf = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
} as const;

export type SafetensorsDtype = keyof typeof bitsOf;

export const dtypeOrder: readonly SafetensorsDtype[] = Object.keys(bitsOf) as SafetensorsDtype[];

/** The types that a Tensor holds. */
export const fileDtype: Readonly<Record<Dtype, SafetensorsDtype>> = {
  float32: "F32",
  float64: "F64",
  float16: "F16",
  bfloat16: "BF16",
  int32: "I32",
  int64: "I64",
  int8: "I8",
  uint8: "U8",
  bool: "BOOL",
};

export const tensorDtype: ReadonlyMap<SafetensorsDtype, Dtype> = new Map(
  Object.entries(fileDtype).map(([dtype, name]) => [name, dtype as Dtype]),
);

export const maxHeaderBytes = 100_000_000;
export const metadataKey = "__metadata__";

/** A value in an error, cut short. */
export function show(value: unknown): string {
  const text = value === undefined ? "nothing" : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}
