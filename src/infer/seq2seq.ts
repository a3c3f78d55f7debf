/**
 * Answers of a model that reads one text and writes another. Programs: one reads sources (rows symbolic,
 * a few lengths) and gives what each decoder layer attends to; one makes a token for every row (rows,
 * past and source symbolic, base weights in the session).
 */
import { contextOf, numbersOf } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { OptionError, StateError } from "../errors.ts";
import { cast } from "../ir/elementwise.ts";
import type { Spec, Value } from "../ir/graph.ts";
import type { LayerPast, Seq2SeqModel } from "../models/model.ts";
import type { Context, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type BeamOptions, BeamSearch, checkBeams } from "./beam.ts";
import { KvCache } from "./cache.ts";
import { checkSampling, type SampleOptions, sample, TokenHistory } from "./sample.ts";

/** With more than one beam answers are searched for and not sampled: no temperature, no penalties. */
export interface Seq2SeqOptions extends SampleOptions, BeamOptions {
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
  /** Of beam search: the sum of the tokens' log probabilities over length^lengthPenalty. */
  readonly score?: number;
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

/** What every decoder layer attends to of each source, and which places of it hold tokens. */
interface Source {
  readonly layers: Pairs;
  readonly mask: Tensor;
}

/** The rows `from` of a tensor, in this order. */
function rowsOf(tensor: Tensor, from: readonly number[]): Tensor {
  const size = tensor.size / tensor.shape[0]!;
  const data = new (tensor.data.constructor as Float32ArrayConstructor)(from.length * size);
  from.forEach((row, i) => {
    data.set((tensor.data as Float32Array).subarray(row * size, (row + 1) * size), i * size);
  });
  return new Tensor(tensor.dtype, [from.length, ...tensor.shape.slice(1)], data);
}

/** @throws OptionError for settings outside their range, or that do not go together. */
function checkOptions(options: Seq2SeqOptions): void {
  checkSampling(options);
  checkBeams(options);
  const { numBeams = 1, temperature = 0, repetitionPenalty = 1 } = options;
  const { presencePenalty = 0, frequencyPenalty = 0 } = options;
  const isPlain =
    temperature === 0 && repetitionPenalty === 1 && presencePenalty === 0 && frequencyPenalty === 0;
  if (numBeams > 1 && !isPlain) {
    throw new OptionError(
      `numBeams ${numBeams} goes with temperature 0 and without penalties — leave them out, or take numBeams 1.`,
    );
  }
}

/** Reads sources and writes answers: greedily where no temperature is given, or by beam search. */
export class Seq2SeqDecoder {
  readonly #model: Seq2SeqModel;
  readonly #params: TensorRecord;
  readonly #backend: Backend;
  readonly #adapter: LoadedAdapter | undefined;
  readonly #readers: Map<number, Promise<Executable>> = new Map();
  #step: Promise<Executable> | undefined;
  #released = false;

  constructor(
    model: Seq2SeqModel,
    params: TensorRecord,
    backend: Backend,
    adapter?: LoadedAdapter,
  ) {
    this.#model = model;
    this.#params = params;
    this.#backend = backend;
    this.#adapter = adapter;
  }

  /**
   * An answer to each source.
   * @param sources token ids with what the tokenizer puts around a text, at least one each
   * @throws OptionError when a source is empty or longer than the model's positions, or for a setting.
   * @throws StateError after `release`.
   */
  async generate(
    sources: readonly Int32Array[],
    options: Seq2SeqOptions = {},
  ): Promise<Seq2SeqAnswer[]> {
    if (this.#released) throw new StateError("generate: the decoder was released.");
    checkOptions(options);
    const { maxNewTokens = 64, numBeams = 1 } = options;
    const { maxPositions } = this.#model.sizes;
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
    const most = Math.min(maxNewTokens, maxPositions);
    // A product with a single row may differ in the last bits from the same row among others.
    const source = await this.#read(sources.length === 1 ? [sources[0]!, sources[0]!] : sources);
    const count = sources.length;
    return numBeams > 1
      ? this.#search(source, count, most, options)
      : this.#sample(source, count, most, options);
  }

  /** One token after another, each for itself. */
  async #sample(
    source: Source,
    count: number,
    most: number,
    options: Seq2SeqOptions,
  ): Promise<Seq2SeqAnswer[]> {
    const { seed = 0, signal } = options;
    const { vocabSize } = this.#model.sizes;
    const rows = Math.max(2, count);
    const places = Array.from({ length: count }, (_, i) => i);
    const cache = new KvCache(this.#model.sizes, rows, Math.min(most, 32));
    const made: number[][] = places.map(() => []);
    const reasons: (Seq2SeqAnswer["finishReason"] | undefined)[] = places.map(() => undefined);
    const rngs = places.map((i) => new Rng(seed).fold("sample", i));
    const histories = places.map(() => new TokenHistory(Int32Array.of(this.#model.startId)));
    let next = new Int32Array(rows).fill(this.#model.startId);
    while (!signal?.aborted && !reasons.every(Boolean)) {
      const logits = (await this.#next(next, cache, source)).data as Float32Array;
      next = new Int32Array(rows).fill(this.#model.padId);
      for (const row of places) {
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
      if (count === 1) next[1] = next[0]!;
    }
    return made.map((tokens, row) => ({
      tokens: Int32Array.from(tokens),
      finishReason: reasons[row] ?? "aborted",
    }));
  }

  /** The likeliest answer that beams find. Rows are the beams of the first source, then the next one's. */
  async #search(
    { layers, mask }: Source,
    count: number,
    most: number,
    options: Seq2SeqOptions,
  ): Promise<Seq2SeqAnswer[]> {
    const { numBeams = 1, signal } = options;
    const { sizes, startId, endId, padId } = this.#model;
    const rows = count * numBeams;
    const owners = Array.from({ length: rows }, (_, row) => Math.floor(row / numBeams));
    const source: Source = {
      layers: layers.map(({ keys, values }) => ({
        keys: rowsOf(keys, owners),
        values: rowsOf(values, owners),
      })),
      mask: rowsOf(mask, owners),
    };
    const searches = Array.from({ length: count }, () => new BeamSearch(options, most, endId));
    const cache = new KvCache(sizes, rows, Math.min(most, 32));
    let next = new Int32Array(rows).fill(startId);
    while (!signal?.aborted && !searches.every(({ isDone }) => isDone)) {
      const logits = (await this.#next(next, cache, source)).data as Float32Array;
      next = new Int32Array(rows).fill(padId);
      const from = Int32Array.from({ length: rows }, (_, row) => row);
      for (const [i, search] of searches.entries()) {
        if (search.isDone) continue;
        const first = i * numBeams;
        const { vocabSize } = sizes;
        const { parents, tokens } = search.advance(
          logits.subarray(first * vocabSize, (first + numBeams) * vocabSize),
        );
        for (const [beam, parent] of parents.entries()) {
          from[first + beam] = first + parent;
          next[first + beam] = tokens[beam]!;
        }
      }
      cache.select(from);
    }
    return searches.map(({ answer: { tokens, score, isEnded }, isDone }) => ({
      tokens: Int32Array.from(tokens),
      finishReason: isEnded ? "stop" : isDone ? "length" : "aborted",
      score,
    }));
  }

  async #read(sources: readonly Int32Array[]): Promise<Source> {
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
      ...Object.values(numbersOf(this.#adapter)),
      ...Object.values(this.#params),
      new Tensor("int32", [rows, length], ids),
      kept,
    ]);
    return { layers: pairs(kv), mask: kept };
  }

  /** Logits after one more token of every row, (rows, V). */
  async #next(tokens: Int32Array<ArrayBuffer>, cache: KvCache, source: Source): Promise<Tensor> {
    const { rows } = cache;
    const place = cache.lengths[0]!;
    cache.reserve(place + 1);
    const { capacity } = cache;
    const distances = Int32Array.from({ length: capacity }, (_, i) => Math.max(0, place - i));
    this.#step ??= this.#loadStep();
    const [logits, ...kv] = await (await this.#step).run([
      ...Object.values(numbersOf(this.#adapter)),
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
    return this.#model.context(base, {}, contextOf(this.#adapter, this.#model, own));
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
          numbersOf(this.#adapter),
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
        numbersOf(this.#adapter),
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
