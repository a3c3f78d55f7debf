import type { Dtype } from "../tensor/dtype.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { AttrsOf, OpName } from "./attrs.ts";
import { graphFor, type Operand, outputsOf, Value } from "./graph.ts";
import { infer } from "./infer.ts";

/** The type that plain numbers among the operands take: that of the first value or tensor. */
function leading(operands: readonly Operand[]): Dtype {
  for (const operand of operands) {
    if (operand instanceof Value || operand instanceof Tensor) return operand.dtype;
  }
  return "float32";
}

/** Adds a node and returns all of its outputs. */
export function emitAll<O extends OpName>(
  op: O,
  operands: readonly Operand[],
  attrs: AttrsOf[O],
): Value[] {
  const graph = graphFor(op, operands);
  const dtype = leading(operands);
  const inputs = operands.map((operand) => graph.lift(operand, dtype));
  return outputsOf(graph.add(op, inputs, attrs, infer(op, inputs, attrs)));
}

/** Adds a node and returns its first output. */
export function emit<O extends OpName>(
  op: O,
  operands: readonly Operand[],
  attrs: AttrsOf[O],
): Value {
  return emitAll(op, operands, attrs)[0]!;
}
