import { backward } from "../autodiff/backward.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { type SpecTree, type TensorTree, trace } from "../backend/compile.ts";
import { StateError } from "../errors.ts";
import type { ValueTree } from "../ir/control.ts";
import { Graph, type Node, Value } from "../ir/graph.ts";
import { expand } from "../ir/layout.ts";
import { inline } from "../ir/rewrite.ts";
import { Tensor } from "../tensor/tensor.ts";
import { flatten, unflatten } from "../tensor/tree.ts";

/** What a forward run leaves for its pullback: pass it on, do not look inside. */
export interface Residuals {
  readonly tensors: readonly Tensor[];
}

/** A function and its pullback as two programs, for solvers that step from the host. */
export interface CompiledVjp<R extends TensorTree = TensorTree> {
  /** Runs the function; the residuals stay valid until the caller drops them. */
  forward(...args: readonly TensorTree[]): Promise<{ result: R; residuals: Residuals }>;
  /** Cotangents of all arguments, integers left as zeros, from those of the result. */
  pullback(residuals: Residuals, cotangents: TensorTree): Promise<TensorTree>;
  release(): Promise<void>;
}

/** Values that depend on the given inputs. */
function dependents(graph: Graph, inputs: readonly Value[]): Set<Node> {
  const found = new Set(inputs.map((input) => input.node));
  for (const node of graph.nodes) {
    if (node.inputs.some((input) => found.has(input.node))) found.add(node);
  }
  return found;
}

/**
 * Compiles a function with its pullback. What the pullback needs of the forward run (and nothing else)
 * is returned as residuals, so that many steps can be taken before any is differentiated.
 */
export async function compileVjp<R extends TensorTree = TensorTree>(
  fn: (...args: never[]) => ValueTree,
  specs: readonly SpecTree[],
  options: { readonly backend: Backend },
): Promise<CompiledVjp<R>> {
  const { program, result } = trace(fn, specs);
  const { graph, outputs } = program;
  const inputs = [...graph.inputs];
  const cotangentsIn = outputs.map((output, i) => graph.input(`cotangent.${i}`, output));
  const gradients = graph.trace(() => {
    const found = backward(outputs, cotangentsIn, inputs);
    return inputs.map((input, i) => found[i] ?? expand(graph.lift(0, input.dtype), input.shape));
  });
  // The border: forward values that nodes of the pullback read.
  const late = dependents(graph, cotangentsIn);
  const border = new Map<string, Value>();
  for (const value of [...gradients, ...[...late].flatMap((node) => node.inputs)]) {
    if (!late.has(value.node) && value.node.op !== "constant") border.set(value.key, value);
  }
  const residuals = [...border.values()];
  const forwardGraph = new Graph();
  const forwardInputs = inputs.map((input, i) => forwardGraph.input(program.inputs[i]!, input));
  const kept = inline(graph, [...outputs, ...residuals], forwardInputs, forwardGraph);
  const backGraph = new Graph();
  const residualsIn = residuals.map((value, i) => backGraph.input(`residual.${i}`, value));
  const backCotangents = cotangentsIn.map((value, i) => backGraph.input(`cotangent.${i}`, value));
  const stands = new Map<string, Value>([
    ...residuals.map((value, i): [string, Value] => [value.key, residualsIn[i]!]),
    ...cotangentsIn.map((value, i): [string, Value] => [value.key, backCotangents[i]!]),
  ]);
  const pulled = copyFrom(graph, gradients, stands, backGraph);
  const { backend } = options;
  const [forward, back] = await Promise.all([
    backend.load({
      graph: forwardGraph,
      inputs: program.inputs,
      outputs: kept,
      outputNames: kept.map((_, i) => `out.${i}`),
    }),
    backend.load({
      graph: backGraph,
      inputs: backGraph.inputs.map((input) => (input.node.attrs as { name: string }).name),
      outputs: pulled,
      outputNames: pulled.map((_, i) => `gradient.${i}`),
    }),
  ]);
  return wrap<R>(forward, back, result, specs, outputs.length);
}

/** Copies values into another graph, cut where `stands` names a value's replacement. */
function copyFrom(
  from: Graph,
  outputs: readonly Value[],
  stands: ReadonlyMap<string, Value>,
  to: Graph,
): Value[] {
  const needed = new Set<Node>();
  const visit = (value: Value): void => {
    if (stands.has(value.key) || needed.has(value.node)) return;
    needed.add(value.node);
    value.node.inputs.forEach(visit);
  };
  outputs.forEach(visit);
  const made = new Map<string, Value>(stands);
  for (const node of from.nodes) {
    if (!needed.has(node)) continue;
    const inputs = node.inputs.map((input) => made.get(input.key)!);
    const share = !["scan", "call", "constant"].includes(node.op);
    const copy = to.add(node.op, inputs, node.attrs as never, node.outputs, share);
    node.outputs.forEach((_, i) => {
      made.set(`${node.id}.${i}`, new Value(copy.node, i));
    });
  }
  return outputs.map((value) => made.get(value.key)!);
}

function wrap<R extends TensorTree>(
  forward: Executable,
  back: Executable,
  result: ValueTree,
  specs: readonly SpecTree[],
  nOutputs: number,
): CompiledVjp<R> {
  let isReleased = false;
  const check = (): void => {
    if (isReleased) throw new StateError("vjp: the function was released — compile it again.");
  };
  return {
    forward: async (...args) => {
      check();
      const all = await forward.run(flatten<Tensor>(args).leaves);
      return {
        result: unflatten(result, all.slice(0, nOutputs)) as R,
        residuals: { tensors: all.slice(nOutputs) },
      };
    },
    pullback: async (residuals, cotangents) => {
      check();
      const given = flatten<Tensor>(cotangents).leaves;
      const gradients = await back.run([...residuals.tensors, ...given]);
      const isLeaf = (value: unknown): boolean =>
        value instanceof Tensor ||
        (typeof value === "object" && value !== null && "shape" in value && "dtype" in value);
      return unflatten(specs, gradients, isLeaf) as TensorTree;
    },
    release: async () => {
      if (isReleased) return;
      isReleased = true;
      await forward.release();
      await back.release();
    },
  };
}
