/** Derivatives of traced functions. All work inside a trace, on trees of values. */
import { ShapeError } from "../errors.ts";
import { call, type ValueTree } from "../ir/control.ts";
import { mul } from "../ir/elementwise.ts";
import { type Graph, graphFor, type Value } from "../ir/graph.ts";
import { expand } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { alias, inline } from "../ir/rewrite.ts";
import { showShape } from "../tensor/shape.ts";
import { flatten, mapTree, unflatten } from "../tensor/tree.ts";
import { backward } from "./backward.ts";

function zeros(like: Value): Value {
  return expand(like.graph.lift(0, like.dtype), like.shape);
}

/** Values that only the differentiated function uses, so that nothing it closes over depends on them. */
function argument<P extends ValueTree>(params: P): P {
  return mapTree<Value, Value>(params, alias) as P;
}

function needScalar(where: string, loss: Value): void {
  if (loss.shape.some((dim) => dim !== 1)) {
    throw new ShapeError(
      `${where}: the function must return one number, got shape ${showShape(loss.shape)} — sum or average it, or use vjp.`,
    );
  }
}

/** The gradient tree of `loss` with respect to a tree; zeros where it does not depend on a leaf. */
export function gradientOf<T extends ValueTree>(loss: Value, wrt: T): T {
  needScalar("grad", loss);
  const leaves = flatten<Value>(wrt).leaves;
  const one = expand(loss.graph.lift(1, loss.dtype), loss.shape);
  const found = backward([loss], [one], leaves);
  return unflatten(
    wrt,
    found.map((ct, i) => ct ?? zeros(leaves[i]!)),
  ) as T;
}

/**
 * The function's value and its gradient with respect to the first argument.
 * @throws ShapeError when the function does not return one number.
 */
export function valueAndGrad<P extends ValueTree, A extends readonly unknown[]>(
  fn: (params: P, ...rest: A) => Value,
): (params: P, ...rest: A) => [Value, P] {
  return (params, ...rest) => {
    const own = argument(params);
    const loss = fn(own, ...rest);
    return [loss, gradientOf(loss, own)];
  };
}

/** Like `valueAndGrad` for a function that returns [loss, aux]. */
export function valueAndGradWithAux<P extends ValueTree, A extends readonly unknown[], X>(
  fn: (params: P, ...rest: A) => readonly [Value, X],
): (params: P, ...rest: A) => [Value, X, P] {
  return (params, ...rest) => {
    const own = argument(params);
    const [loss, aux] = fn(own, ...rest);
    return [loss, aux, gradientOf(loss, own)];
  };
}

/** The gradient with respect to the first argument. */
export function grad<P extends ValueTree, A extends readonly unknown[]>(
  fn: (params: P, ...rest: A) => Value,
): (params: P, ...rest: A) => P {
  const both = valueAndGrad(fn);
  return (params, ...rest) => both(params, ...rest)[1];
}

/** The outputs of a function and the map from their cotangents to those of its first argument. */
export function vjp<P extends ValueTree, O extends ValueTree>(
  fn: (params: P) => O,
  params: P,
): [O, (cotangents: O) => P] {
  const own = argument(params);
  const outputs = fn(own);
  const leaves = flatten<Value>(own).leaves;
  return [
    outputs,
    (cotangents) => {
      const found = backward(
        flatten<Value>(outputs).leaves,
        flatten<Value>(cotangents).leaves,
        leaves,
      );
      return unflatten(
        params,
        found.map((ct, i) => ct ?? zeros(leaves[i]!)),
      ) as P;
    },
  ];
}

/** The Hessian of a function of one tree times a vector, by differentiating ⟨∇f, v⟩ (Pearlmutter 1994). */
export function hvp<P extends ValueTree>(fn: (params: P) => Value): (params: P, vector: P) => P {
  return (params, vector) => {
    const own = argument(params);
    const slopes = flatten<Value>(grad(fn)(own)).leaves;
    const along = flatten<Value>(vector).leaves;
    const dot = slopes
      .map((slope, i) => sum(mul(slope, along[i]!)))
      .reduce((a, b) => a.graph.add("add", [a, b], {}, [a]));
    return gradientOf(dot, own);
  };
}

/**
 * Keeps nothing between the function's inputs and outputs: its inside is computed again where the
 * derivative needs it (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").
 */
export function checkpoint(
  fn: (...inputs: Value[]) => Value | readonly Value[],
): (...inputs: Value[]) => Value[] {
  return (...inputs) => call("checkpoint", fn, inputs, recompute);
}

function recompute(
  body: Graph,
  outputs: readonly Value[],
): (
  inputs: readonly Value[],
  outputs: readonly Value[],
  cotangents: readonly (Value | undefined)[],
) => (Value | undefined)[] {
  return (inputs, _, cotangents) => {
    const graph = graphFor("checkpoint", inputs);
    return graph.inNewRegion(() => {
      const stands = inputs.map(alias);
      const again = inline(body, outputs, stands, graph);
      const used = cotangents.flatMap((ct, i) => (ct ? [i] : []));
      return backward(
        used.map((i) => again[i]!),
        used.map((i) => cotangents[i]!),
        stands,
      );
    });
  };
}
