/**
 * What a decoder carries between tokens: keys and values, or what a recurrent model declares as its state.
 * It is an input of the next program; what a program gives is committed by the host.
 */
import { spec } from "../backend/compile.ts";
import { UnsupportedError } from "../errors.ts";
import type { ValueTree } from "../ir/control.ts";
import { add, mul, sub } from "../ir/elementwise.ts";
import type { Spec, Value } from "../ir/graph.ts";
import type {
  CarriedState,
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  LayerPast,
} from "../models/model.ts";
import { indicesTo } from "../nn/attention.ts";
import { type StaticShape, sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Tree } from "../tensor/tree.ts";
import { KvCache } from "./cache.ts";

/** The tokens that each of some rows has read, as programs take them in. */
export interface TokenState {
  readonly rows: number;
  /** Tokens of each row. */
  readonly lengths: Int32Array<ArrayBuffer>;
  /** Keys and values that an adapter puts before every row, as given to `create`; default none. */
  readonly front?: readonly Tensor[];
  /** In the order of `StateForm.specs`. */
  readonly inputs: readonly Tensor[];
  /** Makes room for `length` tokens a row. */
  reserve(length: number): void;
  /** Forgets tokens from position `length` on, or, where that cannot be, more; shorter rows stay. */
  truncate(length: number): void;
  /** What a program gave after reading `counts[row]` more tokens of each row. */
  commit(outputs: readonly Tensor[], counts: ArrayLike<number>): void;
}

/** How a model's state goes into programs and comes out of them. */
export interface StateForm {
  /** Of the inputs; rows are "rows". */
  readonly specs: Tree<Spec>;
  /** @param front keys and values of one layer after another that stand before every row, (1, Hkv, P, D) */
  create(rows: number, room: number, front?: readonly Tensor[]): TokenState;
  /** What a forward pass takes of the inputs. */
  given(inputs: ValueTree): ForwardOptions;
  /**
   * What it must know of padding at the end.
   * @param last of each row its last token among all, (rows,)
   */
  padded(last: Value, length: number): ForwardOptions;
  /** What is committed. */
  outputs(result: ForwardResult): Value[];
}

/**
 * By what the model declares.
 * @param passes forward passes whose keys and values are kept, the first one's first
 * @throws UnsupportedError for several passes of a model that carries a state.
 */
export function stateForm(model: LanguageModel, passes: number = 1): StateForm {
  if (!model.stateShapes) return keysAndValues(model, passes);
  if (passes === 1) return recurrent(model.stateShapes);
  throw new UnsupportedError(
    `decoder: ${model.family} carries a state between tokens, and an adapter of ${passes} passes needs keys and values.`,
  );
}

function keysAndValues(model: LanguageModel, passes: number): StateForm {
  const sizes = { ...model.sizes, nLayers: model.sizes.nLayers * passes };
  const { nLayers, nKvHeads, headDim } = sizes;
  const kv = spec(["rows", nKvHeads, "past", headDim]);
  return {
    specs: {
      layers: Array.from({ length: nLayers }, () => ({ keys: kv, values: kv })),
      mask: spec(["rows", 1, 1, "past"]),
    },
    create: (rows, room, front) => new KvCache(sizes, rows, room, front),
    given: (inputs) => ({
      past: inputs as unknown as { readonly layers: readonly LayerPast[]; readonly mask: Value },
    }),
    // Padding stands behind all tokens that are looked at, and causal attention does not see it.
    padded: () => ({}),
    outputs: ({ present }) => present.flatMap(({ keys, values }) => [keys, values]),
  };
}

function recurrent(shapes: Readonly<Record<string, StaticShape>>): StateForm {
  const names = Object.keys(shapes);
  return {
    specs: Object.fromEntries(names.map((name) => [name, spec(["rows", ...shapes[name]!])])),
    create: (rows) => new RowStates(shapes, rows),
    given: (inputs) => ({ state: inputs as CarriedState }),
    padded: (last, length) => {
      const starts = mul(indicesTo(last.graph, last.shape[0]!), length);
      return { lengths: add(sub(last, starts), 1) };
    },
    outputs: ({ state }) => names.map((name) => state![name]!),
  };
}

interface Moment {
  readonly lengths: Int32Array<ArrayBuffer>;
  readonly tensors: readonly Tensor[];
}

/**
 * States of rows by name, zeros before the first token, each (rows, …). A state cannot be cut: besides the
 * newest, that after the last prompt is kept, to which `truncate` goes back.
 */
export class RowStates implements TokenState {
  readonly rows: number;
  readonly #shapes: Readonly<Record<string, StaticShape>>;
  readonly #empty: Moment;
  #now: Moment;
  #afterPrompt: Moment;

  constructor(shapes: Readonly<Record<string, StaticShape>>, rows: number) {
    this.rows = rows;
    this.#shapes = shapes;
    const tensors = Object.values(shapes).map((shape) => Tensor.zeros([rows, ...shape], "float32"));
    this.#empty = { lengths: new Int32Array(rows), tensors };
    this.#now = this.#empty;
    this.#afterPrompt = this.#empty;
  }

  get lengths(): Int32Array<ArrayBuffer> {
    return this.#now.lengths;
  }

  get inputs(): readonly Tensor[] {
    return this.#now.tensors;
  }

  /** The state by name; its numbers must not be changed. */
  get tensors(): Readonly<Record<string, Tensor>> {
    const { tensors } = this.#now;
    return Object.fromEntries(Object.keys(this.#shapes).map((name, i) => [name, tensors[i]!]));
  }

  /** A state has one size, however many tokens it has read. */
  reserve(): void {}

  truncate(length: number): void {
    const [now, early, empty] = [this.#now, this.#afterPrompt, this.#empty];
    if (now.lengths.every((held) => held <= length)) return;
    const from = Array.from(
      { length: this.rows },
      (_, row) => [now, early].find(({ lengths }) => lengths[row]! <= length) ?? empty,
    );
    this.#now = {
      lengths: Int32Array.from(from, ({ lengths }, row) => lengths[row]!),
      tensors: Object.values(this.#shapes).map((shape, i) => {
        const size = sizeOf(shape);
        const data = new Float32Array(this.rows * size);
        from.forEach(({ tensors }, row) => {
          const source = tensors[i]!.data as Float32Array;
          data.set(source.subarray(row * size, (row + 1) * size), row * size);
        });
        return new Tensor("float32", [this.rows, ...shape], data);
      }),
    };
    this.#afterPrompt = this.#now;
  }

  commit(outputs: readonly Tensor[], counts: ArrayLike<number>): void {
    const lengths = this.#now.lengths.map((held, row) => held + counts[row]!);
    this.#now = { lengths, tensors: outputs };
    if (Array.from(counts).some((count) => count > 1)) this.#afterPrompt = this.#now;
  }

  /** As it is now, to go on from twice. */
  clone(): RowStates {
    const copy = new RowStates(this.#shapes, this.rows);
    [copy.#now, copy.#afterPrompt] = [this.#now, this.#afterPrompt];
    return copy;
  }
}
