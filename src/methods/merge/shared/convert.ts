/** Stored weights to float32 and back, over whole arrays; and a checksum of what is stored. */
import { FormatError, UnsupportedError } from "../../../errors.ts";
import type { SafetensorsDtype } from "../../../io/safetensors.ts";
import { floatToHalf, halfToFloat } from "../../../tensor/half.ts";

/** Types of weights that are merged, and bytes of one. */
export const weightBytes: Readonly<Partial<Record<SafetensorsDtype, number>>> = {
  F32: 4,
  F16: 2,
  BF16: 2,
};

/** Types that merged weights are stored as, by the names of configurations. */
export const storedTypes: Readonly<Record<string, "F32" | "F16" | "BF16">> = {
  float32: "F32",
  float16: "F16",
  bfloat16: "BF16",
};

/** @throws UnsupportedError for another type than F32, F16 and BF16. */
export function checkWeights(where: string, dtype: SafetensorsDtype): void {
  if (weightBytes[dtype] !== undefined) return;
  throw new UnsupportedError(
    `${where} has dtype ${dtype}, merged are F32, F16 and BF16 — convert the model first.`,
  );
}

/**
 * Stored numbers as float32.
 * @param bytes little-endian; begins at a multiple of 4
 * @param into as many elements
 */
export function widen(bytes: Uint8Array, dtype: SafetensorsDtype, into: Float32Array): void {
  const size = into.length;
  if (dtype === "F32") {
    into.set(new Float32Array(bytes.buffer, bytes.byteOffset, size));
    return;
  }
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, size);
  if (dtype === "BF16") {
    const words = new Uint32Array(into.buffer, into.byteOffset, size);
    for (let i = 0; i < size; i++) words[i] = halves[i] << 16;
  } else {
    for (let i = 0; i < size; i++) into[i] = halfToFloat(halves[i]);
  }
}

/** The place of the first number that is infinite or none; -1 where all are finite. */
export function findNonFinite(numbers: Float32Array): number {
  const words = new Uint32Array(numbers.buffer, numbers.byteOffset, numbers.length);
  for (let i = 0; i < words.length; i++) if ((words[i] & 0x7f800000) === 0x7f800000) return i;
  return -1;
}

/**
 * float32 as it is stored, rounded to nearest even.
 * @param where begins an error: the tensor
 * @throws FormatError for a number that is none, or too large for the type.
 */
export function narrow(
  where: string,
  numbers: Float32Array<ArrayBuffer>,
  dtype: "F32" | "F16" | "BF16",
): Uint8Array<ArrayBuffer> {
  const bad = findNonFinite(numbers);
  if (bad >= 0) {
    throw new FormatError(
      `${where} comes out as ${numbers[bad]} at element ${bad} — one of the models is damaged, or a weight is far too large.`,
    );
  }
  const size = numbers.length;
  if (dtype === "F32") return new Uint8Array(numbers.buffer, numbers.byteOffset, 4 * size);
  const halves = new Uint16Array(size);
  if (dtype === "BF16") {
    const words = new Uint32Array(numbers.buffer, numbers.byteOffset, size);
    for (let i = 0; i < size; i++) halves[i] = (words[i] + 0x7fff + ((words[i] >>> 16) & 1)) >>> 16;
  } else {
    for (let i = 0; i < size; i++) halves[i] = floatToHalf(numbers[i]);
  }
  const infinite = dtype === "BF16" ? 0x7f80 : 0x7c00;
  for (let i = 0; i < size; i++) {
    if ((halves[i] & infinite) !== infinite) continue;
    throw new FormatError(
      `${where} holds ${numbers[i]} at element ${i}, which ${dtype} cannot — store it as ${dtype === "F16" ? "bfloat16 or float32" : "float32"}.`,
    );
  }
  return new Uint8Array(halves.buffer);
}

/**
 * A checksum of 64 bits over 32-bit words (FNV-1a in four lanes): finds damage, not malice. Six times as fast as
 * CRC-32C here, which would take as long as reading.
 * @param bytes begins at a multiple of 4
 */
export function checksum(bytes: Uint8Array): string {
  const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length >>> 2);
  let [a, b, c, d] = [0x811c9dc5, 0x9747b28c, 0x85ebca6b, 0xc2b2ae35];
  const prime = 0x01000193;
  const whole = words.length & ~3;
  for (let i = 0; i < whole; i += 4) {
    a = Math.imul(a ^ words[i], prime);
    b = Math.imul(b ^ words[i + 1], prime);
    c = Math.imul(c ^ words[i + 2], prime);
    d = Math.imul(d ^ words[i + 3], prime);
    // The upper bits come down, so that they count.
    a ^= a >>> 15;
    b ^= b >>> 13;
    c ^= c >>> 15;
    d ^= d >>> 13;
  }
  for (let i = whole; i < words.length; i++) a = Math.imul(a ^ words[i], prime) ^ (a >>> 15);
  for (let i = bytes.length & ~3; i < bytes.length; i++) b = Math.imul(b ^ bytes[i], prime);
  const hex = (word: number): string => (word >>> 0).toString(16).padStart(8, "0");
  return (
    hex(Math.imul(a ^ (c >>> 1), prime) ^ bytes.length) + hex(Math.imul(b ^ (d << 1), prime) ^ c)
  );
}
