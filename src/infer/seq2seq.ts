/**
 * Answers of a model that reads one text and writes another. Programs: one reads sources (rows symbolic,
 * a few lengths) and gives what each decoder layer attends to; one makes a token for every row (rows,
 * past and source symbolic, base weights in the session).
 */
import type { Adapter } from "../adapters/adapter.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { OptionError, StateError } from "../errors.ts";
import { cast } from "../ir/elementwise.ts";
import type { Spec, Value } from "../ir/graph.ts";
import type { LayerPast, Seq2SeqModel } from "../models/model.ts";
import type { Context, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { KvCache } from "./cache.ts";
import { checkSampling, type SampleOptions, sample, TokenHistory } from "./sample.ts";

export interface Seq2SeqOptions extends SampleOptions {
  /** Most new tokens of an answer; default 64. */
  readonly maxNewTokens?: number;
  /** Default 0; sampling of a row depends on the seed and its place. */
  readonly seed?: number;
  /** Ends after a token. */
  readonly signal?: AbortSignal;
}

export interface Seq2SeqAnswer {
  /** Without the beginning and the ending token. */
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly finishReason: "stop" | "length" | "aborted";
}

type Pairs = readonly { readonly keys: Tensor; readonly values: Tensor }[];

/** Source lengths that programs are made for. */
function bucket(length: number): number {
  let size = 16;
  while (size < length) size *= 2;
  return size;
}

function pairs(kv: readonly Tensor[]): Pairs {
  return Array.from({ length: kv.length / 2 }, (_, i) => ({
    keys: kv[2 * i]!,
    values: kv[2 * i + 1]!,
  }));
}

/** Reads sources and writes answers, greedily where no temperature is given. */
export class Seq2SeqDecoder {
  readonly #model: Seq2SeqModel;
  readonly #params: TensorRecord;
  readonly #backend: Backend;
  readonly #adapter: { readonly adapter: Adapter; readonly params: TensorRecord } | undefined;
  readonly #readers: Map<number, Promise<Executable>> = new Map();
  #step: Promise<Executable> | undefined;
  #released = false;

  constructor(
    model: Seq2SeqModel,
    params: TensorRecord,
    backend: Backend,
    adapter?: { readonly adapter: Adapter; readonly params: TensorRecord },
  ) {
    this.#model = model;
    this.#params = params;
    this.#backend = backend;
    this.#adapter = adapter;
  }

  /**
   * An answer to each source.
   * @param sources token ids with what the tokenizer puts around a text, at least one each
   * @throws OptionError when a source is empty or longer than the model's positions.
   * @throws StateError after `release`.
   */
  async generate(
    sources: readonly Int32Array[],
    options: Seq2SeqOptions = {},
  ): Promise<Seq2SeqAnswer[]> {
    if (this.#released) throw new StateError("generate: the decoder was released.");
    checkSampling(options);
    const { maxNewTokens = 64, seed = 0, signal } = options;
    const { maxPositions, vocabSize } = this.#model.sizes;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
      throw new OptionError(`maxNewTokens must be a whole number from 1, got ${maxNewTokens}.`);
    }
    sources.forEach(({ length }, i) => {
      if (length >= 1 && length <= maxPositions) return;
      throw new OptionError(
        `generate: source ${i} has ${length} tokens, the model takes 1 to ${maxPositions}.`,
      );
    });
    if (sources.length === 0) return [];
    // A product with a single row may differ in the last bits from the same row among others.
    const rows = Math.max(2, sources.length);
    const most = Math.min(maxNewTokens, maxPositions);
    const source = await this.#read(
      Array.from({ length: rows }, (_, i) => sources[Math.min(i, sources.length - 1)]!),
    );
    const cache = new KvCache(this.#model.sizes, rows, Math.min(most, 32));
    const made: number[][] = sources.map(() => []);
    const reasons: (Seq2SeqAnswer["finishReason"] | undefined)[] = sources.map(() => undefined);
    const rngs = sources.map((_, i) => new Rng(seed).fold("sample", i));
    const histories = sources.map(() => new TokenHistory(Int32Array.of(this.#model.startId)));
    let next = new Int32Array(rows).fill(this.#model.startId);
    while (!signal?.aborted && !reasons.every(Boolean)) {
      const logits = (await this.#next(next, cache, source)).data as Float32Array;
      next = new Int32Array(rows).fill(this.#model.padId);
      for (let row = 0; row < sources.length; row++) {
        if (reasons[row]) continue;
        const own = logits.subarray(row * vocabSize, (row + 1) * vocabSize);
        const token = sample(own, options, rngs[row]!, histories[row]);
        if (token === this.#model.endId) {
          reasons[row] = "stop";
          continue;
        }
        made[row]!.push(token);
        histories[row]!.add(token);
        next[row] = token;
        if (made[row]!.length >= most) reasons[row] = "length";
      }
      if (sources.length === 1) next[1] = next[0]!;
    }
    return made.map((tokens, row) => ({
      tokens: Int32Array.from(tokens),
      finishReason: reasons[row] ?? "aborted",
    }));
  }

  /** What every decoder layer attends to, and which places of it hold tokens. */
  async #read(sources: readonly Int32Array[]): Promise<{ layers: Pairs; mask: Tensor }> {
    const rows = sources.length;
    const longest = Math.max(...sources.map((ids) => ids.length));
    const length = Math.max(longest, Math.min(this.#model.sizes.maxPositions, bucket(longest)));
    const ids = new Int32Array(rows * length).fill(this.#model.padId);
    const mask = new Int32Array(rows * length);
    sources.forEach((own, row) => {
      ids.set(own, row * length);
      mask.fill(1, row * length, row * length + own.length);
    });
    const kept = new Tensor("int32", [rows, length], mask);
    const executable = await this.#readerFor(length);
    const kv = await executable.run([
      ...Object.values(this.#adapter?.params ?? {}),
      ...Object.values(this.#params),
      new Tensor("int32", [rows, length], ids),
      kept,
    ]);
    return { layers: pairs(kv), mask: kept };
  }

  /** Logits after one more token of every row, (rows, V). */
  async #next(
    tokens: Int32Array<ArrayBuffer>,
    cache: KvCache,
    source: { layers: Pairs; mask: Tensor },
  ): Promise<Tensor> {
    const { rows } = cache;
    const place = cache.lengths[0]!;
    cache.reserve(place + 1);
    const { capacity } = cache;
    const distances = Int32Array.from({ length: capacity }, (_, i) => Math.max(0, place - i));
    this.#step ??= this.#loadStep();
    const [logits, ...kv] = await (await this.#step).run([
      ...Object.values(this.#adapter?.params ?? {}),
      new Tensor("int32", [rows, 1], tokens),
      ...cache.layers.flatMap(({ keys, values }) => [keys, values]),
      cache.mask,
      new Tensor("int32", [1, capacity], distances),
      ...source.layers.flatMap(({ keys, values }) => [keys, values]),
      source.mask,
    ]);
    cache.append(pairs(kv), new Int32Array(rows).fill(1));
    return logits!;
  }

  #context(own: ValueRecord, base: ValueRecord): Context {
    return this.#model.context(base, {}, this.#adapter?.adapter.context(own) ?? {});
  }

  #readerFor(length: number): Promise<Executable> {
    let loaded = this.#readers.get(length);
    if (!loaded) {
      const traced = trace(
        ((own: ValueRecord, base: ValueRecord, ids: Value, mask: Value) => {
          const context = this.#context(own, base);
          const hidden = this.#model.encode(context, ids, { mask: cast(mask, "bool") });
          return this.#model
            .crossed(context, hidden, "rows", length)
            .map(({ keys, values }) => [keys, values]);
        }) as never,
        [
          this.#adapter?.params ?? {},
          this.#params,
          spec(["rows", length], "int32"),
          spec(["rows", length], "int32"),
        ],
      );
      loaded = this.#backend.load(traced.program);
      this.#readers.set(length, loaded);
    }
    return loaded;
  }

  #loadStep(): Promise<Executable> {
    const { nLayers, nKvHeads, headDim } = this.#model.sizes;
    const layers = (length: string): { readonly keys: Spec; readonly values: Spec }[] =>
      Array.from({ length: nLayers }, () => {
        const kv = spec(["rows", nKvHeads, length, headDim]);
        return { keys: kv, values: kv };
      });
    const traced = trace(
      ((
        own: ValueRecord,
        base: ValueRecord,
        ids: Value,
        past: readonly LayerPast[],
        pastMask: Value,
        distances: Value,
        source: readonly LayerPast[],
        mask: Value,
      ) => {
        const result = this.#model.decode(this.#context(own, base), ids, source, {
          mask: cast(mask, "bool"),
          past: { layers: past, mask: pastMask, distances },
        });
        return [result.logits, result.present.map(({ keys, values }) => [keys, values])];
      }) as never,
      [
        this.#adapter?.params ?? {},
        this.#params,
        spec(["rows", 1], "int32"),
        layers("past"),
        spec(["rows", 1, 1, "past"]),
        spec([1, "past"], "int32"),
        layers("source"),
        spec(["rows", "source"], "int32"),
      ],
    );
    const frozen = new Map(
      Object.entries(this.#params).map(([path, tensor]) => [`1.${path}`, tensor]),
    );
    return this.#backend.load(traced.program, { frozen });
  }

  async release(): Promise<void> {
    this.#released = true;
    for (const loaded of this.#readers.values()) await (await loaded).release();
    if (this.#step) await (await this.#step).release();
    this.#readers.clear();
    this.#step = undefined;
  }
}
