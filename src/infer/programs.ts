/** The programs of a decoder: each is loaded when it is first asked for. */
import { contextOf, joinContexts, numbersOf, spreadPast } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { LoraBank } from "../adapters/bank.ts";
import { type AnyTensor, type Backend, type Executable, runAnywhere } from "../backend/backend.ts";
import { type SpecTree, spec, trace } from "../backend/compile.ts";
import { place, releaseAll } from "../backend/place.ts";
import type { ValueTree } from "../ir/control.ts";
import type { Spec, Value } from "../ir/graph.ts";
import type { ForwardOptions, LanguageModel, LayerPast } from "../models/model.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { StateForm } from "./state.ts";

export interface ProgramOptions {
  readonly adapter?: LoadedAdapter;
  readonly bank?: LoraBank;
  readonly form?: (base: ValueRecord) => ContextOptions;
  /** Keep the base weights in the sessions that make tokens. */
  readonly prepack: boolean;
}

/** What of a forward pass a program is given beside weights, as specs and as what they mean. */
interface Given<V> {
  readonly specs: readonly SpecTree[];
  readonly read: (values: readonly V[]) => { ids: Value } & ForwardOptions;
}

export class DecoderPrograms {
  readonly #model: LanguageModel;
  readonly #params: TensorRecord;
  readonly #backend: Backend;
  readonly #state: StateForm;
  readonly #options: ProgramOptions;
  readonly #loaded: Map<string, Promise<Executable>> = new Map();
  /** The base weights where the backend keeps them. */
  #base: Promise<Readonly<Record<string, AnyTensor>>> | undefined;

  constructor(
    model: LanguageModel,
    params: TensorRecord,
    backend: Backend,
    state: StateForm,
    options: ProgramOptions,
  ) {
    this.#model = model;
    this.#params = params;
    this.#backend = backend;
    this.#state = state;
    this.#options = options;
  }

  /**
   * Keys and values of layer after layer that an adapter puts before every sequence, (1, Hkv, P, D) each, as
   * its numbers are now; none without one that does.
   */
  async front(): Promise<readonly Tensor[]> {
    const { adapter, form } = this.#options;
    const past = adapter?.adapter.past;
    if (!past) return [];
    let loaded = this.#loaded.get("front");
    if (!loaded) {
      const traced = trace(
        ((own: ValueRecord, base: ValueRecord) => {
          const options = joinContexts(form?.(base) ?? {}, adapter.adapter.context(own));
          const layers = past(own, this.#model, this.#model.context(base, {}, options));
          return layers.flatMap(({ keys, values }) => [keys, values]);
        }) as never,
        [this.#ownSpecs(), this.#params],
      );
      loaded = this.#backend.load(traced.program);
      this.#loaded.set("front", loaded);
    }
    return this.run(await loaded, undefined, true, []);
  }

  /**
   * Reads prompts: ids (rows, length), positions where the model needs them, last tokens (rows,), what an
   * adapter puts before them.
   */
  prefill(length: number): Promise<Executable> {
    const ids = spec(["rows", length], "int32");
    const hasPositions = this.#model.cacheLimit !== undefined;
    const { nLayers, nKvHeads, headDim } = this.#model.sizes;
    const count = this.#options.adapter?.adapter.virtualTokens ?? 0;
    const kv = spec([1, nKvHeads, count, headDim]);
    const front = Array.from({ length: count > 0 ? nLayers : 0 }, () => ({ keys: kv, values: kv }));
    return this.#program(`prefill ${length}`, false, {
      specs: [ids, hasPositions ? [ids] : [], spec(["rows"], "int32"), front],
      read: ([tokens, at, rows, before]: readonly unknown[]) => {
        const positions = (at as readonly Value[])[0];
        const layers = before as readonly LayerPast[];
        return {
          ...(layers.length > 0 && { past: spreadPast(layers, "rows") }),
          ids: tokens as Value,
          rows: rows as Value,
          ...this.#state.padded(rows as Value, length),
          ...(positions && { positions }),
        };
      },
    });
  }

  /** Reads more tokens: ids and positions (rows, length), the state, last tokens (rows,). */
  extend(length: number): Promise<Executable> {
    const ids = spec(["rows", length], "int32");
    return this.#program(`extend ${length}`, false, {
      specs: [ids, ids, this.#state.specs, spec(["rows"], "int32")],
      read: ([tokens, positions, state, rows]: readonly unknown[]) => ({
        ids: tokens as Value,
        positions: positions as Value,
        rows: rows as Value,
        ...this.#state.given(state as ValueTree),
        ...this.#state.padded(rows as Value, length),
      }),
    });
  }

  /** Makes a token for every row: ids and positions (rows, 1), the state. */
  step(): Promise<Executable> {
    const ids = spec(["rows", 1], "int32");
    return this.#program("step", this.#options.prepack, {
      specs: [ids, ids, this.#state.specs],
      read: ([tokens, positions, state]: readonly unknown[]) => ({
        ids: tokens as Value,
        positions: positions as Value,
        ...this.#state.given(state as ValueTree),
      }),
    });
  }

  /** Reads a tree of tokens: ids and positions (rows, nodes), the mask (1, 1, nodes, nodes), the state. */
  tree(): Promise<Executable> {
    const ids = spec(["rows", "nodes"], "int32");
    return this.#program("tree", this.#options.prepack, {
      specs: [ids, ids, spec([1, 1, "nodes", "nodes"], "bool"), this.#state.specs],
      read: ([tokens, positions, mask, state]: readonly unknown[]) => ({
        ids: tokens as Value,
        positions: positions as Value,
        mask: mask as Value,
        ...this.#state.given(state as ValueTree),
      }),
    });
  }

  /**
   * Runs a program on the adapter's numbers, the base weights if it takes them, and more.
   * @param slots a bank's numbers and slots, which stand in for an adapter's
   */
  async run(
    executable: Executable,
    slots: TensorRecord | undefined,
    withBase: boolean,
    inputs: readonly Tensor[],
  ): Promise<Tensor[]> {
    if (withBase) this.#base ??= place(this.#params, this.#backend.device);
    const base = withBase ? Object.values((await this.#base)!) : [];
    const { adapter } = this.#options;
    const own = Object.values(adapter ? numbersOf(adapter) : (slots ?? {}));
    return (await runAnywhere(executable, [...own, ...base, ...inputs])) as Tensor[];
  }

  async release(): Promise<void> {
    for (const loaded of this.#loaded.values()) await (await loaded).release();
    this.#loaded.clear();
    // What failed to be placed holds nothing.
    if (this.#base) releaseAll(Object.values(await this.#base.catch(() => ({}))));
    this.#base = undefined;
  }

  /** Logits, and what the state becomes. */
  #program(name: string, isFrozen: boolean, given: Given<unknown>): Promise<Executable> {
    let loaded = this.#loaded.get(name);
    if (!loaded) {
      loaded = this.#load(isFrozen, given);
      this.#loaded.set(name, loaded);
    }
    return loaded;
  }

  #load(isFrozen: boolean, given: Given<unknown>): Promise<Executable> {
    const traced = trace(
      ((own: ValueRecord, base: ValueRecord, ...values: readonly unknown[]) => {
        const { ids, ...options } = given.read(values);
        const result = this.#model.forward(this.#context(own, base), ids, options);
        return [result.logits, this.#state.outputs(result)];
      }) as never,
      [this.#ownSpecs(), this.#params, ...given.specs],
    );
    if (!isFrozen) return this.#backend.load(traced.program);
    const frozen = new Map(
      Object.entries(this.#params).map(([path, tensor]) => [`1.${path}`, tensor]),
    );
    return this.#backend.load(traced.program, { frozen });
  }

  #context(own: ValueRecord, base: ValueRecord): ReturnType<LanguageModel["context"]> {
    const { adapter, bank, form } = this.#options;
    const options = bank ? bank.context(own) : contextOf(adapter, this.#model, own);
    return this.#model.context(base, {}, joinContexts(form?.(base) ?? {}, options));
  }

  /** Shapes of what comes before the base weights: an adapter's numbers, or a bank's and what rows take of them. */
  #ownSpecs(): Readonly<Record<string, Spec>> {
    const { adapter, bank } = this.#options;
    return bank ? bank.specs : numbersOf(adapter);
  }
}
