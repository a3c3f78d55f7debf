/**
 * Numbers of GGUF tensors as float32, and the reverse: bit for bit what the `gguf` package makes of the
 * same bytes (`gguf/quants.py`). The blocks of 256 are in gguf-k-quants.ts.
 *
 *   type   block  bytes                                     value of element i
 *   Q4_0    32    f16 d, 16 × 2 quarters                     d (q - 8)
 *   Q4_1    32    f16 d, f16 m, 16 × 2 quarters              d q + m
 *   Q5_0    32    f16 d, 32 high bits, 16 × 2 quarters       d (q - 16)
 *   Q5_1    32    f16 d, f16 m, 32 high bits, 16 × 2         d q + m
 *   Q8_0    32    f16 d, 32 × i8                             d q
 *   IQ4_NL  32    f16 d, 16 × 2 quarters                     d · table[q]
 *
 * The low half of byte i is element i, the high half element i + 16. Products of a float16 and these
 * small whole numbers are exact, so one rounding, at the store, is all there is.
 */
import { FormatError, OptionError, UnsupportedError } from "../errors.ts";
import { floatToBfloat, floatToHalf, halfToFloat } from "../tensor/half.ts";
import { tensorTypes } from "./gguf.ts";
import { kQuants } from "./gguf-k-quants.ts";

/** Fills `out` from the bytes of whole blocks. */
export type Dequantize = (bytes: Uint8Array, out: Float32Array) => void;

const half = (bytes: Uint8Array, at: number): number =>
  halfToFloat(bytes[at]! | (bytes[at + 1]! << 8));

const f32: Dequantize = (bytes, out) => {
  new Uint8Array(out.buffer, out.byteOffset, out.byteLength).set(bytes);
};

const f16: Dequantize = (bytes, out) => {
  for (let i = 0; i < out.length; i++) out[i] = half(bytes, 2 * i);
};

const bf16: Dequantize = (bytes, out) => {
  const bits = new Uint32Array(out.buffer, out.byteOffset, out.length);
  for (let i = 0; i < bits.length; i++) {
    bits[i] = (bytes[2 * i]! << 16) | (bytes[2 * i + 1]! << 24);
  }
};

const q40: Dequantize = (bytes, out) => {
  for (let from = 0, to = 0; to < out.length; from += 18, to += 32) {
    const d = half(bytes, from);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[from + 2 + i]!;
      out[to + i] = d * ((pair & 15) - 8);
      out[to + i + 16] = d * ((pair >> 4) - 8);
    }
  }
};

const q41: Dequantize = (bytes, out) => {
  for (let from = 0, to = 0; to < out.length; from += 20, to += 32) {
    const d = half(bytes, from);
    const m = half(bytes, from + 2);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[from + 4 + i]!;
      out[to + i] = d * (pair & 15) + m;
      out[to + i + 16] = d * (pair >> 4) + m;
    }
  }
};

const word = (bytes: Uint8Array, at: number): number =>
  bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24);

const q50: Dequantize = (bytes, out) => {
  for (let from = 0, to = 0; to < out.length; from += 22, to += 32) {
    const d = half(bytes, from);
    const high = word(bytes, from + 2);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[from + 6 + i]!;
      out[to + i] = d * (((pair & 15) | (((high >>> i) & 1) << 4)) - 16);
      out[to + i + 16] = d * (((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) - 16);
    }
  }
};

const q51: Dequantize = (bytes, out) => {
  for (let from = 0, to = 0; to < out.length; from += 24, to += 32) {
    const d = half(bytes, from);
    const m = half(bytes, from + 2);
    const high = word(bytes, from + 4);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[from + 8 + i]!;
      out[to + i] = d * ((pair & 15) | (((high >>> i) & 1) << 4)) + m;
      out[to + i + 16] = d * ((pair >> 4) | (((high >>> (i + 16)) & 1) << 4)) + m;
    }
  }
};

const q80: Dequantize = (bytes, out) => {
  for (let from = 0, to = 0; to < out.length; from += 34, to += 32) {
    const d = half(bytes, from);
    for (let i = 0; i < 32; i++) out[to + i] = d * ((bytes[from + 2 + i]! << 24) >> 24);
  }
};

const nonLinear = Int8Array.of(
  ...[-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
);

const iq4nl: Dequantize = (bytes, out) => {
  for (let from = 0, to = 0; to < out.length; from += 18, to += 32) {
    const d = half(bytes, from);
    for (let i = 0; i < 16; i++) {
      const pair = bytes[from + 2 + i]!;
      out[to + i] = d * nonLinear[pair & 15]!;
      out[to + i + 16] = d * nonLinear[pair >> 4]!;
    }
  }
};

const decoders: Readonly<Record<string, Dequantize>> = {
  F32: f32,
  F16: f16,
  BF16: bf16,
  Q4_0: q40,
  Q4_1: q41,
  Q5_0: q50,
  Q5_1: q51,
  Q8_0: q80,
  IQ4_NL: iq4nl,
  ...kQuants,
};

/** Types that are read as numbers. */
export const readableTypes: readonly string[] = Object.keys(decoders);

/** Elements and bytes of a block. */
function blockOf(type: string): readonly [elements: number, bytes: number] {
  for (const [name, elements, bytes] of tensorTypes.values()) {
    if (name === type) return [elements, bytes];
  }
  throw new UnsupportedError(`gguf: the type ${type} is not known.`);
}

/**
 * Fills a place with the numbers that blocks stand for.
 * @param type as `Q4_K`
 * @param out as many float32 as the blocks hold
 * @param where begins an error: the file and the tensor
 * @throws UnsupportedError for a type that is not read; FormatError when the bytes do not fill `out`.
 */
export function dequantizeInto(
  type: string,
  bytes: Uint8Array,
  out: Float32Array,
  where = "gguf",
): void {
  const decode = Object.hasOwn(decoders, type) ? decoders[type] : undefined;
  if (!decode) {
    throw new UnsupportedError(
      `${where} is of type ${type}, which is not read — read are ${readableTypes.join(", ")}; convert it with llama-quantize.`,
    );
  }
  const [elements, size] = blockOf(type);
  if (out.length % elements !== 0 || bytes.length !== (out.length / elements) * size) {
    throw new FormatError(
      `${where}: ${bytes.length} bytes of ${type} are no ${out.length} numbers — ${elements} take ${size} bytes.`,
    );
  }
  decode(bytes, out);
}

/** The float32 numbers of whole blocks; see `dequantizeInto`. */
export function dequantize(
  type: string,
  bytes: Uint8Array,
  where?: string,
): Float32Array<ArrayBuffer> {
  const [elements, size] = blockOf(type);
  const out = new Float32Array(Math.floor(bytes.length / size) * elements);
  dequantizeInto(type, bytes, out, where);
  return out;
}

type Quantize = (numbers: Float32Array, out: Uint8Array) => void;

function putHalf(out: Uint8Array, at: number, value: number): void {
  const bits = floatToHalf(value);
  out[at] = bits & 255;
  out[at + 1] = bits >> 8;
}

const encodeF32: Quantize = (numbers, out) => {
  out.set(new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength));
};

const encodeF16: Quantize = (numbers, out) => {
  for (let i = 0; i < numbers.length; i++) putHalf(out, 2 * i, numbers[i]!);
};

const encodeBf16: Quantize = (numbers, out) => {
  for (let i = 0; i < numbers.length; i++) {
    const bits = floatToBfloat(numbers[i]!);
    out[2 * i] = bits & 255;
    out[2 * i + 1] = bits >> 8;
  }
};

/** The element furthest from 0 stands at -8 exactly; the first of several. */
const encodeQ40: Quantize = (numbers, out) => {
  for (let from = 0, to = 0; from < numbers.length; from += 32, to += 18) {
    let furthest = 0;
    for (let i = from; i < from + 32; i++) {
      if (Math.abs(numbers[i]!) > Math.abs(furthest)) furthest = numbers[i]!;
    }
    const d = Math.fround(furthest / -8);
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    const code = (i: number): number => {
      const shifted = Math.fround(Math.fround(numbers[i]! * inverse) + 8.5);
      return Math.min(15, Math.max(0, Math.trunc(shifted)));
    };
    putHalf(out, to, d);
    for (let i = 0; i < 16; i++) out[to + 2 + i] = code(from + i) | (code(from + i + 16) << 4);
  }
};

/** Steps of a 127th of the furthest element, rounded half away from 0. */
const encodeQ80: Quantize = (numbers, out) => {
  for (let from = 0, to = 0; from < numbers.length; from += 32, to += 34) {
    let furthest = 0;
    for (let i = from; i < from + 32; i++) furthest = Math.max(furthest, Math.abs(numbers[i]!));
    const d = Math.fround(furthest / 127);
    const inverse = d === 0 ? 0 : Math.fround(1 / d);
    putHalf(out, to, d);
    for (let i = 0; i < 32; i++) {
      const x = Math.fround(numbers[from + i]! * inverse);
      const size = Math.min(127, Math.floor(Math.abs(x) + 0.5));
      out[to + 2 + i] = x < 0 ? -size : size;
    }
  }
};

/** Types that are written. */
export type WritableType = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0";

const encoders: Readonly<Record<WritableType, Quantize>> = {
  F32: encodeF32,
  F16: encodeF16,
  BF16: encodeBf16,
  Q8_0: encodeQ80,
  Q4_0: encodeQ40,
};

/** Elements that share a block: rows must be whole blocks. */
export function blockSize(type: WritableType): number {
  return blockOf(type)[0];
}

/**
 * Numbers as blocks of a type, rounded as the `gguf` package does.
 * @throws OptionError when they are no whole blocks, or one of them is too large or no number.
 */
export function quantize(
  type: WritableType,
  numbers: Float32Array,
  where = "gguf",
): Uint8Array<ArrayBuffer> {
  const [elements, size] = blockOf(type);
  if (numbers.length % elements !== 0) {
    throw new OptionError(
      `${where}: ${numbers.length} numbers are no whole blocks of ${elements}, as ${type} needs.`,
    );
  }
  // A scale is a float16 wherever one is written.
  const most = { F32: Infinity, BF16: Infinity, F16: 65504, Q8_0: 65504 * 127, Q4_0: 65504 * 8 };
  const limit = most[type];
  for (let i = 0; i < numbers.length; i++) {
    if (Math.abs(numbers[i]!) <= limit && numbers[i]! - numbers[i]! === 0) continue;
    throw new OptionError(
      `${where}: element ${i} is ${numbers[i]}, which ${type} does not hold — the largest is ${limit}.`,
    );
  }
  const out = new Uint8Array((numbers.length / elements) * size);
  encoders[type](numbers, out);
  return out;
}
