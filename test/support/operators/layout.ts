import { add, cast } from "../../../src/ir/elementwise.ts";
import { iota } from "../../../src/ir/indexing.ts";
import {
  concat,
  expand,
  flip,
  pad,
  reshape,
  slice,
  split,
  transpose,
} from "../../../src/ir/layout.ts";
import { asRows } from "../../../src/ir/linear.ts";
import { sum } from "../../../src/ir/reduce.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";
import { type Cases, numbers, once } from "./case.ts";

export const layoutCases: Cases<
  | "input"
  | "constant"
  | "iota"
  | "reshape"
  | "transpose"
  | "expand"
  | "slice"
  | "concat"
  | "split"
  | "pad"
> = {
  input: [
    once(
      "every type comes out as it went in",
      (...inputs) => inputs,
      ...(
        ["float32", "float64", "int32", "int64", "int8", "uint8", "bool", "float16"] as const
      ).map((dtype) =>
        Tensor.from([0, 1, 2, 3], [2, 2], dtype === "bool" ? "uint8" : dtype).to(dtype),
      ),
    ),
    once("the same twice", (x) => [x!, x!, add(x!, 1)], numbers([2])),
    once("empty", (x) => x!, numbers([0, 3])),
    {
      ...once("bfloat16", (x) => cast(x!, "float32"), Tensor.from([1, 2], [2], "bfloat16")),
      unsupported: /^input "0": ONNX Runtime's binding does not take bfloat16 — /,
    },
  ],
  constant: [
    once(
      "every type",
      (x) => [
        add(x!, Tensor.from([1, 2, 3])),
        expand(x!.graph.lift(Tensor.from([7], [1], "float64")), [2]),
        expand(x!.graph.lift(Tensor.from([7], [1], "int32")), [2]),
        expand(x!.graph.lift(true), [2]),
        cast(x!.graph.lift(Tensor.from([0, 200], [2], "uint8")), "int32"),
        cast(x!.graph.lift(Tensor.from([1.5, -2], [2], "float16")), "float32"),
        cast(x!.graph.lift(Tensor.from([1.5, -2], [2], "bfloat16")), "float32"),
        x!.graph.lift(Tensor.zeros([0, 4], "float32")),
        x!.graph.lift(3),
      ],
      numbers([3]),
    ),
  ],
  iota: [once("lengths", () => [iota(5), iota(0), iota(1)])],
  reshape: [
    ...(["float32", "int32", "bool"] as const).map((dtype) =>
      once(
        dtype,
        (x, scalar, empty) => [
          reshape(x!, [3, 4]),
          reshape(x!, [12]),
          reshape(x!, [1, 2, 1, 6]),
          reshape(scalar!, [1, 1]),
          reshape(empty!, [0, 3]),
          reshape(empty!, [3, 0, 7]),
        ],
        numbers([2, 6], dtype),
        numbers([], dtype),
        numbers([2, 0], dtype),
      ),
    ),
    once("to a scalar", (x) => reshape(x!, []), numbers([1, 1])),
    {
      name: "one symbol",
      fn: (x) => [asRows(x!), reshape(x!, ["rows", 2, 6]), reshape(x!, [-1, 2])],
      shapes: [["rows", 3, 4]],
      runs: [1, 5, 0, 2].map((rows) => [numbers([rows, 3, 4])]),
    },
    {
      name: "several symbols",
      fn: (x) => [
        reshape(x!, ["rows", "past", 3, 4]),
        reshape(x!, ["rows", 3, "past", 4]),
        asRows(x!),
        reshape(x!, ["4*past", 3, "rows"]),
      ],
      shapes: [["rows", "past", 12]],
      runs: [
        [2, 3],
        [1, 1],
        [4, 0],
        [3, 2],
      ].map(([rows, past]) => [numbers([rows!, past!, 12])]),
    },
  ],
  transpose: (["float32", "float64", "int32", "bool"] as const).map((dtype) =>
    once(
      dtype,
      (x, y, empty, scalar) => [
        transpose(x!, [2, 0, 1]),
        transpose(x!, [0, 2, 1]),
        transpose(x!),
        transpose(y!, [3, 0, 2, 1]),
        transpose(empty!, [1, 0]),
        transpose(scalar!, []),
      ],
      numbers([2, 3, 4], dtype),
      numbers([1, 2, 1, 3], dtype),
      numbers([2, 0], dtype),
      numbers([], dtype),
    ),
  ),
  expand: [
    ...(["float32", "float64", "int32", "bool"] as const).map((dtype) =>
      once(
        dtype,
        (x, scalar, row) => [
          expand(x!, [2, 3]),
          expand(x!, [4, 2, 3]),
          expand(scalar!, [2, 2]),
          expand(scalar!, [0, 2]),
          expand(row!, [2, 0]),
          expand(scalar!, [1]),
        ],
        numbers([2, 1], dtype),
        numbers([], dtype),
        numbers([1, 1], dtype),
      ),
    ),
    {
      name: "to symbols",
      fn: (x, y) => [
        expand(x!, ["rows", 3]),
        expand(y!, ["rows", "past", 2]),
        expand(y!, ["rows", 4, "past", 2]),
      ],
      shapes: [
        ["rows", 1],
        ["past", 2],
      ],
      runs: [
        [1, 4],
        [3, 1],
        [2, 0],
      ].map(([rows, past]) => [numbers([rows!, 1]), numbers([past!, 2])]),
    },
  ],
  slice: [
    ...(["float32", "float64", "int32", "bool"] as const).map((dtype) =>
      once(
        dtype,
        (x, empty) => [
          slice(x!, 0, 1, 3),
          slice(x!, 1, -2),
          slice(x!, 1, 0, 6, 4),
          slice(x!, 1, 2, 2),
          flip(x!, 0),
          flip(flip(x!, 0), 1),
          slice(x!, 1, 5, 0, -2),
          slice(x!, 1, 4, undefined, -3),
          slice(empty!, 1, 1),
          flip(empty!, 1),
        ],
        numbers([4, 6], dtype),
        numbers([0, 2], dtype),
      ),
    ),
    {
      name: "beside a symbol",
      fn: (x) => [slice(x!, 1, 1, 3), flip(x!, 1)],
      shapes: [["rows", 4]],
      runs: [[numbers([2, 4])], [numbers([0, 4])]],
    },
  ],
  concat: [
    ...(["float32", "float64", "int32", "bool"] as const).map((dtype) =>
      once(
        dtype,
        (a, b, empty) => [
          concat([a!, b!], 0),
          concat([a!, empty!, b!], 0),
          concat([empty!, empty!], 1),
          concat([a!, a!], 1),
        ],
        numbers([2, 3], dtype),
        numbers([1, 3], dtype),
        numbers([0, 3], dtype),
      ),
    ),
    {
      name: "of a symbol and one more",
      fn: (past, one) => {
        const all = concat([past!, one!], 1);
        return [
          all,
          expand(sum(all, [1], { keepDims: true }), all.shape),
          reshape(all, ["rows", -1]),
        ];
      },
      shapes: [
        ["rows", "past", 2],
        ["rows", 1, 2],
      ],
      runs: [
        [1, 3],
        [2, 0],
        [3, 1],
      ].map(([rows, past]) => [numbers([rows!, past!, 2]), numbers([rows!, 1, 2])]),
    },
  ],
  split: (["float32", "float64", "int32", "bool"] as const).map((dtype) =>
    once(
      `${dtype}, with parts of no size and parts that nobody reads`,
      (x, y) => [
        ...split(x!, [2, 0, 3]),
        split(y!, [1, 2, 1], 0)[1]!,
        split(y!, [0, 4], 0)[0]!,
        split(x!, [5])[0]!,
      ],
      numbers([2, 5], dtype),
      numbers([4, 2], dtype),
    ),
  ),
  pad: (["float32", "float64", "int32", "bool"] as const).map((dtype) =>
    once(
      dtype,
      (x, empty) => [
        pad(x!, [1, 0], [0, 2]),
        pad(x!, [0, 1], [2, 0], 1),
        pad(empty!, [1, 1], [0, 0], 1),
      ],
      numbers([2, 3], dtype),
      numbers([0, 2], dtype),
    ),
  ),
};
