/** Where a program runs, and which fused operators have a kernel of their own there. */
import type { OpName } from "../../ir/attrs.ts";
import type { Graph, Node } from "../../ir/graph.ts";

export type OrtTarget = "cpu" | "wasm" | "webgpu";

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
