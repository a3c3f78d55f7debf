/**
 * The k-quants of GGUF: blocks of 256 numbers in groups of 16 or 32, whose scales are whole numbers of
 * few bits times a float16 d; some have a smallest value (dmin times such a number) for each group.
 * Layouts as in ggml's `block_q2_K` to `block_q6_K`; results are those of the `gguf` package.
 *
 * Every product here is exact in float64 and fits float32, so the store rounds once.
 */
import { halfToFloat } from "../tensor/half.ts";

const half = (bytes: Uint8Array, at: number): number =>
  halfToFloat(bytes[at]! | (bytes[at + 1]! << 8));

/** 16 × (4 bits of scale, 4 of minimum), 64 × 4 numbers of 2 bits, f16 d, f16 dmin: 84 bytes. */
function q2k(bytes: Uint8Array, out: Float32Array): void {
  for (let from = 0, to = 0; to < out.length; from += 84, to += 256) {
    const d = half(bytes, from + 80);
    const dmin = half(bytes, from + 82);
    for (let group = 0; group < 16; group++) {
      const packed = bytes[from + group]!;
      const scale = d * (packed & 15);
      const least = dmin * (packed >> 4);
      // Of 128 numbers each byte holds those 32 apart.
      const at = from + 16 + 32 * (group >> 3) + 16 * (group & 1);
      const shift = group & 6;
      for (let i = 0; i < 16; i++) {
        out[to + 16 * group + i] = scale * ((bytes[at + i]! >> shift) & 3) - least;
      }
    }
  }
}

/** 32 bytes of high bits, 64 × 4 numbers of 2 bits, 16 scales of 6 bits in 12 bytes, f16 d: 110 bytes. */
function q3k(bytes: Uint8Array, out: Float32Array): void {
  for (let from = 0, to = 0; to < out.length; from += 110, to += 256) {
    const d = half(bytes, from + 108);
    for (let group = 0; group < 16; group++) {
      const low = (bytes[from + 96 + (group & 7)]! >> (group & 8 ? 4 : 0)) & 15;
      const high = (bytes[from + 104 + (group & 3)]! >> (2 * (group >> 2))) & 3;
      const scale = d * ((low | (high << 4)) - 32);
      const at = from + 32 + 32 * (group >> 3) + 16 * (group & 1);
      const mask = from + 16 * (group & 1);
      const shift = group & 6;
      const bit = group >> 1;
      for (let i = 0; i < 16; i++) {
        // A bit that is not set takes 4 off.
        const q = ((bytes[at + i]! >> shift) & 3) - ((bytes[mask + i]! >> bit) & 1 ? 0 : 4);
        out[to + 16 * group + i] = scale * q;
      }
    }
  }
}

/** Eight scales and eight minima of 6 bits in 12 bytes. */
const scaleOf = (bytes: Uint8Array, at: number, group: number): number =>
  group < 4
    ? bytes[at + group]! & 63
    : (bytes[at + 4 + group]! & 15) | ((bytes[at + group - 4]! >> 2) & 48);
const leastOf = (bytes: Uint8Array, at: number, group: number): number =>
  group < 4
    ? bytes[at + 4 + group]! & 63
    : (bytes[at + 4 + group]! >> 4) | ((bytes[at + group]! >> 2) & 48);

/** f16 d, f16 dmin, 12 bytes of scales, 128 × 2 numbers of 4 bits: 144 bytes. */
function q4k(bytes: Uint8Array, out: Float32Array): void {
  for (let from = 0, to = 0; to < out.length; from += 144, to += 256) {
    const d = half(bytes, from);
    const dmin = half(bytes, from + 2);
    for (let group = 0; group < 8; group++) {
      const scale = d * scaleOf(bytes, from + 4, group);
      const least = dmin * leastOf(bytes, from + 4, group);
      const at = from + 16 + 32 * (group >> 1);
      const shift = 4 * (group & 1);
      for (let i = 0; i < 32; i++) {
        out[to + 32 * group + i] = scale * ((bytes[at + i]! >> shift) & 15) - least;
      }
    }
  }
}

/** As Q4_K with 32 bytes of high bits before the rest: 176 bytes. */
function q5k(bytes: Uint8Array, out: Float32Array): void {
  for (let from = 0, to = 0; to < out.length; from += 176, to += 256) {
    const d = half(bytes, from);
    const dmin = half(bytes, from + 2);
    for (let group = 0; group < 8; group++) {
      const scale = d * scaleOf(bytes, from + 4, group);
      const least = dmin * leastOf(bytes, from + 4, group);
      const at = from + 48 + 32 * (group >> 1);
      const shift = 4 * (group & 1);
      for (let i = 0; i < 32; i++) {
        const high = ((bytes[from + 16 + i]! >> group) & 1) << 4;
        out[to + 32 * group + i] = scale * (((bytes[at + i]! >> shift) & 15) | high) - least;
      }
    }
  }
}

/** 128 × 2 numbers of 4 low bits, 64 × 4 of 2 high bits, 16 × i8 scales, f16 d: 210 bytes. */
function q6k(bytes: Uint8Array, out: Float32Array): void {
  for (let from = 0, to = 0; to < out.length; from += 210, to += 256) {
    const d = half(bytes, from + 208);
    for (let group = 0; group < 16; group++) {
      const scale = d * ((bytes[from + 192 + group]! << 24) >> 24);
      // 32 numbers at a time: within 128, the low halves of 64 bytes come first.
      const run = group >> 1;
      const low = from + 64 * (run >> 2) + 32 * (run & 1) + 16 * (group & 1);
      const high = from + 128 + 32 * (run >> 2) + 16 * (group & 1);
      const lowShift = run & 2 ? 4 : 0;
      const highShift = 2 * (run & 3);
      for (let i = 0; i < 16; i++) {
        const q =
          ((bytes[low + i]! >> lowShift) & 15) | (((bytes[high + i]! >> highShift) & 3) << 4);
        out[to + 16 * group + i] = scale * (q - 32);
      }
    }
  }
}

/** Fills `out` from the bytes of whole blocks, by type. */
export const kQuants: Readonly<Record<string, (bytes: Uint8Array, out: Float32Array) => void>> = {
  Q2_K: q2k,
  Q3_K: q3k,
  Q4_K: q4k,
  Q5_K: q5k,
  Q6_K: q6k,
};
