/** How much memory a session needs, from its graph alone. */
import { type AttrsOf, binaryOps, type OpName, unaryOps } from "../../ir/attrs.ts";
import type { Graph, Node, Spec, Value } from "../../ir/graph.ts";
import { reachable } from "../../ir/rewrite.ts";
import { byteSize } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { type Bindings, bindDim, type Program } from "../backend.ts";
import { writeOrder } from "./lower.ts";
import { legalizeFor, type OrtTarget } from "./target.ts";

export interface PeakOptions {
  readonly target?: OrtTarget;
  /** Sizes of symbols. */
  readonly sizes?: Bindings;
  readonly frozen?: ReadonlyMap<string, Tensor>;
}

/** Operators that ONNX Runtime lets write over an input that nothing else needs. */
const inPlace: ReadonlySet<OpName> = new Set<OpName>([
  ...unaryOps,
  ...binaryOps,
  "where",
  "softmax",
]);

/** Operators whose result is their input, seen otherwise. */
const views: ReadonlySet<OpName> = new Set<OpName>(["reshape", "stopGradient"]);

/**
 * Bytes that a session holds at the height of a run, and mostly keeps afterwards: constants, frozen
 * inputs and the values between inputs and outputs. Inputs and outputs are the caller's.
 * @throws ShapeError when a symbol has no size.
 */
export function peakBytes(program: Program, options: PeakOptions = {}): number {
  const { target = "cpu", sizes = new Map(), frozen = new Map() } = options;
  const { graph, outputs } = legalizeFor(target, program.graph, program.outputs);
  let stored = 0;
  for (const tensor of frozen.values()) stored += tensor.data.byteLength;
  return stored + peakOf(graph, outputs, sizes);
}

function peakOf(graph: Graph, outputs: readonly Value[], sizes: Bindings): number {
  const bytesOf = ({ shape, dtype }: Spec): number =>
    shape.reduce<number>((n, dim) => n * bindDim(dim, sizes), byteSize(dtype));
  const nodes = executionOrder(reachable(graph, outputs));
  const roots = new Map<string, string>();
  const rootOf = (value: Value): string => roots.get(value.key) ?? value.key;
  const lastUse = new Map<string, number>();
  nodes.forEach((node, i) => {
    if (views.has(node.op)) roots.set(`${node.id}.0`, rootOf(node.inputs[0]!));
    for (const input of node.inputs) lastUse.set(rootOf(input), i);
  });
  // What is the caller's is never ours to count, nor to write over.
  const foreign = new Set([...graph.inputs, ...outputs].map(rootOf));
  const held = new Map<string, number>();
  let [constants, live, peak] = [0, 0, 0];
  nodes.forEach((node, i) => {
    if (node.op === "constant" || node.op === "iota") constants += bytesOf(node.outputs[0]!);
    if (node.inputs.length === 0 || views.has(node.op)) return;
    const dying = node.inputs
      .map(rootOf)
      .filter((root) => held.has(root) && lastUse.get(root) === i);
    const over = inPlace.has(node.op)
      ? dying.find((root) => held.get(root) === bytesOf(node.outputs[0]!))
      : undefined;
    if (over !== undefined) live -= held.get(over)!;
    node.outputs.forEach((output, k) => {
      const key = `${node.id}.${k}`;
      if (foreign.has(key)) return;
      held.set(key, bytesOf(output));
      live += held.get(key)!;
    });
    peak = Math.max(peak, live + innerPeak(node, sizes));
    for (const root of new Set(dying)) {
      if (root !== over) live -= held.get(root)!;
      held.delete(root);
    }
    node.outputs.forEach((_, k) => {
      const key = `${node.id}.${k}`;
      if (lastUse.has(key) || !held.has(key)) return;
      live -= held.get(key)!;
      held.delete(key);
    });
  });
  return constants + peak;
}

/**
 * The order in which ONNX Runtime runs nodes: depth first from those that nothing depends on, from the
 * last written to the first, at each node from the input written last to the first.
 */
function executionOrder(nodes: readonly Node[]): Node[] {
  const written = writeOrder(nodes);
  const place = new Map(written.map((node, i) => [node, i]));
  const used = new Set(written.flatMap((node) => node.inputs.map((input) => input.node)));
  const stack: [node: Node, isLeaving: boolean][] = written
    .filter((node) => !used.has(node))
    .map((node) => [node, false]);
  const visited = new Set<Node>();
  const order: Node[] = [];
  for (let top = stack.pop(); top; top = stack.pop()) {
    const [node, isLeaving] = top;
    if (isLeaving) order.push(node);
    else if (!visited.has(node)) {
      visited.add(node);
      stack.push([node, true]);
      const sources = [...new Set(node.inputs.map((input) => input.node))];
      sources.sort((a, b) => place.get(a)! - place.get(b)!);
      for (const source of sources) if (!visited.has(source)) stack.push([source, false]);
    }
  }
  return order;
}

function innerPeak(node: Node, sizes: Bindings): number {
  if (node.op !== "scan") return 0;
  const { body, outputs } = node.attrs as AttrsOf["scan"];
  return peakOf(body, outputs, sizes);
}
