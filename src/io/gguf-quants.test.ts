import { readFileSync } from "node:fs";
import { crc32 } from "node:zlib";
import { describe, expect, it } from "vitest";
import { Rng } from "../tensor/rng.ts";
import {
  blockSize,
  dequantize,
  quantize,
  readableTypes,
  type WritableType,
} from "./gguf-quants.ts";

interface Recorded {
  readonly read: Readonly<
    Record<string, { bytes: string; crc32: number; first: { data: number[] } }>
  >;
  readonly floats: string;
  readonly written: Readonly<Record<string, string>>;
}

const recorded = JSON.parse(
  readFileSync(new URL("../../test/parity/gguf-quants.json", import.meta.url), "utf8"),
) as Recorded;
const bytesOf = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text, "base64"));
const floatsOf = (text: string): Float32Array =>
  new Float32Array(bytesOf(text).buffer as ArrayBuffer);
const bitsOf = (numbers: Float32Array): Uint8Array =>
  new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength);

describe("numbers of GGUF tensors", () => {
  it("have a recorded block for every type that is read", () => {
    expect(Object.keys(recorded.read).sort()).toEqual([...readableTypes].sort());
  });

  it.each(Object.entries(recorded.read))(
    "of type %s are the gguf package's, bit for bit",
    (type, own) => {
      const numbers = dequantize(type, bytesOf(own.bytes));
      expect([...numbers.subarray(0, 8)]).toEqual(own.first.data.map(Math.fround));
      expect(crc32(bitsOf(numbers))).toBe(own.crc32);
    },
  );

  it.each(Object.entries(recorded.written))(
    "are written as %s as the gguf package does",
    (type, own) => {
      const bytes = quantize(type as WritableType, floatsOf(recorded.floats));
      expect(Buffer.from(bytes).toString("base64")).toBe(own);
    },
  );

  it.each([
    ["Q8_0", 1 / 2],
    // A scale may be of the other sign: the largest code is 7 and not 8.
    ["Q4_0", 1],
  ] as const)("read from %s are within a step of what was written", (type, steps) => {
    const numbers = Float32Array.from(new Rng(1).normals(blockSize(type) * 40));
    const back = dequantize(type, quantize(type, numbers));
    for (let block = 0; block < 40; block++) {
      const own = numbers.subarray(block * 32, block * 32 + 32);
      const step = Math.max(...own.map(Math.abs)) / (type === "Q8_0" ? 127 : 8);
      for (const [i, x] of own.entries()) {
        expect(Math.abs(back[block * 32 + i]! - x)).toBeLessThanOrEqual(step * (steps + 0.08));
      }
    }
  });

  it("are refused where bytes and numbers do not go together", () => {
    expect(() => dequantize("Q4_0", new Uint8Array(19), "f.gguf: tensor a")).toThrow(
      "f.gguf: tensor a: 19 bytes of Q4_0 are no 32 numbers — 32 take 18 bytes.",
    );
    expect(() => dequantize("IQ2_XS", new Uint8Array(74), "f.gguf: tensor a")).toThrow(
      "f.gguf: tensor a is of type IQ2_XS, which is not read — read are F32, F16, ",
    );
    expect(() => quantize("Q8_0", new Float32Array(31))).toThrow(
      "31 numbers are no whole blocks of 32",
    );
    expect(() => quantize("F16", Float32Array.of(1, 7e4))).toThrow(
      "element 1 is 70000, which F16 does not hold",
    );
    expect(() => quantize("Q4_0", new Float32Array(32).fill(Number.NaN))).toThrow(
      "element 0 is NaN",
    );
  });
});
