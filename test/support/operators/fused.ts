import { grad } from "../../../src/autodiff/grad.ts";
import { square, sub } from "../../../src/ir/elementwise.ts";
import { emitAll } from "../../../src/ir/emit.ts";
import {
  crossEntropyRows,
  dequantize,
  gelu,
  layerNorm,
  logSoftmax,
  quantizedLinear,
  rmsNorm,
  silu,
  softmax,
} from "../../../src/ir/fused.ts";
import type { Value } from "../../../src/ir/graph.ts";
import { dot } from "../../../src/ir/linear.ts";
import { sum } from "../../../src/ir/reduce.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";
import {
  type Cases,
  ints,
  noKernel,
  normals,
  numbers,
  type OperatorCase,
  odd,
  once,
  onShapes,
  rng,
  withGradient,
} from "./case.ts";

function quantized(bits: 4 | 8, outFeatures: number, inFeatures: number, blockSize: number) {
  const blocks = inFeatures / blockSize;
  const bytes = (blockSize * bits) / 8;
  const packed = Uint8Array.from({ length: outFeatures * blocks * bytes }, () => rng.integer(256));
  return {
    attrs: { bits, blockSize, inFeatures, outFeatures },
    packed: new Tensor("uint8", [outFeatures, blocks, bytes], packed),
    scales: Tensor.from(
      Float32Array.from({ length: outFeatures * blocks }, () => 0.02 + 0.05 * rng.uniform()),
      [outFeatures, blocks],
    ),
  };
}

const quantizedSizes: readonly (readonly [4 | 8, number, number, number])[] = [
  [4, 6, 64, 32],
  [4, 3, 48, 16],
  [8, 5, 64, 32],
  [8, 1, 16, 16],
  [4, 16, 256, 128],
];

export const fusedCases: Cases<
  | "softmax"
  | "logSoftmax"
  | "gelu"
  | "silu"
  | "layerNorm"
  | "rmsNorm"
  | "crossEntropy"
  | "dequantize"
  | "quantizedLinear"
> = {
  softmax: [
    ...(["float32", "float64"] as const).map((dtype) =>
      once(
        `${dtype}, every axis`,
        (x, one, empty, large) => [
          softmax(x!, 0),
          softmax(x!, 1),
          softmax(x!, 2),
          softmax(one!),
          softmax(empty!, 1),
          softmax(large!),
        ],
        normals([2, 3, 5], dtype),
        normals([3, 1], dtype),
        normals([0, 3], dtype),
        Tensor.from([1e4, 1e4, -1e4, 0, -Infinity, 1], [2, 3], dtype),
      ),
    ),
    once(
      "derivative",
      withGradient((x) => softmax(x!, 1)),
      odd,
    ),
  ],
  logSoftmax: [
    ...(["float32", "float64"] as const).map((dtype) =>
      once(
        `${dtype}, every axis`,
        (x, one, large) => [
          logSoftmax(x!, 0),
          logSoftmax(x!, 1),
          logSoftmax(x!, 2),
          logSoftmax(one!),
          logSoftmax(large!),
        ],
        normals([2, 3, 5], dtype),
        normals([3, 1], dtype),
        Tensor.from([1e4, 1e4, -1e4, 0, -30, 1], [2, 3], dtype),
      ),
    ),
    once(
      "derivative",
      withGradient((x) => logSoftmax(x!)),
      odd,
    ),
  ],
  gelu: [
    onShapes(
      "tanh",
      (x) => gelu(x, "tanh"),
      (s) => numbers(s),
    ),
    onShapes(
      "erf",
      (x) => gelu(x),
      (s) => numbers(s),
    ),
    once("float64, tanh", (x) => gelu(x!, "tanh"), normals([7], "float64")),
    {
      ...once("float64, erf", (x) => gelu(x!), normals([7], "float64")),
      unsupported: noKernel("erf", "float64"),
    },
    once("large numbers", (x) => [gelu(x!), gelu(x!, "tanh")], Tensor.from([-60, -9, 9, 60, 1e4])),
    once(
      "derivative",
      withGradient((x) => gelu(x!, "tanh")),
      odd,
    ),
    once(
      "derivative, erf",
      withGradient((x) => gelu(x!)),
      odd,
    ),
  ],
  silu: [
    onShapes("float32", silu, (s) => numbers(s)),
    once("float64", (x) => silu(x!), normals([7], "float64")),
    once("large numbers", (x) => silu(x!), Tensor.from([-200, -90, 90, 1e4])),
    once(
      "derivative",
      withGradient((x) => silu(x!)),
      odd,
    ),
  ],
  layerNorm: [
    ...(["float32", "float64"] as const).map((dtype) =>
      once(
        `${dtype}, its mean and scale too`,
        (x, w, b, y) => [
          ...emitAll("layerNorm", [x!, w!, b!], { epsilon: 1e-5 }),
          layerNorm(y!, w!, b!, 1e-3),
        ],
        normals([2, 3, 5], dtype),
        normals([5], dtype),
        normals([5], dtype),
        normals([0, 5], dtype),
      ),
    ),
    once(
      "one element",
      (x, w, b) => layerNorm(x!, w!, b!),
      normals([2, 1]),
      normals([1]),
      normals([1]),
    ),
    once(
      "derivative",
      withGradient((x, w, b) => layerNorm(x!, w!, b!)),
      odd,
      normals([5]),
      normals([5]),
    ),
  ],
  rmsNorm: [
    ...(["float32", "float64"] as const).map((dtype) =>
      once(
        `${dtype}, its scale too`,
        (x, w, y) => [...emitAll("rmsNorm", [x!, w!], { epsilon: 1e-6 }), rmsNorm(y!, w!, 1e-3)],
        normals([2, 3, 5], dtype),
        normals([5], dtype),
        normals([0, 5], dtype),
      ),
    ),
    once(
      "derivative",
      withGradient((x, w) => rmsNorm(x!, w!)),
      odd,
      normals([5]),
    ),
  ],
  crossEntropy: [
    ...(["float32", "float64"] as const).map((dtype) =>
      once(
        `${dtype}, some rows ignored`,
        (logits, targets, x, y) => [
          ...emitAll("crossEntropy", [logits!, targets!], { ignoreIndex: -100 }),
          crossEntropyRows(x!, y!, 2),
        ],
        normals([5, 4], dtype),
        ints([0, 3, -100, 2, -100]),
        normals([3, 3], dtype),
        ints([2, 1, 0]),
      ),
    ),
    once(
      "derivative",
      (logits, targets) => grad((p: Value) => sum(square(crossEntropyRows(p, targets!))))(logits!),
      normals([5, 4]),
      ints([0, 3, -100, 2, 1]),
    ),
    once(
      "every row ignored",
      (l, t) => crossEntropyRows(l!, t!),
      normals([2, 3]),
      ints([-100, -100]),
    ),
    once(
      "large logits",
      (l, t) => crossEntropyRows(l!, t!),
      Tensor.from([1e4, 0, -1e4, 3], [2, 2]),
      ints([1, 0]),
    ),
  ],
  dequantize: quantizedSizes.map((sizes) => {
    const { attrs, packed, scales } = quantized(...sizes);
    return once(
      `${sizes[0]} bits, ${sizes.slice(1).join(" × ")}`,
      (q, s) => dequantize(q!, s!, attrs),
      packed,
      scales,
    );
  }),
  quantizedLinear: quantizedSizes.flatMap((sizes): OperatorCase[] => {
    const { attrs, packed, scales } = quantized(...sizes);
    const name = `${sizes[0]} bits, ${sizes.slice(1).join(" × ")}`;
    const x = (rows: number): Tensor => normals([rows, attrs.inFeatures]);
    return [
      once(
        name,
        (a, b, q, s) => [
          quantizedLinear(a!, q!, s!, attrs),
          quantizedLinear(b!, q!, s!, attrs),
          sub(
            quantizedLinear(a!, q!, s!, attrs),
            dot(a!, dequantize(q!, s!, attrs), { transB: true }),
          ),
        ],
        x(3),
        x(1),
        packed,
        scales,
      ),
      {
        name: `${name}, symbolic rows`,
        fn: (a, q, s) => quantizedLinear(a!, q!, s!, attrs),
        shapes: [["rows", attrs.inFeatures], packed.shape, scales.shape],
        runs: [1, 4, 2].map((rows) => [x(rows), packed, scales]),
      },
      {
        name: `${name}, stored in the program`,
        fn: (a, q, s) => [quantizedLinear(a!, q!, s!, attrs), dequantize(q!, s!, attrs)],
        shapes: [["rows", attrs.inFeatures], packed.shape, scales.shape],
        runs: [1, 3].map((rows) => [x(rows), packed, scales]),
        frozen: [1, 2],
      },
    ];
  }),
};
