/** Log-probabilities of whole answers: what every objective over answers stands on. */
import type { Example } from "../../data/example.ts";
import type { Preference } from "../../data/set.ts";
import { cast, div, equal, maximum, mul, neg, softplus, where } from "../../ir/elementwise.ts";
import { crossEntropyRows } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { scatterNd } from "../../ir/indexing.ts";
import { reshape, slice } from "../../ir/layout.ts";
import type { LanguageModel } from "../../models/model.ts";
import type { Context, ValueRecord } from "../../nn/module.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type BatchShape, roundUp } from "../batches.ts";
import type { Batch } from "../objective.ts";

/** How answers lie in a batch. */
export type Sequences = Required<
  Pick<Batch, "ids" | "rows" | "targets" | "owners" | "items" | "counts">
>;

/**
 * Sequences as tensors, padded at the end: `ids` (S, T) int32; and of the N tokens that carry loss
 * `targets`, where each is predicted (`rows` of S · T), whose it is (`owners`), and 1, or 0 for padding
 * (`items`); `counts` (S,) of them in each sequence.
 * @param examples by place; a missing one is empty
 * @param count sequences, S
 */
export function sequenceTensors(
  examples: readonly (Example | undefined)[],
  count: number,
  shape: BatchShape,
): Sequences {
  const longest = Math.max(1, ...examples.map((example) => (example?.ids.length ?? 1) - 1));
  const padded = roundUp(longest, shape.lengthMultiple ?? 16);
  const length = Math.max(longest, Math.min(padded, shape.maxLength ?? padded));
  const ids = new Int32Array(count * length);
  const counts = new Float32Array(count);
  const [rows, targets, owners]: [number[], number[], number[]] = [[], [], []];
  examples.forEach((example, owner) => {
    if (!example) return;
    ids.set(example.ids.subarray(0, example.ids.length - 1), owner * length);
    for (let i = 1; i < example.ids.length; i++) {
      if (!example.mask[i]) continue;
      rows.push(owner * length + i - 1);
      targets.push(example.ids[i]!);
      owners.push(owner);
      counts[owner]!++;
    }
  });
  const size = roundUp(rows.length, roundUp(count * 4, 32));
  const filled = (values: readonly number[]): Tensor<"int32"> =>
    new Tensor(
      "int32",
      [size],
      Int32Array.from({ length: size }, (_, i) => values[i] ?? 0),
    );
  return {
    ids: new Tensor("int32", [count, length], ids),
    rows: filled(rows),
    targets: filled(targets),
    owners: filled(owners),
    items: perItem(size, (i) => (i < rows.length ? 1 : 0)),
    counts: new Tensor("float32", [count], counts),
  };
}

/** A number for each of N tokens. */
export function perItem(size: number, of: (i: number) => number): Tensor<"float32"> {
  return new Tensor(
    "float32",
    [size],
    Float32Array.from({ length: size }, (_, i) => of(i)),
  );
}

/** 1 for each of `used` rows, 0 for the rest. */
export function rowWeights(used: number, rows: number): Tensor<"float32"> {
  return perItem(rows, (i) => (i < used ? 1 : 0));
}

/** Chosen answers in the first `shape.rows` sequences, rejected ones in as many after them. */
export function preferenceTensors(examples: readonly Preference[], shape: BatchShape): Batch {
  const places: (Example | undefined)[] = new Array(2 * shape.rows).fill(undefined);
  examples.forEach(({ chosen, rejected }, i) => {
    places[i] = chosen;
    places[shape.rows + i] = rejected;
  });
  return {
    ...sequenceTensors(places, 2 * shape.rows, shape),
    weights: rowWeights(examples.length, shape.rows),
  };
}

/** log p of each of the N tokens; 0 for padding. */
export function tokenLogProbs(
  model: LanguageModel,
  context: Context,
  { ids, rows, targets, items }: ValueRecord,
  temperature = 1,
): Value {
  const { logits } = model.forward(context, ids!, { rows: rows! });
  const scaled = temperature === 1 ? logits : div(logits, temperature);
  return mul(neg(crossEntropyRows(scaled, targets!)), items!);
}

/** Sums of N numbers by the sequence that each is of: (S,). */
export function sumBySequence(values: Value, { owners, counts }: ValueRecord): Value {
  const [size] = values.shape as [number];
  const [count] = counts!.shape as [number];
  const zeros = cast(new Tensor("float32", [count], new Float32Array(count)), values.dtype);
  return scatterNd(zeros, reshape(owners!, [size, 1]), values, "add");
}

/** log p of each sequence's answer: (S,). */
export function sequenceLogProbs(
  model: LanguageModel,
  context: Context,
  batch: ValueRecord,
): Value {
  return sumBySequence(tokenLogProbs(model, context, batch), batch);
}

/** Means over each sequence's tokens; -1 for a sequence that has none. */
export function meanLogProbs(sums: Value, { counts }: ValueRecord): Value {
  return where(equal(counts!, 0), -1, div(sums, maximum(counts!, 1)));
}

/** The halves of (2R,): chosen and rejected. */
export function halves(values: Value): [chosen: Value, rejected: Value] {
  const count = (values.shape[0] as number) / 2;
  return [slice(values, 0, 0, count), slice(values, 0, count)];
}

/** -log σ(x), without overflow. */
export function negLogSigmoid(x: Value): Value {
  return softplus(neg(x));
}
