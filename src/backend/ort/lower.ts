/** From a program to an ONNX model. */
import { UnsupportedError } from "../../errors.ts";
import { encodeOnnx, type OnnxAttribute, type OnnxGraph, type OnnxValue } from "../../io/onnx.ts";
import type { AttrsOf } from "../../ir/attrs.ts";
import type { Graph, Node, Value } from "../../ir/graph.ts";
import { reachable } from "../../ir/rewrite.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Program } from "../backend.ts";
import { contributed, emitNode, standard } from "./emit.ts";
import { findMerges } from "./merge.ts";
import { constant, int, ints, Scope } from "./scope.ts";
import { legalizeFor, type OrtTarget } from "./target.ts";

export interface Lowered {
  readonly model: Uint8Array<ArrayBuffer>;
  /** Names of the model's inputs, in the program's order less the frozen ones. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  /** An output to ask for first, in a quiet model. */
  readonly quiet: string | undefined;
  readonly nodeCount: number;
  /** Graph optimisers of ONNX Runtime that must not run on this model. */
  readonly withoutOptimizers: readonly string[];
}

function scan(
  scope: Scope,
  inputs: readonly string[],
  attrs: AttrsOf["scan"],
  node: Node,
): readonly string[] {
  const { body, outputs, nCarry, nXs, length, reverse } = attrs;
  const nYs = outputs.length - nCarry;
  if (length === 0) {
    return node.outputs.map((spec, i) =>
      i < nCarry ? inputs[i]! : constant(scope, Tensor.zeros(spec.shape as number[], spec.dtype)),
    );
  }
  const used = scope.used.get(node)!;
  const ys = outputs.slice(nCarry).filter((_, i) => used.has(nCarry + i));
  const histories = body.inputs.slice(0, nCarry).filter((_, i) => used.has(nCarry + nYs + i));
  const wanted = [...outputs.slice(0, nCarry), ...ys, ...histories];
  const legal = legalizeFor(scope.target, body, wanted);
  const inner = new Scope(scope.target, scope);
  const onnxInputs: OnnxValue[] = [];
  legal.graph.inputs.forEach((input, i) => {
    if (i < nCarry + nXs) {
      const name = inner.fresh();
      inner.names.set(input.key, name);
      onnxInputs.push({ name, type: input.dtype, shape: input.shape });
    } else inner.names.set(input.key, inputs[i]!);
  });
  const scanned = inputs.slice(0, nCarry + nXs);
  if (nXs === 0) {
    // ONNX counts steps by what is scanned over.
    scanned.push(scope.initializer("uint8", [length], new Uint8Array(length)));
    onnxInputs.push({ name: inner.fresh(), type: "uint8", shape: [] });
  }
  emitGraph(inner, legal.graph, legal.outputs);
  const onnxOutputs = outputValues(inner, legal.outputs);
  const graph: OnnxGraph = {
    name: "body",
    nodes: inner.nodes,
    initializers: inner.initializers,
    inputs: onnxInputs,
    outputs: onnxOutputs,
  };
  const direction = (count: number): OnnxAttribute =>
    ints(new Array<number>(count).fill(reverse ? 1 : 0));
  const nScanOutputs = ys.length + histories.length;
  const nScanned = scanned.length - nCarry;
  const made = scope.nodeMany("Scan", scanned, wanted.length, {
    body: { graph },
    num_scan_inputs: int(nScanned),
    scan_input_directions: direction(nScanned),
    ...(nScanOutputs > 0 && { scan_output_directions: direction(nScanOutputs) }),
  });
  let next = nCarry;
  return node.outputs.map((_, i) => {
    if (i < nCarry) return made[i]!;
    return used.has(i) ? made[next++]! : "";
  });
}

/** Outputs of a graph: each must be made by a node of that very graph, and stand once. */
function outputValues(scope: Scope, outputs: readonly Value[]): OnnxValue[] {
  const made = new Set(scope.nodes.flatMap((node) => node.outputs));
  return outputs.map((value) => {
    const name = scope.name(value);
    const own = made.delete(name) ? name : scope.node("Identity", [name]);
    return { name: own, type: value.dtype, shape: value.shape };
  });
}

function emitGraph(scope: Scope, graph: Graph, outputs: readonly Value[]): void {
  const nodes = reachable(graph, outputs);
  const uses = new Map<string, number>();
  for (const value of [...nodes.flatMap((node) => node.inputs), ...outputs]) {
    uses.set(value.key, (uses.get(value.key) ?? 0) + 1);
    const used = scope.used.get(value.node) ?? new Set<number>();
    scope.used.set(value.node, used.add(value.index));
  }
  const { merged, writers } = findMerges(scope, nodes, uses);
  for (const node of writeOrder(nodes)) {
    if (node.op === "input" || merged.has(node)) continue;
    const write = writers.get(node);
    const made = write ? [write()] : emit(scope, node);
    made.forEach((name, i) => {
      scope.names.set(`${node.id}.${i}`, name);
    });
  }
}

function emit(scope: Scope, node: Node): readonly string[] {
  if (node.op !== "scan") return emitNode(scope, node);
  const inputs = node.inputs.map((input) => scope.name(input));
  return scan(scope, inputs, node.attrs as AttrsOf["scan"], node);
}

/**
 * The order in which nodes are written: as they were made, but with recomputation those last that
 * nothing depends on, in reverse. ONNX Runtime first runs the last written of them with all that it
 * needs. In the order made that is the weight gradient of the first layer, and the others would keep
 * what they need until the end. (Without recomputation that order is the better one: it forms local
 * derivatives early.)
 */
export function writeOrder(nodes: readonly Node[]): readonly Node[] {
  if (!nodes.some((node) => node.region !== 0)) return nodes;
  const used = new Set(nodes.flatMap((node) => node.inputs.map((input) => input.node)));
  const isLeaf = (node: Node): boolean => !used.has(node) && node.op !== "input";
  return [...nodes.filter((node) => !isLeaf(node)), ...nodes.filter(isLeaf).reverse()];
}

function someNode(graph: Graph, holds: (node: Node) => boolean): boolean {
  return graph.nodes.some(
    (node) =>
      holds(node) || (node.op === "scan" && someNode((node.attrs as AttrsOf["scan"]).body, holds)),
  );
}

function checkPassable(what: string, dtype: Dtype): void {
  if (dtype === "bfloat16") {
    throw new UnsupportedError(
      `${what}: ONNX Runtime's binding does not take bfloat16 — pass it as float32, or freeze it.`,
    );
  }
}

export interface LowerOptions {
  /**
   * Start the outputs with one in bfloat16. Node's binding copies all outputs after they were written
   * to the tensors it was given, unless the first has a type that it does not know.
   */
  readonly isQuiet?: boolean;
}

/** Writes a program as a model; `frozen` inputs become initialisers. */
export function lower(
  program: Program,
  target: OrtTarget,
  frozen: ReadonlyMap<string, Tensor> = new Map(),
  { isQuiet = false }: LowerOptions = {},
): Lowered {
  const legal = legalizeFor(target, program.graph, program.outputs);
  const scope = new Scope(target);
  const inputs: OnnxValue[] = [];
  legal.graph.inputs.forEach((input, i) => {
    const name = program.inputs[i]!;
    const weight = frozen.get(name);
    scope.names.set(
      input.key,
      weight ? scope.initializer(weight.dtype, weight.shape, weight.data) : `in:${name}`,
    );
    if (weight) return;
    checkPassable(`input "${name}"`, input.dtype);
    inputs.push({ name: `in:${name}`, type: input.dtype, shape: input.shape });
    input.shape.forEach((dim, axis) => {
      if (typeof dim === "string" && !scope.symbols.has(dim)) {
        scope.symbols.set(dim, [`in:${name}`, axis]);
      }
    });
  });
  legal.outputs.forEach(({ dtype }, i) => {
    checkPassable(`output "${program.outputNames[i]}"`, dtype);
  });
  emitGraph(scope, legal.graph, legal.outputs);
  const outputs = outputValues(scope, legal.outputs);
  const quiet = isQuiet ? scope.initializer("bfloat16", [], new Uint16Array(1)) : undefined;
  const graph: OnnxGraph = {
    name: "program",
    nodes: scope.nodes,
    initializers: scope.initializers,
    inputs,
    outputs: quiet ? [{ name: quiet, type: "bfloat16", shape: [] }, ...outputs] : outputs,
  };
  return {
    model: encodeOnnx(graph, { "": standard, [contributed]: 1 }),
    inputs: inputs.map((input) => input.name),
    outputs: outputs.map((output) => output.name),
    quiet,
    nodeCount: scope.nodes.length,
    withoutOptimizers: [
      // Recomputed nodes must not be merged back.
      ...(someNode(legal.graph, (node) => node.region !== 0)
        ? ["CommonSubexpressionElimination"]
        : []),
      // It makes x σ(x) a QuickGelu, which has no kernel for float64.
      ...(someNode(legal.graph, (node) => node.outputs.some(({ dtype }) => dtype === "float64"))
        ? ["QuickGeluFusion"]
        : []),
    ],
  };
}
