/**
 * Generation with a cache of keys and values. Two programs: one reads prompts (rows symbolic, a few
 * lengths), one makes a token for every row (rows and past symbolic, base weights in the session).
 */
import type { Adapter } from "../adapters/adapter.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { OptionError, StateError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import type { LanguageModel, LayerPast } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { KvCache } from "./cache.ts";
import { checkSampling, type SampleOptions, sample } from "./sample.ts";

export interface DecoderOptions {
  readonly adapter?: { readonly adapter: Adapter; readonly params: TensorRecord };
  /**
   * Keep the base weights in the one-token session, prepacked: faster a token, twice the memory and
   * slower to load. Default true.
   */
  readonly prepack?: boolean;
}

export interface GenerateOptions extends SampleOptions {
  /** Tokens to make at most; default 64. */
  readonly maxNewTokens?: number;
  /** Ends a row; the token itself is not returned. */
  readonly stopIds?: readonly number[];
  readonly seed?: number;
  /** Called with each new token of a row. */
  readonly onToken?: (row: number, token: number) => void;
  readonly signal?: AbortSignal;
}

type Present = readonly { readonly keys: Tensor; readonly values: Tensor }[];

export class Decoder {
  readonly #model: LanguageModel;
  readonly #params: TensorRecord;
  readonly #adapter: DecoderOptions["adapter"];
  readonly #backend: Backend;
  readonly #prepack: boolean;
  readonly #prefills: Map<number, Promise<Executable>> = new Map();
  #step: Promise<Executable> | undefined;
  #released = false;

  constructor(
    model: LanguageModel,
    params: TensorRecord,
    backend: Backend,
    options: DecoderOptions = {},
  ) {
    this.#model = model;
    this.#params = params;
    this.#backend = backend;
    this.#adapter = options.adapter;
    this.#prepack = options.prepack ?? true;
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
    if (this.#released) throw new StateError("generate: the decoder was released.");
    checkSampling(options);
    const { maxNewTokens = 64, stopIds = [], seed = 0 } = options;
    const { maxPositions, vocabSize } = this.#model.sizes;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
      throw new OptionError(`maxNewTokens must be a whole number from 1, got ${maxNewTokens}.`);
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
    const rows = Math.max(2, prompts.length);
    const padded = Array.from(
      { length: rows },
      (_, i) => prompts[Math.min(i, prompts.length - 1)]!,
    );
    const cache = new KvCache(this.#model.sizes, rows, longest + Math.min(maxNewTokens, 32));
    let logits = await this.#prefill(padded, cache);
    const made: number[][] = prompts.map(() => []);
    const stop = new Set(stopIds);
    const rngs = prompts.map((_, i) => new Rng(seed).fold("sample", i));
    const isDone = prompts.map(() => false);
    while (true) {
      const next = new Int32Array(rows);
      const all = logits.data as Float32Array;
      for (let row = 0; row < prompts.length; row++) {
        if (isDone[row]) continue;
        const own = all.subarray(row * vocabSize, (row + 1) * vocabSize);
        const token = sample(own, options, rngs[row]!);
        if (stop.has(token)) {
          isDone[row] = true;
          continue;
        }
        made[row]!.push(token);
        options.onToken?.(row, token);
        next[row] = token;
        isDone[row] =
          made[row]!.length >= maxNewTokens ||
          prompts[row]!.length + made[row]!.length >= maxPositions;
      }
      if (isDone.every(Boolean) || options.signal?.aborted) break;
      if (prompts.length === 1) next[1] = next[0]!;
      logits = await this.#next(next, cache);
    }
    return made.map((tokens) => Int32Array.from(tokens));
  }

  /** Reads prompts into the cache; logits after each one's last token, (rows, V). */
  async #prefill(prompts: readonly Int32Array[], cache: KvCache): Promise<Tensor> {
    const rows = prompts.length;
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const length = Math.min(this.#model.sizes.maxPositions, bucket(longest));
    const ids = new Int32Array(rows * length);
    prompts.forEach((prompt, row) => {
      ids.set(prompt, row * length);
    });
    const last = Int32Array.from(prompts, (prompt, row) => row * length + prompt.length - 1);
    const executable = await this.#prefillFor(length);
    const [logits, ...kv] = await executable.run([
      ...this.#weights(true),
      new Tensor("int32", [rows, length], ids),
      new Tensor("int32", [rows], last),
    ]);
    cache.append(
      pairs(kv),
      prompts.map((prompt) => prompt.length),
    );
    return logits!;
  }

  /** One more token for every row; logits (rows, V). */
  async #next(tokens: Int32Array<ArrayBuffer>, cache: KvCache): Promise<Tensor> {
    const { rows } = cache;
    const length = Math.max(...cache.lengths);
    // A finished row goes on unseen; its positions stay inside the tables.
    const limit = this.#model.sizes.maxPositions - 1;
    const positions = cache.lengths.map((n) => Math.min(n, limit));
    cache.reserve(length + 1);
    this.#step ??= this.#loadStep();
    const executable = await this.#step;
    const [logits, ...kv] = await executable.run([
      ...this.#weights(!this.#prepack),
      new Tensor("int32", [rows, 1], tokens),
      new Tensor("int32", [rows, 1], positions),
      ...cache.layers.flatMap(({ keys, values }) => [keys, values]),
      cache.mask,
    ]);
    cache.append(pairs(kv), new Int32Array(rows).fill(1));
    return logits!;
  }

  #weights(withBase: boolean): Tensor[] {
    return [
      ...Object.values(this.#adapter?.params ?? {}),
      ...(withBase ? Object.values(this.#params) : []),
    ];
  }

  #context(own: ValueRecord, base: ValueRecord): ReturnType<LanguageModel["context"]> {
    return this.#model.context(base, {}, this.#adapter?.adapter.context(own));
  }

  #prefillFor(length: number): Promise<Executable> {
    let loaded = this.#prefills.get(length);
    if (!loaded) {
      const traced = trace(
        ((own: ValueRecord, base: ValueRecord, ids: Value, rows: Value) => {
          const result = this.#model.forward(this.#context(own, base), ids, { rows });
          return [result.logits, result.present.map(({ keys, values }) => [keys, values])];
        }) as never,
        [
          this.#adapter?.params ?? {},
          this.#params,
          spec(["rows", length], "int32"),
          spec(["rows"], "int32"),
        ],
      );
      loaded = this.#backend.load(traced.program);
      this.#prefills.set(length, loaded);
    }
    return loaded;
  }

  #loadStep(): Promise<Executable> {
    const { nLayers, nKvHeads, headDim } = this.#model.sizes;
    const kv = spec(["rows", nKvHeads, "past", headDim]);
    const traced = trace(
      ((
        own: ValueRecord,
        base: ValueRecord,
        ids: Value,
        positions: Value,
        layers: readonly LayerPast[],
        mask: Value,
      ) => {
        const result = this.#model.forward(this.#context(own, base), ids, {
          positions,
          past: { layers, mask },
        });
        return [result.logits, result.present.map(({ keys, values }) => [keys, values])];
      }) as never,
      [
        this.#adapter?.params ?? {},
        this.#params,
        spec(["rows", 1], "int32"),
        spec(["rows", 1], "int32"),
        Array.from({ length: nLayers }, () => ({ keys: kv, values: kv })),
        spec(["rows", 1, 1, "past"]),
      ],
    );
    const frozen = new Map(
      Object.entries(this.#params).map(([path, tensor]) => [`1.${path}`, tensor]),
    );
    return this.#backend.load(traced.program, this.#prepack ? { frozen } : {});
  }

  async release(): Promise<void> {
    this.#released = true;
    for (const loaded of this.#prefills.values()) await (await loaded).release();
    if (this.#step) await (await this.#step).release();
    this.#prefills.clear();
    this.#step = undefined;
  }
}

/** Prompt lengths that programs are made for. */
function bucket(length: number): number {
  let size = 16;
  while (size < length) size *= 2;
  return size;
}

function pairs(kv: readonly Tensor[]): Present {
  return Array.from({ length: kv.length / 2 }, (_, i) => ({
    keys: kv[2 * i]!,
    values: kv[2 * i + 1]!,
  }));
}
