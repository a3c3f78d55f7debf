import { grad } from "../../../src/autodiff/grad.ts";
import { add, square, tanh } from "../../../src/ir/elementwise.ts";
import { emit, emitAll } from "../../../src/ir/emit.ts";
import { softmax } from "../../../src/ir/fused.ts";
import type { Value } from "../../../src/ir/graph.ts";
import { slice } from "../../../src/ir/layout.ts";
import { avgPool, conv, convTranspose, dot, matmul, maxPool } from "../../../src/ir/linear.ts";
import { sum } from "../../../src/ir/reduce.ts";
import {
  type Cases,
  type Fn,
  noKernel,
  normals,
  numbers,
  type OperatorCase,
  once,
} from "./case.ts";

function convCases(op: "conv" | "convTranspose"): OperatorCase[] {
  const attrs = { strides: [1, 1], pads: [0, 0, 0, 0], dilations: [1, 1], groups: 1 };
  const make = (more: Partial<typeof attrs>, outputPadding = [0, 0]): Fn =>
    op === "conv"
      ? (x, w) => emit("conv", [x!, w!], { ...attrs, ...more })
      : (x, w) => emit("convTranspose", [x!, w!], { ...attrs, ...more, outputPadding });
  const x = numbers([2, 4, 6, 5]);
  return [
    once("plain", make({}), x, numbers(op === "conv" ? [3, 4, 3, 2] : [4, 3, 3, 2])),
    once("pads that differ on each side", make({ pads: [2, 0, 1, 1] }), x, numbers([4, 4, 3, 3])),
    once(
      "strides and dilations",
      make({ strides: [2, 1], dilations: [1, 2] }),
      x,
      numbers([4, 4, 2, 2]),
    ),
    once("groups", make({ groups: 2 }), x, numbers(op === "conv" ? [6, 2, 2, 2] : [4, 3, 2, 2])),
    once(
      "one channel to a group",
      make({ groups: 4, pads: [1, 1, 1, 1] }),
      x,
      numbers([4, 1, 3, 3]),
    ),
    once(
      "one spatial axis",
      (a, w) =>
        op === "conv" ? conv(a!, w!, { padding: 1 }) : convTranspose(a!, w!, { stride: 2 }),
      numbers([1, 2, 7]),
      numbers([2, 2, 3]),
    ),
    once(
      "three spatial axes",
      (a, w) => (op === "conv" ? conv(a!, w!) : convTranspose(a!, w!)),
      numbers([1, 2, 3, 4, 3]),
      numbers([2, 2, 2, 2, 2]),
    ),
    once("no examples", make({}), numbers([0, 4, 6, 5]), numbers([4, 4, 3, 3])),
    ...(op === "convTranspose"
      ? [once("output padding", make({ strides: [2, 3] }, [1, 2]), x, numbers([4, 2, 3, 3]))]
      : []),
    {
      ...once(
        "float64",
        make({}),
        numbers([1, 2, 3, 3], "float64"),
        numbers([2, 2, 2, 2], "float64"),
      ),
      unsupported: noKernel(op, "float64"),
    },
  ];
}

const poolInput = normals([2, 3, 7, 6]);

const [weight, bias] = [normals([3, 3]), normals([3])];

export const linearCases: Cases<"dot" | "conv" | "convTranspose" | "maxPool" | "avgPool"> = {
  dot: [
    ...(["float32", "float64"] as const).flatMap((dtype) => [
      once(
        `${dtype}, two dimensions`,
        (a, b, c, d) => [
          dot(a!, b!),
          dot(c!, b!, { transA: true }),
          dot(a!, d!, { transB: true, alpha: 0.5 }),
          dot(c!, d!, { transA: true, transB: true, alpha: -2 }),
        ],
        normals([3, 5], dtype),
        normals([5, 2], dtype),
        normals([5, 3], dtype),
        normals([2, 5], dtype),
      ),
      once(
        `${dtype}, stacks`,
        (a, b, c, d) => [
          dot(a!, b!),
          dot(c!, b!, { transA: true }),
          dot(a!, d!, { transB: true, alpha: 0.5 }),
          dot(c!, d!, { transA: true, transB: true, alpha: -2 }),
          matmul(a!, slice(b!, 0, 0, 1)),
        ],
        normals([2, 1, 3, 5], dtype),
        normals([2, 1, 5, 2], dtype),
        normals([2, 1, 5, 3], dtype),
        normals([2, 1, 2, 5], dtype),
      ),
      once(
        `${dtype}, nothing to sum, and nothing to give`,
        (a, b, c, d, e) => [
          dot(a!, b!),
          dot(c!, d!),
          dot(d!, c!, { transA: true, transB: true }),
          dot(e!, e!, { transB: true }),
        ],
        normals([3, 0], dtype),
        normals([0, 2], dtype),
        normals([0, 4], dtype),
        normals([4, 3], dtype),
        normals([2, 3, 0], dtype),
      ),
      once(
        `${dtype}, added to a row, a column, a matrix and a number`,
        (a, b, row, column, matrix, scalar) => {
          const y = (): Value => dot(a!, b!, { alpha: 2 });
          return [
            add(y(), row!),
            add(row!, dot(b!, a!)),
            add(dot(a!, b!, { alpha: 3 }), column!),
            add(dot(a!, b!, { alpha: 4 }), matrix!),
            add(dot(a!, b!, { alpha: 5 }), scalar!),
          ];
        },
        normals([3, 3], dtype),
        normals([3, 3], dtype),
        normals([3], dtype),
        normals([3, 1], dtype),
        normals([3, 3], dtype),
        normals([], dtype),
      ),
    ]),
    {
      name: "a weight and a bias stored in the program",
      fn: (x, w, b) => [add(dot(x!, w!), b!), dot(x!, w!, { transB: true })],
      shapes: [["rows", 3], [3, 3], [3]],
      runs: [1, 4].map((rows) => [normals([rows, 3]), weight, bias]),
      frozen: [1, 2],
    },
    {
      name: "symbolic rows and past",
      fn: (x, w, keys) => [
        add(dot(x!, w!), 1),
        dot(keys!, keys!, { transB: true, alpha: 0.5 }),
        softmax(dot(keys!, keys!, { transB: true })),
        // Sums over no elements when `past` is 0; also where no output is written directly.
        dot(keys!, keys!, { transA: true }),
        tanh(dot(keys!, keys!, { transA: true, alpha: 0.5 })),
      ],
      shapes: [
        ["rows", 4],
        [4, 3],
        ["rows", 2, "past", 4],
      ],
      runs: [
        [1, 3],
        [5, 1],
        [2, 7],
        [2, 0],
      ].map(([rows, past]) => [
        normals([rows!, 4]),
        normals([4, 3]),
        normals([rows!, 2, past!, 4]),
      ]),
    },
  ],
  conv: convCases("conv"),
  convTranspose: convCases("convTranspose"),
  maxPool: [
    once(
      "windows, their places, pads that differ",
      (x) => [
        ...emitAll("maxPool", [x!], { kernel: [2, 3], strides: [2, 1], pads: [0, 0, 0, 0] }),
        ...emitAll("maxPool", [x!], { kernel: [3, 3], strides: [2, 2], pads: [1, 0, 2, 1] }),
      ],
      poolInput,
    ),
    once(
      "equal numbers",
      (x) => emitAll("maxPool", [x!], { kernel: [2, 2], strides: [2, 2], pads: [0, 0, 0, 0] }),
      numbers([1, 1, 4, 4], "float32", 0, 1),
    ),
    once("one spatial axis", (x) => maxPool(x!, { kernel: 2, stride: 1 }), normals([1, 2, 5])),
    once("float64", (x) => maxPool(x!, { kernel: 2 }), normals([1, 2, 4, 4], "float64")),
    once(
      "its derivative",
      (x) => grad((p: Value) => sum(square(maxPool(p, { kernel: 2, stride: 1 }))))(x!),
      poolInput,
    ),
  ],
  avgPool: [
    once(
      "windows, with and without the padding",
      (x) =>
        [true, false].flatMap((countIncludePad) => [
          emit("avgPool", [x!], {
            kernel: [2, 3],
            strides: [2, 1],
            pads: [0, 0, 0, 0],
            countIncludePad,
          }),
          emit("avgPool", [x!], {
            kernel: [3, 3],
            strides: [2, 2],
            pads: [1, 0, 2, 1],
            countIncludePad,
          }),
        ]),
      poolInput,
    ),
    once("one spatial axis", (x) => avgPool(x!, { kernel: 2, stride: 1 }), normals([1, 2, 5])),
    once("float64", (x) => avgPool(x!, { kernel: 2 }), normals([1, 2, 4, 4], "float64")),
    once(
      "its derivative",
      (x) => grad((p: Value) => sum(square(avgPool(p, { kernel: 2, stride: 1 }))))(x!),
      poolInput,
    ),
  ],
};
