/** Running a model that gives vectors over many texts: near lengths together, rows symbolic. */
import { contextOf, numbersOf } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { Backend, Executable } from "../backend/backend.ts";
import { spec, trace } from "../backend/compile.ts";
import { OptionError, StateError } from "../errors.ts";
import { cast } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import type { EncoderModel } from "../models/model.ts";
import type { Context, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";

/** A text as ids. */
export interface EncoderInput {
  readonly ids: Int32Array;
  /** Token types; default 0. */
  readonly types?: Int32Array;
}

/** What a program reads: the forward pass, and which tokens are there, (B, T) int32 of 0 and 1. */
export interface EncoderStep {
  readonly context: Context;
  readonly ids: Value;
  readonly mask: Value;
  /** The model's hidden states, (B·T, D). */
  readonly hidden: Value;
}

export interface EncoderRunOptions {
  /** Texts together at most; default 32. */
  readonly batchSize?: number;
  /** Texts done, of all. */
  readonly onProgress?: (done: number, all: number) => void;
  /** Ends between batches with a StateError. */
  readonly signal?: AbortSignal;
}

/** Lengths that programs are made for. */
const lengths = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];

function bucket(length: number): number {
  return lengths.find((size) => size >= length) ?? Math.ceil(length / 512) * 512;
}

/** Programs of a few lengths for one model and one thing to read off it. */
export class EncoderRunner {
  readonly #model: EncoderModel;
  readonly #params: TensorRecord;
  readonly #backend: Backend;
  readonly #read: (step: EncoderStep) => Value;
  readonly #adapter: LoadedAdapter | undefined;
  #loaded: { readonly length: number; readonly executable: Executable } | undefined;
  #released = false;

  /** @param read what is wanted, with one row for each text: (B, …) */
  constructor(
    model: EncoderModel,
    params: TensorRecord,
    backend: Backend,
    read: (step: EncoderStep) => Value,
    adapter?: LoadedAdapter,
  ) {
    this.#model = model;
    this.#params = params;
    this.#backend = backend;
    this.#read = read;
    this.#adapter = adapter;
  }

  /**
   * The numbers of each text's row, in the order of the texts.
   * @throws OptionError for a text without tokens or longer than the model's positions.
   * @throws StateError when released, or ended by the signal.
   */
  async run(
    inputs: readonly EncoderInput[],
    options: EncoderRunOptions = {},
  ): Promise<Float32Array<ArrayBuffer>[]> {
    const { batchSize = 32, onProgress, signal } = options;
    if (!(Number.isInteger(batchSize) && batchSize >= 1)) {
      throw new OptionError(`batchSize must be a whole number from 1, got ${batchSize}.`);
    }
    const { maxPositions } = this.#model.sizes;
    inputs.forEach(({ ids }, i) => {
      if (ids.length >= 1 && ids.length <= maxPositions) return;
      throw new OptionError(
        `text ${i} has ${ids.length} tokens, the model takes 1 to ${maxPositions}.`,
      );
    });
    const order = inputs.map((_, i) => i);
    // Longest first: what needs the most memory comes first, and each program is made once.
    order.sort((a, b) => inputs[b]!.ids.length - inputs[a]!.ids.length || a - b);
    const results: Float32Array<ArrayBuffer>[] = [];
    for (let start = 0; start < order.length; ) {
      if (signal?.aborted) throw new StateError("run: ended by a signal.");
      const length = Math.min(maxPositions, bucket(inputs[order[start]!]!.ids.length));
      let end = start;
      while (
        end < order.length &&
        end - start < batchSize &&
        Math.min(maxPositions, bucket(inputs[order[end]!]!.ids.length)) === length
      ) {
        end++;
      }
      const chosen = order.slice(start, end);
      const rows = await this.#batch(
        chosen.map((i) => inputs[i]!),
        length,
      );
      chosen.forEach((i, row) => {
        results[i] = rows[row]!;
      });
      start = end;
      onProgress?.(start, inputs.length);
    }
    return results;
  }

  async #batch(
    inputs: readonly EncoderInput[],
    length: number,
  ): Promise<Float32Array<ArrayBuffer>[]> {
    // A product with a single row may differ in the last bits from the same row among others.
    const rows = Math.max(2, inputs.length);
    const [ids, types, mask] = Array.from({ length: 3 }, () => new Int32Array(rows * length)) as [
      Int32Array<ArrayBuffer>,
      Int32Array<ArrayBuffer>,
      Int32Array<ArrayBuffer>,
    ];
    for (let row = 0; row < rows; row++) {
      const input = inputs[Math.min(row, inputs.length - 1)]!;
      ids.set(input.ids, row * length);
      if (input.types) types.set(input.types, row * length);
      mask.fill(1, row * length, row * length + input.ids.length);
    }
    const executable = await this.#executableFor(length);
    const [result] = await executable.run([
      ...Object.values(numbersOf(this.#adapter)),
      ...Object.values(this.#params),
      ...[ids, types, mask].map((data) => new Tensor("int32", [rows, length], data)),
    ]);
    const data = result!.data as Float32Array<ArrayBuffer>;
    const width = data.length / rows;
    return inputs.map((_, row) => data.slice(row * width, (row + 1) * width));
  }

  async #executableFor(length: number): Promise<Executable> {
    if (this.#released) throw new StateError("run: the encoder was released.");
    if (this.#loaded?.length === length) return this.#loaded.executable;
    await this.#loaded?.executable.release();
    this.#loaded = undefined;
    const shape = spec(["rows", length], "int32");
    const traced = trace(
      ((own: ValueRecord, base: ValueRecord, ids: Value, tokenTypes: Value, mask: Value) => {
        const context = this.#model.context(base, {}, contextOf(this.#adapter, this.#model, own));
        const options = { mask: cast(mask, "bool"), tokenTypes };
        const { hidden } = this.#model.forward(context, ids, options);
        return this.#read({ context, ids, mask, hidden });
      }) as never,
      [numbersOf(this.#adapter), this.#params, shape, shape, shape],
    );
    const executable = await this.#backend.load(traced.program);
    this.#loaded = { length, executable };
    return executable;
  }

  async release(): Promise<void> {
    this.#released = true;
    await this.#loaded?.executable.release();
    this.#loaded = undefined;
  }
}
