/** What each operator is written as: one table for all targets, standard operators first. */
import { UnsupportedError } from "../../errors.ts";
import type { OnnxAttribute } from "../../io/onnx.ts";
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import type { Node } from "../../ir/graph.ts";
import { sameShape, sizeOf, toStatic } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { constant, expandTo, int, ints, reshape, type Scope } from "./scope.ts";

export const standard = 21;
export const contributed = "com.microsoft";

const simple: { readonly [O in OpName]?: string } = {
  neg: "Neg",
  abs: "Abs",
  sign: "Sign",
  exp: "Exp",
  log: "Log",
  sqrt: "Sqrt",
  sin: "Sin",
  cos: "Cos",
  tanh: "Tanh",
  erf: "Erf",
  sigmoid: "Sigmoid",
  floor: "Floor",
  ceil: "Ceil",
  round: "Round",
  reciprocal: "Reciprocal",
  relu: "Relu",
  add: "Add",
  sub: "Sub",
  mul: "Mul",
  div: "Div",
  min: "Min",
  max: "Max",
  equal: "Equal",
  less: "Less",
  lessOrEqual: "LessOrEqual",
  and: "And",
  or: "Or",
  xor: "Xor",
  bitAnd: "BitwiseAnd",
  bitOr: "BitwiseOr",
  bitXor: "BitwiseXor",
  not: "Not",
  isNan: "IsNaN",
  where: "Where",
};

const reductions: { readonly [O in OpName]?: string } = {
  sum: "ReduceSum",
  mean: "ReduceMean",
  reduceMax: "ReduceMax",
  reduceMin: "ReduceMin",
  prod: "ReduceProd",
};

type Emit<O extends OpName> = (
  scope: Scope,
  inputs: readonly string[],
  attrs: AttrsOf[O],
  node: Node,
) => readonly string[];

const convAttributes = (attrs: AttrsOf["conv"]): Record<string, OnnxAttribute> => ({
  strides: ints(attrs.strides),
  pads: ints(attrs.pads),
  dilations: ints(attrs.dilations),
  group: int(attrs.groups),
});

const argExtreme =
  (op: string): Emit<"argMax"> =>
  (scope, [x], { axis }) => [
    scope.cast(scope.node(op, [x!], { axis: int(axis), keepdims: int(0) }), "int32"),
  ];

const table: { readonly [O in OpName]?: Emit<O> } = {
  constant: (scope, _, { tensor }) => [constant(scope, tensor)],
  iota: (scope, _, { length }) => [
    scope.initializer(
      "int32",
      [length],
      Int32Array.from({ length }, (__, i) => i),
    ),
  ],
  stopGradient: (_, [x]) => [x!],
  softplus: (scope, [x], _, node) => {
    const { dtype } = node.outputs[0]!;
    if (dtype === "float32") return [scope.node("Softplus", [x!])];
    // max(x, 0) + log(1 + e^-|x|)
    const tail = scope.node("Exp", [scope.node("Neg", [scope.node("Abs", [x!])])]);
    const one = constant(scope, Tensor.from([1], [], dtype));
    const log = scope.node("Log", [scope.node("Add", [tail, one])]);
    return [scope.node("Add", [scope.node("Relu", [x!]), log])];
  },
  mod: (scope, inputs, _, node) => [
    scope.node("Mod", inputs, { fmod: int(node.outputs[0]!.dtype !== "int32") }),
  ],
  pow: (scope, inputs, _, node) => {
    // WebGPU's kernel fails on some broadcasts.
    const out = node.outputs[0]!.shape;
    const wide = inputs.map((name, i) => {
      const { shape } = node.inputs[i]!;
      const isPlain = scope.target !== "webgpu" || shape.length === 0 || sameShape(shape, out);
      return isPlain ? name : expandTo(scope, name, shape, out);
    });
    return [scope.node("Pow", wide)];
  },
  where: (scope, inputs, _, node) => {
    if (node.outputs[0]!.dtype !== "bool") return [scope.node("Where", inputs)];
    const [condition, a, b] = inputs;
    const first = scope.node("And", [condition!, a!]);
    const second = scope.node("And", [scope.node("Not", [condition!]), b!]);
    return [scope.node("Or", [first, second])];
  },
  cast: (scope, [x], { to }) => [scope.cast(x!, to)],
  cumSum: (scope, [x], { axis, exclusive, reverse }) => [
    scope.node("CumSum", [x!, scope.int64([axis], true)], {
      exclusive: int(exclusive),
      reverse: int(reverse),
    }),
  ],
  argMax: argExtreme("ArgMax"),
  argMin: argExtreme("ArgMin") as unknown as Emit<"argMin">,
  topK: (scope, [x], { k, axis, largest }) => {
    const [values, indices] = scope.nodeMany("TopK", [x!, scope.int64([k])], 2, {
      axis: int(axis),
      largest: int(largest),
      sorted: int(1),
    });
    return [values!, scope.cast(indices!, "int32")];
  },
  reshape: (scope, [x], { shape }, node) => [reshape(scope, x!, node.inputs[0]!.shape, shape)],
  transpose: (scope, [x], { perm }) => [scope.node("Transpose", [x!], { perm: ints(perm) })],
  expand: (scope, [x], { shape }, node) => [expandTo(scope, x!, node.inputs[0]!.shape, shape)],
  slice: (scope, [x], { starts, ends, steps }, node) => {
    const shape = node.inputs[0]!.shape;
    const axes = shape.flatMap((dim, i) =>
      starts[i] === 0 && ends[i] === dim && steps[i] === 1 ? [] : [i],
    );
    if (axes.length === 0) return [x!];
    const cut = (from: string, start: Per, end: Per, step: Per): string =>
      scope.node("Slice", [
        from,
        ...[start, end].map((of) => scope.int64(axes.map(of))),
        scope.int64(axes),
        scope.int64(axes.map(step)),
      ]);
    type Per = (axis: number) => number;
    // An end of -1 would count from the back; before the first is the smallest number.
    const stop: Per = (i) => (ends[i] === -1 ? -(2 ** 31) : (ends[i] as number));
    // WebGPU's kernel starts a negative step at the last element, wherever it should.
    const isBackward: Per = (i) => Number(steps[i]! < 0 && starts[i] !== (shape[i] as number) - 1);
    if (scope.target !== "webgpu" || !axes.some(isBackward)) {
      return [
        cut(
          x!,
          (i) => starts[i]!,
          stop,
          (i) => steps[i]!,
        ),
      ];
    }
    const lead = cut(
      x!,
      (i) => (steps[i]! < 0 ? 0 : starts[i]!),
      (i) => (steps[i]! < 0 ? starts[i]! + 1 : stop(i)),
      (i) => Math.max(1, steps[i]!),
    );
    const turned = (i: number): boolean => steps[i]! < 0;
    return [
      cut(
        lead,
        (i) => (turned(i) ? starts[i]! : 0),
        (i) => (turned(i) ? stop(i) : (node.outputs[0]!.shape[i] as number)),
        (i) => (turned(i) ? steps[i]! : 1),
      ),
    ];
  },
  concat: (scope, inputs, { axis }) => [scope.node("Concat", inputs, { axis: int(axis) })],
  split: (scope, [x], { axis, sizes }) =>
    scope.nodeMany("Split", [x!, scope.int64(sizes)], sizes.length, { axis: int(axis) }),
  pad: (scope, [x], { before, after, value }, node) => {
    const { dtype } = node.outputs[0]!;
    const fill = constant(scope, Tensor.from([value], [], dtype));
    return [
      scope.node("Pad", [x!, scope.int64([...before, ...after]), fill], {
        mode: { string: "constant" },
      }),
    ];
  },
  gather: (scope, inputs, { axis }) => [scope.node("Gather", inputs, { axis: int(axis) })],
  gatherElements: (scope, inputs, { axis }) => [
    scope.node("GatherElements", inputs, { axis: int(axis) }),
  ],
  scatterNd: (scope, [x, indices, updates], { reduction }) => [
    scope.node("ScatterND", [x!, scope.cast(indices!, "int64"), updates!], {
      reduction: { string: reduction },
    }),
  ],
  scatterElements: (scope, inputs, { axis, reduction }) => [
    scope.node("ScatterElements", inputs, { axis: int(axis), reduction: { string: reduction } }),
  ],
  dot: (scope, [a, b], attrs, node) => [dot(scope, a!, b!, undefined, attrs, node)],
  conv: (scope, inputs, attrs) => [convolution(scope, inputs, attrs, false)],
  convTranspose: (scope, inputs, attrs) => [
    scope.node("ConvTranspose", inputs, {
      ...convAttributes(attrs),
      output_padding: ints(attrs.outputPadding),
    }),
  ],
  maxPool: (scope, [x], attrs, node) => {
    const attributes = {
      kernel_shape: ints(attrs.kernel),
      strides: ints(attrs.strides),
      pads: ints(attrs.pads),
    };
    if (!scope.used.get(node)!.has(1)) return [scope.node("MaxPool", [x!], attributes), ""];
    if (scope.target === "webgpu") {
      const values = scope.node("MaxPool", [x!], attributes);
      return [values, placesOfMax(scope, x!, values, attrs, node)];
    }
    const [values, indices] = scope.nodeMany("MaxPool", [x!], 2, attributes);
    return [values!, scope.cast(indices!, node.outputs[1]!.dtype)];
  },
  softmax: (scope, [x], { axis }) => [scope.node("Softmax", [x!], { axis: int(axis) })],
  logSoftmax: (scope, [x], { axis }) => [scope.node("LogSoftmax", [x!], { axis: int(axis) })],
  gelu: (scope, [x], { approximate }) => [
    scope.node("Gelu", [x!], { approximate: { string: approximate } }),
  ],
  silu: (scope, [x]) => [scope.node("QuickGelu", [x!], { alpha: { float: 1 } }, contributed)],
  layerNorm: (scope, inputs, { epsilon }) =>
    scope.nodeMany("LayerNormalization", inputs, 3, { axis: int(-1), epsilon: { float: epsilon } }),
  rmsNorm: (scope, inputs, { epsilon }) =>
    scope.nodeMany("SimplifiedLayerNormalization", inputs, 2, {
      axis: int(-1),
      epsilon: { float: epsilon },
    }),
  avgPool: (scope, [x], { kernel, strides, pads, countIncludePad }) => [
    scope.node("AveragePool", [x!], {
      kernel_shape: ints(kernel),
      strides: ints(strides),
      pads: ints(pads),
      count_include_pad: int(countIncludePad),
    }),
  ],
  dequantize: (scope, [packed, scales], attrs) => {
    const { bits, blockSize, inFeatures, outFeatures } = attrs;
    let bytes = packed!;
    if (bits === 4) {
      const mask = scope.initializer("uint8", [], Uint8Array.of(15));
      const low = scope.node("BitwiseAnd", [bytes, mask]);
      const four = scope.initializer("uint8", [], Uint8Array.of(4));
      const high = scope.node("BitShift", [bytes, four], { direction: { string: "RIGHT" } });
      const last = scope.int64([-1]);
      const halves = [low, high].map((half) => scope.node("Unsqueeze", [half, last]));
      bytes = scope.node("Concat", halves, { axis: int(-1) });
    }
    const numbers = scope.node("Reshape", [bytes, scope.int64([outFeatures, inFeatures])]);
    const blocks = inFeatures / blockSize;
    const zeros = new Uint8Array(outFeatures * blocks).fill(bits === 4 ? 8 : 128);
    const centre = scope.initializer("uint8", [outFeatures, blocks], zeros);
    const attributes = { axis: int(1), block_size: int(blockSize) };
    return [scope.node("DequantizeLinear", [numbers, scales!, centre], attributes)];
  },
  quantizedLinear: (scope, [x, packed, scales], attrs, node) => {
    const isRounded = attrs.activations === "int8";
    const isStored = scope.isStored(packed!) && scope.isStored(scales!);
    if (!isStored || (attrs.bits !== 4 && !isRounded)) {
      // The kernel for blocks prepacks what is stored; else it unpacks slower than this, at every run, and
      // with 8 bits and float activations it is slower in any case.
      const [weight] = table.dequantize!(scope, [packed!, scales!], attrs, node);
      return [scope.node("Gemm", [x!, weight!], { transB: int(1) })];
    }
    const flat = scope.node("Reshape", [scales!, scope.int64([-1])]);
    const attributes = {
      K: int(attrs.inFeatures),
      N: int(attrs.outFeatures),
      bits: int(attrs.bits),
      block_size: int(attrs.blockSize),
      ...(isRounded && { accuracy_level: int(4) }),
    };
    return [scope.node("MatMulNBits", [x!, packed!, flat], attributes, contributed)];
  },
};

/** x, weight (, bias), then relu if wanted: WebGPU has no kernel for that. */
export function convolution(
  scope: Scope,
  inputs: readonly string[],
  attrs: AttrsOf["conv"],
  relu: boolean,
): string {
  const attributes = convAttributes(attrs);
  if (!relu) return scope.node("Conv", inputs, attributes);
  return scope.node(
    "FusedConv",
    inputs,
    { ...attributes, activation: { string: "Relu" } },
    contributed,
  );
}

/** alpha · a × b (+ c) for two matrices, or stacks. */
export function dot(
  scope: Scope,
  a: string,
  b: string,
  c: string | undefined,
  { transA, transB, alpha }: AttrsOf["dot"],
  node: Node,
): string {
  const { shape, dtype } = node.outputs[0]!;
  if (shape.length === 2) {
    const attributes = {
      transA: int(transA),
      transB: int(transB),
      alpha: { float: alpha },
    };
    return scope.node("Gemm", c === undefined ? [a, b] : [a, b, c], attributes);
  }
  const inner = node.inputs[0]!.shape.at(transA ? -2 : -1)!;
  if (inner === 0) {
    // WebGPU's kernel crashes.
    return scope.node("Expand", [
      constant(scope, Tensor.from([0], [], dtype)),
      scope.shapeTensor(shape),
    ]);
  }
  let product: string;
  if (scope.target !== "webgpu" && dtype === "float32") {
    const attributes = { transA: int(transA), transB: int(transB), alpha: { float: alpha } };
    product = scope.node("FusedMatMul", [a, b], attributes, contributed);
  } else {
    const perm = shape.map((_, i) => i);
    perm.push(perm.length - 2);
    perm.splice(perm.length - 3, 1);
    const swap = (name: string): string => scope.node("Transpose", [name], { perm: ints(perm) });
    product = scope.node("MatMul", [transA ? swap(a) : a, transB ? swap(b) : b]);
    if (alpha !== 1) {
      product = scope.node("Mul", [product, constant(scope, Tensor.from([alpha], [], dtype))]);
    }
  }
  if (typeof inner === "number") return product;
  // ONNX Runtime 1.30.0 leaves all but the first of a stack unwritten when there is nothing to sum.
  const isFilled = scope.node("Greater", [scope.shapeTensor([inner]), scope.int64([0])]);
  const zero = constant(scope, Tensor.from([0], [], dtype));
  return scope.node("Where", [isFilled, product, zero]);
}

/** Where in the input each window has its largest element, the first of equals: no kernel on WebGPU. */
function placesOfMax(
  scope: Scope,
  x: string,
  values: string,
  { kernel, strides, pads }: AttrsOf["maxPool"],
  node: Node,
): string {
  const from = toStatic(node.inputs[0]!.shape, "maxPool on WebGPU");
  const out = node.outputs[0]!.shape as readonly number[];
  const spatial = kernel.length;
  const around = [0, 0, ...pads.slice(0, spatial), 0, 0, ...pads.slice(spatial)];
  const padded = (data: string, fill: Tensor): string =>
    scope.node("Pad", [data, scope.int64(around), constant(scope, fill)], {
      mode: { string: "constant" },
    });
  const count = Int32Array.from({ length: sizeOf(from) }, (_, i) => i);
  const inside = padded(x, Tensor.from([-Infinity], [], node.inputs[0]!.dtype));
  const places = padded(scope.initializer("int32", from, count), Tensor.from([0], [], "int32"));
  const axes = scope.int64(kernel.map((_, i) => 2 + i));
  const taps = kernel.reduce((product, size) => product * size, 1);
  let found = "";
  // From the last position to the first, which thereby wins.
  for (let tap = taps - 1; tap >= 0; tap--) {
    const offset: number[] = [];
    for (let i = spatial - 1, rest = tap; i >= 0; i--) {
      offset.unshift(rest % kernel[i]!);
      rest = Math.floor(rest / kernel[i]!);
    }
    const ends = offset.map((o, i) => o + (out[2 + i]! - 1) * strides[i]! + 1);
    const at = (data: string): string =>
      scope.node("Slice", [
        data,
        scope.int64(offset),
        scope.int64(ends),
        axes,
        scope.int64(strides),
      ]);
    const place = at(places);
    const isMax = scope.node("Equal", [at(inside), values]);
    found = found === "" ? place : scope.node("Where", [isMax, place, found]);
  }
  return found;
}

/** Operators without a kernel for float64. */
const float32Only: ReadonlySet<OpName> = new Set(["erf", "conv", "convTranspose"]);

export function emitNode(scope: Scope, node: Node): readonly string[] {
  const inputs = node.inputs.map((input) => scope.name(input));
  const { dtype } = node.outputs[0]!;
  if (dtype === "float64" && float32Only.has(node.op)) {
    throw new UnsupportedError(
      `cannot lower op "${node.op}" on ${dtype}: ONNX Runtime has no such kernel — cast to float32, or run it on the reference backend.`,
    );
  }
  const emit = table[node.op] as Emit<OpName> | undefined;
  if (emit) return emit(scope, inputs, node.attrs, node);
  const plain = simple[node.op];
  if (plain) return [scope.node(plain, inputs)];
  const reduction = reductions[node.op];
  if (reduction) {
    const { axes, keepDims } = node.attrs as AttrsOf["sum"];
    const reduced = scope.node(reduction, [inputs[0]!, scope.int64(axes)], {
      keepdims: int(keepDims),
    });
    // ONNX Runtime's mean of nothing is 0.
    const isEmpty = node.op === "mean" && axes.some((i) => node.inputs[0]!.shape[i] === 0);
    return [isEmpty ? scope.node("Div", [reduced, reduced]) : reduced];
  }
  throw new UnsupportedError(
    `cannot lower op "${node.op}" to ONNX opset ${standard} — run it on the reference backend.`,
  );
}
