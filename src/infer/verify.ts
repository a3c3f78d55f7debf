/** Comparing two forms of one model by their logits, before either is written. */
import { contextOf, numbersOf } from "../adapters/adapted.ts";
import type { LoadedAdapter } from "../adapters/adapter.ts";
import type { Backend } from "../backend/backend.ts";
import { compile } from "../backend/compile.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { ShapeError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import type { LanguageModel, LanguageModelSizes } from "../models/model.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** Texts that are tried, as far as a tokenizer is there. */
const texts = [
  "The quick brown fox jumps over the lazy dog, and 12 of 345 others watch from the hill.",
  "Once upon a time there was a small house by the sea; nobody had lived in it for years.",
] as const;

export interface ProbeOptions {
  readonly tokenizer?: Tokenizer;
  /** Of the random token ids; default 0. */
  readonly seed?: number;
  /** Tokens a row; default 24, or as many as the model has positions. */
  readonly length?: number;
}

/**
 * Inputs on which two models are compared: texts where there is a tokenizer, and random token ids.
 * @returns int32 (rows, length), three rows or more
 */
export function probeInputs(
  sizes: LanguageModelSizes,
  options: ProbeOptions = {},
): Tensor<"int32"> {
  const { tokenizer, seed = 0 } = options;
  const { vocabSize, maxPositions } = sizes;
  const length = Math.min(options.length ?? 24, maxPositions);
  const rows = tokenizer
    ? texts.flatMap((text) => {
        const ids = tokenizer.encode(text);
        const fits = ids.length > 0 && ids.every((id) => id < vocabSize);
        return fits ? [Array.from({ length }, (_, i) => ids[i % ids.length]!)] : [];
      })
    : [];
  for (let row = 0; row < 3; row++) {
    const rng = new Rng(seed).fold("probe", row);
    rows.push(Array.from({ length }, () => rng.integer(vocabSize)));
  }
  return new Tensor("int32", [rows.length, length], Int32Array.from(rows.flat()));
}

/** How far two tensors of logits are apart. */
export interface LogitDifference {
  /** max |other - reference| */
  readonly maxAbsolute: number;
  /** max |other - reference| / max |reference| */
  readonly maxRelative: number;
  /** Share of rows whose likeliest token is the same, in [0, 1]. */
  readonly sameTop: number;
  /** Rows of logits compared. */
  readonly rows: number;
}

/**
 * @param reference (rows, V)
 * @param other the same shape; a number that is not finite counts as infinitely far
 * @throws ShapeError when the shapes differ.
 */
export function compareLogits(reference: Tensor, other: Tensor): LogitDifference {
  if (!sameShape(reference.shape, other.shape)) {
    throw new ShapeError(
      `compareLogits: shapes differ, ${showShape(reference.shape)} and ${showShape(other.shape)}.`,
    );
  }
  const [a, b] = [reference.numbers(), other.numbers()];
  const width = reference.shape.at(-1)!;
  const rows = a.length / width;
  let [maxAbsolute, top, same] = [0, 0, 0];
  for (let row = 0; row < rows; row++) {
    let [bestA, bestB] = [row * width, row * width];
    for (let i = row * width; i < (row + 1) * width; i++) {
      const difference = Math.abs(b[i]! - a[i]!);
      // NaN compares as false: it must not pass as no difference.
      if (!(difference <= maxAbsolute)) {
        maxAbsolute = Number.isNaN(difference) ? Infinity : difference;
      }
      top = Math.max(top, Math.abs(a[i]!));
      if (a[i]! > a[bestA]!) bestA = i;
      if (b[i]! > b[bestB]!) bestB = i;
    }
    if (bestA === bestB) same++;
  }
  return {
    maxAbsolute,
    maxRelative: maxAbsolute === 0 ? 0 : maxAbsolute / top,
    sameTop: same / rows,
    rows,
  };
}

/**
 * Logits at every position.
 * @param ids int32 (rows, length)
 * @returns (rows · length, V)
 */
export async function probeLogits(
  backend: Backend,
  model: LanguageModel,
  params: TensorRecord,
  ids: Tensor<"int32">,
  adapter?: LoadedAdapter,
): Promise<Tensor> {
  const own = numbersOf(adapter);
  const compiled = await compile<Tensor>(
    ((values: ValueRecord, base: ValueRecord, tokens: Value) =>
      model.forward(model.context(base, {}, contextOf(adapter, model, values)), tokens)
        .logits) as never,
    [own, params, ids],
    { backend },
  );
  try {
    return await compiled.run(own, params, ids);
  } finally {
    await compiled.release();
  }
}
