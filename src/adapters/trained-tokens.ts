/**
 * Rows of the token embedding that are trained whole beside an adapter: PEFT's `trainable_token_indices`. Where
 * the head shares the embedding, it shares the rows.
 */
import { OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { scatterNd } from "../ir/indexing.ts";
import type { PretrainedModel } from "../models/model.ts";
import { peftName } from "../models/peft-paths.ts";
import type { Context, Slot, TensorRecord, ValueRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";

export interface TrainedTokens {
  /** Of the rows (ids, features) in files. */
  readonly name: string;
  /** The embedding's path and slot. */
  readonly path: string;
  readonly slot: Slot;
  readonly ids: readonly number[];
  /** Shapes alone: no numbers (NaN). */
  init(): TensorRecord;
  /** The base's rows, to begin with. */
  rowsOf(base: Readonly<TensorRecord>): TensorRecord;
  /** The embedding with the rows written in. */
  merge(base: Readonly<Record<string, Tensor>>, params: TensorRecord): TensorRecord;
}

/** @throws OptionError for ids that are no tokens of the model, or twice the same. */
export function trainedTokens(model: PretrainedModel, ids: readonly number[]): TrainedTokens {
  const slot = "embedding" in model ? (model.embedding as Slot) : undefined;
  const found = [...model.slots()].find(([, own]) => own === slot);
  if (!slot || !found) {
    throw new OptionError(`trainableTokens: this ${model.family} has no token embedding.`);
  }
  const [path] = found;
  const [count, features] = slot.shape as [number, number];
  for (const id of ids) {
    if (Number.isInteger(id) && id >= 0 && id < count) continue;
    throw new OptionError(`trainableTokens: ${id} is no token id below ${count}.`);
  }
  if (new Set(ids).size < ids.length) {
    throw new OptionError("trainableTokens: an id stands there twice.");
  }
  const module = path.replace(/\.weight$/, "");
  const name = `${peftName(model, module)}.token_adapter.trainable_tokens_delta`;
  const shape = [ids.length, features];
  return {
    name,
    path,
    slot,
    ids,
    init: () => {
      const none = new Float32Array(ids.length * features).fill(Number.NaN);
      return { [name]: new Tensor("float32", shape, none) };
    },
    rowsOf: (base) => {
      const numbers = base[path]!.numbers();
      const rows = new Float32Array(ids.length * features);
      ids.forEach((id, row) => {
        for (let i = 0; i < features; i++) rows[row * features + i] = numbers[id * features + i]!;
      });
      return { [name]: new Tensor("float32", shape, rows) };
    },
    merge: (base, params) => {
      const numbers = Float32Array.from(base[path]!.numbers());
      const rows = params[name]!.numbers();
      ids.forEach((id, row) => {
        for (let i = 0; i < features; i++) numbers[id * features + i] = rows[row * features + i]!;
      });
      return { [path]: new Tensor("float32", base[path]!.shape, numbers) };
    },
  };
}

/** The embedding with the rows as they are in training. */
export function tokenSlots(
  { slot, name, ids }: TrainedTokens,
  values: ValueRecord,
): ReadonlyMap<Slot, (context: Context) => Value> {
  return new Map([
    [
      slot,
      (context) => {
        const at = Tensor.from(Int32Array.from(ids), [ids.length, 1], "int32");
        return scatterNd(context.stored(slot), at, values[name]!);
      },
    ],
  ]);
}
