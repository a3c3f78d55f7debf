/**
 * The one program of a serving engine: some tokens of some rows after what their pages hold.
 *
 * Rows, tokens of a row and pages of a row are symbols, so that one session with prepacked weights reads
 * prompts and makes tokens, and nothing is compiled later. Keys and values come from the pools by `Gather`:
 *
 *   pool (pages · Hkv, P · D), table (rows, Hkv, blocks)  →  (rows, Hkv, blocks, P · D)  →  (rows, Hkv, blocks · P, D)
 */
import { contextOf, joinContexts, numbersOf } from "../../adapters/adapted.ts";
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import type { LoraBank } from "../../adapters/bank.ts";
import type { Backend, Executable } from "../../backend/backend.ts";
import { spec, trace } from "../../backend/compile.ts";
import { UnsupportedError } from "../../errors.ts";
import type { Spec, Value } from "../../ir/graph.ts";
import { gather } from "../../ir/indexing.ts";
import { reshape } from "../../ir/layout.ts";
import type { LanguageModel } from "../../models/model.ts";
import { masked } from "../../nn/attention.ts";
import type { ContextOptions, TensorRecord, ValueRecord } from "../../nn/module.ts";
import type { Dtype } from "../../tensor/dtype.ts";
import { mulDims } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { CacheSizes, PagedCache } from "./pages.ts";

export interface PagedProgramOptions {
  /** One adapter for all rows; with a bank each row has its own. */
  readonly adapter?: LoadedAdapter;
  readonly bank?: LoraBank;
  /** For base weights in another form, as those of `quantizeModel`: its `context`. */
  readonly form?: (base: ValueRecord) => ContextOptions;
  /** Keep the base weights in the session, prepacked; default true. */
  readonly prepack?: boolean;
}

/** A row of a pass. */
export interface PassRow {
  /** Tokens to read, at least one. */
  readonly tokens: ArrayLike<number>;
  /** Tokens before them, which the pages hold. */
  readonly held: number;
  readonly pages: readonly number[];
  /** Slot of the bank; 0 is the base model. */
  readonly slot: number;
}

export interface Pass {
  /** After the last token of each row, (rows, V); the next pass writes over it. */
  readonly logits: Float32Array;
  /** Keys and values of layer after layer, (rows, Hkv, T, D) each; the next pass writes over them. */
  readonly present: readonly Tensor[];
}

/** What a model keeps of a token. */
export function cacheSizesOf(model: LanguageModel, adapter?: LoadedAdapter): CacheSizes {
  const { nLayers, nKvHeads, headDim } = model.sizes;
  return { nLayers: nLayers * (adapter?.adapter.passes ?? 1), nKvHeads, headDim };
}

/** Lengths of passes: tails of sums have other roundings where a length is no multiple of this. */
const lengthStep = 16;

/** Tokens of a row as the program takes them: 1, or a multiple of 16. */
export function passLength(count: number): number {
  return count === 1 ? 1 : Math.ceil(count / lengthStep) * lengthStep;
}

export class PagedProgram {
  readonly #cache: PagedCache;
  readonly #bank: LoraBank | undefined;
  readonly #adapter: LoadedAdapter | undefined;
  readonly #executable: Executable;
  /** Base weights, where the session does not hold them. */
  readonly #base: readonly Tensor[];
  /** Memory of the outputs, as large as the largest so far. */
  #outputs: Float32Array<ArrayBuffer>[] = [];

  private constructor(
    executable: Executable,
    cache: PagedCache,
    base: readonly Tensor[],
    { bank, adapter }: PagedProgramOptions,
  ) {
    this.#executable = executable;
    this.#cache = cache;
    this.#base = base;
    this.#bank = bank;
    this.#adapter = adapter;
  }

  /**
   * Traces and loads the program.
   * @throws UnsupportedError for a model that carries a state instead of keys and values, and for a backend
   * that keeps tensors on a device.
   */
  static async load(
    model: LanguageModel,
    params: TensorRecord,
    backend: Backend,
    cache: PagedCache,
    options: PagedProgramOptions = {},
  ): Promise<PagedProgram> {
    if (model.stateShapes) {
      throw new UnsupportedError(
        `serve: ${model.family} carries a state between tokens, and pages hold keys and values — use a decoder.`,
      );
    }
    if (backend.device) {
      throw new UnsupportedError(
        `serve: pages are in the host's memory, and ${backend.name} would copy them at every step — use the CPU engine.`,
      );
    }
    const { adapter, bank, form, prepack = true } = options;
    if (adapter?.adapter.past) {
      throw new UnsupportedError(
        `serve: ${adapter.adapter.title} puts ${adapter.adapter.virtualTokens ?? 0} virtual tokens before every sequence, and pages hold none of them — use a decoder.`,
      );
    }
    const { nKvHeads, headDim, nLayers } = cacheSizesOf(model, adapter);
    const { pageTokens, pools } = cache;
    const own: Readonly<Record<string, Spec>> = bank ? bank.specs : numbersOf(adapter);
    const traced = trace(
      ((
        numbers: ValueRecord,
        base: ValueRecord,
        ids: Value,
        positions: Value,
        wanted: Value,
        table: Value,
        mask: Value,
        ...pool: Value[]
      ) => {
        const past = mulDims(pageTokens, "blocks");
        const join = (one: Value): Value =>
          reshape(gather(one, table), ["rows", nKvHeads, past, headDim]);
        const layers = Array.from({ length: nLayers }, (_, i) => ({
          keys: join(pool[2 * i]!),
          values: join(pool[2 * i + 1]!),
        }));
        const extra = bank ? bank.context(numbers) : contextOf(adapter, model, numbers);
        const context = model.context(base, {}, joinContexts(form?.(base) ?? {}, extra));
        const { logits, present } = model.forward(context, ids, {
          positions,
          past: { layers, mask: reshape(mask, ["rows", 1, 1, past]) },
          rows: wanted,
        });
        return [logits, present.flatMap(({ keys, values }) => [keys, values])];
      }) as never,
      [
        own,
        params,
        spec(["rows", "length"], "int32"),
        spec(["rows", "length"], "int32"),
        spec(["wanted"], "int32"),
        spec(["rows", nKvHeads, "blocks"], "int32"),
        spec(["rows", "blocks", pageTokens]),
        ...pools,
      ],
    );
    const frozen = new Map(Object.entries(params).map(([path, tensor]) => [`1.${path}`, tensor]));
    const executable = await backend.load(traced.program, prepack ? { frozen } : {});
    const base = prepack ? [] : Object.values(params);
    return new PagedProgram(executable, cache, base, options);
  }

  /**
   * Reads the tokens of all rows. A pass with a single token is padded to two rows: a product with one row
   * may differ in its last bits from the same row among others.
   */
  async run(rows: readonly PassRow[]): Promise<Pass> {
    const length = passLength(Math.max(...rows.map(({ tokens }) => tokens.length)));
    const count = length === 1 ? Math.max(2, rows.length) : rows.length;
    const { pageTokens, pools } = this.#cache;
    const heads = pools[0]!.shape[0]! / (this.#cache.pages + 1);
    const blocks = Math.max(1, ...rows.map(({ held }) => Math.ceil(held / pageTokens)));
    const past = blocks * pageTokens;
    const ids = new Int32Array(count * length);
    const positions = new Int32Array(count * length);
    const wanted = new Int32Array(Math.max(2, count));
    const table = new Int32Array(count * heads * blocks);
    const mask = new Float32Array(count * past).fill(masked);
    const slots = new Int32Array(count);
    rows.forEach(({ tokens, held, pages, slot }, row) => {
      ids.set(tokens, row * length);
      // Padding repeats the last position, so that it stays inside the tables.
      for (let t = 0; t < length; t++) {
        positions[row * length + t] = held + Math.min(t, tokens.length - 1);
      }
      wanted[row] = row * length + tokens.length - 1;
      const own = Math.ceil(held / pageTokens);
      for (let head = 0; head < heads; head++) {
        const at = (row * heads + head) * blocks;
        for (let i = 0; i < blocks; i++) table[at + i] = (i < own ? pages[i]! : 0) * heads + head;
      }
      mask.fill(0, row * past, row * past + held);
      slots[row] = slot;
    });
    for (let row = rows.length; row < count; row++) {
      for (let head = 0; head < heads; head++) {
        table.fill(head, (row * heads + head) * blocks, (row * heads + head + 1) * blocks);
      }
      wanted[row] = row * length;
    }
    const inputs = [
      ...Object.values(this.#bank?.inputs(slots) ?? numbersOf(this.#adapter)),
      ...this.#base,
      new Tensor("int32", [count, length], ids),
      new Tensor("int32", [count, length], positions),
      new Tensor("int32", [wanted.length], wanted),
      new Tensor("int32", [count, heads, blocks], table),
      new Tensor("float32", [count, blocks, pageTokens], mask),
      ...pools,
    ];
    const sizes: Readonly<Record<string, number>> = { rows: count, length, wanted: wanted.length };
    const into = this.#executable.outputs.map(({ shape, dtype }, i) => {
      const dims = shape.map((dim) => (typeof dim === "number" ? dim : sizes[dim]!));
      return this.#output(i, dtype, dims);
    });
    const [logits, ...present] = await this.#executable.run(inputs, into);
    return { logits: logits!.data as Float32Array, present };
  }

  /** A tensor in the memory kept for an output. */
  #output(index: number, dtype: Dtype, shape: readonly number[]): Tensor {
    const size = shape.reduce((product, dim) => product * dim, 1);
    if ((this.#outputs[index]?.length ?? -1) < size) {
      this.#outputs[index] = new Float32Array(2 ** Math.ceil(Math.log2(size)));
    }
    return new Tensor(dtype, shape, this.#outputs[index]!.subarray(0, size));
  }

  async release(): Promise<void> {
    this.#outputs = [];
    await this.#executable.release();
  }
}
