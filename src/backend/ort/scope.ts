/** An ONNX graph in the making: names, constants, and the shapes that only a run knows. */
import { UnsupportedError } from "../../errors.ts";
import { type OnnxAttribute, type OnnxNode, type OnnxTensor, onnxTypes } from "../../io/onnx.ts";
import type { Node, Value } from "../../ir/graph.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import { type Dim, isStatic, type Shape } from "../../tensor/shape.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import type { OrtTarget } from "./target.ts";

export const ints: (values: readonly number[]) => OnnxAttribute = (
  values: readonly number[],
): OnnxAttribute => ({ ints: values });
export const int: (value: number | boolean) => OnnxAttribute = (
  value: number | boolean,
): OnnxAttribute => ({ int: Number(value) });

/** One ONNX graph being written; bodies of loops are scopes within it. */
export class Scope {
  readonly nodes: OnnxNode[] = [];
  readonly initializers: OnnxTensor[] = [];
  readonly names: Map<string, string> = new Map();
  readonly #constants: Map<string, string> = new Map();
  readonly #prefix: string;
  readonly #outer: Scope | undefined;
  readonly counter: { next: number };
  readonly target: OrtTarget;
  /** Which outputs of a node anyone reads. */
  readonly used: Map<Node, Set<number>> = new Map();
  /** Where a symbol's size can be read: an input and its axis. */
  readonly symbols: Map<string, readonly [string, number]>;

  constructor(target: OrtTarget, outer?: Scope) {
    this.target = target;
    this.#outer = outer;
    this.counter = outer?.counter ?? { next: 0 };
    this.symbols = outer?.symbols ?? new Map();
    this.#prefix = outer ? `s${this.counter.next++}_` : "";
  }

  fresh(): string {
    return `${this.#prefix}t${this.counter.next++}`;
  }

  name(value: Value): string {
    return this.names.get(value.key)!;
  }

  node(
    op: string,
    inputs: readonly string[],
    attributes: Readonly<Record<string, OnnxAttribute>> = {},
    domain = "",
  ): string {
    return this.nodeMany(op, inputs, 1, attributes, domain)[0]!;
  }

  nodeMany(
    op: string,
    inputs: readonly string[],
    count: number,
    attributes: Readonly<Record<string, OnnxAttribute>> = {},
    domain = "",
  ): string[] {
    const outputs = Array.from({ length: count }, () => this.fresh());
    this.nodes.push({ op, domain, inputs, outputs, attributes });
    return outputs;
  }

  initializer(type: Dtype, dims: readonly number[], data: ArrayBufferView): string {
    const name = this.fresh();
    const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    this.initializers.push({ name, type, dims, data: bytes });
    return name;
  }

  /** Whether a value is in the model, not made at a run. */
  isStored(name: string): boolean {
    return this.initializers.some((one) => one.name === name) || !!this.#outer?.isStored(name);
  }

  /** int64 numbers, shared within the scope. */
  int64(values: readonly number[], scalar = false): string {
    const key = `${scalar}${values.join()}`;
    let name = this.#constants.get(key);
    if (name === undefined) {
      const data = BigInt64Array.from(values, BigInt);
      name = this.initializer("int64", scalar ? [] : [values.length], data);
      this.#constants.set(key, name);
    }
    return name;
  }

  cast(name: string, to: Dtype): string {
    return this.node("Cast", [name], { to: int(onnxTypes[to]) });
  }

  /** A shape as a tensor; symbols are read from the inputs that bind them. */
  shapeTensor(shape: Shape): string {
    if (isStatic(shape)) return this.int64(shape);
    return this.node(
      "Concat",
      shape.map((dim) => this.#dimTensor(dim)),
      { axis: int(0) },
    );
  }

  #dimTensor(dim: Dim): string {
    if (typeof dim === "number") return this.int64([dim]);
    const source = this.symbols.get(dim);
    if (source) {
      const whole = this.node("Shape", [source[0]]);
      return this.node("Gather", [whole, this.int64([source[1]])], { axis: int(0) });
    }
    for (const [separator, op] of [
      ["+", "Add"],
      ["*", "Mul"],
    ] as const) {
      if (!dim.includes(separator)) continue;
      const parts = dim
        .split(separator)
        .map((part) => this.#dimTensor(/^\d+$/.test(part) ? Number(part) : part));
      return parts.reduce((a, b) => this.node(op, [a, b]));
    }
    throw new UnsupportedError(`lower: size "${dim}" is not bound by any input.`);
  }
}

export function expandTo(scope: Scope, x: string, from: Shape, shape: Shape): string {
  // Keeping a size needs no knowledge of it: 1 broadcasts to what is there.
  const lead = shape.length - from.length;
  const asked = shape.map((dim, i) =>
    typeof dim === "string" && from[i - lead] === dim ? 1 : dim,
  );
  return scope.node("Expand", [x, scope.shapeTensor(asked)]);
}

export function constant(scope: Scope, tensor: Tensor): string {
  return scope.initializer(tensor.dtype, tensor.shape, tensor.data);
}

export function reshape(scope: Scope, x: string, from: Shape, to: Shape): string {
  // Without allowzero a 0 stands for the size that the input has there.
  const literal = { allowzero: int(1) };
  if (isStatic(to)) {
    return scope.node("Reshape", [x, scope.int64(to)], to.includes(0) ? literal : {});
  }
  const asked = to.map((dim, i) => (typeof dim === "string" && from[i] === dim ? 0 : dim));
  const open = asked.filter((dim) => typeof dim === "string");
  if (open.length > 1 || to.includes(0)) {
    return scope.node("Reshape", [x, scope.shapeTensor(to)], literal);
  }
  // One size may be left to work out, -1.
  const target = asked.map((dim) => (typeof dim === "string" ? -1 : dim));
  return scope.node("Reshape", [x, scope.int64(target)]);
}
