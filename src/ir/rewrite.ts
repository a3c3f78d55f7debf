import { sameShape } from "../tensor/shape.ts";
import type { AttrsOf } from "./attrs.ts";
import { expandNode, type Forms, isFused, plainForms } from "./expand.ts";
import { Graph, graphFor, type Node, Value } from "./graph.ts";

/** The nodes that outputs depend on, in order. */
export function reachable(graph: Graph, outputs: readonly Value[]): Node[] {
  const needed = new Uint8Array(graph.nodes.length);
  for (const output of outputs) needed[output.node.id] = 1;
  for (let id = graph.nodes.length - 1; id >= 0; id--) {
    if (!needed[id]) continue;
    for (const input of graph.nodes[id]!.inputs) needed[input.node.id] = 1;
  }
  return graph.nodes.filter((node) => needed[node.id]);
}

/**
 * The same value as a node of its own. Derivatives with respect to it see the uses of this node, not
 * those of an equal value made elsewhere. Copying a graph leaves it out.
 */
export function alias(value: Value): Value {
  const graph = graphFor("alias", [value]);
  const own = graph.lift(value);
  return graph.add("reshape", [own], { shape: own.shape }, [own], false);
}

/** How a node is carried over; `undefined` copies it. */
export type Rule = (node: Node, inputs: readonly Value[]) => readonly Value[] | undefined;

/**
 * Copies what `outputs` of `from` need into `to`, with `inputs` in place of `from`'s inputs and
 * captures (inputs first, then captures in their order).
 */
export function inline(
  from: Graph,
  outputs: readonly Value[],
  inputs: readonly Value[],
  to: Graph,
  rule?: Rule,
): Value[] {
  const made = new Map<Node, readonly Value[]>();
  const stands = [...from.inputs, ...from.captures.values()];
  for (let i = 0; i < stands.length; i++) {
    const value = inputs[i];
    if (value) made.set(stands[i]!.node, [value]);
  }
  const get = (value: Value): Value => made.get(value.node)![value.index]!;
  to.trace(() => {
    for (const node of reachable(from, outputs)) {
      if (made.has(node)) continue;
      const mapped = node.inputs.map(get);
      made.set(node, rule?.(node, mapped) ?? copy(node, mapped, to));
    }
  });
  return outputs.map(get);
}

function copy(node: Node, inputs: readonly Value[], to: Graph): Value[] {
  if (node.op === "constant") {
    return [to.constant((node.attrs as AttrsOf["constant"]).tensor)];
  }
  if (node.op === "reshape" && sameShape(node.outputs[0]!.shape, inputs[0]!.shape)) {
    return [inputs[0]!];
  }
  const share = node.op !== "scan" && node.op !== "call" && node.op !== "input";
  // Regions of the source stay apart in the target.
  const made = to.add(node.op, inputs, node.attrs as never, node.outputs, share);
  return node.outputs.map((_, i) => new Value(made.node, i));
}

/** The values that a call stands for, in the graph being traced. */
export function inlineCall(node: Node, inputs: readonly Value[], to: Graph, rule?: Rule): Value[] {
  const { body, outputs } = node.attrs as AttrsOf["call"];
  return inline(body, outputs, inputs, to, rule);
}

/**
 * The same outputs in a new graph in which calls are opened, fused operators that the target lacks
 * are expanded in the forms it wants, and nothing unused remains but what an expansion gives beside the outputs in use
 * (`reachable` leaves it out). Inputs keep their order and names.
 */
export function legalize(
  graph: Graph,
  outputs: readonly Value[],
  isNative: (op: Node) => boolean,
  forms: Forms = plainForms,
): { graph: Graph; outputs: Value[] } {
  const result = new Graph(graph.parent ? new Graph() : undefined);
  const rule: Rule = (node, inputs) => {
    result.region = node.region;
    if (node.op === "call") return inCallRegion(node, inputs, result, rule);
    if (isFused(node.op) && !isNative(node)) {
      const inner = new Graph();
      const stands = inputs.map((input, i) => inner.input(`i${i}`, input));
      const expanded = inner.trace(() => expandNode(node.op, stands, node.attrs, forms));
      return inline(inner, expanded, inputs, result, (n, ins) => {
        result.region = node.region;
        return isFused(n.op) && !isNative(n) ? rule({ ...n, region: node.region }, ins) : undefined;
      });
    }
    return undefined;
  };
  const inputs = [...graph.inputs, ...graph.captures.values()].map((input) =>
    result.input((input.node.attrs as AttrsOf["input"]).name, input),
  );
  return { graph: result, outputs: inline(graph, outputs, inputs, result, rule) };
}

function inCallRegion(
  node: Node,
  inputs: readonly Value[],
  result: Graph,
  rule: Rule,
): readonly Value[] {
  const region = node.region;
  return inlineCall(node, inputs, result, (inner, mapped) => rule({ ...inner, region }, mapped));
}
