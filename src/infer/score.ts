/** What a model thinks of texts that are there: the probability of each token that carries loss. */
import { contextOf, numbersOf, positionsBeside } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import { type AnyTensor, type Backend, type Executable, runAnywhere } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { place, releaseAll } from "../backend/place.ts";
import type { Example } from "../data/example.ts";
import { OptionError, StateError } from "../errors.ts";
import { cast, equal, exp, mul } from "../ir/elementwise.ts";
import { logSoftmax } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gatherElements } from "../ir/indexing.ts";
import { reshape } from "../ir/layout.ts";
import { argMax, max, sum } from "../ir/reduce.ts";
import type { LanguageModel } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Numbers for the tokens of one example that carry loss, in their order; each array is as long. */
export interface TokenScores {
  /** Places in the example's ids. */
  readonly positions: Int32Array;
  /** Natural logarithm of the token's probability. */
  readonly logprobs: Float32Array;
  /** Probability of the likeliest token in its place. */
  readonly topProbabilities: Float32Array;
  /** 1 where the token is the likeliest, else 0. */
  readonly isTop: Uint8Array;
  /** Σ p² over the vocabulary: what Brier's score needs. */
  readonly squares: Float32Array;
}

export interface ScoreOptions {
  /** Tokens of context at most, up to the model's positions, which is the default. */
  readonly window?: number;
  /**
   * Steps of the window over texts longer than it: smaller gives each token more context and takes more
   * time. From 1 to the window; default half of it.
   */
  readonly stride?: number;
  /** Windows read together; default 16. */
  readonly batchSize?: number;
  /** Windows done, of all. */
  readonly onProgress?: (done: number, all: number) => void;
  /** Ends between batches with a StateError. */
  readonly signal?: AbortSignal;
}

/** A part of a text that is read at once: ids [start, end), of which those from `from` on are scored. */
export interface TextWindow {
  readonly start: number;
  readonly end: number;
  readonly from: number;
}

/**
 * Windows over a text of `length` tokens, so that each is scored once and, from the second window on,
 * after at least `window - stride` others ("Perplexity of fixed-length models", transformers
 * documentation). A window of n positions takes n + 1 tokens: the last is only predicted.
 * @throws OptionError when the stride or the window is outside its range.
 */
export function slidingWindows(length: number, window: number, stride: number): TextWindow[] {
  if (!(Number.isInteger(window) && window >= 1)) {
    throw new OptionError(`score: window must be a whole number from 1, got ${window}.`);
  }
  if (!(Number.isInteger(stride) && stride >= 1 && stride <= window)) {
    throw new OptionError(
      `score: stride must be a whole number from 1 to the window of ${window}, got ${stride}.`,
    );
  }
  const windows: TextWindow[] = [];
  let from = 1;
  for (let start = 0; from < length; start += stride) {
    const end = Math.min(length, start + window + 1);
    windows.push({ start, end, from });
    from = end;
  }
  return windows;
}

/** Elements of the logits that a program makes at once: 256 MiB in float32. */
const maxLogits = 2 ** 26;

interface Job extends TextWindow {
  readonly example: number;
  /** Where in the example's scores its first one goes. */
  readonly at: number;
  /** Scored positions. */
  readonly positions: readonly number[];
}

export class Scorer {
  readonly #model: LanguageModel;
  readonly #params: TensorRecord;
  readonly #backend: Backend;
  readonly #adapter: LoadedAdapter | undefined;
  #loaded: { readonly length: number; readonly executable: Executable } | undefined;
  /** The base weights where the backend keeps them. */
  #base: Promise<Readonly<Record<string, AnyTensor>>> | undefined;
  #released = false;

  constructor(
    model: LanguageModel,
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
   * Scores every token whose mask is set; texts longer than the model's positions in sliding windows.
   * @throws OptionError when window or stride are outside their range.
   * @throws StateError when released, or ended by the signal.
   */
  async score(examples: readonly Example[], options: ScoreOptions = {}): Promise<TokenScores[]> {
    const { vocabSize } = this.#model.sizes;
    const maxPositions = positionsBeside(this.#model, this.#adapter?.adapter);
    const { window = maxPositions, batchSize = 16, onProgress, signal } = options;
    if (window > maxPositions) {
      throw new OptionError(
        `score: window ${window} is beyond the model's ${maxPositions} positions.`,
      );
    }
    const stride = options.stride ?? Math.max(1, Math.floor(window / 2));
    const scores = examples.map(({ mask }) => {
      const positions: number[] = [];
      for (let i = 1; i < mask.length; i++) if (mask[i]) positions.push(i);
      const count = positions.length;
      return {
        positions: Int32Array.from(positions),
        logprobs: new Float32Array(count),
        topProbabilities: new Float32Array(count),
        isTop: new Uint8Array(count),
        squares: new Float32Array(count),
      };
    });
    const mostScored = Math.max(16, Math.floor(maxLogits / vocabSize));
    const jobs: Job[] = [];
    examples.forEach(({ ids }, example) => {
      let at = 0;
      for (const part of slidingWindows(ids.length, window, stride)) {
        const positions = scores[example]!.positions.subarray(at).filter((i) => i < part.end);
        // A part whose logits are too many is read again for each share of them.
        for (let first = 0; first < positions.length; first += mostScored) {
          const own = [...positions.subarray(first, first + mostScored)];
          jobs.push({ ...part, example, at: at + first, positions: own });
        }
        at += positions.length;
      }
    });
    jobs.sort((a, b) => a.end - a.start - (b.end - b.start));
    for (let first = 0; first < jobs.length; ) {
      if (signal?.aborted) throw new StateError("score: ended by the signal.");
      let [last, scored] = [first, 0];
      while (last < jobs.length && last - first < batchSize) {
        scored += jobs[last]!.positions.length;
        if (last > first && scored > mostScored) break;
        last++;
      }
      await this.#run(jobs.slice(first, last), examples, scores);
      first = last;
      onProgress?.(first, jobs.length);
    }
    return scores;
  }

  async #run(
    jobs: readonly Job[],
    examples: readonly Example[],
    scores: readonly TokenScores[],
  ): Promise<void> {
    const longest = Math.max(...jobs.map(({ start, end }) => end - start - 1));
    const room = positionsBeside(this.#model, this.#adapter?.adapter);
    const length = Math.min(room, padded(longest));
    const executable = await this.#programFor(length);
    const ids = new Int32Array(jobs.length * length);
    const rows: number[] = [];
    const targets: number[] = [];
    jobs.forEach((job, row) => {
      const own = examples[job.example]!.ids;
      ids.set(own.subarray(job.start, job.end - 1), row * length);
      for (const position of job.positions) {
        rows.push(row * length + position - job.start - 1);
        targets.push(own[position]!);
      }
    });
    this.#base ??= place(this.#params, this.#backend.device);
    const [logprobs, tops, hits, squares] = (await runAnywhere(executable, [
      ...Object.values(numbersOf(this.#adapter)),
      ...Object.values(await this.#base),
      new Tensor("int32", [jobs.length, length], ids),
      new Tensor("int32", [rows.length], Int32Array.from(rows)),
      new Tensor("int32", [rows.length, 1], Int32Array.from(targets)),
    ])) as Tensor[];
    let read = 0;
    for (const { example, at, positions } of jobs) {
      const into = scores[example]!;
      for (let i = 0; i < positions.length; i++, read++) {
        into.logprobs[at + i] = logprobs!.data[read] as number;
        into.topProbabilities[at + i] = tops!.data[read] as number;
        into.isTop[at + i] = hits!.data[read] as number;
        into.squares[at + i] = squares!.data[read] as number;
      }
    }
  }

  /** Jobs come in order of length, so one program at a time is enough. */
  async #programFor(length: number): Promise<Executable> {
    if (this.#released) throw new StateError("score: the scorer was released.");
    if (this.#loaded?.length === length) return this.#loaded.executable;
    await this.#loaded?.executable.release();
    this.#loaded = undefined;
    const traced = trace(
      ((own: ValueRecord, base: ValueRecord, ids: Value, rows: Value, targets: Value) => {
        const context = this.#model.context(base, {}, contextOf(this.#adapter, this.#model, own));
        const { logits } = this.#model.forward(context, ids, { rows });
        const all = logSoftmax(logits, -1);
        const p = exp(all);
        const chosen = reshape(targets, [-1]);
        return [
          reshape(gatherElements(all, targets, 1), [-1]),
          max(p, -1),
          cast(equal(argMax(all, 1), chosen), "float32"),
          sum(mul(p, p), -1),
        ];
      }) as never,
      [
        numbersOf(this.#adapter),
        this.#params,
        spec(["texts", length], "int32"),
        spec(["rows"], "int32"),
        spec(["rows", 1], "int32"),
      ],
    );
    const executable = await this.#backend.load(traced.program);
    this.#loaded = { length, executable };
    return executable;
  }

  async release(): Promise<void> {
    this.#released = true;
    await this.#loaded?.executable.release();
    this.#loaded = undefined;
    // What failed to be placed holds nothing.
    if (this.#base) releaseAll(Object.values(await this.#base.catch(() => ({}))));
    this.#base = undefined;
  }
}

/** Lengths that programs are made for: four an octave, from 16. */
function padded(length: number): number {
  const step = Math.max(16, 2 ** Math.floor(Math.log2(length)) / 4);
  return Math.max(16, Math.ceil(length / step) * step);
}
