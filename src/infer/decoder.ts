/**
 * Generation with a state between tokens: keys and values, or what a recurrent model carries. Programs: one reads prompts (rows symbolic, a few lengths),
 * one makes a token for every row (rows and past symbolic, base weights in the session), and one, used
 * with a `PromptMemory`, reads what a prompt adds to an earlier one.
 */
import type { Adapter } from "../adapters/adapter.ts";
import type { LoraBank } from "../adapters/bank.ts";
import { type AnyTensor, type Backend, type Executable, runAnywhere } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { place, releaseAll } from "../backend/place.ts";
import { OptionError, StateError } from "../errors.ts";
import type { ValueTree } from "../ir/control.ts";
import type { Spec, Value } from "../ir/graph.ts";
import type { LanguageModel } from "../models/model.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { PromptMemory } from "./memory.ts";
import {
  checkSampling,
  logprobsOf,
  type SampleOptions,
  sample,
  TokenHistory,
  type TokenLogprob,
} from "./sample.ts";
import { readSlots, SlotsOfRows, slotsName } from "./slots.ts";
import { type StateForm, stateForm, type TokenState } from "./state.ts";

export interface DecoderOptions {
  readonly adapter?: { readonly adapter: Adapter; readonly params: TensorRecord };
  /** Adapters by slot instead, one for each row of a batch: `slots` of a call choose. */
  readonly bank?: LoraBank;
  /** For base weights in another form, as those of `quantizeModel`: its `context`. */
  readonly form?: (base: ValueRecord) => ContextOptions;
  /**
   * Keep the base weights in the one-token session, prepacked: faster a token, twice the memory and
   * slower to load. Default true; not where the backend keeps weights on a device.
   */
  readonly prepack?: boolean;
  /**
   * Compute a single prompt in two equal rows, so that it gets the very bits that it gets in a batch: a
   * product with one row may differ in the last ones. Default true; false is faster, most with packed weights.
   */
  readonly batchExact?: boolean;
}

export interface GenerateOptions extends SampleOptions {
  /** Tokens to make at most; default 64. */
  readonly maxNewTokens?: number;
  /** Ends a row; the token itself is not returned. */
  readonly stopIds?: readonly number[];
  readonly seed?: number;
  /** Called with each new token of a row. */
  readonly onToken?: (row: number, token: number) => void;
  /** Asked after `onToken`; true ends the row, whose token stays. */
  readonly isEnd?: (row: number, token: number) => boolean;
  /**
   * Return the log-probability of each token, and those of so many likeliest ones, in [0, 20]; by the
   * model itself, before penalties, temperature and filters. Default: none.
   */
  readonly logprobs?: number;
  /** Keys and values of an earlier call: what a single prompt shares with it is not read again. */
  readonly memory?: PromptMemory;
  /** The bank's slot for each prompt; default 0, the base model, for all. */
  readonly slots?: readonly number[];
  /** Ends all rows after the token that is being computed. */
  readonly signal?: AbortSignal;
}

/**
 * Why a row ended: a stop token or `isEnd`; `maxNewTokens` or the model's last position; the signal.
 */
export type FinishReason = "stop" | "length" | "aborted";

/** A log-probability and those of the likeliest tokens in its place. */
export type ChosenLogprob = TokenLogprob & { readonly top: readonly TokenLogprob[] };

/** A prompt's continuation. */
export interface Completion {
  /** Without the stopping token. */
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly finishReason: FinishReason;
  /** One for each token, when they were asked for. */
  readonly logprobs?: readonly ChosenLogprob[];
}

export class Decoder {
  readonly #model: LanguageModel;
  readonly #params: TensorRecord;
  readonly #adapter: DecoderOptions["adapter"];
  readonly #bank: LoraBank | undefined;
  readonly #form: DecoderOptions["form"];
  readonly #state: StateForm;
  readonly #slots: WeakMap<TokenState, SlotsOfRows> = new WeakMap();
  /** Who owns a memory that was filled through a slot: another one after each change of the slot. */
  readonly #owners: WeakMap<object, object> = new WeakMap();
  /** How long each row of a cache was when it was read last. */
  readonly #readAt: WeakMap<TokenState, readonly number[]> = new WeakMap();
  readonly #backend: Backend;
  readonly #prepack: boolean;
  readonly #leastRows: number;
  readonly #prefills: Map<number, Promise<Executable>> = new Map();
  readonly #extends: Map<number, Promise<Executable>> = new Map();
  #step: Promise<Executable> | undefined;
  /** The base weights where the backend keeps them. */
  #base: Promise<Readonly<Record<string, AnyTensor>>> | undefined;
  #released = false;

  constructor(
    model: LanguageModel,
    params: TensorRecord,
    backend: Backend,
    options: DecoderOptions = {},
  ) {
    this.#model = model;
    this.#state = stateForm(model);
    this.#params = params;
    this.#backend = backend;
    if (options.adapter && options.bank) {
      throw new OptionError("decoder: takes an adapter or a bank, got both — fill a slot with it.");
    }
    this.#adapter = options.adapter;
    this.#bank = options.bank;
    this.#form = options.form;
    this.#prepack = backend.device === undefined && (options.prepack ?? true);
    this.#leastRows = (options.batchExact ?? true) ? 2 : 1;
  }

  /**
   * Continues each prompt.
   * @param prompts token ids, at least one each
   * @returns new token ids per prompt, without the stopping token
   * @throws OptionError when a prompt is empty, or too long for the model's positions.
   */
  async generate(
    prompts: readonly Int32Array[],
    options: GenerateOptions = {},
  ): Promise<Int32Array<ArrayBuffer>[]> {
    return (await this.complete(prompts, options)).map(({ tokens }) => tokens);
  }

  /** As `generate`, with the reason for each end and, when asked for, log-probabilities. */
  async complete(
    prompts: readonly Int32Array[],
    options: GenerateOptions = {},
  ): Promise<Completion[]> {
    if (this.#released) throw new StateError("generate: the decoder was released.");
    checkSampling(options);
    const { maxNewTokens = 64, stopIds = [], seed = 0, logprobs, memory, signal } = options;
    const { maxPositions, vocabSize } = this.#model.sizes;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
      throw new OptionError(`maxNewTokens must be a whole number from 1, got ${maxNewTokens}.`);
    }
    if (
      logprobs !== undefined &&
      !(Number.isInteger(logprobs) && logprobs >= 0 && logprobs <= 20)
    ) {
      throw new OptionError(`logprobs must be a whole number from 0 to 20, got ${logprobs}.`);
    }
    if (memory && prompts.length !== 1) {
      throw new OptionError(`generate: a memory is for one prompt, got ${prompts.length}.`);
    }
    const longest = Math.max(0, ...prompts.map((prompt) => prompt.length));
    prompts.forEach((prompt, i) => {
      if (prompt.length === 0) throw new OptionError(`generate: prompt ${i} has no tokens.`);
      if (prompt.length >= maxPositions) {
        throw new OptionError(
          `generate: prompt ${i} has ${prompt.length} tokens, the model takes ${maxPositions - 1} and the one to come.`,
        );
      }
    });
    if (prompts.length === 0) return [];
    // A product with a single row may differ in the last bits from the same row among others.
    const rows = Math.max(this.#leastRows, prompts.length);
    const padded = Array.from(
      { length: rows },
      (_, i) => prompts[Math.min(i, prompts.length - 1)]!,
    );
    const room = longest + Math.min(maxNewTokens, 32);
    const slots = readSlots(this.#bank, options.slots, prompts.length);
    const cache =
      memory?.open(this.#ownerOf(slots?.[0]), prompts[0]!, () => this.#state.create(rows, room)) ??
      this.#state.create(rows, room);
    if (slots) this.#slots.set(cache, new SlotsOfRows(this.#bank!, slots, rows));
    cache.reserve(room);
    const made: number[][] = prompts.map(() => []);
    const chosen: ChosenLogprob[][] = prompts.map(() => []);
    const reasons: (FinishReason | undefined)[] = prompts.map(() => undefined);
    const stop = new Set(stopIds);
    const rngs = prompts.map((_, i) => new Rng(seed).fold("sample", i));
    const histories = prompts.map((prompt) => new TokenHistory(prompt));
    try {
      let logits = await this.#read(padded, cache);
      while (!signal?.aborted) {
        const next = new Int32Array(rows);
        const all = logits.data as Float32Array;
        for (let row = 0; row < prompts.length; row++) {
          if (reasons[row]) continue;
          const own = all.subarray(row * vocabSize, (row + 1) * vocabSize);
          const token = sample(own, options, rngs[row]!, histories[row]);
          if (stop.has(token)) {
            reasons[row] = "stop";
            continue;
          }
          made[row]!.push(token);
          histories[row]!.add(token);
          if (logprobs !== undefined) chosen[row]!.push(logprobsOf(own, token, logprobs));
          options.onToken?.(row, token);
          next[row] = token;
          if (options.isEnd?.(row, token)) reasons[row] = "stop";
          else if (
            made[row]!.length >= maxNewTokens ||
            prompts[row]!.length + made[row]!.length >= maxPositions
          ) {
            reasons[row] = "length";
          }
        }
        if (reasons.every(Boolean) || signal?.aborted) break;
        if (prompts.length < rows) next[1] = next[0]!;
        const lengths = prompts.map((prompt, row) => prompt.length + made[row]!.length);
        if (lengths.some((length, row) => !reasons[row] && this.#isVoid(cache, row, length))) {
          const joined = padded.map((prompt, i) => [...prompt, ...(made[i] ?? made[0]!)]);
          cache.truncate(0);
          logits = await this.#prefill(
            joined.map((ids) => Int32Array.from(ids)),
            cache,
          );
        } else logits = await this.#next(next, cache);
      }
    } finally {
      memory?.close([...prompts[0]!, ...made[0]!]);
    }
    return made.map((tokens, row) => ({
      tokens: Int32Array.from(tokens),
      finishReason: reasons[row] ?? "aborted",
      ...(logprobs !== undefined && { logprobs: chosen[row]! }),
    }));
  }

  /** Reads prompts, or what they add to what the cache holds; logits after each one's last token. */
  #read(prompts: readonly Int32Array[], cache: TokenState): Promise<Tensor> {
    const held = cache.lengths[0]!;
    if (held === 0 || this.#isVoid(cache, 0, prompts[0]!.length)) {
      cache.truncate(0);
      return this.#prefill(prompts, cache);
    }
    return this.#extend(
      prompts.map((prompt) => prompt.subarray(held)),
      cache,
    );
  }

  /** Whether keys of a row were turned by other angles than a sequence of `length` needs. */
  #isVoid(cache: TokenState, row: number, length: number): boolean {
    const limit = this.#model.cacheLimit ?? Infinity;
    return this.#readAt.get(cache)![row]! > limit !== length > limit;
  }

  /** Reads prompts into the cache; logits after each one's last token, (rows, V). */
  async #prefill(prompts: readonly Int32Array[], cache: TokenState): Promise<Tensor> {
    const rows = prompts.length;
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const length = Math.min(this.#model.sizes.maxPositions, bucket(longest));
    const ids = new Int32Array(rows * length);
    prompts.forEach((prompt, row) => {
      ids.set(prompt, row * length);
    });
    const last = Int32Array.from(prompts, (prompt, row) => row * length + prompt.length - 1);
    this.#readAt.set(
      cache,
      prompts.map((prompt) => prompt.length),
    );
    cache.reserve(longest);
    const executable = await this.#prefillFor(length);
    const [logits, ...outputs] = await this.#run(executable, cache, true, [
      new Tensor("int32", [rows, length], ids),
      ...(this.#model.cacheLimit === undefined ? [] : [positionsOf(prompts, length)]),
      new Tensor("int32", [rows], last),
    ]);
    cache.commit(
      outputs,
      prompts.map((prompt) => prompt.length),
    );
    return logits!;
  }

  /** More tokens for every row, as many for each, at least one; logits (rows, V). */
  async #extend(added: readonly Int32Array[], cache: TokenState): Promise<Tensor> {
    const rows = added.length;
    const count = added[0]!.length;
    const length = Math.min(this.#model.sizes.maxPositions, bucket(count));
    const held = cache.lengths[0]!;
    const ids = new Int32Array(rows * length);
    const positions = new Int32Array(rows * length);
    for (let row = 0; row < rows; row++) {
      ids.set(added[row]!, row * length);
      for (let t = 0; t < length; t++) positions[row * length + t] = held + Math.min(t, count - 1);
    }
    cache.reserve(held + count);
    const executable = await this.#extendFor(length);
    const [logits, ...outputs] = await this.#run(executable, cache, true, [
      new Tensor("int32", [rows, length], ids),
      new Tensor("int32", [rows, length], positions),
      ...cache.inputs,
      new Tensor(
        "int32",
        [rows],
        Int32Array.from(added, (_, row) => row * length + count - 1),
      ),
    ]);
    cache.commit(outputs, new Int32Array(rows).fill(count));
    return logits!;
  }

  /** One more token for every row; logits (rows, V). */
  async #next(tokens: Int32Array<ArrayBuffer>, cache: TokenState): Promise<Tensor> {
    const { rows } = cache;
    const length = Math.max(...cache.lengths);
    // A finished row goes on unseen; its positions stay inside the tables.
    const limit = this.#model.sizes.maxPositions - 1;
    const positions = cache.lengths.map((n) => Math.min(n, limit));
    cache.reserve(length + 1);
    this.#step ??= this.#loadStep();
    const executable = await this.#step;
    const [logits, ...outputs] = await this.#run(executable, cache, !this.#prepack, [
      new Tensor("int32", [rows, 1], tokens),
      new Tensor("int32", [rows, 1], positions),
      ...cache.inputs,
    ]);
    cache.commit(outputs, new Int32Array(rows).fill(1));
    return logits!;
  }

  /** Runs a program on the adapter's numbers, the base weights if it takes them, and more. */
  async #run(
    executable: Executable,
    cache: TokenState,
    withBase: boolean,
    inputs: readonly Tensor[],
  ): Promise<Tensor[]> {
    if (withBase) this.#base ??= place(this.#params, this.#backend.device);
    const base = withBase ? Object.values((await this.#base)!) : [];
    const own = Object.values(this.#adapter?.params ?? this.#slots.get(cache)?.inputs() ?? {});
    return (await runAnywhere(executable, [...own, ...base, ...inputs])) as Tensor[];
  }

  #context(own: ValueRecord, base: ValueRecord): ReturnType<LanguageModel["context"]> {
    const options = this.#bank
      ? this.#bank.context(own, own[slotsName]!)
      : this.#adapter?.adapter.context(own);
    return this.#model.context(base, {}, { ...this.#form?.(base), ...options });
  }

  /** Shapes of what comes before the base weights: an adapter's numbers, or a bank's and the slots. */
  #ownSpecs(): Readonly<Record<string, Spec>> {
    if (!this.#bank) return this.#adapter?.params ?? {};
    return { ...this.#bank.params, [slotsName]: spec(["rows"], "int32") };
  }

  #ownerOf(slot: number | undefined): object {
    if (slot === undefined || !this.#bank) return this;
    const content = this.#bank.contentOf(slot);
    let owner = this.#owners.get(content);
    if (!owner) {
      owner = {};
      this.#owners.set(content, owner);
    }
    return owner;
  }

  #prefillFor(length: number): Promise<Executable> {
    let loaded = this.#prefills.get(length);
    if (!loaded) {
      const traced = trace(
        ((own: ValueRecord, base: ValueRecord, ids: Value, at: readonly Value[], rows: Value) => {
          const padded = this.#state.padded(rows, length);
          const options = { rows, ...padded, ...(at[0] && { positions: at[0] }) };
          const result = this.#model.forward(this.#context(own, base), ids, options);
          return [result.logits, this.#state.outputs(result)];
        }) as never,
        [
          this.#ownSpecs(),
          this.#params,
          spec(["rows", length], "int32"),
          this.#model.cacheLimit === undefined ? [] : [spec(["rows", length], "int32")],
          spec(["rows"], "int32"),
        ],
      );
      loaded = this.#backend.load(traced.program);
      this.#prefills.set(length, loaded);
    }
    return loaded;
  }

  #extendFor(length: number): Promise<Executable> {
    let loaded = this.#extends.get(length);
    if (!loaded) {
      const traced = trace(
        ((
          own: ValueRecord,
          base: ValueRecord,
          ids: Value,
          positions: Value,
          state: ValueTree,
          rows: Value,
        ) => {
          const padded = this.#state.padded(rows, length);
          const options = { positions, ...this.#state.given(state), ...padded, rows };
          const result = this.#model.forward(this.#context(own, base), ids, options);
          return [result.logits, this.#state.outputs(result)];
        }) as never,
        [
          this.#ownSpecs(),
          this.#params,
          spec(["rows", length], "int32"),
          spec(["rows", length], "int32"),
          this.#state.specs,
          spec(["rows"], "int32"),
        ],
      );
      loaded = this.#backend.load(traced.program);
      this.#extends.set(length, loaded);
    }
    return loaded;
  }

  #loadStep(): Promise<Executable> {
    const traced = trace(
      ((own: ValueRecord, base: ValueRecord, ids: Value, positions: Value, state: ValueTree) => {
        const options = { positions, ...this.#state.given(state) };
        const result = this.#model.forward(this.#context(own, base), ids, options);
        return [result.logits, this.#state.outputs(result)];
      }) as never,
      [
        this.#ownSpecs(),
        this.#params,
        spec(["rows", 1], "int32"),
        spec(["rows", 1], "int32"),
        this.#state.specs,
      ],
    );
    const frozen = new Map(
      Object.entries(this.#params).map(([path, tensor]) => [`1.${path}`, tensor]),
    );
    return this.#backend.load(traced.program, this.#prepack ? { frozen } : {});
  }

  async release(): Promise<void> {
    this.#released = true;
    const programs = [...this.#prefills.values(), ...this.#extends.values()];
    for (const loaded of programs) await (await loaded).release();
    if (this.#step) await (await this.#step).release();
    // What failed to be placed holds nothing.
    if (this.#base) releaseAll(Object.values(await this.#base.catch(() => ({}))));
    this.#base = undefined;
    this.#prefills.clear();
    this.#extends.clear();
    this.#step = undefined;
  }
}

/** Prompt lengths that programs are made for. */
function bucket(length: number): number {
  let size = 16;
  while (size < length) size *= 2;
  return size;
}

/** Position ids of prompts, (rows, length); padding repeats the last one, so that no row looks longer. */
function positionsOf(prompts: readonly Int32Array[], length: number): Tensor {
  const ids = prompts.flatMap((prompt) =>
    Array.from({ length }, (_, t) => Math.min(t, prompt.length - 1)),
  );
  return new Tensor("int32", [prompts.length, length], Int32Array.from(ids));
}
