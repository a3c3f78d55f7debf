/**
 * Modules declare parameters and state; values come from outside at each call.
 *
 * A module is a tree whose paths are checkpoint keys. `apply` runs it as a pure function
 * `(params, state, inputs) → (outputs, newState)`: parameters and state are flat records by path.
 */
import { MissingError, ShapeError } from "../errors.ts";
import type { Spec, Value } from "../ir/graph.ts";
import type { Dtype } from "../tensor/dtype.ts";
import type { Rng } from "../tensor/rng.ts";
import { type Dim, type StaticShape, sameShape, showShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Numbers for a new parameter of a shape. */
export type Initializer = (rng: Rng, shape: StaticShape) => Float32Array<ArrayBuffer>;

/** A slot that the caller fills: a trained parameter, or state that changes without a gradient. */
export class Slot implements Spec {
  readonly kind: "parameter" | "state";
  readonly shape: StaticShape;
  readonly dtype: Dtype;
  readonly init: Initializer;

  constructor(
    kind: "parameter" | "state",
    shape: StaticShape,
    init: Initializer,
    dtype: Dtype = "float32",
  ) {
    this.kind = kind;
    this.shape = shape;
    this.init = init;
    this.dtype = dtype;
  }
}

export type ValueRecord = Readonly<Record<string, Value>>;
export type TensorRecord = Record<string, Tensor>;

/** What a block tells of a place inside it, beside the input and output that stand there. */
export interface Place {
  /** The residual stream that the output is added to, (B·T, D). */
  readonly stream?: Value;
  /** Rows and tokens of the batch. */
  readonly size?: readonly [batch: Dim, length: Dim];
  /** Attention's probabilities, (B, H, T, S); the same nodes as those it computes with. */
  readonly attention?: () => Value;
}

/** Wraps a module's output where an adapter sits: (input, base output) → output. */
export type SiteFn = (input: Value, output: Value, context: Context, place: Place) => Value;

/**
 * Wraps a whole forward pass: a first pass that steers the second, keys that stand before all others.
 * `forward` runs the model's own pass and is not wrapped again.
 */
export type AroundFn = <I, O, R>(
  forward: (context: Context, input: I, options: O) => R,
  context: Context,
  input: I,
  options: O,
) => R;

/** Random numbers for a named site of a step: uniform in [0, 1), of the given shape. */
export type Noise = (site: string, shape: StaticShape) => Value;

export interface ContextOptions {
  /** Dropout on, batch statistics used and updated; default false. */
  readonly training?: boolean;
  readonly noise?: Noise;
  readonly sites?: ReadonlyMap<Module, SiteFn>;
  /** Values in place of parameters as stored (a delta added, a quantised base): by slot. */
  readonly replace?: ReadonlyMap<Slot, (context: Context) => Value>;
  /** Layers that compute with their weight in another form than a float matrix. */
  readonly linear?: ReadonlyMap<Module, (input: Value, context: Context) => Value>;
  /** Their weights as float matrices (out, in), for what must see them. */
  readonly weights?: ReadonlyMap<Module, (context: Context) => Value>;
  /** Stands around the model's forward pass. */
  readonly around?: AroundFn | undefined;
  /** Values that hold for a whole pass and are read at sites, by name. */
  readonly signals?: ValueRecord;
  /** Recompute blocks in the backward pass instead of keeping their insides. */
  readonly checkpoint?: boolean;
}

/** What a forward pass reads: values of slots, the mode, adapters. */
export class Context {
  readonly training: boolean;
  readonly options: ContextOptions;
  readonly #values: ReadonlyMap<Slot, Value>;
  readonly #paths: ReadonlyMap<Slot | Module, string>;
  readonly #updates: Map<Slot, Value>;

  constructor(
    values: ReadonlyMap<Slot, Value>,
    paths: ReadonlyMap<Slot | Module, string>,
    options: ContextOptions,
    updates: Map<Slot, Value> = new Map(),
  ) {
    this.#values = values;
    this.#paths = paths;
    this.#updates = updates;
    this.training = options.training ?? false;
    this.options = options;
  }

  /**
   * The value of a slot; state as updated so far.
   * @throws MissingError when the caller gave none.
   */
  get(slot: Slot): Value {
    const replaced = this.options.replace?.get(slot);
    return replaced ? replaced(this) : this.stored(slot);
  }

  /**
   * The same without what stands in for it: what `replace` changes.
   * @throws MissingError when the caller gave none.
   */
  stored(slot: Slot): Value {
    const value = this.#updates.get(slot) ?? this.#values.get(slot);
    if (value) return value;
    throw new MissingError(
      `apply: no value for "${this.#paths.get(slot) ?? "a slot of another module"}".`,
    );
  }

  /** Sets the new value of state; the host decides when it is committed. */
  set(slot: Slot, value: Value): void {
    this.#updates.set(slot, value);
  }

  get updates(): ReadonlyMap<Slot, Value> {
    return this.#updates;
  }

  /** The same values and state, with other options in place of some. */
  with(options: ContextOptions): Context {
    const all = { ...this.options, ...options };
    return new Context(this.#values, this.#paths, all, this.#updates);
  }

  /** Where a module or slot stands in the tree. */
  path(item: Module | Slot): string {
    return this.#paths.get(item) ?? "";
  }

  /** A module's output as adapters leave it. */
  site(module: Module, input: Value, output: Value, place: Place = {}): Value {
    const wrap = this.options.sites?.get(module);
    return wrap ? wrap(input, output, this, place) : output;
  }
}

/** A part of a model: slots of its own and named children. */
export abstract class Module {
  readonly #slots: [string, Slot][] = [];
  readonly #children: [string, Module][] = [];

  protected parameter(name: string, shape: StaticShape, init: Initializer): Slot {
    const slot = new Slot("parameter", shape, init);
    this.#slots.push([name, slot]);
    return slot;
  }

  protected state(
    name: string,
    shape: StaticShape,
    init: Initializer,
    dtype: Dtype = "float32",
  ): Slot {
    const slot = new Slot("state", shape, init, dtype);
    this.#slots.push([name, slot]);
    return slot;
  }

  protected child<M extends Module>(name: string, module: M): M {
    this.#children.push([name, module]);
    return module;
  }

  /** This module and all below it, by path; the root's path is empty. */
  *modules(prefix = ""): IterableIterator<[path: string, module: Module]> {
    yield [prefix, this];
    for (const [name, child] of this.#children) {
      yield* child.modules(prefix === "" ? name : `${prefix}.${name}`);
    }
  }

  /** Every slot by path, in order of declaration. */
  *slots(): IterableIterator<[path: string, slot: Slot]> {
    for (const [path, module] of this.modules()) {
      for (const [name, slot] of module.#slots)
        yield [path === "" ? name : `${path}.${name}`, slot];
    }
  }

  /** New numbers for every slot; each depends on the seed and its path alone. */
  init(rng: Rng): { params: TensorRecord; state: TensorRecord } {
    const params: TensorRecord = {};
    const state: TensorRecord = {};
    for (const [path, slot] of this.slots()) {
      const numbers = slot.init(rng.fold(path), slot.shape);
      (slot.kind === "parameter" ? params : state)[path] = Tensor.from(
        numbers,
        slot.shape,
        slot.dtype,
      );
    }
    return { params, state };
  }

  /** Specs of parameters and state, for tracing. */
  specs(): { params: Record<string, Spec>; state: Record<string, Spec> } {
    const params: Record<string, Spec> = {};
    const state: Record<string, Spec> = {};
    for (const [path, slot] of this.slots()) {
      (slot.kind === "parameter" ? params : state)[path] = slot;
    }
    return { params, state };
  }

  /** A context in which this module's slots have the given values. */
  context(params: ValueRecord, state: ValueRecord = {}, options: ContextOptions = {}): Context {
    const values = new Map<Slot, Value>();
    const paths = new Map<Slot | Module, string>();
    for (const [path, module] of this.modules()) paths.set(module, path);
    for (const [path, slot] of this.slots()) {
      paths.set(slot, path);
      const value = params[path] ?? state[path];
      if (!value) continue;
      if (!sameShape(value.shape, slot.shape)) {
        throw new ShapeError(
          `apply: "${path}" must have shape ${showShape(slot.shape)}, got ${showShape(value.shape)}.`,
        );
      }
      values.set(slot, value);
    }
    return new Context(values, paths, options);
  }

  /** Runs `forward` as a pure function; returns its result and the new state. */
  apply<R>(
    params: ValueRecord,
    state: ValueRecord,
    forward: (context: Context) => R,
    options: ContextOptions = {},
  ): [result: R, newState: Record<string, Value>] {
    const context = this.context(params, state, options);
    const result = forward(context);
    const newState: Record<string, Value> = { ...state };
    for (const [slot, value] of context.updates) newState[context.path(slot)] = value;
    return [result, newState];
  }
}

/** Modules in order, named 0, 1, 2 …: blocks of a model. */
export class ModuleList<M extends Module> extends Module {
  readonly items: readonly M[];

  constructor(items: readonly M[]) {
    super();
    this.items = items.map((item, i) => this.child(String(i), item));
  }
}
