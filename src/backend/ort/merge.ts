/** Neighbours that are written as one ONNX node: bias and product, bias and convolution, chained scatters. */
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import type { Node, Value } from "../../ir/graph.ts";
import { sameShape } from "../../tensor/shape.ts";
import { convolution, dot } from "./emit.ts";
import type { Scope } from "./scope.ts";

export interface Merges {
  /** Nodes that are written with another. */
  readonly merged: ReadonlySet<Node>;
  /** How those are written that others went into; each has one output. */
  readonly writers: ReadonlyMap<Node, () => string>;
}

interface Merge {
  /** What is not written by itself any more. */
  readonly parts: readonly Node[];
  readonly emit: () => string;
}

type IsSingle = (value: Value, op: OpName) => boolean;

/** @param uses how often each value is read, as an output of the graph too, by key */
export function findMerges(
  scope: Scope,
  nodes: readonly Node[],
  uses: ReadonlyMap<string, number>,
): Merges {
  const single: IsSingle = (value, op) => value.node.op === op && uses.get(value.key) === 1;
  const merged = new Set<Node>();
  const writers = new Map<Node, () => string>();
  const convolutions = new Map<Node, Biased>();
  const take = (node: Node, merge: Merge): void => {
    for (const part of merge.parts) {
      merged.add(part);
      writers.delete(part);
    }
    writers.set(node, merge.emit);
  };
  for (const node of nodes) {
    if (node.op === "add") {
      const biased = biasOf(node, single);
      if (biased) convolutions.set(node, biased);
      const merge = biased ? writeConvolution(scope, biased, false) : mergeAdd(scope, node, single);
      if (merge) take(node, merge);
    }
    if (node.op === "relu" && scope.target !== "webgpu") {
      const [x] = node.inputs as [Value];
      if (x.node.region !== node.region) continue;
      const biased = single(x, "add") ? convolutions.get(x.node) : undefined;
      const bare = single(x, "conv") ? { conv: x.node as Node<"conv">, parts: [] } : undefined;
      const within = biased ?? bare;
      if (!within) continue;
      const merge = writeConvolution(scope, within, true);
      take(node, { ...merge, parts: [...merge.parts, x.node] });
    }
  }
  return { merged, writers };
}

/** A convolution and what is added to each of its channels. */
interface Biased {
  readonly conv: Node<"conv">;
  readonly bias?: Value;
  /** Nodes that only served to add the bias. */
  readonly parts: readonly Node[];
}

/** add(conv, reshape(bias, (1, O, 1, …))) */
function biasOf(node: Node, single: IsSingle): Biased | undefined {
  for (const [at, other] of [
    [0, 1],
    [1, 0],
  ] as const) {
    const value = node.inputs[at]!;
    const rest = node.inputs[other]!;
    if (!single(value, "conv") || value.node.region !== node.region) continue;
    if (rest.node.op !== "reshape" || rest.rank !== value.rank) continue;
    const [bias] = rest.node.inputs as [Value];
    const isPerChannel = rest.shape.every((dim, i) => dim === (i === 1 ? value.shape[1] : 1));
    if (!isPerChannel || bias.rank !== 1) continue;
    const parts = single(rest, "reshape") ? [value.node, rest.node] : [value.node];
    return { conv: value.node as Node<"conv">, bias, parts };
  }
  return undefined;
}

function writeConvolution(scope: Scope, { conv, bias, parts }: Biased, relu: boolean): Merge {
  const sources = bias ? [...conv.inputs, bias] : conv.inputs;
  const emit = (): string => {
    const names = sources.map((source) => scope.name(source));
    return convolution(scope, names, conv.attrs, relu);
  };
  return { parts, emit };
}

/** add(dot, bias) is one Gemm; add(a, scatter into zeros) scatters into a. */
function mergeAdd(scope: Scope, node: Node, single: IsSingle): Merge | undefined {
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
        parts: [value.node],
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
        parts: [value.node],
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
