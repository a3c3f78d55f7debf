/** Where a program runs, which fused operators have a kernel of their own there, and in what form the rest run. */
import type { OpName } from "../../ir/attrs.ts";
import type { Forms } from "../../ir/expand.ts";
import type { Graph, Node, Value } from "../../ir/graph.ts";
import { legalize } from "../../ir/rewrite.ts";

export type OrtTarget = "cpu" | "wasm" | "webgpu";

/** What shared code asks of a target. */
interface Traits {
  /** Fused operators with a kernel of their own; the rest are expanded. */
  readonly native: ReadonlySet<OpName>;
  readonly forms: Forms;
}

const everywhere: readonly OpName[] = [
  "softmax",
  "logSoftmax",
  "layerNorm",
  "rmsNorm",
  "gelu",
  "silu",
  "avgPool",
  "dequantize",
];

const traits: Readonly<Record<OrtTarget, Traits>> = {
  cpu: { native: new Set([...everywhere, "quantizedLinear"]), forms: { recurrence: "scan" } },
  wasm: { native: new Set(everywhere), forms: { recurrence: "scan" } },
  // The host drives every step of a Scan.
  webgpu: { native: new Set<OpName>(["softmax"]), forms: { recurrence: "blocked" } },
};

/** A graph in the operators that a target has kernels for, and the forms that it runs best. */
export function legalizeFor(
  target: OrtTarget,
  graph: Graph,
  outputs: readonly Value[],
): { graph: Graph; outputs: Value[] } {
  return legalize(graph, outputs, nativeRule(target), traits[target].forms);
}

/**
 * Tells which fused operators a target has a kernel for. A gelu whose input something else reads is
 * taken apart: that is its derivative, which shares most of its steps.
 */
function nativeRule(target: OrtTarget): (node: Node) => boolean {
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
    if (!traits[target].native.has(node.op) || node.outputs[0]!.dtype !== "float32") return false;
    if (node.op !== "gelu") return true;
    const counts = uses.get(node.graph) ?? countUses(node.graph);
    return counts.get(node.inputs[0]!.key) === 1;
  };
}
