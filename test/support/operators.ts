/**
 * Cases for every operator, on awkward shapes and types: what each backend must do as the reference
 * does. Used by the tests of the ONNX Runtime targets.
 */
import { checkpoint, grad } from "../../src/autodiff/grad.ts";
import {
  type BinaryOp,
  type BitwiseOp,
  binaryOps,
  bitwiseOps,
  type CompareOp,
  compareOps,
  type LogicalOp,
  logicalOps,
  type OpName,
  type ReduceOp,
  reduceOps,
  type UnaryOp,
  unaryOps,
} from "../../src/ir/attrs.ts";
import { customVjp, scan } from "../../src/ir/control.ts";
import {
  add,
  cast,
  isNan,
  less,
  mul,
  not,
  square,
  stopGradient,
  sub,
  tanh,
} from "../../src/ir/elementwise.ts";
import { emit, emitAll } from "../../src/ir/emit.ts";
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
} from "../../src/ir/fused.ts";
import type { Value } from "../../src/ir/graph.ts";
import { gather, gatherElements, iota, scatterElements, scatterNd } from "../../src/ir/indexing.ts";
import {
  concat,
  expand,
  flip,
  pad,
  reshape,
  slice,
  split,
  transpose,
} from "../../src/ir/layout.ts";
import { asRows, avgPool, conv, convTranspose, dot, matmul, maxPool } from "../../src/ir/linear.ts";
import { argMax, argMin, cumSum, sort, sum, topK } from "../../src/ir/reduce.ts";
import type { Dtype } from "../../src/tensor/dtype.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { type Shape, type StaticShape, sizeOf } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

export interface OperatorCase {
  readonly name: string;
  readonly fn: (...inputs: Value[]) => Value | readonly Value[];
  /** Inputs of each run; all runs use one session. */
  readonly runs: readonly (readonly Tensor[])[];
  /** Shapes with symbols, where the runs differ in size. */
  readonly shapes?: readonly Shape[];
  readonly tolerance?: number;
  /** What targets without a kernel say when the program is loaded. */
  readonly unsupported?: RegExp;
}

type Fn = OperatorCase["fn"];
type ComputeType = "float32" | "float64" | "int32";

const rng = new Rng(11);

/** Numbers with few digits, so that sums are exact and ties occur. */
function numbers(shape: StaticShape, dtype: Dtype = "float32", low = -3, high = 3): Tensor {
  const step = dtype === "int32" ? 1 : 8;
  const values = Float64Array.from({ length: sizeOf(shape) }, () =>
    dtype === "bool" ? rng.integer(2) : low + rng.integer((high - low) * step + 1) / step,
  );
  return Tensor.from(values, shape, dtype);
}

function normals(shape: StaticShape, dtype: Dtype = "float32"): Tensor {
  return Tensor.from(
    Float64Array.from({ length: sizeOf(shape) }, () => rng.normal()),
    shape,
    dtype,
  );
}

const ints = (values: number[], shape: StaticShape = [values.length]): Tensor =>
  Tensor.from(values, shape, "int32");
const bools = (values: number[], shape: StaticShape = [values.length]): Tensor =>
  Tensor.from(values, shape, "bool");

function once(name: string, fn: Fn, ...inputs: readonly Tensor[]): OperatorCase {
  return { name, fn, runs: [inputs] };
}

/** Empty, scalar and size-1 axes. */
const shapes: readonly StaticShape[] = [[], [1], [0], [2, 0, 3], [3, 4], [1, 5, 1], [2, 3, 2, 2]];
/** Shapes that broadcast from one side, the other, and both. */
const pairs: readonly (readonly [StaticShape, StaticShape])[] = [
  [
    [2, 3],
    [2, 3],
  ],
  [[], [2, 3]],
  [[2, 3], []],
  [[3], [2, 3]],
  [
    [2, 1],
    [1, 3],
  ],
  [
    [2, 1, 4],
    [3, 1],
  ],
  [
    [2, 0],
    [1, 1],
  ],
  [[1], [0]],
  [[], []],
];

/** One program with the operator applied to every shape. */
function onShapes(
  name: string,
  fn: (x: Value) => Value,
  of: (s: StaticShape) => Tensor,
): OperatorCase {
  return once(name, (...inputs) => inputs.map(fn), ...shapes.map(of));
}

function onPairs(
  name: string,
  fn: (a: Value, b: Value) => Value,
  of: (s: StaticShape) => Tensor,
  other: (s: StaticShape) => Tensor = of,
): OperatorCase {
  return once(
    name,
    (...inputs) => pairs.map((_, i) => fn(inputs[2 * i]!, inputs[2 * i + 1]!)),
    ...pairs.flatMap(([a, b]) => [of(a), other(b)]),
  );
}

const specials = [
  0,
  -0,
  1,
  -1,
  0.5,
  -0.5,
  1.5,
  2.5,
  -2.5,
  1e-30,
  80,
  -80,
  NaN,
  Infinity,
  -Infinity,
];
const noKernel = (op: string, dtype: Dtype): RegExp =>
  new RegExp(`^cannot lower op "${op}" on ${dtype}: ONNX Runtime has no such kernel — `);

const pairwise =
  (op: BinaryOp | CompareOp | LogicalOp | BitwiseOp) =>
  (a?: Value, b?: Value): Value =>
    emit(op, [a!, b!], {});

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

function reduceCases(op: ReduceOp): OperatorCase[] {
  const isExtreme = op === "reduceMax" || op === "reduceMin";
  const types: ComputeType[] =
    op === "mean" ? ["float32", "float64"] : ["float32", "float64", "int32"];
  const axes: readonly [StaticShape, number[]][] = [
    [[3, 4], [0]],
    [[3, 4], [1]],
    [
      [3, 4],
      [0, 1],
    ],
    [
      [2, 3, 4],
      [0, 2],
    ],
    [[2, 3, 4], [1]],
    [
      [1, 5, 1],
      [0, 2],
    ],
    [[2, 0, 3], [0]],
    [[7], [0]],
  ];
  const cases = types.map((dtype) =>
    once(
      dtype,
      (...inputs) =>
        inputs.flatMap((x, i) =>
          [true, false].map((keepDims) => emit(op, [x], { axes: axes[i]![1], keepDims })),
        ),
      ...axes.map(([shape]) => numbers(shape, dtype, 1, 3)),
    ),
  );
  const over = { axes: [1], keepDims: false };
  if (op === "sum" || op === "prod" || op === "mean") {
    // Of nothing: 0, 1, and 0/0.
    cases.push(once("an empty axis", (x) => emit(op, [x!], over), numbers([3, 0])));
  }
  if (isExtreme) {
    const x = Tensor.from([NaN, 1, -Infinity, -5], [2, 2]);
    cases.push(once("infinities", (v) => emit(op, [v!], over), x.reshape([2, 2])));
    cases.pop();
    const y = Tensor.from([Infinity, 1, -Infinity, -5], [2, 2]);
    cases.push(once("infinities", (v) => emit(op, [v!], over), y));
  }
  return cases;
}

const odd = normals([2, 3, 5]);

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

const quantizedSizes = [
  [4, 6, 64, 32],
  [4, 3, 48, 16],
  [8, 5, 64, 32],
  [8, 1, 16, 16],
  [4, 16, 256, 128],
] as const;

/** Differentiable functions whose forward and backward are compared through a fused operator. */
const withGradient = (fn: (x: Value, w: Value, b: Value) => Value): Fn => {
  return (...inputs) => {
    const weigh = (y: Value): Value => sum(mul(y, tanh(y)));
    const all = (p: readonly Value[]): Value => fn(p[0]!, p[1]!, p[2]!);
    return [all(inputs), ...(grad((p: Value[]) => weigh(all(p)))(inputs) as Value[])];
  };
};

function scanCases(): OperatorCase[] {
  const [h0, xs] = [normals([3]), normals([5, 3])];
  const decay = (reverse: boolean): Fn => {
    return (h, x) => {
      const [last, ys] = scan(
        (carry: Value, slice_: Value) => {
          const next = add(mul(carry, 0.5), slice_);
          return [next, tanh(next)] as const;
        },
        h!,
        x!,
        { reverse },
      );
      return [last, ys];
    };
  };
  const captured: Fn = (h, x, w) => {
    const twice = mul(w!, 2);
    const [last] = scan(
      (carry: Value, slice_: Value) => {
        const next = tanh(add(mul(carry, twice), mul(slice_, w!)));
        return [next, sum(next)] as const;
      },
      h!,
      x!,
    );
    return last;
  };
  const counted: Fn = (h) => {
    const [last] = scan(
      (carry: Value) => [mul(carry, 1.5), []] as const,
      h!,
      [] as readonly Value[],
      { length: 4 },
    );
    return last;
  };
  const nested: Fn = (h, x) => {
    const [last, ys] = scan(
      (carry: Value, row: Value) => {
        const [inner, kept] = scan(
          (c: Value, element: Value) => {
            const next = add(mul(c, 0.9), mul(element, carry));
            return [next, next] as const;
          },
          sum(carry),
          row,
          { reverse: true },
        );
        return [add(carry, inner), kept] as const;
      },
      h!,
      x!,
    );
    return [last, ys];
  };
  return [
    once("forward", decay(false), h0, xs),
    once("reverse", decay(true), h0, xs),
    once("one step", decay(false), h0, normals([1, 3])),
    once("no steps", decay(false), h0, normals([0, 3])),
    once("captured values, and an output that nobody reads", captured, h0, xs, normals([3])),
    once("no xs", counted, h0),
    once("a scan within a scan", nested, normals([1]), normals([3, 4])),
    once(
      "the body returns its carry, its slice and a constant as they are",
      (h, x) => {
        const [last, [a, b, c]] = scan(
          (carry: Value, slice_: Value) =>
            [carry, [slice_, carry, expand(carry.graph.lift(2), [2])]] as const,
          h!,
          x!,
        );
        return [last, a!, b!, c!];
      },
      h0,
      xs,
    ),
    once(
      "its derivative, with captures",
      (h, x, w) => {
        const loss = (p: Value[]): Value => {
          const [last, ys] = scan(
            (carry: Value, slice_: Value) => {
              const next = tanh(add(mul(carry, p[2]!), slice_));
              return [next, mul(next, next)] as const;
            },
            p[0]!,
            p[1]!,
          );
          return add(sum(last), sum(ys));
        };
        return grad(loss)([h!, x!, w!]) as Value[];
      },
      h0,
      xs,
      normals([3]),
    ),
    once(
      "int32 carry and bool ys",
      (h, x) => {
        const [last, ys] = scan(
          (carry: Value, slice_: Value) => {
            const next = add(carry, slice_);
            return [next, less(next, 3)] as const;
          },
          h!,
          x!,
        );
        return [last, ys];
      },
      ints([0, 1]),
      ints([1, 2, 3, -4, 5, 6], [3, 2]),
    ),
  ];
}

const ties = Tensor.from([1, 3, 3, 2, 3, 1, 0, 0, 0, 5, 5, 5], [2, 6]);
const table = numbers([5, 3]);

export const operatorCases: { readonly [O in OpName]: readonly OperatorCase[] } = {
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
  ...(Object.fromEntries(reduceOps.map((op) => [op, reduceCases(op)])) as Record<
    ReduceOp,
    OperatorCase[]
  >),
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
  cumSum: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        dtype,
        (x, row, empty) => [
          ...[0, 1, 2].map((axis) => cumSum(x!, axis)),
          cumSum(x!, 1, { exclusive: true }),
          cumSum(x!, 1, { reverse: true }),
          cumSum(x!, 1, { exclusive: true, reverse: true }),
          cumSum(row!),
          cumSum(empty!, 1),
        ],
        numbers([2, 3, 4], dtype),
        numbers([1], dtype),
        numbers([2, 0], dtype),
      ),
    ),
  ],
  argMax: (["float32", "float64", "int32"] as const).map((dtype) =>
    once(
      `${dtype}, the first among equals`,
      (x, y) => [argMax(x!, 0), argMax(x!, 1), argMax(y!)],
      ties.to(dtype),
      numbers([1], dtype),
    ),
  ),
  argMin: (["float32", "float64", "int32"] as const).map((dtype) =>
    once(
      `${dtype}, the first among equals`,
      (x, y) => [argMin(x!, 0), argMin(x!, 1), argMin(y!)],
      ties.to(dtype),
      numbers([1], dtype),
    ),
  ),
  topK: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        `${dtype}, the first among equals`,
        (x) => {
          const parts = [
            topK(x!, 3),
            topK(x!, 4, 1, { largest: false }),
            topK(x!, 1, 0),
            sort(x!),
            sort(x!, 1, { descending: true }),
          ];
          return parts.flatMap(({ values, indices: at }) => [values, at]);
        },
        ties.to(dtype),
      ),
    ),
    once("none", (x) => [topK(x!, 0).values, topK(x!, 0).indices], ties),
    once(
      "many ties in a long row",
      (x) => topK(x!, 40).indices,
      numbers([3, 200], "float32", -1, 1),
    ),
  ],
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
  gather: [
    ...(["float32", "float64", "int32", "bool"] as const).map((dtype) =>
      once(
        `${dtype}, indices from the end too`,
        (x, at, none, scalar) => [
          gather(x!, at!),
          gather(x!, at!, 1),
          gather(x!, none!),
          gather(x!, scalar!, 1),
        ],
        numbers([3, 3, 2], dtype),
        ints([0, -1, 2, -3], [2, 2]),
        ints([]),
        ints([-2], []),
      ),
    ),
    once(
      "its derivative",
      (x, at) => grad((p: Value) => sum(square(gather(p, at!))))(x!),
      table,
      ints([1, 1, 0, 4]),
    ),
  ],
  gatherElements: (["float32", "float64", "int32", "bool"] as const).map((dtype) =>
    once(
      `${dtype}, indices from the end too`,
      (x, rows, columns, none) => [
        gatherElements(x!, rows!, 0),
        gatherElements(x!, columns!, 1),
        gatherElements(x!, none!, 1),
      ],
      numbers([3, 4], dtype),
      ints([0, -1, 2, 1], [1, 4]),
      ints([0, 3, -1, 2, 2, 2], [3, 2]),
      ints([], [3, 0]),
    ),
  ),
  scatterNd: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        dtype,
        (x, at, rows, deep, elements, none, nothing) => [
          scatterNd(x!, at!, rows!),
          scatterNd(x!, at!, rows!, "add"),
          scatterNd(x!, deep!, elements!),
          scatterNd(x!, deep!, elements!, "add"),
          scatterNd(x!, none!, nothing!, "add"),
        ],
        numbers([4, 3], dtype),
        ints([2, 0], [2, 1]),
        numbers([2, 3], dtype),
        ints([0, 1, 3, 2, -1, 0], [3, 2]),
        numbers([3], dtype),
        ints([], [0, 1]),
        numbers([0, 3], dtype),
      ),
    ),
    once(
      "the same place several times",
      (x, at, rows) => scatterNd(x!, at!, rows!, "add"),
      numbers([3, 2]),
      ints([1, 1, 0, 1], [4, 1]),
      numbers([4, 2]),
    ),
    once(
      "added to a value that something else reads",
      (x, at, rows) => {
        const zeros = expand(x!.graph.lift(0), [3, 2]);
        const scattered = scatterNd(zeros, at!, rows!, "add");
        return [add(x!, scattered), add(scattered, x!), scatterNd(zeros, at!, rows!)];
      },
      numbers([3, 2]),
      ints([1, 1], [2, 1]),
      numbers([2, 2]),
    ),
    once(
      "bool",
      (x, at, rows) => scatterNd(x!, at!, rows!),
      bools([0, 0, 0]),
      ints([1], [1, 1]),
      bools([1]),
    ),
  ],
  scatterElements: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        dtype,
        (x, rows, updates, columns, more, none, nothing) => [
          scatterElements(x!, rows!, updates!, 0),
          scatterElements(x!, columns!, more!, 1),
          scatterElements(x!, columns!, more!, 1, "add"),
          scatterElements(x!, none!, nothing!, 1, "add"),
        ],
        numbers([3, 4], dtype),
        ints([0, -1, 2, 1], [1, 4]),
        numbers([1, 4], dtype),
        ints([0, 3, -1, 2, 2, 0], [3, 2]),
        numbers([3, 2], dtype),
        ints([], [3, 0]),
        numbers([3, 0], dtype),
      ),
    ),
    once(
      "the same place several times",
      (x, at, updates) => scatterElements(x!, at!, updates!, 1, "add"),
      numbers([2, 3]),
      ints([1, 1, 1, 0, 2, 2], [2, 3]),
      numbers([2, 3]),
    ),
  ],
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
      name: "symbolic rows and past",
      fn: (x, w, keys) => [
        add(dot(x!, w!), 1),
        dot(keys!, keys!, { transB: true, alpha: 0.5 }),
        softmax(dot(keys!, keys!, { transB: true })),
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
  scan: scanCases(),
  call: [
    once(
      "checkpoint",
      (x, w) => checkpoint((a) => tanh(dot(a!, w!)))(x!),
      normals([2, 3]),
      normals([3, 3]),
    ),
    once(
      "the derivative of checkpointed blocks",
      (x, w) => {
        const loss = (p: Value): Value =>
          sum(
            [1, 2, 3].reduce<Value>((y) => checkpoint((a) => add(a!, tanh(dot(a!, p))))(y)[0]!, x!),
          );
        return grad(loss)(w!);
      },
      normals([4, 3]),
      normals([3, 3]),
    ),
    once(
      "a derivative of its own, inside a scan too",
      (x) => {
        const clipped = customVjp(
          (a) => mul(a!, 2),
          ([a], _, [ct]) => [mul(ct!, less(a!, 0).graph.lift(3))],
        );
        const [last] = scan(
          (carry: Value, row: Value) => [add(carry, clipped(row)[0]!), []] as const,
          x!.graph.lift(Tensor.zeros([3], "float32")),
          x!,
        );
        return [clipped(x!)[0]!, last, grad((p: Value) => sum(clipped(p)[0]!))(x!)];
      },
      normals([2, 3]),
    ),
  ],
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
  dequantize: quantizedSizes.map((sizes) => {
    const { attrs, packed, scales } = quantized(...sizes);
    return once(
      `${sizes[0]} bits, ${sizes.slice(1).join(" × ")}`,
      (q, s) => dequantize(q!, s!, attrs),
      packed,
      scales,
    );
  }),
  quantizedLinear: quantizedSizes.flatMap((sizes) => {
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
        fn: (a: Value | undefined, q: Value | undefined, s: Value | undefined) =>
          quantizedLinear(a!, q!, s!, attrs),
        shapes: [["rows", attrs.inFeatures], packed.shape, scales.shape],
        runs: [1, 4, 2].map((rows) => [x(rows), packed, scales]),
      },
    ];
  }),
};
