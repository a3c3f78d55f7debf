import { describe, expect, it } from "vitest";
import {
  checkGradient,
  checkSecond,
  randomTensor,
  type Tested,
} from "../../test/support/gradient.ts";
import { imageSamples } from "../../test/support/operators/image.ts";
import { recurrenceSamples } from "../../test/support/operators/recurrence.ts";
import { inputsOf, type Sample } from "../../test/support/operators/samples.ts";
import { trace } from "../backend/compile.ts";
import {
  binaryOps,
  bitwiseOps,
  type ConvAttrs,
  compareOps,
  logicalOps,
  type OpName,
  reduceOps,
  unaryOps,
} from "../ir/attrs.ts";
import { customVjp, scan } from "../ir/control.ts";
import {
  abs,
  add,
  and,
  bitAnd,
  bitOr,
  bitXor,
  cast,
  ceil,
  cos,
  div,
  equal,
  erf,
  exp,
  floor,
  isNan,
  less,
  lessOrEqual,
  log,
  maximum,
  minimum,
  mod,
  mul,
  neg,
  not,
  or,
  pow,
  reciprocal,
  relu,
  round,
  sigmoid,
  sign,
  sin,
  softplus,
  sqrt,
  stopGradient,
  sub,
  tanh,
  where,
  xor,
} from "../ir/elementwise.ts";
import { emit } from "../ir/emit.ts";
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
} from "../ir/fused.ts";
import { type Operand, outputsOf, type Value } from "../ir/graph.ts";
import { gather, gatherElements, iota, scatterElements, scatterNd } from "../ir/indexing.ts";
import {
  concat,
  expand,
  flip,
  pad,
  reshape,
  slice,
  split,
  transpose,
  unsqueeze,
} from "../ir/layout.ts";
import { avgPool, conv, convTranspose, dot, matmul, maxPool } from "../ir/linear.ts";
import {
  argMax,
  argMin,
  cumSum,
  logSumExp,
  max,
  mean,
  min,
  prod,
  type ReduceOptions,
  sort,
  sum,
  topK,
  variance,
} from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { type StaticShape, sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { checkpoint } from "./grad.ts";

/** A function to differentiate, and where. */
interface Row {
  readonly at: string;
  readonly fn: Tested;
  readonly inputs: readonly Tensor[];
}

const rng = new Rng(1);
const normal = (...shape: number[]): Tensor => randomTensor(rng, shape);
/** Positive and away from 0. */
const positive = (...shape: number[]): Tensor => randomTensor(rng, shape, [0.5, 2]);
/** No two closer than 0.25, so that a step does not change their order. */
const distinct = (...shape: number[]): Tensor =>
  Tensor.from(
    Array.from(rng.permutation(sizeOf(shape)), (i) => i / 4 - 1),
    shape,
    "float64",
  );
/** Away from whole numbers, halves and 0, where floor, round and abs bend. */
const between = (...shape: number[]): Tensor => {
  const list = [-1.7, 0.4, -0.3, 1.6, 2.2, -2.8];
  return Tensor.from(
    Array.from({ length: sizeOf(shape) }, (_, i) => list[i % list.length]!),
    shape,
    "float64",
  );
};
const of = (values: number[], shape?: StaticShape): Tensor => Tensor.from(values, shape, "float64");
const ints = (values: number[], shape?: StaticShape): Tensor => Tensor.from(values, shape, "int32");

const row = (at: string, fn: Tested, ...inputs: Tensor[]): Row => ({ at, fn, inputs });

/** Rows of samples that the backends are tested with too. */
const sampled = <O extends string>(
  samples: Readonly<Record<O, readonly Sample[]>>,
): Record<O, Row[]> =>
  Object.fromEntries(
    Object.entries<readonly Sample[]>(samples).map(([op, list]) => [
      op,
      list.map((one) => row(one.at, one.fn, ...inputsOf(one, "float64"))),
    ]),
  ) as Record<O, Row[]>;

type Make = (...shape: number[]) => Tensor;

function unary(op: (x: Operand) => Value, from: Make = normal): Row[] {
  return [[2, 3], [], [0], [2, 1, 3]].map((shape) =>
    row(`(${shape})`, (x) => op(x!), from(...shape)),
  );
}

/** A flat function times its argument: only the factor has a slope. */
const flat = (op: (x: Operand) => Value): Row[] => unary((x) => mul(op(x), x), between);

const pairs: [StaticShape, StaticShape][] = [
  [
    [2, 3],
    [2, 3],
  ],
  [[2, 3], [3]],
  [[3], [2, 3]],
  [
    [2, 1],
    [1, 3],
  ],
  [[], [2]],
  [[2, 2], []],
  [[1], [2, 2]],
  [[0, 3], [3]],
  [
    [1, 3],
    [0, 3],
  ],
];

function binary(op: (a: Operand, b: Operand) => Value, forA: Make = normal, forB = forA): Row[] {
  return pairs.map(([a, b]) =>
    row(`(${a}) and (${b})`, (x, y) => op(x!, y!), forA(...a), forB(...b)),
  );
}

/** The branch that a comparison picks is differentiated. */
const picked = (op: (a: Operand, b: Operand) => Value): Row[] =>
  binary((a, b) => where(op(a, b), mul(a, a), b));

const logical = (op: (a: Operand, b: Operand) => Value): Row[] =>
  binary((a, b) => where(op(less(a, 0), less(b, 0)), mul(a, b), b));

const bitwise = (op: (a: Operand, b: Operand) => Value): Row[] => [
  row("as an index", (x, i) => mul(gather(x!, op(i!, 3)), x!), normal(4), ints([0, 1, 2, 3])),
];

type Reduce = (x: Operand, axes?: number | readonly number[], options?: ReduceOptions) => Value;

function reduce(op: Reduce, from: Make = normal): Row[] {
  return [
    row("all axes", (x) => op(x!), from(2, 3)),
    row("axis 0", (x) => op(x!, 0), from(2, 3)),
    row("axis -1, kept", (x) => op(x!, -1, { keepDims: true }), from(2, 3)),
    row("axes 0 and 2", (x) => op(x!, [0, 2]), from(2, 3, 2)),
    row("axes of size 1", (x) => op(x!, [1, 2]), from(3, 1, 1)),
    row("a scalar", (x) => op(x!), from()),
    row("nothing in the other axis", (x) => op(x!, 1), from(0, 3)),
  ];
}

/** Uneven strides, dilations and pads over one axis or two. */
const windows: [string, StaticShape, StaticShape, Partial<ConvAttrs>][] = [
  ["1-d", [2, 2, 5], [3, 2, 2], {}],
  ["1-d, stride leaves one over", [1, 2, 6], [2, 2, 3], { strides: [2] }],
  ["1-d, stride leaves two over the padding", [1, 1, 6], [1, 1, 2], { strides: [4], pads: [1, 1] }],
  ["1-d, dilated, padded on one side", [1, 2, 6], [2, 2, 2], { dilations: [3], pads: [2, 0] }],
  ["1-d, kernel 1, stride 2", [2, 2, 5], [2, 2, 1], { strides: [2] }],
  [
    "2-d, everything uneven",
    [2, 2, 5, 6],
    [2, 2, 2, 3],
    { strides: [2, 1], dilations: [1, 2], pads: [1, 0, 0, 2] },
  ],
  [
    "2-d, two groups",
    [1, 4, 3, 3],
    [4, 2, 2, 2],
    { groups: 2, strides: [2, 2], pads: [0, 1, 1, 0] },
  ],
  ["2-d, depthwise with two each", [2, 2, 3, 4], [4, 1, 2, 2], { groups: 2 }],
  ["an empty batch", [0, 2, 4], [3, 2, 2], {}],
];

function spatial(rank: number, attrs: Partial<ConvAttrs>): ConvAttrs {
  const each = (value: number): number[] => new Array<number>(rank).fill(value);
  return {
    strides: each(1),
    dilations: each(1),
    pads: [...each(0), ...each(0)],
    groups: 1,
    ...attrs,
  };
}

const cell =
  (a: Value, b: Value) =>
  (h: Value, x: Value): readonly [Value, Value] => {
    const next = tanh(add(mul(h, a), mul(x, b)));
    return [next, mul(next, h)];
  };

const cube = customVjp(
  (x) => mul(x, mul(x, x)),
  ([x], _, [ct]) => [mul(ct!, mul(3, mul(x!, x!)))],
);

/** Packed bytes and scales of a 4-bit weight (2, 4) in blocks of 2. */
const packed = Tensor.from([0x91, 0x2f, 0x80, 0x7c], [2, 2, 1], "uint8");
const scales = Tensor.from([0.5, 1, 0.25, 2], [2, 2]);
const quantized = { bits: 4, blockSize: 2, inFeatures: 4, outFeatures: 2 } as const;

const table: Record<OpName, readonly Row[]> = {
  input: unary((x) => x as Value),
  constant: [row("a factor", (x) => mul(x!, of([2, 3])), normal(2))],
  iota: [row("a factor", (x) => mul(mul(x!, x!), cast(iota(3), "float64")), normal(3))],
  neg: unary(neg),
  abs: unary(abs, between),
  sign: flat(sign),
  exp: unary(exp),
  log: unary(log, positive),
  sqrt: unary(sqrt, positive),
  sin: unary(sin),
  cos: unary(cos),
  tanh: unary(tanh),
  erf: unary(erf),
  sigmoid: unary(sigmoid),
  floor: flat(floor),
  ceil: flat(ceil),
  round: flat(round),
  reciprocal: unary(reciprocal, positive),
  relu: unary(relu, between),
  softplus: unary(softplus),
  add: [...binary(add), row("one value twice", (x) => add(x!, x!), normal(2))],
  sub: binary(sub),
  mul: [...binary(mul), row("one value twice", (x) => mul(x!, x!), normal(2))],
  div: binary(div, normal, positive),
  pow: [
    ...binary(pow, positive, normal),
    row("a negative base", (x) => pow(x!, 3), between(4)),
    row("base 0, exponents 0 to 3", (x) => pow(x!, of([0, 1, 2, 3])), of([0, 0, 0, 0])),
    row("exponent 0, other bases", (x) => pow(x!, 0), between(3)),
    row("exponents near 0 at positive bases", (x, y) => pow(x!, y!), positive(3), of([0, 0, 0])),
  ],
  mod: [
    row("both signs", (a, b) => mod(a!, b!), of([2.3, -1.9, 0.4]), of([0.7, 0.8, 1.1])),
    row("broadcast", (a, b) => mod(a!, b!), of([2.3, -1.9, 0.4]), of([0.9], [1, 1])),
  ],
  min: binary(minimum),
  max: binary(maximum),
  equal: picked(equal),
  less: picked(less),
  lessOrEqual: picked(lessOrEqual),
  and: logical(and),
  or: logical(or),
  xor: logical(xor),
  not: unary((x) => where(not(less(x, 0)), mul(x, x), x), between),
  bitAnd: bitwise(bitAnd),
  bitOr: bitwise(bitOr),
  bitXor: bitwise(bitXor),
  isNan: unary((x) => where(isNan(x), 0, mul(x, x))),
  where: [
    row(
      "all broadcast",
      (a, b, c) => where(c!, a!, mul(b!, b!)),
      normal(3),
      normal(2, 3),
      Tensor.from([1, 0], [2, 1], "bool"),
    ),
    row(
      "scalars under a condition of two",
      (a, b, c) => where(c!, mul(a!, a!), b!),
      normal(),
      normal(1),
      Tensor.from([1, 0], [2], "bool"),
    ),
    row(
      "nothing",
      (a, b, c) => where(c!, a!, b!),
      normal(),
      normal(0),
      Tensor.from([], [0], "bool"),
    ),
  ],
  cast: [
    row("there and back", (x) => mul(cast(cast(x!, "float32"), "float64"), x!), normal(3)),
    row("through whole numbers", (x) => mul(cast(cast(x!, "int32"), "float64"), x!), between(4)),
  ],
  stopGradient: [
    row("of a flat function", (x) => mul(stopGradient(sign(x!)), mul(x!, x!)), between(3)),
  ],
  sum: [...reduce(sum), row("an empty axis", (x) => sum(x!, 0), normal(0, 2))],
  mean: reduce(mean),
  reduceMax: reduce(max, distinct),
  reduceMin: reduce(min, distinct),
  prod: [
    ...reduce(prod),
    row("one zero and two", (x) => prod(x!, 1), of([1.5, 0, 2, 0, 0, 3], [2, 3])),
    row("three zeros over two axes", (x) => prod(x!), of([0, 2, 0, 0], [2, 2])),
    row("an empty axis", (x) => prod(x!, 0), normal(0, 2)),
  ],
  cumSum: [
    row("axis 0", (x) => cumSum(x!, 0), normal(3, 2)),
    row("exclusive", (x) => cumSum(x!, 1, { exclusive: true }), normal(2, 3)),
    row("reverse", (x) => cumSum(x!, 1, { reverse: true }), normal(2, 3)),
    row("both", (x) => cumSum(mul(x!, x!), 0, { exclusive: true, reverse: true }), normal(3)),
    row("nothing", (x) => cumSum(x!, 0), normal(0, 2)),
  ],
  argMax: [
    row(
      "as an index",
      (x) => mul(gatherElements(x!, unsqueeze(argMax(x!, 1), 1), 1), x!),
      distinct(2, 3),
    ),
  ],
  argMin: [
    row(
      "as an index",
      (x) => mul(gatherElements(x!, unsqueeze(argMin(x!, 0), 0), 0), x!),
      distinct(2, 3),
    ),
  ],
  topK: [
    row("the two largest", (x) => topK(x!, 2).values, distinct(2, 4)),
    row("the smallest of axis 0", (x) => topK(x!, 1, 0, { largest: false }).values, distinct(3, 2)),
    row("none", (x) => topK(x!, 0).values, distinct(2, 3)),
    row(
      "sorted",
      (x) => mul(sort(x!).values, sort(x!, 0, { descending: true }).values),
      distinct(3, 3),
    ),
  ],
  reshape: [
    row("two to one", (x, y) => mul(reshape(x!, [-1]), y!), normal(2, 3), normal(6)),
    row("a scalar", (x) => reshape(x!, [1, 1]), normal()),
    row("nothing", (x) => reshape(x!, [3, 0, 2]), normal(0, 3)),
  ],
  transpose: [
    row("reversed", (x) => transpose(x!), normal(2, 3)),
    row("a cycle", (x) => transpose(x!, [1, 2, 0]), normal(2, 3, 4)),
  ],
  expand: [
    row("axes of size 1 and new ones", (x) => expand(x!, [2, 3, 2]), normal(3, 1)),
    row("a scalar", (x) => expand(x!, [2, 2]), normal()),
    row("to nothing", (x) => expand(x!, [0, 2]), normal(1, 2)),
  ],
  slice: [
    row("a part", (x) => slice(x!, 1, 1, 3), normal(2, 4)),
    row("a step that leaves some over", (x) => slice(x!, 0, 1, 6, 3), normal(7, 2)),
    row("backwards, to the first", (x) => slice(x!, 0, 4, undefined, -2), normal(6)),
    row("backwards, a part", (x) => slice(x!, 1, 5, 1, -3), normal(2, 7)),
    row("flipped", (x) => flip(x!, -1), normal(2, 3)),
    row("nothing", (x) => slice(x!, 0, 2, 2), normal(4, 2)),
    row(
      "two axes at once",
      (x) => emit("slice", [x!], { starts: [3, 0], ends: [0, 5], steps: [-1, 2] }),
      normal(4, 5),
    ),
  ],
  concat: [
    row(
      "axis 0, one empty",
      (a, b, c) => concat([a!, b!, c!]),
      normal(2, 2),
      normal(0, 2),
      normal(1, 2),
    ),
    row("axis 1, one twice", (a, b) => concat([a!, b!, a!], 1), normal(2, 1), normal(2, 2)),
  ],
  split: [
    row("all parts", (x) => split(x!, [1, 2, 1]), normal(2, 4)),
    row("one part of axis 0", (x) => split(mul(x!, x!), [1, 2], 0)[1]!, normal(3, 2)),
    row("an empty part", (x) => split(x!, [0, 2]), normal(2)),
  ],
  pad: [
    row("both sides", (x) => pad(x!, [1, 0], [2, 1], 3), normal(2, 3)),
    row("one axis", (x) => pad(mul(x!, x!), [0, 1], [0, 0]), normal(2, 2)),
    row("nothing", (x) => pad(x!, [1], [1]), normal(0)),
  ],
  gather: [
    row("axis 0, repeated", (x, i) => gather(x!, i!), normal(3, 2), ints([2, 0, 2])),
    row(
      "axis 1, a matrix of indices",
      (x, i) => gather(x!, i!, 1),
      normal(2, 3),
      ints([0, 2, 1, 1], [2, 2]),
    ),
    row(
      "the middle axis, from the end",
      (x, i) => gather(x!, i!, 1),
      normal(2, 3, 2),
      ints([-1, 0]),
    ),
    row("a scalar index", (x, i) => gather(x!, i!, 1), normal(2, 3), ints([1], [])),
    row("no index", (x, i) => gather(x!, i!), normal(2, 3), ints([])),
  ],
  gatherElements: [
    row("axis 1", (x, i) => gatherElements(x!, i!), normal(2, 3), ints([0, 2, 1, 1], [2, 2])),
    row(
      "axis 0, from the end",
      (x, i) => gatherElements(x!, i!, 0),
      normal(3, 2),
      ints([-1, 0], [1, 2]),
    ),
  ],
  scatterNd: [
    row(
      "rows written",
      (x, u, i) => scatterNd(x!, i!, u!),
      normal(3, 2),
      normal(2, 2),
      ints([2, 0], [2, 1]),
    ),
    row(
      "rows added, repeated",
      (x, u, i) => scatterNd(mul(x!, x!), i!, mul(u!, u!), "add"),
      normal(3, 2),
      normal(3, 2),
      ints([1, -1, 1], [3, 1]),
    ),
    row(
      "elements written, counted from the end",
      (x, u, i) => scatterNd(x!, i!, mul(u!, u!)),
      normal(2, 3),
      normal(2),
      ints([1, -1, -2, 0], [2, 2]),
    ),
    row(
      "elements added in two dimensions of indices",
      (x, u, i) => scatterNd(x!, i!, u!, "add"),
      normal(2, 2, 2),
      normal(1, 2, 2),
      ints([1, 1, 0, 1], [1, 2, 2]),
    ),
    row(
      "no depth",
      (x, u, i) => scatterNd(x!, i!, u!, "add"),
      normal(2),
      normal(3, 2),
      ints([], [3, 0]),
    ),
  ],
  scatterElements: [
    row(
      "written",
      (x, u, i) => scatterElements(x!, i!, u!),
      normal(2, 3),
      normal(2, 2),
      ints([2, 0, 1, -1], [2, 2]),
    ),
    row(
      "added, repeated",
      (x, u, i) => scatterElements(mul(x!, x!), i!, mul(u!, u!), 0, "add"),
      normal(3, 2),
      normal(2, 2),
      ints([2, 0, 2, 1], [2, 2]),
    ),
  ],
  dot: [
    ...[false, true].flatMap((transA) =>
      [false, true].map((transB) =>
        row(
          `transA ${transA}, transB ${transB}`,
          (a, b) => dot(a!, b!, { transA, transB, alpha: 0.5 }),
          normal(...(transA ? [3, 2] : [2, 3])),
          normal(...(transB ? [4, 3] : [3, 4])),
        ),
      ),
    ),
    row(
      "stacks",
      (a, b) => dot(a!, b!, { transA: true, transB: true }),
      normal(2, 3, 1),
      normal(2, 2, 3),
    ),
    row("a square", (a) => dot(a!, a!), normal(2, 2)),
    row("an empty inner size", (a, b) => dot(a!, b!), normal(2, 0), normal(0, 3)),
    row(
      "matmul with broadcast stacks",
      (a, b) => matmul(a!, b!),
      normal(2, 1, 1, 2),
      normal(3, 2, 2),
    ),
    row("matmul of a stack and a matrix", (a, b) => matmul(a!, b!), normal(2, 2, 3), normal(3, 2)),
    row("matmul of a vector", (a, b) => matmul(a!, b!), normal(3), normal(3, 2)),
  ],
  conv: [
    ...windows.map(([at, x, weight, attrs]) =>
      row(
        at,
        (a, b) => emit("conv", [a!, b!], spatial(x.length - 2, attrs)),
        normal(...x),
        normal(...weight),
      ),
    ),
    row("with itself as the weight", (a) => conv(a!, a!, { padding: 1 }), normal(2, 2, 2)),
  ],
  convTranspose: [
    ...windows.map(([at, , weight, attrs]) => {
      const rank = weight.length - 2;
      const x = [1, weight[0]!, ...new Array<number>(rank).fill(3)];
      return row(
        at,
        (a, b) =>
          emit("convTranspose", [a!, b!], {
            ...spatial(rank, attrs),
            outputPadding: new Array<number>(rank).fill(0),
          }),
        normal(...x),
        normal(...weight),
      );
    }),
    row(
      "output padding",
      (a, b) => convTranspose(a!, b!, { stride: [3, 2], padding: 1, outputPadding: [2, 1] }),
      normal(1, 2, 2, 3),
      normal(2, 1, 3, 3),
    ),
    row(
      "output padding beyond the padding, groups",
      (a, b) => convTranspose(a!, b!, { stride: 3, outputPadding: 2, groups: 2 }),
      normal(2, 4, 2),
      normal(4, 2, 2),
    ),
  ],
  maxPool: [
    row(
      "overlapping, padded",
      (x) => maxPool(x!, { kernel: 3, stride: 2, padding: 1 }),
      distinct(2, 2, 5),
    ),
    row(
      "2-d",
      (x) => maxPool(mul(x!, x!), { kernel: [2, 3], stride: [1, 2] }),
      distinct(1, 2, 3, 5),
    ),
    row("one over", (x) => maxPool(x!, { kernel: 2 }), distinct(1, 1, 5)),
  ],
  scan: [
    row(
      "forward, with captures",
      (h, xs, a, b) => scan(cell(a!, b!), h!, xs!),
      normal(2),
      normal(3, 2),
      normal(2),
      normal(),
    ),
    row(
      "reverse, with captures",
      (h, xs, a, b) => scan(cell(a!, b!), h!, xs!, { reverse: true }),
      normal(2),
      normal(3, 2),
      normal(2),
      normal(),
    ),
    row(
      "the ys alone",
      (h, xs, a) => scan(cell(a!, a!), h!, xs!)[1],
      normal(2),
      normal(3, 2),
      normal(2),
    ),
    row(
      "the last carry alone",
      (h, xs, a) => scan(cell(a!, a!), h!, xs!)[0],
      normal(2),
      normal(3, 2),
      normal(2),
    ),
    row(
      "whole numbers as xs, to look up",
      (h, words, xs) =>
        scan(
          (state: Value, word: Value) => {
            const next = sin(mul(state, gather(words!, word)));
            return [next, next];
          },
          h!,
          xs!,
        ),
      normal(2),
      normal(3, 2),
      ints([2, 0, 2, 1]),
    ),
    row(
      "no xs, a step counter in the carry",
      (h) => {
        const body = ({ state, step }: { state: Value; step: Value }) =>
          [
            { state: mul(sin(state), add(cast(step, "float64"), 1)), step: add(step, 1) },
            state,
          ] as const;
        const start = { state: h!, step: h!.graph.lift(0, "int32") };
        const [last, ys] = scan<typeof start, [], Value>(body, start, [], { length: 3 });
        return [last.state, ys];
      },
      normal(2),
    ),
    row(
      "several carries that change places",
      (a, b, xs) => {
        const body = ([p, q]: Value[], x: Value): readonly [Value[], Value] => [
          [mul(q!, x), sin(p!)],
          mul(p!, q!),
        ];
        const [carries, ys] = scan(body, [a!, b!], xs!);
        return [...carries, ys];
      },
      normal(),
      normal(),
      normal(3),
    ),
    row(
      "a scan in a scan, with captures through both",
      (h, xs, a, b) =>
        scan(
          (outer: Value, x: Value) => {
            const [inner, ys] = scan(
              (state: Value, y: Value) => {
                const next = tanh(add(mul(state, a!), mul(mul(y, x), outer)));
                return [next, mul(next, b!)];
              },
              outer,
              b!,
              { reverse: true },
            );
            return [inner, sum(ys, 0)];
          },
          h!,
          xs!,
        ),
      normal(2),
      normal(2, 2),
      normal(2),
      normal(3, 2),
    ),
    row(
      "one step",
      (h, xs) => scan((s: Value, x: Value) => [mul(s, x), add(s, x)], h!, xs!),
      normal(2),
      normal(1, 2),
    ),
    row(
      "no step",
      (h, xs) => scan((s: Value, x: Value) => [mul(s, x), add(s, x)], mul(h!, h!), xs!),
      normal(2),
      normal(0, 2),
    ),
  ],
  call: [
    row("a derivative of its own", (x) => cube(x!), normal(3)),
    row("one value twice", (x) => cube(mul(cube(x!)[0]!, x!)), normal(2)),
    row(
      "a checkpoint with captures",
      (x, y) => checkpoint((a) => mul(sin(a!), exp(y!)))(mul(x!, y!)),
      normal(3),
      normal(3),
    ),
    row(
      "a checkpoint of one value twice",
      (x) => checkpoint((a, b) => mul(sin(a!), cos(b!)))(x!, x!),
      normal(3),
    ),
    row(
      "a checkpoint of a value and what it depends on",
      (x) => checkpoint((a, b) => mul(sin(a!), mul(b!, mul(a!, a!))))(x!, mul(x!, x!)),
      normal(3),
    ),
    row(
      "a checkpoint around a scan that captures one value twice",
      (x, xs) => checkpoint((a, b, steps) => scan(cell(a!, b!), a!, steps!)[1])(x!, x!, xs!),
      normal(2),
      normal(3, 2),
    ),
    row(
      "a checkpoint in a scan",
      (h, xs, a) =>
        scan(
          (state: Value, x: Value) => {
            const [next] = checkpoint((s, y) => tanh(add(mul(s!, a!), y!)))(state, x);
            return [next!, next!];
          },
          h!,
          xs!,
        ),
      normal(2),
      normal(3, 2),
      normal(2),
    ),
    row(
      "a checkpoint in a checkpoint",
      (x) => checkpoint((a) => checkpoint((b) => sin(mul(b!, a!)))(exp(a!)))(x!),
      normal(3),
    ),
  ],
  softmax: [
    row("the last axis", (x) => softmax(x!), normal(2, 3)),
    row("axis 0", (x) => softmax(x!, 0), normal(3, 2)),
    row("size 1", (x) => softmax(x!), normal(2, 1)),
    row("nothing", (x) => softmax(x!), normal(0, 3)),
  ],
  logSoftmax: [
    row("the last axis", (x) => logSoftmax(x!), normal(2, 3)),
    row("axis 0", (x) => logSoftmax(x!, 0), normal(3, 2)),
    row("beside logSumExp", (x) => [logSoftmax(x!), logSumExp(mul(x!, x!))], normal(2, 3)),
  ],
  gelu: [
    ...unary((x) => gelu(x)),
    ...unary((x) => gelu(x, "tanh")).map((r) => ({ ...r, at: `tanh form ${r.at}` })),
  ],
  silu: unary(silu),
  layerNorm: [
    row("rows", (x, w, b) => layerNorm(x!, w!, b!), normal(2, 4), normal(4), normal(4)),
    row(
      "three axes",
      (x, w, b) => layerNorm(x!, w!, b!, 0.1),
      normal(2, 2, 3),
      normal(3),
      normal(3),
    ),
    row("one vector", (x, w, b) => layerNorm(x!, w!, b!), normal(3), normal(3), normal(3)),
    row("weight and bias the same", (x, w) => layerNorm(x!, w!, w!), normal(2, 3), normal(3)),
    row(
      "mean and scale used too",
      (x, w, b) => outputsOf(layerNorm(x!, w!, b!)),
      normal(2, 4),
      normal(4),
      normal(4),
    ),
    row(
      "beside the variance",
      (x, w) => [layerNorm(x!, w!, w!), variance(x!, -1)],
      normal(2, 3),
      normal(3),
    ),
  ],
  rmsNorm: [
    row("rows", (x, w) => rmsNorm(x!, w!), normal(2, 4), normal(4)),
    row("three axes", (x, w) => rmsNorm(x!, w!, 0.1), normal(2, 2, 3), normal(3)),
    row("x as the weight", (x) => rmsNorm(x!, x!), normal(3)),
  ],
  crossEntropy: [
    row("targets", (x, t) => crossEntropyRows(x!, t!), normal(3, 4), ints([0, 3, 1])),
    row("ignored targets", (x, t) => crossEntropyRows(x!, t!), normal(3, 4), ints([2, -100, 1])),
    row(
      "another number ignored",
      (x, t) => crossEntropyRows(x!, t!, 0),
      normal(3, 2),
      ints([0, 1, 0]),
    ),
    row("no rows", (x, t) => crossEntropyRows(x!, t!), normal(0, 4), ints([])),
  ],
  avgPool: [
    row(
      "padding counted",
      (x) => avgPool(x!, { kernel: 3, stride: 2, padding: 1 }),
      normal(2, 2, 5),
    ),
    row(
      "padding not counted",
      (x) =>
        avgPool(mul(x!, x!), {
          kernel: [2, 3],
          stride: [1, 2],
          padding: 1,
          countIncludePad: false,
        }),
      normal(1, 2, 3, 4),
    ),
    row("one over", (x) => avgPool(x!, { kernel: 2 }), normal(1, 1, 5)),
  ],
  dequantize: [
    row(
      "a factor",
      (x) => mul(mul(x!, x!), cast(dequantize(packed, scales, quantized), "float64")),
      normal(2, 4),
    ),
  ],
  quantizedLinear: [
    row(
      "with respect to x",
      (x) =>
        cast(quantizedLinear(cast(mul(x!, x!), "float32"), packed, scales, quantized), "float64"),
      normal(3, 4),
    ),
  ],
  ...sampled(imageSamples),
  ...sampled(recurrenceSamples),
};

describe("the instruction set", () => {
  it("has rows in the table for every operator, which contain it", () => {
    const families = [unaryOps, binaryOps, compareOps, logicalOps, bitwiseOps, reduceOps];
    for (const op of families.flat()) expect(table[op], op).toBeDefined();
    for (const [op, rows] of Object.entries(table)) {
      const contain = rows.filter(({ fn, inputs }) => {
        const all = (...values: Value[]): Value[] => [fn(...values)].flat() as Value[];
        return trace(all, inputs).program.graph.nodes.some((node) => node.op === op);
      });
      expect(contain.length, op).toBeGreaterThan(0);
    }
  });
});

for (const [op, rows] of Object.entries(table)) {
  describe(op, () => {
    for (const { at, fn, inputs } of rows) {
      it(`agrees with central differences, first and second order: ${at}`, async () => {
        await checkGradient(fn, inputs);
        await checkSecond(fn, inputs);
      });
    }
  });
}
