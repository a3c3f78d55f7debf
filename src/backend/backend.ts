/** What runs programs. The reference backend is the judge; ONNX Runtime does the work. */
import { DtypeError, ShapeError, StateError } from "../errors.ts";
import type { Graph, Spec, Value } from "../ir/graph.ts";
import type { Dtype } from "../tensor/dtype.ts";
import { type StaticShape, showShape, splitDim } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

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
  /**
   * The same with tensors of the backend's device, where it has one: those among the inputs are read
   * there and those in `into` written there. Outputs without a tensor in `into` come to the host.
   */
  runOnDevice?(
    inputs: readonly AnyTensor[],
    into?: readonly (AnyTensor | undefined)[],
  ): Promise<AnyTensor[]>;
  /** Frees what the backend holds; the executable cannot run afterwards. */
  release(): Promise<void>;
}

/** A tensor in the memory of a backend's device. Whoever made it releases it, once. */
export interface DeviceTensor {
  readonly shape: StaticShape;
  readonly dtype: Dtype;
  /**
   * A copy in host memory.
   * @throws StateError after `release`.
   */
  read(): Promise<Tensor>;
  /**
   * Frees its memory; runs that were started before still read it.
   * @throws StateError when it was released before.
   */
  release(): void;
}

/** A tensor wherever it is. */
export type AnyTensor = Tensor | DeviceTensor;

/** What a device holds, and what went to it and came from it so far, by upload, read and run. */
export interface DeviceStats {
  readonly tensors: number;
  readonly bytes: number;
  readonly uploadedBytes: number;
  readonly downloadedBytes: number;
}

/** Memory of a backend's own, where tensors stay between runs. */
export interface Device {
  readonly stats: DeviceStats;
  /** Whether tensors of a type can be here. */
  keeps(dtype: Dtype): boolean;
  /**
   * A tensor of zeros.
   * @throws DtypeError for a type that the device does not keep, StateError without room.
   */
  allocate(shape: StaticShape, dtype: Dtype): Promise<DeviceTensor>;
  /** A copy of a tensor; throws as `allocate`. */
  upload(tensor: Tensor): Promise<DeviceTensor>;
}

export interface Backend {
  readonly name: string;
  /** Where tensors can stay between runs; none where inputs are read from host memory anyway. */
  readonly device?: Device | undefined;
  load(program: Program, options?: LoadOptions): Promise<Executable>;
}

/**
 * Runs on tensors wherever they are.
 * @throws StateError when some are on a device and the executable has none.
 */
export async function runAnywhere(
  executable: Executable,
  inputs: readonly AnyTensor[],
  into: readonly (AnyTensor | undefined)[] = [],
): Promise<AnyTensor[]> {
  const isHost = (tensor: AnyTensor | undefined): tensor is Tensor | undefined =>
    tensor === undefined || tensor instanceof Tensor;
  if (inputs.every((tensor) => isHost(tensor)) && into.every(isHost)) {
    return executable.run(inputs as readonly Tensor[], into);
  }
  if (!executable.runOnDevice) {
    throw new StateError(
      "run: a tensor is on a device, and this backend has none — read it first.",
    );
  }
  return executable.runOnDevice(inputs, into);
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
  inputs: readonly Pick<Tensor, "shape" | "dtype">[],
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
