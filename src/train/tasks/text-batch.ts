/** Texts as one batch: padded at the end, missing rows with one token that counts nothing. */
import type { FramedText } from "../../data/text-frame.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { type BatchShape, roundUp } from "../batches.ts";

/** What an encoder reads: `ids`, `mask` (1 where a token is) and, where a pair has them, `types`. */
export interface TextBatch {
  readonly ids: Tensor<"int32">;
  readonly mask: Tensor<"int32">;
  readonly types: Tensor<"int32">;
}

/** Tokens of the longest text, rounded up so that few programs are made. */
export function paddedLength(lengths: readonly number[], shape: BatchShape): number {
  const longest = Math.max(1, ...lengths);
  const padded = roundUp(longest, shape.lengthMultiple ?? 16);
  return Math.max(longest, Math.min(padded, shape.maxLength ?? padded));
}

/** @param rows of the batch, at least as many as texts */
export function textBatch(
  texts: readonly (Pick<FramedText, "ids" | "types"> | undefined)[],
  rows: number,
  shape: BatchShape,
): TextBatch {
  const length = paddedLength(
    texts.map((text) => text?.ids.length ?? 1),
    shape,
  );
  const size = rows * length;
  const [ids, mask, types] = [new Int32Array(size), new Int32Array(size), new Int32Array(size)];
  for (let row = 0; row < rows; row++) {
    const text = texts[row];
    if (text) ids.set(text.ids, row * length);
    if (text?.types) types.set(text.types, row * length);
    // A row without a token would have no mean.
    mask.fill(1, row * length, row * length + (text?.ids.length ?? 1));
  }
  const tensor = (data: Int32Array<ArrayBuffer>): Tensor<"int32"> =>
    new Tensor("int32", [rows, length], data);
  return { ids: tensor(ids), mask: tensor(mask), types: tensor(types) };
}

/** 1 for each example, 0 for missing ones: (rows,). */
export function exampleWeights(count: number, rows: number): Tensor<"float32"> {
  return new Tensor(
    "float32",
    [rows],
    Float32Array.from({ length: rows }, (_, i) => (i < count ? 1 : 0)),
  );
}

/** Places (row · T + i) and what is wanted there, padded to one of few sizes. */
export function placedTargets(
  rows: readonly number[],
  targets: readonly number[],
  multiple: number,
): {
  readonly rows: Tensor<"int32">;
  readonly targets: Tensor<"int32">;
  readonly weights: Tensor<"float32">;
} {
  const count = roundUp(rows.length, multiple);
  const filled = (values: readonly number[]): Tensor<"int32"> =>
    new Tensor(
      "int32",
      [count],
      Int32Array.from({ length: count }, (_, i) => values[i] ?? 0),
    );
  return {
    rows: filled(rows),
    targets: filled(targets),
    weights: exampleWeights(rows.length, count),
  };
}
