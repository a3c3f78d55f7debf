/** A LoRA layer's update as a matrix, whatever layer it is, and a plain LoRA from such matrices. */
import { UnsupportedError } from "../errors.ts";
import type { PretrainedModel } from "../models/model.ts";
import { Embedding } from "../nn/embedding.ts";
import { Linear } from "../nn/linear.ts";
import type { TensorRecord } from "../nn/module.ts";
import { type Matrix, matrix } from "../tensor/linalg/index.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { LoadedAdapter } from "./adapter.ts";
import { type LoraAdapter, lora } from "./lora.ts";
import { type LoraBase, type LoraPart, shapesOf } from "./lora-layer.ts";
import { loraLayers } from "./lora-targets.ts";

/**
 * A (r, n) and B (m, r), so that s B A is the update: (out, in) of a linear layer, (out, in · k · k) of a
 * convolution, (features, count) of an embedding.
 */
export interface PartFactors {
  readonly a: Matrix;
  readonly b: Matrix;
}

/** The two matrices of a layer, in double precision. */
export function factorsOf(part: LoraPart, params: Readonly<TensorRecord>): PartFactors {
  const [first, second] = [params[part.a]!, params[part.b]!];
  return {
    a: matrix(part.rank, first.size / part.rank, Float64Array.from(first.numbers())),
    b: matrix(second.size / part.rank, part.rank, Float64Array.from(second.numbers())),
  };
}

/** A change of a layer's weight, from the form in which the layer keeps it to that of B A. */
export function updateOf(layer: LoraBase, change: Tensor): Matrix {
  const numbers = change.numbers();
  const isTurned = layer instanceof Embedding || (layer instanceof Linear && layer.inputsFirst);
  const [first, rest] = [change.shape[0]!, change.size / change.shape[0]!];
  if (!isTurned) return matrix(first, rest, Float64Array.from(numbers));
  const turned = matrix(rest, first);
  for (let i = 0; i < first; i++) {
    for (let j = 0; j < rest; j++) turned.data[j * first + i] = numbers[i * rest + j]!;
  }
  return turned;
}

/**
 * An adapter as a LoRA of products alone.
 * @param where begins an error
 * @throws UnsupportedError for another kind, or a LoRA with more than products: DoRA, biases, trained tokens,
 * modules saved beside it.
 */
export function plainLora(
  where: string,
  { adapter, params }: LoadedAdapter,
): { readonly adapter: LoraAdapter; readonly parts: ReadonlyMap<string, LoraPart> } {
  const { parts, options } = adapter as Partial<LoraAdapter>;
  if (!parts || !options) {
    throw new UnsupportedError(
      `${where}: is of kind ${adapter.kind}, only LoRA is taken — convert it first (plasticity adapter convert).`,
    );
  }
  const [some] = [...parts.values()];
  const known = new Set([...parts.values()].flatMap(({ a, b }) => [a, b]));
  const stray = Object.keys(params).find((name) => !known.has(name));
  if (some?.isDora || some?.hasBias || stray !== undefined) {
    const what = some?.isDora ? "DoRA's magnitudes" : some?.hasBias ? "biases" : `"${stray}"`;
    throw new UnsupportedError(
      `${where}: has ${what} beside LoRA's products, which is not taken — merge it into the model instead (plasticity merge-adapter).`,
    );
  }
  return { adapter: adapter as LoraAdapter, parts };
}

/**
 * A plain LoRA whose scale is 1 in every layer: alpha is the rank, as PEFT writes what it combines or converts.
 * @param updates by path of the layer, in the model's order; rank 1 at least each
 */
export function loraOf(
  model: PretrainedModel,
  updates: ReadonlyMap<string, PartFactors>,
): { readonly adapter: LoraAdapter; readonly params: TensorRecord } {
  const ranks = [...updates].map(([path, { a }]) => [path, a.rows] as const);
  const counts = new Map<number, number>();
  for (const [, rank] of ranks) counts.set(rank, (counts.get(rank) ?? 0) + 1);
  const [rank] = [...counts].sort((x, y) => y[1] - x[1] || y[0] - x[0])[0]!;
  const pattern = Object.fromEntries(ranks.filter(([, own]) => own !== rank));
  // By their last parts where these mean the same layers.
  const names = [...new Set(ranks.map(([path]) => path.split(".").at(-1)!))];
  const isWhole = loraLayers(model, names).size === ranks.length;
  const adapter = lora(model, {
    rank,
    alpha: rank,
    targetModules: isWhole ? names : ranks.map(([path]) => path),
    rankPattern: pattern,
    alphaPattern: pattern,
  });
  const params: TensorRecord = {};
  for (const part of adapter.parts.values()) {
    const { a, b } = updates.get(part.path)!;
    const shapes = shapesOf(part);
    params[part.a] = new Tensor("float32", shapes[part.a]!, Float32Array.from(a.data));
    params[part.b] = new Tensor("float32", shapes[part.b]!, Float32Array.from(b.data));
  }
  return { adapter, params };
}
