/**
 * From the graph to an ONNX model: one table for all targets, standard operators first.
 * Contributed operators are used where a target has a kernel that is faster or smaller.
 */
import { UnsupportedError } from "../../errors.ts";
import {
  encodeOnnx,
  type OnnxAttribute,
  type OnnxGraph,
  type OnnxNode,
  type OnnxTensor,
  type OnnxValue,
} from "../../io/onnx.ts";
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import type { Graph, Node, Value } from "../../ir/graph.ts";
import { legalize, reachable } from "../../ir/rewrite.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import { type Dim, isStatic, type Shape, sameShape, sizeOf, toStatic } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Program } from "../backend.ts";

export type OrtTarget = "cpu" | "wasm" | "webgpu";

export interface Lowered {
  readonly model: Uint8Array<ArrayBuffer>;
  /** Names of the model's inputs, in the program's order less the frozen ones. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** An output to ask for first, in a quiet model. */
  readonly quiet: string | undefined;
  readonly nodeCount: number;
  /** Graph optimisers of ONNX Runtime that must not run on this model. */
  readonly withoutOptimizers: readonly string[];
}

const standard = 21;
const contributed = "com.microsoft";

/** Fused operators with a kernel of their own on a target; the rest are expanded. */
const native: Readonly<Record<OrtTarget, ReadonlySet<OpName>>> = {
  cpu: new Set<OpName>([
    "softmax",
    "logSoftmax",
    "layerNorm",
    "rmsNorm",
    "gelu",
    "silu",
    "avgPool",
    "dequantize",
    "quantizedLinear",
  ]),
  wasm: new Set<OpName>([
    "softmax",
    "logSoftmax",
    "layerNorm",
    "rmsNorm",
    "gelu",
    "silu",
    "avgPool",
    "dequantize",
  ]),
  webgpu: new Set<OpName>(["softmax"]),
};

/**
 * Tells which fused operators a target has a kernel for. A gelu whose input something else reads is
 * taken apart: that is its derivative, which shares most of its steps.
 */
export function nativeRule(target: OrtTarget): (node: Node) => boolean {
  const uses = new Map<Graph, Map<string, number>>();
  const countUses = (graph: Graph): Map<string, number> => {
    const counts = new Map<string, number>();
    for (const { key } of graph.nodes.flatMap((node) => node.inputs)) {
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    uses.set(graph, counts);
    return counts;
  };
  return (node) => {
    if (!native[target].has(node.op) || node.outputs[0]!.dtype !== "float32") return false;
    if (node.op !== "gelu") return true;
    const counts = uses.get(node.graph) ?? countUses(node.graph);
    return counts.get(node.inputs[0]!.key) === 1;
  };
}

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

const ints = (values: readonly number[]): OnnxAttribute => ({ ints: values });
const int = (value: number | boolean): OnnxAttribute => ({ int: Number(value) });

/** One ONNX graph being written; bodies of loops are scopes within it. */
class Scope {
  readonly nodes: OnnxNode[] = [];
  readonly initializers: OnnxTensor[] = [];
  readonly names: Map<string, string> = new Map();
  readonly #constants: Map<string, string> = new Map();
  readonly #prefix: string;
  readonly #outer: Scope | undefined;
  readonly counter: { next: number };
  readonly target: OrtTarget;
  /** Where a symbol's size can be read: an input and its axis. */
  readonly symbols: Map<string, readonly [string, number]>;

  constructor(target: OrtTarget, outer?: Scope) {
    this.target = target;
    this.#outer = outer;
    this.counter = outer?.counter ?? { next: 0 };
    this.symbols = outer?.symbols ?? new Map();
    this.#prefix = outer ? `s${this.counter.next++}_` : "";
  }

  fresh(): string {
    return `${this.#prefix}t${this.counter.next++}`;
  }

  name(value: Value): string {
    return this.names.get(value.key)!;
  }

  node(
    op: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, OnnxAttribute>> = {},
    domain = "",
  ): string {
    return this.nodeMany(op, inputs, 1, attributes, domain)[0]!;
  }

  nodeMany(
    op: string,
    inputs: readonly string[],
    count: number,
    attributes: Readonly<Record<string, OnnxAttribute>> = {},
    domain = "",
  ): string[] {
    const outputs = Array.from({ length: count }, () => this.fresh());
    this.nodes.push({ op, domain, inputs, outputs, attributes });
    return outputs;
  }

  initializer(type: Dtype, dims: readonly number[], data: ArrayBufferView): string {
    const name = this.fresh();
    const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    this.initializers.push({ name, type, dims, data: bytes });
    return name;
  }

  /** Whether a value is in the model, not made at a run. */
  isStored(name: string): boolean {
    return this.initializers.some((one) => one.name === name) || !!this.#outer?.isStored(name);
  }

  /** int64 numbers, shared within the scope. */
  int64(values: readonly number[], scalar = false): string {
    const key = `${scalar}${values.join()}`;
    let name = this.#constants.get(key);
    if (name === undefined) {
      const data = BigInt64Array.from(values, BigInt);
      name = this.initializer("int64", scalar ? [] : [values.length], data);
      this.#constants.set(key, name);
    }
    return name;
  }

  cast(name: string, to: Dtype): string {
    const code = {
      float32: 1,
      uint8: 2,
      int8: 3,
      int32: 6,
      int64: 7,
      bool: 9,
      float16: 10,
      float64: 11,
      bfloat16: 16,
    }[to];
    return this.node("Cast", [name], { to: int(code) });
  }

  /** A shape as a tensor; symbols are read from the inputs that bind them. */
  shapeTensor(shape: Shape): string {
    if (isStatic(shape)) return this.int64(shape);
    return this.node(
      "Concat",
      shape.map((dim) => this.#dimTensor(dim)),
      { axis: int(0) },
    );
  }

  #dimTensor(dim: Dim): string {
    if (typeof dim === "number") return this.int64([dim]);
    const source = this.symbols.get(dim);
    if (source) {
      const whole = this.node("Shape", [source[0]]);
      return this.node("Gather", [whole, this.int64([source[1]])], { axis: int(0) });
    }
    for (const [separator, op] of [
      ["+", "Add"],
      ["*", "Mul"],
    ] as const) {
      if (!dim.includes(separator)) continue;
      const parts = dim
        .split(separator)
        .map((part) => this.#dimTensor(/^\d+$/.test(part) ? Number(part) : part));
      return parts.reduce((a, b) => this.node(op, [a, b]));
    }
    throw new UnsupportedError(`lower: size "${dim}" is not bound by any input.`);
  }
}

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
  conv: (scope, inputs, attrs) => [scope.node("Conv", inputs, convAttributes(attrs))],
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
    if (!usedOutputs.get(node)!.has(1)) return [scope.node("MaxPool", [x!], attributes), ""];
    if (scope.target === "webgpu") {
      const values = scope.node("MaxPool", [x!], attributes);
      return [values, placesOfMax(scope, x!, values, attrs, node)];
    }
    const [values, indices] = scope.nodeMany("MaxPool", [x!], 2, attributes);
    return [values!, scope.cast(indices!, node.outputs[1]!.dtype)];
  },
  scan: (scope, inputs, attrs, node) => scan(scope, inputs, attrs, node),
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
    if (attrs.bits !== 4 || !scope.isStored(packed!) || !scope.isStored(scales!)) {
      // The kernel for blocks prepacks what is stored; else it unpacks slower than this, at every run.
      const [weight] = table.dequantize!(scope, [packed!, scales!], attrs, node);
      return [scope.node("Gemm", [x!, weight!], { transB: int(1) })];
    }
    const flat = scope.node("Reshape", [scales!, scope.int64([-1])]);
    const attributes = {
      K: int(attrs.inFeatures),
      N: int(attrs.outFeatures),
      bits: int(attrs.bits),
      block_size: int(attrs.blockSize),
    };
    return [scope.node("MatMulNBits", [x!, packed!, flat], attributes, contributed)];
  },
};

function expandTo(scope: Scope, x: string, from: Shape, shape: Shape): string {
  // Keeping a size needs no knowledge of it: 1 broadcasts to what is there.
  const lead = shape.length - from.length;
  const asked = shape.map((dim, i) =>
    typeof dim === "string" && from[i - lead] === dim ? 1 : dim,
  );
  return scope.node("Expand", [x, scope.shapeTensor(asked)]);
}

function constant(scope: Scope, tensor: Tensor): string {
  return scope.initializer(tensor.dtype, tensor.shape, tensor.data);
}

function reshape(scope: Scope, x: string, from: Shape, to: Shape): string {
  // Without allowzero a 0 stands for the size that the input has there.
  const literal = { allowzero: int(1) };
  if (isStatic(to)) {
    return scope.node("Reshape", [x, scope.int64(to)], to.includes(0) ? literal : {});
  }
  const asked = to.map((dim, i) => (typeof dim === "string" && from[i] === dim ? 0 : dim));
  const open = asked.filter((dim) => typeof dim === "string");
  if (open.length > 1 || to.includes(0)) {
    return scope.node("Reshape", [x, scope.shapeTensor(to)], literal);
  }
  // One size may be left to work out, -1.
  const target = asked.map((dim) => (typeof dim === "string" ? -1 : dim));
  return scope.node("Reshape", [x, scope.int64(target)]);
}

/** alpha · a × b (+ c) for two matrices, or stacks. */
function dot(
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

function scan(
  scope: Scope,
  inputs: readonly string[],
  attrs: AttrsOf["scan"],
  node: Node,
): readonly string[] {
  const { body, outputs, nCarry, nXs, length, reverse } = attrs;
  const nYs = outputs.length - nCarry;
  if (length === 0) {
    return node.outputs.map((spec, i) =>
      i < nCarry ? inputs[i]! : constant(scope, Tensor.zeros(spec.shape as number[], spec.dtype)),
    );
  }
  const used = usedOutputs.get(node) ?? new Set(node.outputs.map((_, i) => i));
  const ys = outputs.slice(nCarry).filter((_, i) => used.has(nCarry + i));
  const histories = body.inputs.slice(0, nCarry).filter((_, i) => used.has(nCarry + nYs + i));
  const wanted = [...outputs.slice(0, nCarry), ...ys, ...histories];
  const legal = legalize(body, wanted, nativeRule(scope.target));
  const inner = new Scope(scope.target, scope);
  const onnxInputs: OnnxValue[] = [];
  legal.graph.inputs.forEach((input, i) => {
    if (i < nCarry + nXs) {
      const name = inner.fresh();
      inner.names.set(input.key, name);
      onnxInputs.push({ name, type: input.dtype, shape: input.shape });
    } else inner.names.set(input.key, inputs[i]!);
  });
  const scanned = inputs.slice(0, nCarry + nXs);
  if (nXs === 0) {
    // ONNX counts steps by what is scanned over.
    scanned.push(scope.initializer("uint8", [length], new Uint8Array(length)));
    onnxInputs.push({ name: inner.fresh(), type: "uint8", shape: [] });
  }
  emitGraph(inner, legal.graph, legal.outputs);
  const onnxOutputs = outputValues(inner, legal.outputs);
  const graph: OnnxGraph = {
    name: "body",
    nodes: inner.nodes,
    initializers: inner.initializers,
    inputs: onnxInputs,
    outputs: onnxOutputs,
  };
  const direction = (count: number): OnnxAttribute =>
    ints(new Array<number>(count).fill(reverse ? 1 : 0));
  const nScanOutputs = ys.length + histories.length;
  const nScanned = scanned.length - nCarry;
  const made = scope.nodeMany("Scan", scanned, wanted.length, {
    body: { graph },
    num_scan_inputs: int(nScanned),
    scan_input_directions: direction(nScanned),
    ...(nScanOutputs > 0 && { scan_output_directions: direction(nScanOutputs) }),
  });
  let next = nCarry;
  return node.outputs.map((_, i) => {
    if (i < nCarry) return made[i]!;
    return used.has(i) ? made[next++]! : "";
  });
}

/** Outputs of a graph: each must be made by a node of that very graph, and stand once. */
function outputValues(scope: Scope, outputs: readonly Value[]): OnnxValue[] {
  const made = new Set(scope.nodes.flatMap((node) => node.outputs));
  return outputs.map((value) => {
    const name = scope.name(value);
    const own = made.delete(name) ? name : scope.node("Identity", [name]);
    return { name: own, type: value.dtype, shape: value.shape };
  });
}

/** Which outputs of multi-output nodes anyone reads; set while a graph is written. */
const usedOutputs: WeakMap<Node, Set<number>> = new WeakMap();

function emitGraph(scope: Scope, graph: Graph, outputs: readonly Value[]): void {
  const nodes = reachable(graph, outputs);
  const uses = new Map<string, number>();
  for (const value of [...nodes.flatMap((node) => node.inputs), ...outputs]) {
    uses.set(value.key, (uses.get(value.key) ?? 0) + 1);
    const used = usedOutputs.get(value.node) ?? new Set<number>();
    usedOutputs.set(value.node, used.add(value.index));
  }
  const single = (value: Value, op: OpName): boolean =>
    value.node.op === op && uses.get(value.key) === 1;
  const merged = new Set<Node>();
  const merges = new Map<Node, () => string>();
  for (const node of nodes) {
    if (node.op !== "add") continue;
    const merge = mergeAdd(scope, node, single);
    if (!merge) continue;
    merged.add(merge.into);
    merges.set(node, merge.emit);
  }
  for (const node of writeOrder(nodes)) {
    if (node.op === "input" || merged.has(node)) continue;
    const merge = merges.get(node);
    const made = merge ? [merge()] : emitNode(scope, node);
    made.forEach((name, i) => {
      scope.names.set(`${node.id}.${i}`, name);
    });
  }
}

/**
 * The order in which nodes are written: as they were made, but with recomputation those last that
 * nothing depends on, in reverse. ONNX Runtime first runs the last written of them with all that it
 * needs. In the order made that is the weight gradient of the first layer, and the others would keep
 * what they need until the end. (Without recomputation that order is the better one: it forms local
 * derivatives early.)
 */
export function writeOrder(nodes: readonly Node[]): readonly Node[] {
  if (!nodes.some((node) => node.region !== 0)) return nodes;
  const used = new Set(nodes.flatMap((node) => node.inputs.map((input) => input.node)));
  const isLeaf = (node: Node): boolean => !used.has(node) && node.op !== "input";
  return [...nodes.filter((node) => !isLeaf(node)), ...nodes.filter(isLeaf).reverse()];
}

/** add(dot, bias) is one Gemm; add(a, scatter into zeros) scatters into a. */
function mergeAdd(
  scope: Scope,
  node: Node,
  single: (value: Value, op: OpName) => boolean,
): { into: Node; emit: () => string } | undefined {
  for (const [at, other] of [
    [0, 1],
    [1, 0],
  ] as const) {
    const value = node.inputs[at]!;
    const rest = node.inputs[other]!;
    if (value.node.region !== node.region) continue;
    if (single(value, "dot") && value.rank === 2 && rest.node !== value.node) {
      const fits = rest.rank === 1 ? rest.shape[0] === value.shape[1] : false;
      if (!fits || value.dtype !== "float32") continue;
      const { inputs, attrs } = value.node as Node<"dot">;
      return {
        into: value.node,
        emit: () => {
          const [a, b] = inputs.map((input) => scope.name(input));
          return dot(scope, a!, b!, scope.name(rest), attrs, value.node);
        },
      };
    }
    if (single(value, "scatterNd") && sameShape(value.shape, rest.shape)) {
      const [zeros, indices, updates] = value.node.inputs;
      const { reduction } = (value.node as Node<"scatterNd">).attrs;
      if (reduction !== "add" || !isZero(zeros!)) continue;
      return {
        into: value.node,
        emit: () => {
          const index = scope.cast(scope.name(indices!), "int64");
          return scope.node("ScatterND", [scope.name(rest), index, scope.name(updates!)], {
            reduction: { string: "add" },
          });
        },
      };
    }
  }
  return undefined;
}

function isZero(value: Value): boolean {
  const source = value.node.op === "expand" ? value.node.inputs[0]! : value;
  if (source.node.op !== "constant") return false;
  const { tensor } = source.node.attrs as AttrsOf["constant"];
  return tensor.size === 1 && tensor.numbers()[0] === 0;
}

function someNode(graph: Graph, holds: (node: Node) => boolean): boolean {
  return graph.nodes.some(
    (node) =>
      holds(node) || (node.op === "scan" && someNode((node.attrs as AttrsOf["scan"]).body, holds)),
  );
}

/** Operators without a kernel for float64. */
const float32Only: ReadonlySet<OpName> = new Set(["erf", "conv", "convTranspose"]);

function emitNode(scope: Scope, node: Node): readonly string[] {
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

function checkPassable(what: string, dtype: Dtype): void {
  if (dtype === "bfloat16") {
    throw new UnsupportedError(
      `${what}: ONNX Runtime's binding does not take bfloat16 — pass it as float32, or freeze it.`,
    );
  }
}

export interface LowerOptions {
  /**
   * Start the outputs with one in bfloat16. Node's binding copies all outputs after they were written
   * to the tensors it was given, unless the first has a type that it does not know.
   */
  readonly isQuiet?: boolean;
}

/** Writes a program as a model; `frozen` inputs become initialisers. */
export function lower(
  program: Program,
  target: OrtTarget,
  frozen: ReadonlyMap<string, Tensor> = new Map(),
  { isQuiet = false }: LowerOptions = {},
): Lowered {
  const legal = legalize(program.graph, program.outputs, nativeRule(target));
  const scope = new Scope(target);
  const inputs: OnnxValue[] = [];
  legal.graph.inputs.forEach((input, i) => {
    const name = program.inputs[i]!;
    const weight = frozen.get(name);
    scope.names.set(
      input.key,
      weight ? scope.initializer(weight.dtype, weight.shape, weight.data) : `in:${name}`,
    );
    if (weight) return;
    checkPassable(`input "${name}"`, input.dtype);
    inputs.push({ name: `in:${name}`, type: input.dtype, shape: input.shape });
    input.shape.forEach((dim, axis) => {
      if (typeof dim === "string" && !scope.symbols.has(dim)) {
        scope.symbols.set(dim, [`in:${name}`, axis]);
      }
    });
  });
  legal.outputs.forEach(({ dtype }, i) => {
    checkPassable(`output "${program.outputNames[i]}"`, dtype);
  });
  emitGraph(scope, legal.graph, legal.outputs);
  const outputs = outputValues(scope, legal.outputs);
  const quiet = isQuiet ? scope.initializer("bfloat16", [], new Uint16Array(1)) : undefined;
  const graph: OnnxGraph = {
    name: "program",
    nodes: scope.nodes,
    initializers: scope.initializers,
    inputs,
    outputs: quiet ? [{ name: quiet, type: "bfloat16", shape: [] }, ...outputs] : outputs,
  };
  return {
    model: encodeOnnx(graph, { "": standard, [contributed]: 1 }),
    inputs: inputs.map((input) => input.name),
    outputs: outputs.map((output) => output.name),
    quiet,
    nodeCount: scope.nodes.length,
    withoutOptimizers: [
      // Recomputed nodes must not be merged back.
      ...(someNode(legal.graph, (node) => node.region !== 0)
        ? ["CommonSubexpressionElimination"]
        : []),
      // It makes x σ(x) a QuickGelu, which has no kernel for float64.
      ...(someNode(legal.graph, (node) => node.outputs.some(({ dtype }) => dtype === "float64"))
        ? ["QuickGeluFusion"]
        : []),
    ],
  };
}
