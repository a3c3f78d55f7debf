/**
 * The judge: plain loops in float64. Values that the graph calls float32 are computed in float64 too
 * and rounded only where they leave the program, so that other backends are compared with better
 * numbers than their own.
 */
import { DtypeError, OptionError, ShapeError, StateError, UnsupportedError } from "../../errors.ts";
import type { AttrsOf } from "../../ir/attrs.ts";
import type { Graph, Node, Spec, Value } from "../../ir/graph.ts";
import { legalize, reachable } from "../../ir/rewrite.ts";
import { sameShape, showShape } from "../../tensor/shape.ts";
import { Tensor, writeNumbers } from "../../tensor/tensor.ts";
import {
  type Backend,
  type Bindings,
  bindDim,
  bindInputs,
  type Executable,
  type LoadOptions,
  type Program,
} from "../backend.ts";
import { runScan } from "./control.ts";
import { elementwise } from "./elementwise.ts";
import { indexing } from "./indexing.ts";
import { layout } from "./layout.ts";
import { linear } from "./linear.ts";
import { fromTensor, type Kernel, type Kernels, type Nd, type StaticSpec } from "./nd.ts";
import { reductions } from "./reduce.ts";

export interface ReferenceOptions {
  /** The type that floats are computed in. */
  readonly precision?: "float64";
}

/** A backend of slow, obvious loops, against which the others are tested. */
export function reference(_options: ReferenceOptions = {}): Backend {
  return {
    name: "reference",
    load: async (program, options) => new ReferenceExecutable(program, options),
  };
}

const kernels: Kernels = { ...elementwise, ...reductions, ...layout, ...indexing, ...linear };

/** A graph of primitive operators in the order in which they run. */
interface Plan {
  readonly inputs: readonly Value[];
  readonly nodes: readonly Node[];
  readonly outputs: readonly Value[];
  readonly constants: ReadonlyMap<Node, Nd>;
  /** Plans of the bodies of scans. */
  readonly bodies: ReadonlyMap<Node, Plan>;
}

/** Opens calls and expands fused operators, in bodies too. */
function planFor(source: Graph, wanted: readonly Value[]): Plan {
  const { graph, outputs } = legalize(source, wanted, () => false);
  const nodes = reachable(graph, outputs).filter((node) => node.op !== "input");
  const constants = new Map<Node, Nd>();
  const bodies = new Map<Node, Plan>();
  for (const node of nodes) {
    if (node.op === "constant") {
      constants.set(node, fromTensor((node.attrs as AttrsOf["constant"]).tensor));
    } else if (node.op === "scan") {
      const { body, outputs: results } = node.attrs as AttrsOf["scan"];
      bodies.set(node, planFor(body, results));
    } else if (!kernels[node.op]) {
      throw new UnsupportedError(`reference: operator "${node.op}" has no kernel.`);
    }
  }
  return { inputs: graph.inputs, nodes, outputs, constants, bodies };
}

function execute(plan: Plan, inputs: readonly Nd[], bindings: Bindings): Nd[] {
  const values = new Map<Node, readonly Nd[]>();
  plan.inputs.forEach((input, i) => {
    values.set(input.node, [inputs[i]!]);
  });
  const get = (value: Value): Nd => values.get(value.node)![value.index]!;
  for (const node of plan.nodes) {
    const constant = plan.constants.get(node);
    if (constant) {
      values.set(node, [constant]);
      continue;
    }
    const given = node.inputs.map(get);
    const specs = node.outputs.map((output) => bindSpec(output, bindings));
    const body = plan.bodies.get(node);
    const made = body
      ? runScan(node.attrs as AttrsOf["scan"], given, specs, (step) =>
          execute(body, step, bindings),
        )
      : (kernels[node.op] as Kernel<typeof node.op>)(given, node.attrs, specs);
    values.set(node, made);
  }
  return plan.outputs.map(get);
}

function bindSpec({ shape, dtype }: Spec, bindings: Bindings): StaticSpec {
  return { dtype, shape: shape.map((dim) => bindDim(dim, bindings)) };
}

type Named = Spec & { readonly name: string };

class ReferenceExecutable implements Executable {
  readonly inputs: readonly Named[];
  readonly outputs: readonly Named[];
  readonly #all: readonly Named[];
  readonly #frozen: ReadonlyMap<string, Tensor>;
  #plan: Plan | undefined;

  constructor(program: Program, options: LoadOptions = {}) {
    const named = (value: Value, name: string): Named => ({
      name,
      shape: value.shape,
      dtype: value.dtype,
    });
    this.#frozen = options.frozen ?? new Map();
    for (const name of this.#frozen.keys()) {
      if (!program.inputs.includes(name)) {
        throw new OptionError(
          `reference: frozen "${name}" is not an input — inputs are ${program.inputs.join(", ")}.`,
        );
      }
    }
    this.#all = program.inputs.map((name, i) => named(program.graph.inputs[i]!, name));
    this.inputs = this.#all.filter(({ name }) => !this.#frozen.has(name));
    this.outputs = program.outputs.map((value, i) => named(value, program.outputNames[i]!));
    this.#plan = planFor(program.graph, program.outputs);
  }

  async run(inputs: readonly Tensor[], into?: readonly (Tensor | undefined)[]): Promise<Tensor[]> {
    return this.runSync(inputs, into);
  }

  runSync(inputs: readonly Tensor[], into: readonly (Tensor | undefined)[] = []): Tensor[] {
    if (!this.#plan) throw new StateError("reference: the program was released — load it again.");
    if (inputs.length !== this.inputs.length) {
      throw new ShapeError(`reference: needs ${this.inputs.length} inputs, got ${inputs.length}.`);
    }
    const given = inputs[Symbol.iterator]();
    const all = this.#all.map(
      ({ name }) => this.#frozen.get(name) ?? (given.next().value as Tensor),
    );
    const bindings = bindInputs("reference", this.#all, all);
    const results = execute(this.#plan, all.map(fromTensor), bindings);
    return results.map((result, i) => {
      const target = into[i];
      if (!target) return Tensor.from(result.data, result.shape, result.dtype);
      checkTarget(this.outputs[i]!.name, target, result);
      writeNumbers(result.dtype, target.data, result.data);
      return target;
    });
  }

  async release(): Promise<void> {
    this.#plan = undefined;
  }
}

function checkTarget(name: string, target: Tensor, result: Nd): void {
  if (target.dtype !== result.dtype) {
    throw new DtypeError(
      `reference: output "${name}" is ${result.dtype}, the tensor to write to ${target.dtype}.`,
    );
  }
  if (!sameShape(target.shape, result.shape)) {
    throw new ShapeError(
      `reference: output "${name}" has shape ${showShape(result.shape)}, the tensor to write to ${showShape(target.shape)}.`,
    );
  }
}
