/** One tensor of a merge: read from every model, merged, rounded to the type that is stored. */

import { Rng } from "../../../tensor/rng.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import type { MergeRole } from "../../method.ts";
import { checksum, narrow } from "./convert.ts";
import type { MergePlan, PlannedInput, PlannedTensor } from "./plan.ts";
import type { Scratch } from "./scratch.ts";
import type { Source } from "./source.ts";

/** How far the weights are from a model's. */
export interface WeightDifference {
  readonly model: string;
  /** ‖merged - model‖ / ‖model‖, on the entries that were looked at. */
  readonly relative: number;
  /** Entries that were looked at: all of small tensors, every so many of large ones. */
  readonly entries: number;
}

/** Inputs above this come in parts, where the method allows it. */
const partBytes = 256e6;
const partElements = 2 ** 22;
/** Entries of one tensor that distances are taken from, about. */
const sampled = 2 ** 15;

export class TensorMerger {
  readonly #plan: MergePlan;
  readonly #sources: readonly Source[];
  readonly #scratch: Scratch;
  readonly #rng: Rng;
  readonly #role: MergeRole<object>;
  /** Sums of (merged - model)² and model² by source, and entries looked at. */
  readonly #squares: readonly { apart: number; own: number; entries: number }[];
  #areEqual = true;
  /** Tensors of whole numbers that differ. */
  readonly #unequal: string[] = [];

  constructor(plan: MergePlan, sources: readonly Source[], seed: number, scratch: Scratch) {
    this.#plan = plan;
    this.#sources = sources;
    this.#scratch = scratch;
    this.#rng = new Rng(seed).fold("merge");
    this.#role = plan.method.roles.merge! as MergeRole<object>;
    this.#squares = sources.map(() => ({ apart: 0, own: 0, entries: 0 }));
  }

  /** Bytes that are read for a tensor. */
  inputBytesOf({ base, inputs }: PlannedTensor): number {
    const all = base ? [base, ...inputs] : inputs;
    return all.reduce(
      (sum, { source, name }) => sum + this.#sources[source].entries.get(name)!.bytes,
      0,
    );
  }

  /** Whether all tensors so far were the same in all models. */
  areInputsEqual(): boolean {
    return this.#areEqual;
  }

  /** What the user should know of tensors that were not merged. */
  warnings(): string[] {
    const count = this.#unequal.length;
    if (count === 0) return [];
    const { inputs, base } = this.#plan.tensors.find(({ name }) => name === this.#unequal[0])!;
    const { label } = this.#sources[(base ?? inputs[0]).source];
    return [
      `${count} tensor${count === 1 ? "" : "s"} of whole numbers, as "${this.#unequal[0]}", differ between the models: those of "${label}" were kept.`,
    ];
  }

  differences(): WeightDifference[] {
    return this.#squares.flatMap(({ apart, own, entries }, i) =>
      entries === 0
        ? []
        : [
            {
              model: this.#sources[i].label,
              relative: own === 0 ? (apart === 0 ? 0 : Infinity) : Math.sqrt(apart / own),
              entries,
            },
          ],
    );
  }

  /** The bytes of a merged tensor, as they are stored. @throws FormatError for numbers that are not finite. */
  async bytesOf(planned: PlannedTensor): Promise<Uint8Array> {
    if (planned.isCopied) return this.#copied(planned);
    const size = planned.shape.reduce((a, b) => a * b, 1);
    const all = planned.base ? [planned.base, ...planned.inputs] : planned.inputs;
    const isWhole =
      !this.#role.isElementwise ||
      4 * size * all.length <= partBytes ||
      all.some(({ source, name }) => this.#sources[source].adapted.has(name));
    const merged = isWhole
      ? await this.#part(planned, all, 0, size, planned.shape)
      : new Float32Array(size);
    if (!isWhole) {
      for (let start = 0; start < size; start += partElements) {
        const count = Math.min(partElements, size - start);
        merged.set(await this.#part(planned, all, start, count, [count]), start);
      }
    }
    const where = `${this.#plan.method.id}: tensor "${planned.name}"`;
    return narrow(where, merged, planned.dtype as "F32" | "F16" | "BF16");
  }

  async #part(
    planned: PlannedTensor,
    all: readonly PlannedInput[],
    start: number,
    count: number,
    shape: readonly number[],
  ): Promise<Float32Array<ArrayBuffer>> {
    const arrays = await Promise.all(
      all.map(({ source, name }) => this.#sources[source].read(name, this.#scratch, start, count)),
    );
    const tensors = arrays.map((array) => new Tensor("float32", shape, array));
    const { base, name, options } = planned;
    const result = this.#role.merge(
      {
        name,
        base: base ? tensors[0] : undefined,
        tensors: base ? tensors.slice(1) : tensors,
        rng: this.#rng.fold(name),
      },
      options,
    );
    this.#look(all, arrays, result.data);
    for (const array of arrays) if (array.buffer !== result.data.buffer) this.#scratch.give(array);
    return result.data;
  }

  /** Takes distances on some of the entries, and looks whether all models are the same. */
  #look(all: readonly PlannedInput[], arrays: readonly Float32Array[], merged: Float32Array): void {
    const stride = Math.max(1, Math.floor(merged.length / sampled));
    for (const [k, { source }] of all.entries()) {
      const array = arrays[k];
      let [apart, own, entries] = [0, 0, 0];
      for (let i = 0; i < merged.length; i += stride) {
        const difference = merged[i] - array[i];
        apart += difference * difference;
        own += array[i] * array[i];
        entries++;
      }
      const sums = this.#squares[source];
      sums.apart += apart * stride;
      sums.own += own * stride;
      sums.entries += entries;
    }
    for (let k = 1; k < arrays.length && this.#areEqual; k++) {
      const [a, b] = [arrays[0], arrays[k]];
      for (let i = 0; i < a.length; i++) {
        if (a[i] === b[i]) continue;
        this.#areEqual = false;
        break;
      }
    }
  }

  /** Whole numbers, as counts of batches: those of the first model. */
  async #copied({ base, inputs, name }: PlannedTensor): Promise<Uint8Array> {
    const [first, ...others] = base ? [base, ...inputs] : inputs;
    const bytes = await this.#sources[first.source].readBytes(first.name);
    const sum = checksum(bytes);
    for (const input of others) {
      if (checksum(await this.#sources[input.source].readBytes(input.name)) === sum) continue;
      this.#unequal.push(name);
      this.#areEqual = false;
      break;
    }
    return bytes;
  }
}
