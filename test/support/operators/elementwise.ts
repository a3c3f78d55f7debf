import {
  type BinaryOp,
  type BitwiseOp,
  binaryOps,
  bitwiseOps,
  type CompareOp,
  compareOps,
  type LogicalOp,
  logicalOps,
  type UnaryOp,
  unaryOps,
} from "../../../src/ir/attrs.ts";
import { cast, isNan, not, stopGradient } from "../../../src/ir/elementwise.ts";
import { emit } from "../../../src/ir/emit.ts";
import type { Value } from "../../../src/ir/graph.ts";
import type { Dtype } from "../../../src/tensor/dtype.ts";
import type { StaticShape } from "../../../src/tensor/shape.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";
import {
  type Cases,
  type ComputeType,
  ints,
  noKernel,
  numbers,
  type OperatorCase,
  once,
  onPairs,
  onShapes,
  pairwise,
  specials,
} from "./case.ts";

function unaryCases(op: UnaryOp): OperatorCase[] {
  const fn = (x?: Value): Value => emit(op, [x!], {});
  const positive = op === "log" || op === "sqrt" || op === "reciprocal";
  const takesInt = ["neg", "abs", "sign", "relu"].includes(op);
  const types: ComputeType[] = takesInt ? ["float32", "float64", "int32"] : ["float32", "float64"];
  const cases = types.map((dtype): OperatorCase => {
    const plain = onShapes(dtype, fn, (s) => numbers(s, dtype, positive ? 1 : -3, 4));
    return dtype === "float64" && op === "erf"
      ? { ...plain, unsupported: noKernel("erf", "float64") }
      : plain;
  });
  // Sines of infinity and of large numbers are not worth a promise.
  const values = op === "sin" || op === "cos" ? specials.slice(0, 10) : specials;
  return [...cases, once("special numbers", fn, Tensor.from(values))];
}

function binaryCases(op: BinaryOp): OperatorCase[] {
  const fn = pairwise(op);
  const isDivision = op === "div" || op === "mod";
  const cases = (["float32", "float64", "int32"] as const).map((dtype) => {
    const left = (s: StaticShape): Tensor =>
      op === "pow" ? numbers(s, dtype, 1, 4) : numbers(s, dtype, -7, 7);
    const right = (s: StaticShape): Tensor => {
      if (op === "pow") return numbers(s, dtype, 0, 3);
      // Divisors of both signs, none of them zero.
      const x = numbers(s, dtype, 1, 4);
      return isDivision
        ? Tensor.from(
            Float64Array.from(x.numbers(), (v, i) => (i % 2 ? -v : v)),
            s,
            dtype,
          )
        : numbers(s, dtype, -7, 7);
    };
    return onPairs(dtype, fn, left, right);
  });
  const a = Tensor.from([-7, 7, -7, 7, 0, 6, -6]);
  const b = Tensor.from([3, -3, -3, 3, 3, 3, 3]);
  const signs = once(
    "signs, float32 and int32",
    (x, y, i, j) => [fn(x!, y!), fn(i!, j!)],
    a,
    b,
    a.to("int32"),
    b.to("int32"),
  );
  if (op === "mod") return [...cases, signs];
  if (op === "div") {
    const wide = once(
      "int32 beyond float32, and the smallest number",
      (x, y) => fn(x!, y!),
      ints([2 ** 31 - 1, -(2 ** 31), 2 ** 24 + 1, -7, 7]),
      ints([2, 3, 1, 2, -2]),
    );
    return [...cases, signs, wide];
  }
  if (op === "add" || op === "sub" || op === "mul") {
    const wrap = once(
      "int32 wraps around",
      (x, y) => fn(x!, y!),
      ints([2 ** 31 - 1, -(2 ** 31), 65537]),
      ints([1, -1, 65537]),
    );
    return [...cases, wrap];
  }
  if (op === "min" || op === "max") {
    const odd = Tensor.from([NaN, 1, NaN, Infinity, -Infinity]);
    return [...cases, once("NaN wins", fn, odd, Tensor.from([1, NaN, NaN, 2, 2]))];
  }
  return cases;
}

function compareCases(op: CompareOp): OperatorCase[] {
  const fn = pairwise(op);
  const types: Dtype[] = ["float32", "float64", "int32"];
  if (op === "equal") types.push("bool");
  const odd = Tensor.from([NaN, NaN, Infinity, -0]);
  return [
    ...types.map((dtype) => onPairs(dtype, fn, (s) => numbers(s, dtype, 0, 2))),
    once("NaN and signed zero", fn, odd, Tensor.from([NaN, 1, Infinity, 0])),
  ];
}

function logicalCases(op: LogicalOp): OperatorCase[] {
  return [onPairs("bool", pairwise(op), (s) => numbers(s, "bool"))];
}

const castValues = [-2.7, -1.5, -0.5, -0.2, 0, 0.2, 0.5, 1.5, 2.7, 100.9];

const castTypes = [
  "float32",
  "float64",
  "int32",
  "bool",
  "uint8",
  "int8",
  "int64",
  "float16",
] as const;

function castCases(): OperatorCase[] {
  const inRange = castValues.map((v) => Math.abs(v));
  return castTypes
    .map((from) =>
      once(
        `from ${from}`,
        (x) => castTypes.map((to) => emit("cast", [x!], { to })),
        Tensor.from(from === "float32" || from === "float64" ? inRange : inRange, [10], from),
      ),
    )
    .concat([
      once(
        "negative numbers towards zero",
        (x) => (["int32", "int8", "int64", "bool"] as const).map((to) => cast(x!, to)),
        Tensor.from(castValues),
      ),
      once(
        "through bfloat16",
        (x) => cast(cast(x!, "bfloat16"), "float32"),
        Tensor.from([1, 1.00390625, 1.01171875, -3.3, 1e-30, 70000]),
      ),
      once(
        "empty and scalar",
        (x, y) => [cast(x!, "int32"), cast(y!, "bool")],
        numbers([0, 2]),
        numbers([]),
      ),
    ]);
}

export const elementwiseCases: Cases<
  | UnaryOp
  | BinaryOp
  | CompareOp
  | LogicalOp
  | BitwiseOp
  | "not"
  | "isNan"
  | "where"
  | "cast"
  | "stopGradient"
> = {
  ...(Object.fromEntries(unaryOps.map((op) => [op, unaryCases(op)])) as Record<
    UnaryOp,
    OperatorCase[]
  >),
  ...(Object.fromEntries(binaryOps.map((op) => [op, binaryCases(op)])) as Record<
    BinaryOp,
    OperatorCase[]
  >),
  ...(Object.fromEntries(compareOps.map((op) => [op, compareCases(op)])) as Record<
    CompareOp,
    OperatorCase[]
  >),
  ...(Object.fromEntries(logicalOps.map((op) => [op, logicalCases(op)])) as Record<
    LogicalOp,
    OperatorCase[]
  >),
  ...(Object.fromEntries(
    bitwiseOps.map((op) => [
      op,
      [
        onPairs("int32", pairwise(op), (s) => numbers(s, "int32", -9, 9)),
        once("all bits", pairwise(op), ints([-1, 2 ** 31 - 1]), ints([-(2 ** 31), 5])),
      ],
    ]),
  ) as Record<(typeof bitwiseOps)[number], OperatorCase[]>),
  not: [onShapes("bool", not, (s) => numbers(s, "bool"))],
  isNan: [
    ...(["float32", "float64"] as const).map((dtype) =>
      once(dtype, (x) => isNan(x!), Tensor.from(specials, [specials.length], dtype)),
    ),
    onShapes("shapes", isNan, (s) => numbers(s)),
  ],
  where: (["float32", "float64", "int32", "bool"] as const).map((dtype) =>
    once(
      dtype,
      (c, a, b, row, scalar, empty) => [
        emit("where", [c!, a!, b!], {}),
        emit("where", [c!, row!, scalar!], {}),
        emit("where", [empty!, row!, scalar!], {}),
      ],
      numbers([2, 3], "bool"),
      numbers([2, 3], dtype),
      numbers([2, 3], dtype),
      numbers([1, 3], dtype),
      numbers([], dtype),
      numbers([0, 1], "bool"),
    ),
  ),
  cast: castCases(),
  stopGradient: [onShapes("float32", stopGradient, (s) => numbers(s))],
};
