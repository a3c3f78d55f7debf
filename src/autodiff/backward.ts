import { add } from "../ir/elementwise.ts";
import { type Graph, Value } from "../ir/graph.ts";
import { applyRule } from "./vjp.ts";

function depth(graph: Graph): number {
  return graph.parent ? depth(graph.parent) + 1 : 0;
}

/**
 * Cotangents of `wrt` from those of `outputs`, in the graph being traced. The values in `wrt` are cut
 * points: nothing above them is walked, and each must be there once.
 * @returns one per value of `wrt`; `undefined` where no output depends on it.
 */
export function backward(
  targets: readonly Value[],
  cotangents: readonly Value[],
  sources: readonly Value[],
): (Value | undefined)[] {
  // The innermost graph sees all the values; keys are unique only within one.
  let graph: Graph | undefined;
  for (const value of [...targets, ...sources]) {
    if (!graph || depth(value.graph) > depth(graph)) graph = value.graph;
  }
  if (!graph) return [];
  const [outputs, wrt] = [targets, sources].map((list) => list.map((v) => graph.lift(v))) as [
    Value[],
    Value[],
  ];
  const cut = new Set(wrt.map((value) => value.key));
  const last = outputs.reduce((id, output) => Math.max(id, output.node.id), -1);

  // Nodes through which an output depends on wrt.
  const active = new Uint8Array(last + 1);
  const isActive = (value: Value): boolean => cut.has(value.key) || active[value.node.id] === 1;
  const first = wrt.reduce((id, value) => Math.min(id, value.node.id), last + 1);
  for (let id = first; id <= last; id++) {
    const node = graph.nodes[id]!;
    if (node.inputs.some(isActive)) active[id] = 1;
  }

  const found = new Map<string, Value>();
  const accumulate = (value: Value, ct: Value): void => {
    const known = found.get(value.key);
    found.set(value.key, known ? add(known, ct) : ct);
  };
  outputs.forEach((output, i) => {
    if (isActive(output)) accumulate(output, cotangents[i]!);
  });
  for (let id = last; id >= first; id--) {
    if (!active[id]) continue;
    const node = graph.nodes[id]!;
    const nodeOutputs = node.outputs.map((_, i) => new Value(node, i));
    const cts = nodeOutputs.map((output) =>
      cut.has(output.key) ? undefined : found.get(output.key),
    );
    if (cts.every((ct) => ct === undefined)) continue;
    const needs = (i: number): boolean => {
      const input = node.inputs[i]!;
      return isActive(input) && input.dtype.startsWith("float");
    };
    const { inputs, attrs } = node;
    const results = applyRule({
      backward,
      node,
      attrs,
      inputs,
      outputs: nodeOutputs,
      cotangents: cts,
      needs,
    });
    results.forEach((ct, i) => {
      if (ct && needs(i)) accumulate(inputs[i]!, ct);
    });
  }
  return wrt.map((value) => found.get(value.key));
}
