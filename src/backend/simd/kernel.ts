/**
 * Elementwise functions as one pass over memory: the graph of an optimiser's update becomes a
 * WebAssembly SIMD loop that reads each array once and writes the new ones in place.
 */
import { DtypeError, OptionError, StateError, UnsupportedError } from "../../errors.ts";
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import { Graph, type Node, type Value } from "../../ir/graph.ts";
import { reachable } from "../../ir/rewrite.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { Arena } from "./arena.ts";
import { assemble, Code, simd, types } from "./assembler.ts";

/** What a kernel computes: new contents of arrays, and at most one sum over all elements. */
export interface KernelResult {
  readonly write?: Readonly<Record<string, Value>>;
  readonly sum?: Value;
}

export interface KernelSpec {
  /** Arrays of float32, all of one length. */
  readonly arrays: readonly string[];
  /** Numbers that are the same for every element. */
  readonly scalars: readonly string[];
  readonly body: (
    arrays: Readonly<Record<string, Value>>,
    scalars: Readonly<Record<string, Value>>,
  ) => KernelResult;
}

const direct: { readonly [O in OpName]?: number } = {
  add: simd.add,
  sub: simd.sub,
  mul: simd.mul,
  div: simd.div,
  min: simd.min,
  max: simd.max,
  neg: simd.neg,
  abs: simd.abs,
  sqrt: simd.sqrt,
  floor: simd.floor,
  ceil: simd.ceil,
  round: simd.nearest,
  equal: simd.eq,
  less: simd.lt,
  lessOrEqual: simd.le,
  and: simd.and,
  or: simd.or,
  xor: simd.xor,
  not: simd.not,
};

/** A compiled elementwise function; instantiated once per memory. */
export class Kernel {
  readonly #spec: KernelSpec;
  readonly #module: WebAssembly.Module;
  readonly #instances: WeakMap<Arena, (...args: number[]) => number> = new WeakMap();

  /**
   * @throws UnsupportedError when the body is not elementwise, OptionError when it writes to an array
   * that the spec does not list, DtypeError when it writes truth values.
   */
  constructor(spec: KernelSpec) {
    this.#spec = spec;
    this.#module = new WebAssembly.Module(write(spec));
  }

  /**
   * Runs over whole tensors of an arena, in place.
   * @returns the sum, 0 when the kernel has none
   * @throws StateError for an array of another memory, length or type, or a number not given.
   */
  run(
    arena: Arena,
    arrays: Readonly<Record<string, Tensor>>,
    scalars: Readonly<Record<string, number>>,
  ): number {
    const size = arrays[this.#spec.arrays[0]!]?.size ?? 0;
    const addresses = this.#spec.arrays.map((name) => {
      const tensor = arrays[name];
      if (tensor?.dtype !== "float32" || tensor.size !== size || !arena.owns(tensor.data)) {
        throw new StateError(
          `kernel: array "${name}" must be a float32 tensor of the arena with ${size} elements, got ${tensor ? `${tensor.dtype} with ${tensor.size}` : "none"}.`,
        );
      }
      return tensor.data.byteOffset;
    });
    const numbers = this.#spec.scalars.map((name) => {
      const number = scalars[name];
      if (number === undefined) throw new StateError(`kernel: number "${name}" is not given.`);
      return number;
    });
    return this.#instance(arena)(size, ...addresses, ...numbers) ?? 0;
  }

  #instance(arena: Arena): (...args: number[]) => number | undefined {
    let instance = this.#instances.get(arena);
    if (!instance) {
      const { exports } = new WebAssembly.Instance(this.#module, { env: { memory: arena.memory } });
      instance = exports["run"] as (...args: number[]) => number;
      this.#instances.set(arena, instance);
    }
    return instance;
  }
}

function write({ arrays, scalars, body }: KernelSpec): Uint8Array<ArrayBuffer> {
  if (new Set([...arrays, ...scalars]).size < arrays.length + scalars.length) {
    throw new OptionError(`kernel: names must differ, got ${[...arrays, ...scalars].join(", ")}.`);
  }
  const graph = new Graph();
  const inputs = (names: readonly string[], shape: readonly string[]): Record<string, Value> =>
    Object.fromEntries(names.map((name) => [name, graph.input(name, { shape, dtype: "float32" })]));
  const arrayIn = inputs(arrays, ["n"]);
  const scalarIn = inputs(scalars, []);
  const result = graph.trace(() => body(arrayIn, scalarIn));
  const writes = Object.entries(result.write ?? {});
  const outputs = [...writes.map(([, value]) => value), ...(result.sum ? [result.sum] : [])];
  for (const [name] of writes) {
    if (arrays.includes(name)) continue;
    throw new OptionError(`kernel: no array "${name}" — arrays are ${arrays.join(", ")}.`);
  }
  for (const { dtype } of outputs) {
    if (dtype !== "float32") {
      throw new DtypeError(`kernel: results must be float32, got ${dtype} — use where.`);
    }
  }
  const nodes = reachable(graph, outputs);

  // Parameters: elements left, addresses, numbers. Then locals: one vector a node,
  // the sum, and what is added to it.
  const params = [types.i32, ...arrays.map(() => types.i32), ...scalars.map(() => types.f32)];
  const local = new Map<Node, number>();
  nodes.forEach((node, i) => {
    local.set(node, params.length + i);
  });
  const total = params.length + nodes.length;
  const valid = total + 1;
  const locals = [...nodes.map(() => types.v128), types.v128, types.v128];
  const address = (name: string): number => 1 + arrays.indexOf(name);
  const code = new Code();
  const emit = (node: Node): void => {
    const at = local.get(node)!;
    if (node.op === "input") {
      const { name } = node.attrs as AttrsOf["input"];
      if (arrays.includes(name)) code.load(address(name));
      else {
        code.get(1 + arrays.length + scalars.indexOf(name));
        code.simd(simd.splat);
      }
    } else if (node.op === "constant") {
      const { tensor } = node.attrs as AttrsOf["constant"];
      if (tensor.size !== 1 || tensor.dtype !== "float32") {
        throw new UnsupportedError(
          `kernel: a constant must be one float32 number, got ${tensor.size} of ${tensor.dtype}.`,
        );
      }
      code.f32(tensor.numbers()[0]!);
      code.simd(simd.splat);
    } else emitOp(code, node, local);
    code.set(at);
  };
  // What is the same for every element is computed once, before the loop.
  for (const node of nodes) if (node.outputs[0]!.shape.length === 0) emit(node);
  code.whilePositive(0, () => {
    for (const node of nodes) if (node.outputs[0]!.shape.length > 0) emit(node);
    for (const [name, value] of writes) {
      code.get(address(name));
      code.get(local.get(value.node)!);
      code.store();
    }
    if (result.sum) {
      // Lanes past the end count as zero.
      code.get(local.get(result.sum.node)!);
      code.get(0);
      code.simd(simd.i32Splat);
      code.i32Vector(0, 1, 2, 3);
      code.simd(simd.i32Greater);
      code.simd(simd.and);
      code.set(valid);
      // Halves first: each addition to the total waits for the one before.
      code.get(valid);
      code.simd(simd.promoteLow);
      code.upperHalf(valid);
      code.simd(simd.promoteLow);
      code.simd(simd.f64Add);
      code.get(total);
      code.simd(simd.f64Add);
      code.set(total);
    }
    for (const name of arrays) {
      code.get(address(name));
      code.i32(16);
      code.i32Add();
      code.set(address(name));
    }
    code.get(0);
    code.i32(4);
    code.i32Sub();
    code.set(0);
  });
  if (result.sum) {
    code.get(total);
    code.f64Lane(0);
    code.get(total);
    code.f64Lane(1);
    code.bytes.push(0xa0); // f64.add
  }
  return assemble(params, result.sum ? [types.f64] : [], locals, code);
}

function emitOp(code: Code, node: Node, local: ReadonlyMap<Node, number>): void {
  const get = (i: number): void => code.get(local.get(node.inputs[i]!.node)!);
  const op = direct[node.op];
  if (op !== undefined) {
    node.inputs.forEach((_, i) => {
      get(i);
    });
    code.simd(op);
  } else if (node.op === "where") {
    get(1);
    get(2);
    get(0);
    code.simd(simd.bitselect);
  } else if (node.op === "reciprocal") {
    code.f32(1);
    code.simd(simd.splat);
    get(0);
    code.simd(simd.div);
  } else if (node.op === "sign") {
    // (0 < x) - (x < 0), as 1.0 under each mask
    const side = (negative: boolean): void => {
      code.f32(1);
      code.simd(simd.splat);
      if (negative) get(0);
      code.f32(0);
      code.simd(simd.splat);
      if (!negative) get(0);
      code.simd(simd.lt);
      code.simd(simd.and);
    };
    side(false);
    side(true);
    code.simd(simd.sub);
  } else {
    throw new UnsupportedError(
      `kernel: operator "${node.op}" is not elementwise, or has no SIMD form.`,
    );
  }
}
