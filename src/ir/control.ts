/** Loops and functions with derivatives of their own. */
import { ShapeError } from "../errors.ts";
import { flatten, type Tree, unflatten } from "../tensor/tree.ts";
import type { CallAttrs } from "./attrs.ts";
import { Graph, graphFor, type Operand, outputsOf, Value } from "./graph.ts";
import { infer } from "./infer.ts";

export type ValueTree = Tree<Value>;

export interface ScanOptions {
  /** Steps; needed only when there are no xs. */
  readonly length?: number;
  /** From the last slice of xs to the first; ys keep the order of xs. */
  readonly reverse?: boolean;
}

/**
 * Runs `body(carry, x) → [carry, y]` over the first axis of xs, as one node.
 * Values from outside the body may be used inside it.
 * @returns the last carry, and the ys stacked along a new first axis.
 * @throws ShapeError when a carry changes its shape or the xs differ in length.
 */
export function scan<C extends ValueTree, X extends ValueTree, Y extends ValueTree>(
  body: (carry: C, x: X) => readonly [C, Y],
  init: C,
  xs: X,
  options: ScanOptions = {},
): [C, Y] {
  const carries = flatten<Value>(init).leaves;
  const slices = flatten<Value>(xs).leaves;
  const graph = graphFor("scan", [...carries, ...slices]);
  const length = options.length ?? slices[0]?.shape[0];
  if (typeof length !== "number") {
    throw new ShapeError("scan: the number of steps is not known — give xs or `length`.");
  }
  const inner = new Graph(graph);
  const carryIn = carries.map((value, i) => inner.input(`carry${i}`, graph.lift(value)));
  const sliceIn = slices.map((value, i) =>
    inner.input(`x${i}`, { shape: value.shape.slice(1), dtype: value.dtype }),
  );
  const [next, ys] = inner.trace(() =>
    body(unflatten(init, carryIn) as C, unflatten(xs, sliceIn) as X),
  );
  const nextLeaves = flatten<Value>(next).leaves;
  if (nextLeaves.length !== carries.length) {
    throw new ShapeError(
      `scan: the body returns ${nextLeaves.length} carries, it was given ${carries.length}.`,
    );
  }
  const yLeaves = flatten<Value>(ys).leaves;
  const outputs = [...nextLeaves, ...yLeaves].map((value) => inner.lift(value));
  const made = emitScan(
    graph,
    [...carries, ...slices],
    inner,
    outputs,
    carries.length,
    slices.length,
    length,
    options.reverse ?? false,
  );
  return [
    unflatten(next, made.slice(0, carries.length)) as C,
    unflatten(ys, made.slice(carries.length, carries.length + yLeaves.length)) as Y,
  ];
}

/** The scan node itself; its outputs are carries, ys, and the carries before every step. */
export function emitScan(
  graph: Graph,
  operands: readonly Operand[],
  body: Graph,
  outputs: readonly Value[],
  nCarry: number,
  nXs: number,
  length: number,
  reverse: boolean,
): Value[] {
  const inputs = [
    ...operands.map((operand) => graph.lift(operand)),
    ...[...body.captures.keys()].map((value) => graph.lift(value)),
  ];
  const attrs = { body, outputs, nCarry, nXs, length, reverse };
  return outputsOf(graph.add("scan", inputs, attrs, infer("scan", inputs, attrs), false));
}

/**
 * Keeps a function as one node with its own derivative.
 * @param fn values → values
 * @param vjp from the inputs, the outputs and the cotangents of the outputs to those of the inputs
 */
export function customVjp(
  fn: (...inputs: Value[]) => Value | readonly Value[],
  vjp: CallAttrs["vjp"],
  name = "customVjp",
): (...inputs: Operand[]) => Value[] {
  return (...inputs) => call(name, fn, inputs, () => vjp);
}

/** Adds a call node; `vjpOf` sees the body, whose captures follow the inputs. */
export function call(
  name: string,
  fn: (...inputs: Value[]) => Value | readonly Value[],
  operands: readonly Operand[],
  vjpOf: (body: Graph, outputs: readonly Value[]) => CallAttrs["vjp"],
): Value[] {
  const graph = graphFor(name, operands);
  const lifted = operands.map((operand) => graph.lift(operand));
  const body = new Graph(graph);
  const stands = lifted.map((value, i) => body.input(`x${i}`, value));
  const result = body.trace(() => fn(...stands));
  const outputs = (result instanceof Value ? [result] : result).map((value) => body.lift(value));
  const inputs = [...lifted, ...body.captures.keys()];
  const attrs = { name, body, outputs, vjp: vjpOf(body, outputs) };
  return outputsOf(graph.add("call", inputs, attrs, outputs, false));
}
