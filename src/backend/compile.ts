import { StateError } from "../errors.ts";
import type { ValueTree } from "../ir/control.ts";
import { Graph, type Spec, type Value } from "../ir/graph.ts";
import type { Dtype } from "../tensor/dtype.ts";
import type { Shape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { flatten, type Tree, unflatten } from "../tensor/tree.ts";
import type { Backend, Executable, LoadOptions, Program } from "./backend.ts";

/** Shape and type of one input; a tensor stands for its own. */
export type SpecTree = Tree<Spec | Tensor>;
export type TensorTree = Tree<Tensor>;

/** A leaf of a tree of specs. */
export function spec(shape: Shape, dtype: Dtype = "float32"): Spec {
  return { shape, dtype };
}

/** Tensors, slots and plain `{shape, dtype}` are leaves. */
function isSpec(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return true;
  const { shape, dtype } = value as Partial<Spec>;
  return Array.isArray(shape) && typeof dtype === "string";
}

export interface CompileOptions extends LoadOptions {
  readonly backend: Backend;
}

/** A traced function: its program and the form of its result. */
export interface Traced {
  readonly program: Program;
  readonly result: ValueTree;
}

/**
 * Runs `fn` once on values of the given specs; inputs are named by their path: `0.weight`. Inputs
 * that the function adds to its graph itself (noise) follow.
 */
export function trace(fn: (...args: never[]) => ValueTree, specs: readonly SpecTree[]): Traced {
  const graph = new Graph();
  const flat = flatten<Spec | Tensor>(specs, isSpec);
  const values = flat.leaves.map((leaf, i) => graph.input(flat.paths[i]!, leaf));
  const args = unflatten(specs, values, isSpec) as never[];
  const result = graph.trace(() => fn(...args));
  const outputs = flatten<Value>(result);
  return {
    program: {
      graph,
      inputs: graph.inputs.map((input) => (input.node.attrs as { name: string }).name),
      outputs: outputs.leaves.map((value) => graph.lift(value)),
      outputNames: outputs.paths.map((path) => path || "result"),
    },
    result,
  };
}

/** A compiled function from trees of tensors to a tree of tensors. */
export class Compiled<R extends TensorTree = TensorTree> {
  readonly executable: Executable;
  readonly program: Program;
  readonly #result: ValueTree;
  #released = false;

  constructor(executable: Executable, traced: Traced) {
    this.executable = executable;
    this.program = traced.program;
    this.#result = traced.result;
  }

  /** Runs on one tree per argument of the function. */
  async run(...args: readonly TensorTree[]): Promise<R> {
    this.#check();
    return this.#tree(await this.executable.run(flatten<Tensor>(args).leaves));
  }

  /**
   * The same without yielding.
   * @throws StateError where the backend cannot.
   */
  runSync(...args: readonly TensorTree[]): R {
    this.#check();
    if (!this.executable.runSync) throw new StateError("runSync: this backend only runs async.");
    return this.#tree(this.executable.runSync(flatten<Tensor>(args).leaves));
  }

  async release(): Promise<void> {
    if (this.#released) return;
    this.#released = true;
    await this.executable.release();
  }

  #check(): void {
    if (this.#released) throw new StateError("run: the function was released — compile it again.");
  }

  #tree(outputs: readonly Tensor[]): R {
    return unflatten(this.#result, outputs) as R;
  }
}

/**
 * Traces a function on the given shapes and makes it ready to run.
 * @param fn from trees of values to a tree of values
 * @param specs one tree of shapes and types per argument
 */
export async function compile<R extends TensorTree = TensorTree>(
  fn: (...args: never[]) => ValueTree,
  specs: readonly SpecTree[],
  options: CompileOptions,
): Promise<Compiled<R>> {
  const traced = trace(fn, specs);
  const executable = await options.backend.load(traced.program, options);
  return new Compiled<R>(executable, traced);
}

/** Runs a function once on tensors: for exploration and tests. */
export async function evaluate<R extends TensorTree = TensorTree>(
  backend: Backend,
  fn: (...args: never[]) => ValueTree,
  ...args: readonly TensorTree[]
): Promise<R> {
  const compiled = await compile<R>(fn, args, { backend });
  try {
    return await compiled.run(...args);
  } finally {
    await compiled.release();
  }
}
