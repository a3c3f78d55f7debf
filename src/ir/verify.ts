import { StateError } from "../errors.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import type { Graph } from "./graph.ts";
import { infer } from "./infer.ts";

/**
 * Checks a graph against the specification: inputs come before their users and every node's outputs
 * are what its operator gives.
 * @throws StateError naming the first node that is wrong.
 */
export function verify(graph: Graph): void {
  for (const node of graph.nodes) {
    const name = `verify: node ${node.id} (${node.op})`;
    for (const input of node.inputs) {
      if (input.graph !== graph || input.node.id >= node.id) {
        throw new StateError(`${name} uses a value that is not before it in its graph.`);
      }
    }
    if (node.op === "input") continue;
    const expected = infer(node.op, node.inputs, node.attrs as never);
    for (let i = 0; i < expected.length; i++) {
      const [is, should] = [node.outputs[i]!, expected[i]!];
      if (is.dtype !== should.dtype || !sameShape(is.shape, should.shape)) {
        throw new StateError(
          `${name} gives ${is.dtype} ${showShape(is.shape)}, but its operator ${should.dtype} ${showShape(should.shape)}.`,
        );
      }
    }
  }
}
