/** What runs programs. The reference backend is the judge; ONNX Runtime does the work. */
import { DtypeError, ShapeError } from "../errors.ts";
import type { Graph, Spec, Value } from "../ir/graph.ts";
import { showShape, splitDim } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** A graph with named inputs (the graph's own, in order) and outputs. */
export interface Program {
  readonly graph: Graph;
  readonly inputs: readonly string[];
  readonly outputs: readonly Value[];
  readonly outputNames: readonly string[];
}

export interface LoadOptions {
  /** Threads inside an operator; default: the backend's choice by the size of the work. */
  readonly threads?: number;
  /** Inputs whose values never change: they may be stored in the session, prepacked. */
  readonly frozen?: ReadonlyMap<string, Tensor>;
}

/** A program ready to run. */
export interface Executable {
  /** What the inputs must be; symbols are bound by what is given. */
  readonly inputs: readonly (Spec & { readonly name: string })[];
  readonly outputs: readonly (Spec & { readonly name: string })[];
  /**
   * Runs with one tensor per input that is not frozen, in order.
   * @param into tensors to write the outputs to, where given; none may share memory with an input.
   */
  run(inputs: readonly Tensor[], into?: readonly (Tensor | undefined)[]): Promise<Tensor[]>;
  /** The same without yielding, where the backend can. */
  runSync?(inputs: readonly Tensor[], into?: readonly (Tensor | undefined)[]): Tensor[];
  /** Frees what the backend holds; the executable cannot run afterwards. */
  release(): Promise<void>;
}

export interface Backend {
  readonly name: string;
  load(program: Program, options?: LoadOptions): Promise<Executable>;
}

/** Sizes of the symbols that occur in input shapes. */
export type Bindings = Map<string, number>;

/**
 * Checks inputs against what is expected and binds symbols.
 * @throws ShapeError or DtypeError naming the input.
 */
export function bindInputs(
  where: string,
  expected: readonly (Spec & { readonly name: string })[],
  inputs: readonly Tensor[],
): Bindings {
  if (inputs.length !== expected.length) {
    throw new ShapeError(`${where}: needs ${expected.length} inputs, got ${inputs.length}.`);
  }
  const bindings: Bindings = new Map();
  expected.forEach((spec, i) => {
    const { shape, dtype } = inputs[i]!;
    if (dtype !== spec.dtype) {
      throw new DtypeError(`${where}: input "${spec.name}" must be ${spec.dtype}, got ${dtype}.`);
    }
    const fits =
      shape.length === spec.shape.length &&
      spec.shape.every((dim, axis) => {
        if (typeof dim === "number") return dim === shape[axis];
        const known = bindings.get(dim);
        if (known === undefined) bindings.set(dim, shape[axis]!);
        return known === undefined || known === shape[axis];
      });
    if (!fits) {
      throw new ShapeError(
        `${where}: input "${spec.name}" must have shape ${showShape(spec.shape)}, got ${showShape(shape)}.`,
      );
    }
  });
  return bindings;
}

/** The size of a dimension: symbols, their sums and products from the bindings. */
export function bindDim(dim: number | string, bindings: Bindings): number {
  if (typeof dim === "number") return dim;
  const known = bindings.get(dim);
  if (known !== undefined) return known;
  const terms = splitDim(dim, "+");
  if (terms.length > 1) return terms.reduce((total, term) => total + bindDim(term, bindings), 0);
  const factors = splitDim(dim, "*");
  if (factors.length > 1) return factors.reduce((size, part) => size * bindDim(part, bindings), 1);
  if (dim.startsWith("(")) return bindDim(dim.slice(1, -1), bindings);
  if (/^\d+$/.test(dim)) return Number(dim);
  throw new ShapeError(`size "${dim}" is not bound by any input.`);
}
