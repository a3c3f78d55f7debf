/**
 * Row invariance: a row of a batch comes out to the same bits whatever else is in the batch, from two
 * rows up. Continuous batching and speculative decoding count on it.
 *
 * One row alone may differ in the last bits (measured: with weights given at every run, and with
 * MatMulNBits; not with stored float weights), since ONNX Runtime multiplies a single row with another
 * kernel. So nothing runs with one row where bits matter; callers pad to two.
 */
import { beforeAll, describe, expect, test } from "vitest";
import { add } from "../../ir/elementwise.ts";
import {
  crossEntropyRows,
  gelu,
  layerNorm,
  quantizedLinear,
  rmsNorm,
  silu,
  softmax,
} from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { dot } from "../../ir/linear.ts";
import { Rng } from "../../tensor/rng.ts";
import { type Shape, type StaticShape, sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { spec, trace } from "../compile.ts";
import { nodeOrt } from "./node.ts";
import type { OrtBackend } from "./ort.ts";

const most = 64;
const batches = [2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 47, 48, 63, 64];
const rng = new Rng(9);

function random(shape: StaticShape): Tensor<"float32"> {
  const values = Float32Array.from({ length: sizeOf(shape) }, () => rng.normal());
  return new Tensor("float32", shape, values);
}

interface RowCase {
  readonly name: string;
  readonly fn: (...inputs: Value[]) => Value;
  /** Inputs with `most` rows first, then those that all rows share. */
  readonly perRow: readonly Tensor[];
  readonly shared?: readonly Tensor[];
  readonly isFrozen?: boolean;
}

/** An odd size, that of a GPT-2 layer, and one that is cut into blocks. */
const sizes = [
  [37, 53],
  [768, 768],
  [512, 2048],
] as const;

const bits = 4;
const blockSize = 32;

function packedWeight(inFeatures: number, outFeatures: number): Tensor[] {
  const blocks = inFeatures / blockSize;
  const bytes = Uint8Array.from({ length: (outFeatures * inFeatures) / 2 }, () => rng.integer(256));
  return [
    new Tensor("uint8", [outFeatures, blocks, blockSize / 2], bytes),
    new Tensor(
      "float32",
      [outFeatures, blocks],
      Float32Array.from({ length: outFeatures * blocks }, () => 0.01 + 0.01 * rng.uniform()),
    ),
  ];
}

const width = 768;
const cases: readonly RowCase[] = [
  ...sizes.flatMap(([k, n]): RowCase[] => {
    const x = [random([most, k])];
    const weights = [random([k, n]), random([n])];
    const affine = (a: Value, w: Value, b: Value): Value => add(dot(a, w), b);
    return [
      { name: `Gemm ${k} → ${n}, weight given`, fn: affine, perRow: x, shared: weights },
      {
        name: `Gemm ${k} → ${n}, weight stored`,
        fn: affine,
        perRow: x,
        shared: weights,
        isFrozen: true,
      },
      ...[false, true].map((isFrozen) => ({
        name: `Gemm ${k} → ${n}, transposed, ${isFrozen ? "stored" : "given"}`,
        fn: (a: Value, w: Value): Value => dot(a, w, { transB: true }),
        perRow: x,
        shared: [random([n, k])],
        isFrozen,
      })),
    ];
  }),
  ...[false, true].map((isFrozen): RowCase => {
    const attrs = { bits, blockSize, inFeatures: 512, outFeatures: 384 } as const;
    return {
      name: `4-bit weight, ${isFrozen ? "stored (MatMulNBits)" : "given (unpacked)"}`,
      fn: (x, q, s) => quantizedLinear(x, q, s, attrs),
      perRow: [random([most, attrs.inFeatures])],
      shared: packedWeight(attrs.inFeatures, attrs.outFeatures),
      isFrozen,
    };
  }),
  ...([4, 8] as const).map((width): RowCase => {
    const attrs = {
      bits: width,
      blockSize,
      inFeatures: 512,
      outFeatures: 384,
      activations: "int8",
    } as const;
    const [packed, scales] = packedWeight(attrs.inFeatures, attrs.outFeatures);
    const bytes = packed!.data as Uint8Array<ArrayBuffer>;
    // Of 8 bits twice the bytes: any will do.
    const wide = new Uint8Array(bytes.length * 2).map((_, i) => (bytes[i >> 1]! * 7 + i) & 255);
    const blocks = attrs.inFeatures / blockSize;
    return {
      name: `${width}-bit weight, stored, activations of 8 bits`,
      fn: (x, q, s) => quantizedLinear(x, q, s, attrs),
      perRow: [random([most, attrs.inFeatures])],
      shared: [
        width === 4 ? packed! : new Tensor("uint8", [attrs.outFeatures, blocks, blockSize], wide),
        scales!,
      ],
      isFrozen: true,
    };
  }),
  {
    name: "attention scores, one query to a row",
    fn: (q, k) => dot(q, k, { transB: true, alpha: 0.125 }),
    perRow: [random([most, 4, 1, 64]), random([most, 4, 37, 64])],
  },
  {
    name: "attention values, one query to a row",
    fn: (p, v) => dot(p, v),
    perRow: [random([most, 4, 1, 37]), random([most, 4, 37, 64])],
  },
  {
    name: "attention scores, five queries to a row",
    fn: (q, k) => dot(q, k, { transB: true, alpha: 0.125 }),
    perRow: [random([most, 4, 5, 64]), random([most, 4, 37, 64])],
  },
  { name: "softmax", fn: (x) => softmax(x), perRow: [random([most, width])] },
  { name: "softmax of scores", fn: (x) => softmax(x), perRow: [random([most, 4, 1, 37])] },
  {
    name: "layerNorm",
    fn: (x, w, b) => layerNorm(x, w, b),
    perRow: [random([most, width])],
    shared: [random([width]), random([width])],
  },
  {
    name: "rmsNorm",
    fn: (x, w) => rmsNorm(x, w),
    perRow: [random([most, width])],
    shared: [random([width])],
  },
  { name: "gelu", fn: (x) => gelu(x, "tanh"), perRow: [random([most, 61])] },
  { name: "gelu, erf", fn: (x) => gelu(x), perRow: [random([most, 61])] },
  { name: "silu", fn: silu, perRow: [random([most, 61])] },
  {
    name: "cross-entropy",
    fn: (x, t) => crossEntropyRows(x, t),
    perRow: [
      random([most, 501]),
      Tensor.from(
        Int32Array.from({ length: most }, () => rng.integer(501)),
        [most],
        "int32",
      ),
    ],
  },
];

/** Some rows of a batch, sharing its data. */
function rowsOf(tensor: Tensor, from: number, to: number): Tensor {
  const size = tensor.size / tensor.shape[0]!;
  const data = tensor.data.subarray(from * size, to * size) as Tensor["data"];
  return new Tensor(tensor.dtype, [to - from, ...tensor.shape.slice(1)], data);
}

describe.each([1, 2])("with %i threads", (threads) => {
  let backend: OrtBackend;
  beforeAll(async () => {
    backend = await nodeOrt({ threads });
  });

  test.each(cases)("$name", async ({ fn, perRow, shared = [], isFrozen = false }) => {
    const specs = [
      ...perRow.map(({ shape, dtype }) => spec(["rows", ...shape.slice(1)] as Shape, dtype)),
      ...shared,
    ];
    const { program } = trace(fn, specs);
    const names = program.inputs.slice(perRow.length);
    const frozen = new Map(isFrozen ? names.map((name, i) => [name, shared[i]!]) : []);
    const executable = await backend.load(program, { frozen });
    const run = (inputs: readonly Tensor[]): Int32Array => {
      const [result] = executable.runSync([...inputs, ...(isFrozen ? [] : shared)]);
      return new Int32Array(result!.data.buffer, result!.data.byteOffset, result!.size);
    };
    const whole = run(perRow);
    const rowSize = whole.length / most;
    // The first rows, and the last, which stand at other places in the smaller batch.
    for (const [from, to] of batches.flatMap((rows) => [
      [0, rows] as const,
      [most - rows, most] as const,
    ])) {
      const part = run(perRow.map((tensor) => rowsOf(tensor, from, to)));
      const differ = part.findIndex((value, i) => value !== whole[from * rowSize + i]);
      expect(differ, `rows ${from} to ${to}: first element that differs`).toBe(-1);
    }
    await executable.release();
  });
});
