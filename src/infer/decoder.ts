/**
 * Generation with a state between tokens: keys and values, or what a recurrent model carries. Programs: one
 * reads prompts (rows symbolic, a few lengths), one makes a token for every row (rows and past symbolic, base
 * weights in the session), one, used with a `PromptMemory`, reads what a prompt adds to an earlier one, and
 * one, used with a drafter, reads a tree of tokens (its size symbolic, base weights in the session too).
 */
import { positionsBeside } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { LoraBank } from "../adapters/bank.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { OptionError, StateError } from "../errors.ts";
import type { LanguageModel } from "../models/model.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { KvCache } from "./cache.ts";
import type { ChosenLogprob, Completion, FinishReason, GenerateOptions } from "./completion.ts";
import { constrain } from "./constraint.ts";
import type { Drafter } from "./drafter.ts";
import { DecoderPrograms } from "./programs.ts";
import { checkSampling, logprobsOf, sample, TokenHistory } from "./sample.ts";
import { readSlots, SlotsOfRows } from "./slots.ts";
import { speculate, type TreeReader } from "./speculative.ts";
import { type StateForm, stateForm, type TokenState } from "./state.ts";
import { checkTreeModel, treeInputs } from "./tree-pass.ts";

export interface DecoderOptions {
  readonly adapter?: LoadedAdapter;
  /** Adapters by slot instead, one for each row of a batch: `slots` of a call choose. */
  readonly bank?: LoraBank;
  /** For base weights in another form, as those of `quantizeModel`: its `context`. */
  readonly form?: (base: ValueRecord) => ContextOptions;
  /**
   * Keep the base weights in the session that makes tokens, prepacked: faster a token, twice the memory and
   * slower to load. Default true; not where the backend keeps weights on a device. Calls with a drafter and
   * calls without one have a session each.
   */
  readonly prepack?: boolean;
  /**
   * Compute a single prompt in two equal rows, so that it gets the very bits that it gets in a batch: a
   * product with one row may differ in the last ones. Default true; false is faster, most with packed weights.
   */
  readonly batchExact?: boolean;
}

export type {
  ChosenLogprob,
  Completion,
  FinishReason,
  GenerateOptions,
} from "./completion.ts";

export class Decoder {
  readonly #model: LanguageModel;
  /** Tokens of a sequence at most, and why they may be fewer than the model's. */
  readonly #maxPositions: number;
  readonly #virtual: string;
  readonly #bank: LoraBank | undefined;
  readonly #state: StateForm;
  readonly #programs: DecoderPrograms;
  readonly #slots: WeakMap<TokenState, SlotsOfRows> = new WeakMap();
  /** Who owns a memory that was filled through a slot: another one after each change of the slot. */
  readonly #owners: WeakMap<object, { readonly plain: object; readonly drafted: object }> =
    new WeakMap();
  /** How long each row of a cache was when it was read last. */
  readonly #readAt: WeakMap<TokenState, readonly number[]> = new WeakMap();
  readonly #backend: Backend;
  readonly #prepack: boolean;
  readonly #leastRows: number;
  #released = false;

  constructor(
    model: LanguageModel,
    params: TensorRecord,
    backend: Backend,
    options: DecoderOptions = {},
  ) {
    this.#model = model;
    const adapter = options.adapter?.adapter;
    this.#state = stateForm(model, adapter?.passes);
    this.#maxPositions = positionsBeside(model, adapter);
    this.#virtual = adapter?.virtualTokens
      ? ` behind ${adapter.virtualTokens} virtual ones of the adapter`
      : "";
    this.#backend = backend;
    if (options.adapter && options.bank) {
      throw new OptionError("decoder: takes an adapter or a bank, got both — fill a slot with it.");
    }
    this.#bank = options.bank;
    this.#prepack = backend.device === undefined && (options.prepack ?? true);
    this.#programs = new DecoderPrograms(model, params, backend, this.#state, {
      ...options,
      prepack: this.#prepack,
    });
    this.#leastRows = (options.batchExact ?? true) ? 2 : 1;
  }

  /** Tokens of a prompt and its answer at most: the model's positions, less those that an adapter takes. */
  get maxPositions(): number {
    return this.#maxPositions;
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
    const { constraints } = options;
    const { vocabSize } = this.#model.sizes;
    const maxPositions = this.#maxPositions;
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
          `generate: prompt ${i} has ${prompt.length} tokens, the model takes ${maxPositions - 1} and the one to come${this.#virtual}.`,
        );
      }
    });
    if (constraints && constraints.length !== prompts.length) {
      throw new OptionError(
        `generate: constraints must be one for each of ${prompts.length} prompts, got ${constraints.length}.`,
      );
    }
    if (prompts.length === 0) return [];
    if (options.drafter) return this.#draft(prompts, options, options.drafter);
    // A product with a single row may differ in the last bits from the same row among others.
    const rows = Math.max(this.#leastRows, prompts.length);
    const padded = Array.from(
      { length: rows },
      (_, i) => prompts[Math.min(i, prompts.length - 1)]!,
    );
    const room = longest + Math.min(maxNewTokens, 32);
    const slots = readSlots(this.#bank, options.slots, prompts.length);
    const front = await this.#programs.front();
    const make = (): TokenState => this.#state.create(rows, room, front);
    const cache = memory?.open(this.#ownerOf(slots?.[0]), prompts[0]!, make) ?? make();
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
          const constraint = constraints?.[row];
          const open = constraint ? constrain(own, constraint, stop) : own;
          const token = sample(open, options, rngs[row]!, histories[row]);
          if (stop.has(token)) {
            reasons[row] = "stop";
            continue;
          }
          constraint?.accept(token);
          made[row]!.push(token);
          histories[row]!.add(token);
          if (logprobs !== undefined) chosen[row]!.push(logprobsOf(own, token, logprobs));
          options.onToken?.(row, token);
          next[row] = token;
          if (options.isEnd?.(row, token) || constraint?.isFinished) reasons[row] = "stop";
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

  /** As `complete`, one prompt after another, with passes over what a drafter proposes. */
  async #draft(
    prompts: readonly Int32Array[],
    options: GenerateOptions,
    drafter: Drafter,
  ): Promise<Completion[]> {
    checkTreeModel(this.#model);
    if (busy.has(drafter)) {
      throw new StateError("generate: the drafter is in another call — give each call its own.");
    }
    const { seed = 0, memory } = options;
    const slots = readSlots(this.#bank, options.slots, prompts.length);
    const completions: Completion[] = [];
    busy.add(drafter);
    try {
      const front = await this.#programs.front();
      for (const [row, prompt] of prompts.entries()) {
        const slot = slots?.slice(row, row + 1);
        // A tree has rows enough: its cache has one row, that of plain calls two.
        const make = (): TokenState => this.#state.create(1, prompt.length, front);
        const owner = this.#ownerOf(slot?.[0], true);
        const cache = (memory?.open(owner, prompt, make) ?? make()) as KvCache;
        if (slot) this.#slots.set(cache, new SlotsOfRows(this.#bank!, slot, 1));
        const rng = new Rng(seed).fold("sample", row);
        const made: number[] = [];
        try {
          const reader = this.#treeReader(cache);
          completions.push(await speculate(reader, prompt, drafter, row, rng, made, options));
        } finally {
          memory?.close([...prompt, ...made]);
        }
      }
    } finally {
      busy.delete(drafter);
    }
    return completions;
  }

  #treeReader(cache: KvCache): TreeReader {
    const { vocabSize } = this.#model.sizes;
    const maxPositions = this.#maxPositions;
    const limit = this.#model.cacheLimit ?? Infinity;
    let outputs: readonly Tensor[] = [];
    return {
      vocabSize,
      maxPositions,
      // A pass does not straddle the length from which positions turn by other angles.
      deepest: (length) => (length <= limit ? limit - length : Infinity),
      read: async (text, draft) => {
        await this.#catchUp(text, cache);
        const executable = await this.#programs.tree();
        const held = cache.lengths[0]!;
        const count = draft.tokens.length + 1;
        // Where shapes are compiled, few of them.
        const length = this.#backend.device ? 2 ** Math.ceil(Math.log2(count)) : count;
        const inputs = treeInputs(text.at(-1)!, draft, held, length);
        const [logits, ...rest] = await this.#run(executable, cache, !this.#prepack, [
          ...inputs,
          ...cache.inputs,
        ]);
        outputs = rest;
        return (logits!.data as Float32Array).subarray(0, count * vocabSize);
      },
      keep: (places) => {
        cache.reserve(cache.lengths[0]! + places.length);
        cache.commitAt(outputs, places);
      },
    };
  }

  /** Reads what a cache of one row lacks of a text without its last token. */
  async #catchUp(text: readonly number[], cache: KvCache): Promise<void> {
    const { length } = text;
    const held = cache.lengths[0]!;
    if (held === 0 && length === 1) this.#readAt.set(cache, [1]);
    else if (held < length - 1 || this.#isVoid(cache, 0, length)) {
      cache.reserve(length);
      await this.#read([Int32Array.from(text)], cache);
      cache.truncate(length - 1);
    }
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
    const length = Math.min(this.#maxPositions, bucket(longest));
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
    const executable = await this.#programs.prefill(length);
    const [logits, ...outputs] = await this.#run(executable, cache, true, [
      new Tensor("int32", [rows, length], ids),
      ...(this.#model.cacheLimit === undefined ? [] : [positionsOf(prompts, length)]),
      new Tensor("int32", [rows], last),
      ...(cache.front ?? []),
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
    const length = Math.min(this.#maxPositions, bucket(count));
    const held = cache.lengths[0]!;
    const ids = new Int32Array(rows * length);
    const positions = new Int32Array(rows * length);
    for (let row = 0; row < rows; row++) {
      ids.set(added[row]!, row * length);
      for (let t = 0; t < length; t++) positions[row * length + t] = held + Math.min(t, count - 1);
    }
    cache.reserve(held + count);
    const executable = await this.#programs.extend(length);
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
    const limit = this.#maxPositions - 1;
    const positions = cache.lengths.map((n) => Math.min(n, limit));
    cache.reserve(length + 1);
    const executable = await this.#programs.step();
    const [logits, ...outputs] = await this.#run(executable, cache, !this.#prepack, [
      new Tensor("int32", [rows, 1], tokens),
      new Tensor("int32", [rows, 1], positions),
      ...cache.inputs,
    ]);
    cache.commit(outputs, new Int32Array(rows).fill(1));
    return logits!;
  }

  /** Runs a program on the slots of a cache's rows, the base weights if it takes them, and more. */
  #run(
    executable: Executable,
    cache: TokenState,
    withBase: boolean,
    inputs: readonly Tensor[],
  ): Promise<Tensor[]> {
    const slots = this.#slots.get(cache)?.inputs();
    return this.#programs.run(executable, slots, withBase, inputs);
  }

  /** Of a memory: calls with a drafter keep states of another form. */
  #ownerOf(slot: number | undefined, isDrafted = false): object {
    const content = slot === undefined || !this.#bank ? this : this.#bank.contentOf(slot);
    let owners = this.#owners.get(content);
    if (!owners) {
      owners = { plain: {}, drafted: {} };
      this.#owners.set(content, owners);
    }
    return isDrafted ? owners.drafted : owners.plain;
  }

  async release(): Promise<void> {
    this.#released = true;
    await this.#programs.release();
  }
}

/** Drafters that a call uses. */
const busy = new WeakSet<Drafter>();

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
