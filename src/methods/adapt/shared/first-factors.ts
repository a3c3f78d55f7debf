/** First numbers of a LoRA's layers as factors of a matrix that each layer has: its weight, or a gradient. */
import type { PrepareScene } from "../../../adapters/adapter.ts";
import {
  type LoraAdapter,
  type LoraLayer,
  type LoraOptions,
  lora,
} from "../../../adapters/lora.ts";
import { OptionError } from "../../../errors.ts";
import type { Linear } from "../../../nn/linear.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import {
  frobenius,
  type Matrix,
  matrix,
  matrixOf,
  tensorOf,
  transpose,
} from "../../../tensor/linalg/index.ts";
import type { Tensor } from "../../../tensor/tensor.ts";

/** A (r, in) and B (out, r). */
export interface Factors {
  readonly a: Matrix;
  readonly b: Matrix;
}

/** A matrix as (out, in), from the form in which the layer keeps its weight; and the way back. */
export function outputsFirst({ inputsFirst }: Linear, weight: Tensor): Matrix {
  const own = matrixOf(weight);
  return inputsFirst ? transpose(own) : own;
}

/** The way back: the form in which the layer keeps its weight. */
export function asKept({ inputsFirst }: Linear, weight: Matrix): Tensor<"float32"> {
  return tensorOf(inputsFirst ? transpose(weight) : weight);
}

export function times(a: Matrix, factor: number): Matrix {
  return matrix(
    a.rows,
    a.columns,
    a.data.map((x) => x * factor),
  );
}

/** a - b */
export function minus(a: Matrix, b: Matrix): Matrix {
  return matrix(
    a.rows,
    a.columns,
    a.data.map((x, i) => x - b.data[i]!),
  );
}

/** ‖a‖² */
export function energyOf(a: Matrix): number {
  return frobenius(a) ** 2;
}

/** Each of the values as a root: B = U √Σ, A = √Σ Vᵀ, divided by √divisor both. */
export function balanced(
  { u, s, vt }: { readonly u: Matrix; readonly s: Float64Array; readonly vt: Matrix },
  rank: number,
  divisor: number,
): Factors {
  const roots = s.slice(0, rank).map((x) => Math.sqrt(Math.max(0, x) / divisor));
  const a = matrix(rank, vt.columns, vt.data.slice(0, rank * vt.columns));
  const b = matrix(u.rows, rank);
  for (let i = 0; i < rank; i++) {
    for (let j = 0; j < a.columns; j++) a.data[i * a.columns + j]! *= roots[i]!;
    for (let j = 0; j < b.rows; j++) b.data[j * rank + i] = u.data[j * u.columns + i]! * roots[i]!;
  }
  return { a, b };
}

/**
 * The LoRA that options ask for, of linear layers alone.
 * @throws OptionError for other layers, or a rank above a layer's number of directions.
 */
export function factoredLora(
  where: string,
  scene: PrepareScene,
  options: LoraOptions,
): LoraAdapter {
  const adapter = lora(scene.model, options);
  const other = adapter.targets.find((path) => !adapter.layers.has(path));
  if (other !== undefined) {
    throw new OptionError(
      `${where}: "${other}" is no linear layer, and has no first numbers here — leave it out of targetModules.`,
    );
  }
  for (const [path, { rank, layer }] of adapter.layers) {
    const side = Math.min(layer.inFeatures, layer.outFeatures);
    if (rank <= side) continue;
    throw new OptionError(
      `${where}: rank ${rank} is more than the ${side} directions of "${path}" (${layer.outFeatures}, ${layer.inFeatures}) — take a lower rank, or rankPattern for that layer.`,
    );
  }
  return adapter;
}

/** First numbers of every layer of an adapter, each as its factors say. */
export function firstFactors(
  scene: PrepareScene,
  where: string,
  { layers }: LoraAdapter,
  factorsOf: (layer: LoraLayer) => Factors,
): TensorRecord {
  const params: TensorRecord = {};
  let done = 0;
  for (const layer of layers.values()) {
    scene.signal?.throwIfAborted();
    const { a, b } = factorsOf(layer);
    params[layer.a] = tensorOf(a);
    params[layer.b] = tensorOf(b);
    scene.onProgress?.(`${where}: ${++done} of ${layers.size} layers`);
  }
  return params;
}
