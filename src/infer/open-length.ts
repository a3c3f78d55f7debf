/**
 * Makes the sequence length of a traced model a symbol.
 *
 * A model's forward pass takes a length that is known (its causal mask is a constant of that size).
 * So it is traced with a prime that divides no size of the model: a size in the graph then is a
 * multiple of the prime exactly where it is a multiple of the length, and can be written anew with a
 * symbol; the causal mask becomes a comparison of positions.
 */
import type { Program } from "../backend/backend.ts";
import { UnsupportedError } from "../errors.ts";
import type { AttrsOf } from "../ir/attrs.ts";
import { lessOrEqual, where } from "../ir/elementwise.ts";
import { emitAll } from "../ir/emit.ts";
import { Graph, type Node, type Value } from "../ir/graph.ts";
import { expand, reshape } from "../ir/layout.ts";
import { cumSum } from "../ir/reduce.ts";
import { inline, type Rule } from "../ir/rewrite.ts";
import type { LanguageModel } from "../models/model.ts";
import { causalBias, masked } from "../nn/attention.ts";
import { type Dim, mulDims, type Shape, sameShape, showShape, splitDim } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** A length to trace with: the least prime from 11 that divides no size of the model. */
export function standInLength(model: LanguageModel): number {
  const sizes = [
    ...Object.values(model.sizes as unknown as Record<string, unknown>),
    ...[...model.slots()].flatMap(([, slot]) => slot.shape),
  ].filter((size): size is number => typeof size === "number");
  const isPrime = (n: number): boolean => {
    for (let i = 2; i * i <= n; i++) if (n % i === 0) return false;
    return true;
  };
  let length = 11;
  while (!isPrime(length) || sizes.some((size) => size % length === 0)) length++;
  return length;
}

/** Whole numbers anywhere in a node's attributes. */
function wholeNumbers(attrs: unknown): number[] {
  if (typeof attrs === "number") return Number.isInteger(attrs) ? [attrs] : [];
  return typeof attrs === "object" && attrs !== null
    ? Object.values(attrs).flatMap(wholeNumbers)
    : [];
}

/**
 * The same program with `symbol` wherever `length` stands in a shape.
 * @param program traced with sequences of `length` tokens
 * @throws UnsupportedError for an operator whose settings depend on the length in another way.
 */
export function openLength(program: Program, length: number, symbol: string): Program {
  const openDim = (dim: Dim): Dim => {
    if (typeof dim === "number") {
      return dim > 0 && dim % length === 0 ? mulDims(dim / length, symbol) : dim;
    }
    const factors = splitDim(dim, "*");
    if (factors.length === 1) return dim;
    return mulDims(...factors.map((part) => openDim(/^\d+$/.test(part) ? Number(part) : part)));
  };
  const open = (shape: Shape): Shape => shape.map(openDim);
  const refuse = (node: Node): never => {
    throw new UnsupportedError(
      `export: ${node.op} of shape ${showShape(node.outputs[0]!.shape)} depends on the sequence length in a way that cannot be exported.`,
    );
  };
  const graph = new Graph();

  const constant = (node: Node): readonly Value[] | undefined => {
    const { tensor } = node.attrs as AttrsOf["constant"];
    if (!tensor.shape.some((dim) => dim > 0 && dim % length === 0)) return undefined;
    const causal = causalBias(length, length);
    const isCausal =
      sameShape(tensor.shape, causal.shape) && causal.data.every((x, i) => x === tensor.data[i]);
    if (!isCausal) return refuse(node);
    const ones = expand(graph.constant(Tensor.from([1], [1], "int32")), [symbol]);
    const steps = cumSum(ones, 0);
    const sees = lessOrEqual(reshape(steps, [1, symbol]), reshape(steps, [symbol, 1]));
    return [where(sees, 0, masked)];
  };

  const rule: Rule = (node, inputs) => {
    if (node.op === "constant") return constant(node);
    if (node.op === "scan" || node.op === "call") return refuse(node);
    let attrs: unknown = node.attrs;
    if (node.op === "reshape" || node.op === "expand") {
      const shape = open((node.attrs as AttrsOf["reshape"]).shape);
      if (node.op === "reshape" && sameShape(shape, inputs[0]!.shape)) return [inputs[0]!];
      attrs = { shape };
    } else if (node.op === "slice") {
      const { starts, ends, steps } = node.attrs as AttrsOf["slice"];
      const shape = node.inputs[0]!.shape;
      // Only an axis taken whole may have the length.
      const isWhole = (i: number): boolean =>
        starts[i] === 0 && ends[i] === shape[i] && steps[i] === 1;
      attrs = { starts, steps, ends: ends.map((end, i) => (isWhole(i) ? openDim(end) : end)) };
      if (shape.some((dim, i) => openDim(dim) !== dim && !isWhole(i))) return refuse(node);
    } else if (wholeNumbers(node.attrs).some((n) => n > 0 && n % length === 0)) return refuse(node);
    return emitAll(node.op, inputs, attrs as never);
  };

  const inputs = program.graph.inputs.map((input, i) =>
    graph.input(program.inputs[i]!, { shape: open(input.shape), dtype: input.dtype }),
  );
  const outputs = inline(program.graph, program.outputs, inputs, graph, rule);
  return { graph, inputs: program.inputs, outputs, outputNames: program.outputNames };
}
