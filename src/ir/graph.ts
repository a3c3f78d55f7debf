/**
 * The graph: nodes in the order they were made, hash-consed, each with one or more outputs.
 *
 * A node is made once for the same operator, inputs, attributes and region; the region keeps
 * recomputed nodes (checkpoints) from being merged back into the ones they recompute. A graph made
 * inside another (the body of a scan) sees the outer values as captures.
 */
import { DtypeError, ShapeError, StateError } from "../errors.ts";
import { type Dtype, isFloat } from "../tensor/dtype.ts";
import { type Shape, sameShape, showShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { AttrsOf, OpName } from "./attrs.ts";

/** What is known of a value before it is computed. */
export interface Spec {
  readonly shape: Shape;
  readonly dtype: Dtype;
}

export interface Node<O extends OpName = OpName> {
  readonly id: number;
  readonly op: O;
  readonly inputs: readonly Value[];
  readonly attrs: AttrsOf[O];
  readonly outputs: readonly Spec[];
  readonly region: number;
  readonly graph: Graph;
}

/** One output of a node. */
export class Value {
  readonly node: Node;
  readonly index: number;

  constructor(node: Node, index: number) {
    this.node = node;
    this.index = index;
  }

  get shape(): Shape {
    return this.node.outputs[this.index]!.shape;
  }

  get dtype(): Dtype {
    return this.node.outputs[this.index]!.dtype;
  }

  get rank(): number {
    return this.shape.length;
  }

  get graph(): Graph {
    return this.node.graph;
  }

  /** Unique within the graph. */
  get key(): string {
    return `${this.node.id}.${this.index}`;
  }
}

/** What operators take: a value of the graph, or a constant. */
export type Operand = Value | Tensor | number | boolean;

/** How an operator finds the types of its outputs; throws where the inputs do not fit. */
export type Infer<O extends OpName> = (inputs: readonly Value[], attrs: AttrsOf[O]) => Spec[];

let current: Graph | undefined;

export class Graph {
  readonly nodes: Node[] = [];
  readonly inputs: Value[] = [];
  readonly parent: Graph | undefined;
  /** Outer values that this graph uses, in the order met, with the input that stands for each. */
  readonly captures: Map<Value, Value> = new Map();
  region = 0;
  #nextRegion = 1;
  /** Captures by the key of the outer value: the same output may come as several objects. */
  readonly #inner: Map<string, Value> = new Map();
  readonly #known: Map<string, Node> = new Map();
  readonly #tensorIds: WeakMap<Tensor, number> = new WeakMap();
  #tensors = 0;

  constructor(parent?: Graph) {
    this.parent = parent;
  }

  /** The graph being traced. */
  static get current(): Graph | undefined {
    return current;
  }

  /** Makes this the graph that operators add to while `fn` runs. */
  trace<T>(fn: () => T): T {
    const outer = current;
    current = this;
    try {
      return fn();
    } finally {
      current = outer;
    }
  }

  /** Runs `fn` with nodes kept apart from equal ones made before. */
  inNewRegion<T>(fn: () => T): T {
    const outer = this.region;
    this.region = this.#nextRegion++;
    try {
      return fn();
    } finally {
      this.region = outer;
    }
  }

  input(name: string, spec: Spec): Value {
    const value = this.add("input", [], { name }, [spec], false);
    this.inputs.push(value);
    return value;
  }

  constant(tensor: Tensor): Value {
    let id = this.#tensorIds.get(tensor);
    if (id === undefined) {
      id = this.#tensors++;
      this.#tensorIds.set(tensor, id);
    }
    const scalar =
      tensor.size === 1 ? `s${tensor.numbers()[0]}:${1 / tensor.numbers()[0]!}` : `t${id}`;
    const key = `constant|${scalar}|${tensor.dtype}|${tensor.shape}`;
    const known = this.#known.get(key);
    if (known) return new Value(known, 0);
    const value = this.add("constant", [], { tensor }, [tensor], false);
    this.#known.set(key, value.node);
    return value;
  }

  /** This graph's own value for an operand: constants are lifted, outer values captured. */
  lift(operand: Operand, dtype: Dtype = "float32"): Value {
    if (typeof operand === "number") {
      if (!isFloat(dtype) && !Number.isInteger(operand)) {
        throw new DtypeError(
          `constant: ${operand} is not a whole number, but the other operand is ${dtype} — cast that one.`,
        );
      }
      return this.constant(Tensor.from([operand], [], dtype));
    }
    if (typeof operand === "boolean") {
      return this.constant(
        Tensor.from([operand ? 1 : 0], [], dtype === "float32" ? "bool" : dtype),
      );
    }
    if (operand instanceof Tensor) return this.constant(operand);
    if (operand.graph === this) return operand;
    for (let graph = this.parent; graph; graph = graph.parent) {
      if (graph !== operand.graph) continue;
      const outer = this.parent === operand.graph ? operand : this.parent!.lift(operand);
      let inner = this.#inner.get(outer.key);
      if (!inner) {
        // A constant is cheaper to repeat than to pass.
        if (outer.node.op === "constant") {
          return this.constant((outer.node.attrs as AttrsOf["constant"]).tensor);
        }
        inner = this.add("input", [], { name: `capture${this.captures.size}` }, [outer], false);
        this.captures.set(outer, inner);
        this.#inner.set(outer.key, inner);
      }
      return inner;
    }
    throw new StateError(
      `${operand.node.op}: a value of another trace was used — return it from its function and pass it in.`,
    );
  }

  add<O extends OpName>(
    op: O,
    inputs: readonly Value[],
    attrs: AttrsOf[O],
    outputs: readonly Spec[],
    share = true,
  ): Value {
    let key: string | undefined;
    if (share) {
      key = `${op}|${inputs.map((v) => v.key).join()}|${JSON.stringify(attrs, exactNumber)}|${this.region}`;
      const known = this.#known.get(key);
      if (known) return new Value(known, 0);
    }
    const node: Node = {
      id: this.nodes.length,
      op,
      inputs,
      attrs,
      outputs: outputs.map(({ shape, dtype }) => ({ shape, dtype })),
      region: this.region,
      graph: this,
    };
    this.nodes.push(node);
    if (key !== undefined) this.#known.set(key, node);
    return new Value(node, 0);
  }
}

/** JSON writes NaN, infinities and -0 alike; keys must not. */
function exactNumber(_: string, value: unknown): unknown {
  if (typeof value !== "number") return value;
  return Number.isFinite(value) && !Object.is(value, -0) ? value : `#${1 / value}:${value}`;
}

/** All outputs of a value's node. */
export function outputsOf(value: Value): Value[] {
  return value.node.outputs.map((_, i) => new Value(value.node, i));
}

/** The graph to build in: the one being traced, or that of an operand. */
export function graphFor(where: string, operands: readonly Operand[]): Graph {
  if (current) return current;
  for (const operand of operands) if (operand instanceof Value) return operand.graph;
  throw new StateError(
    `${where}: called outside a trace with constants alone — use it inside compile(fn), or eager(backend).${where}(…).`,
  );
}

/** @throws DtypeError unless the value has one of the types. */
export function needDtype(where: string, value: Spec, ...dtypes: readonly Dtype[]): void {
  if (!dtypes.includes(value.dtype)) {
    throw new DtypeError(`${where}: needs ${dtypes.join(" or ")}, got ${value.dtype} — cast it.`);
  }
}

/** @throws DtypeError unless both have the same type. */
export function needSameDtype(where: string, a: Spec, b: Spec): void {
  if (a.dtype !== b.dtype) {
    throw new DtypeError(`${where}: types differ, ${a.dtype} and ${b.dtype} — cast one.`);
  }
}

/** @throws ShapeError unless the shapes are equal. */
export function needSameShape(where: string, a: Spec, b: Spec): void {
  if (!sameShape(a.shape, b.shape)) {
    throw new ShapeError(
      `${where}: shapes differ, ${showShape(a.shape)} and ${showShape(b.shape)}.`,
    );
  }
}

/** @throws ShapeError unless the value has the rank. */
export function needRank(where: string, value: Spec, rank: number): void {
  if (value.shape.length !== rank) {
    throw new ShapeError(
      `${where}: needs ${rank} dimensions, got shape ${showShape(value.shape)}.`,
    );
  }
}
