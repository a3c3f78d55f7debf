/** Every operator of the graph with its attributes: the instruction set in one place. */
import type { Dtype } from "../tensor/dtype.ts";
import type { Shape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Graph, Value } from "./graph.ts";

export type None = Record<string, never>;

export const unaryOps = [
  "neg",
  "abs",
  "sign",
  "exp",
  "log",
  "sqrt",
  "sin",
  "cos",
  "tanh",
  "erf",
  "sigmoid",
  "floor",
  "ceil",
  "round",
  "reciprocal",
  "relu",
  "softplus",
] as const;
export const binaryOps = ["add", "sub", "mul", "div", "pow", "mod", "min", "max"] as const;
export const compareOps = ["equal", "less", "lessOrEqual"] as const;
export const logicalOps = ["and", "or", "xor"] as const;
export const bitwiseOps = ["bitAnd", "bitOr", "bitXor"] as const;
export const reduceOps = ["sum", "mean", "reduceMax", "reduceMin", "prod"] as const;

export type UnaryOp = (typeof unaryOps)[number];
export type BinaryOp = (typeof binaryOps)[number];
export type CompareOp = (typeof compareOps)[number];
export type LogicalOp = (typeof logicalOps)[number];
export type BitwiseOp = (typeof bitwiseOps)[number];
export type ReduceOp = (typeof reduceOps)[number];

/** Spatial attributes of a convolution; pads are [before..., after...] per spatial axis. */
export interface ConvAttrs {
  readonly strides: readonly number[];
  readonly pads: readonly number[];
  readonly dilations: readonly number[];
  readonly groups: number;
}

export interface PoolAttrs {
  readonly kernel: readonly number[];
  readonly strides: readonly number[];
  readonly pads: readonly number[];
}

export interface ScanAttrs {
  /** Inputs: carries, slices of xs, captures. Outputs: see `outputs`. */
  readonly body: Graph;
  /** Next carries, then one step of each ys. */
  readonly outputs: readonly Value[];
  readonly nCarry: number;
  readonly nXs: number;
  readonly length: number;
  /** Steps run from the last slice to the first; ys keep the order of xs. */
  readonly reverse: boolean;
}

/** A function kept as one node, with a derivative of its own where `vjp` is given. */
export interface CallAttrs {
  readonly name: string;
  readonly body: Graph;
  readonly outputs: readonly Value[];
  /** Cotangents of the inputs, captures included, from inputs, outputs and their cotangents. */
  readonly vjp: (
    inputs: readonly Value[],
    outputs: readonly Value[],
    cotangents: readonly (Value | undefined)[],
  ) => readonly (Value | undefined)[];
}

/** How the spatial axes of an image are resampled: one size and one step per axis. */
export interface ResizeAttrs {
  readonly mode: "nearest" | "linear" | "cubic";
  readonly sizes: readonly number[];
  /** Distance between neighbours of the result, in pixels of the input. */
  readonly steps: readonly number[];
}

export interface ChunkAttrs {
  /** Steps between states that are kept for the backward pass. */
  readonly chunk: number;
}

export interface QuantizedAttrs {
  /** Bits of a weight: 4 (two to a byte, low half first) or 8; the stored number less 8 or 128 is multiplied by the scale. */
  readonly bits: 4 | 8;
  /** Weights along the input dimension that share a scale. */
  readonly blockSize: number;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /**
   * Whether a product may round its other operand to 8 bits, block by block, where the engine has a kernel
   * for that and the weight is stored in the session; default "float32": it may not.
   */
  readonly activations?: "float32" | "int8";
}

export type AttrsOf = {
  input: { readonly name: string };
  constant: { readonly tensor: Tensor };
  iota: { readonly length: number };
} & Record<UnaryOp | BinaryOp | CompareOp | LogicalOp | BitwiseOp, None> &
  Record<ReduceOp, { readonly axes: readonly number[]; readonly keepDims: boolean }> & {
    not: None;
    isNan: None;
    where: None;
    cast: { readonly to: Dtype };
    stopGradient: None;
    cumSum: { readonly axis: number; readonly exclusive: boolean; readonly reverse: boolean };
    argMax: { readonly axis: number };
    argMin: { readonly axis: number };
    topK: { readonly k: number; readonly axis: number; readonly largest: boolean };
    reshape: { readonly shape: Shape };
    transpose: { readonly perm: readonly number[] };
    expand: { readonly shape: Shape };
    /** Per axis; `ends` may be symbols. A negative step runs backwards (flip). */
    slice: {
      readonly starts: readonly number[];
      readonly ends: Shape;
      readonly steps: readonly number[];
    };
    concat: { readonly axis: number };
    split: { readonly axis: number; readonly sizes: readonly number[] };
    pad: {
      readonly before: readonly number[];
      readonly after: readonly number[];
      readonly value: number;
    };
    gather: { readonly axis: number };
    gatherElements: { readonly axis: number };
    scatterNd: { readonly reduction: "none" | "add" };
    scatterElements: { readonly axis: number; readonly reduction: "none" | "add" };
    dot: { readonly transA: boolean; readonly transB: boolean; readonly alpha: number };
    conv: ConvAttrs;
    convTranspose: ConvAttrs & { readonly outputPadding: readonly number[] };
    maxPool: PoolAttrs;
    scan: ScanAttrs;
    call: CallAttrs;
    // Fused operators: each expands into the operators above (`ir/fused.ts`).
    softmax: { readonly axis: number };
    logSoftmax: { readonly axis: number };
    gelu: { readonly approximate: "none" | "tanh" };
    silu: None;
    layerNorm: { readonly epsilon: number };
    rmsNorm: { readonly epsilon: number };
    crossEntropy: { readonly ignoreIndex: number };
    avgPool: PoolAttrs & { readonly countIncludePad: boolean };
    dequantize: QuantizedAttrs;
    quantizedLinear: QuantizedAttrs;
    groupNorm: { readonly groups: number; readonly epsilon: number };
    /** In training the statistics are the batch's, and given; else they are inputs. */
    batchNorm: { readonly epsilon: number; readonly training: boolean };
    resize: ResizeAttrs;
    gridSample: { readonly alignCorners: boolean };
    lstm: None;
    gru: None;
    /** From the last step to the first where `reverse`. */
    linearRecurrence: { readonly reverse: boolean };
    selectiveScan: ChunkAttrs;
    selectiveScanGradient: ChunkAttrs;
    ssd: ChunkAttrs;
  };

export type OpName = keyof AttrsOf;
