/**
 * What LoRA is on one layer: a linear one, a convolution, an embedding; and with a magnitude (DoRA).
 *
 *   linear      y = W x + s B A x                A (r, in), B (out, r)
 *   convolution y = W * x + s B * (A * x)        A (r, in, k, k) with the layer's stride, B (out, r, 1, 1)
 *   embedding   y = W[i] + s (Aᵀ[i]) Bᵀ          A (r, count), B (features, r)
 *   DoRA        y = m / ‖W + s B A‖ (W x + s B A x) + b     m (out,), the norm of each output without gradient
 *
 * Hu et al. 2022, arXiv:2106.09685; Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024,
 * arXiv:2402.09353, eq. 5 and section 4.3. Names and shapes are PEFT's.
 */
import { UnsupportedError } from "../errors.ts";
import {
  add,
  cast,
  div,
  greaterOrEqual,
  mul,
  sqrt,
  square,
  stopGradient,
  sub,
} from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { conv, dot } from "../ir/linear.ts";
import { sum } from "../ir/reduce.ts";
import type { PretrainedModel } from "../models/model.ts";
import { peftName } from "../models/peft-paths.ts";
import { AnyConv, ConvTranspose1d, ConvTranspose2d } from "../nn/conv.ts";
import { Embedding } from "../nn/embedding.ts";
import { kaimingUniform, normal, uniform } from "../nn/init.ts";
import { Linear } from "../nn/linear.ts";
import type {
  Context,
  Initializer,
  Module,
  SiteFn,
  TensorRecord,
  ValueRecord,
} from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { type StaticShape, sizeOf, toStatic } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { addProduct, matrixProduct } from "./lora-merge.ts";

/** A layer that LoRA sits on. */
export type LoraBase = Linear | AnyConv | Embedding;

export function isLoraBase(module: Module): module is LoraBase {
  return module instanceof Linear || module instanceof AnyConv || module instanceof Embedding;
}

/** Settings of one layer. */
export interface LayerSettings {
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
  readonly dropout: number;
  readonly isDora: boolean;
  /** Whether B has a bias, trained with it. */
  readonly hasBias: boolean;
}

/** One layer's part of an adapter. */
export interface LoraPart extends LayerSettings {
  readonly path: string;
  readonly layer: LoraBase;
  /** Names of A, B and, where they are, B's bias and the magnitude. */
  readonly a: string;
  readonly b: string;
  readonly bias: string | undefined;
  readonly magnitude: string | undefined;
}

/**
 * @throws UnsupportedError for a layer that LoRA, or what is asked of it, does not fit.
 */
export function loraPart(
  model: PretrainedModel,
  path: string,
  layer: LoraBase,
  settings: LayerSettings,
): LoraPart {
  const base = peftName(model, path);
  if (layer instanceof ConvTranspose1d || layer instanceof ConvTranspose2d) {
    throw new UnsupportedError(
      `lora: "${path}" is a transposed convolution, which LoRA does not fit — leave it out of targetModules.`,
    );
  }
  if (layer instanceof AnyConv && layer.geometry.groups !== 1) {
    throw new UnsupportedError(
      `lora: "${path}" is a convolution of ${layer.geometry.groups} groups, which LoRA does not fit — leave it out of targetModules.`,
    );
  }
  if (layer instanceof Embedding && (settings.isDora || settings.hasBias)) {
    throw new UnsupportedError(
      `lora: "${path}" is an embedding, which takes no ${settings.isDora ? "DoRA" : "bias"} — leave it out of targetModules.`,
    );
  }
  const isEmbedding = layer instanceof Embedding;
  return {
    ...settings,
    path,
    layer,
    a: isEmbedding ? `${base}.lora_embedding_A` : `${base}.lora_A.weight`,
    b: isEmbedding ? `${base}.lora_embedding_B` : `${base}.lora_B.weight`,
    bias: settings.hasBias ? `${base}.lora_B.bias` : undefined,
    magnitude: settings.isDora ? `${base}.lora_magnitude_vector` : undefined,
  };
}

const ones = (count: number): number[] => new Array<number>(count).fill(1);

/** Shapes of a part's tensors, by name. */
export function shapesOf({
  layer,
  rank,
  a,
  b,
  bias,
  magnitude,
}: LoraPart): Record<string, StaticShape> {
  const [shapeA, shapeB, out, spatial] = ((): [StaticShape, StaticShape, number, number] => {
    if (layer instanceof Linear) {
      return [[rank, layer.inFeatures], [layer.outFeatures, rank], layer.outFeatures, 0];
    }
    if (layer instanceof Embedding) {
      return [[rank, layer.count], [layer.features, rank], layer.features, 0];
    }
    const { inChannels, outChannels, kernel } = layer;
    const wide = [rank, inChannels, ...kernel];
    return [wide, [outChannels, rank, ...ones(kernel.length)], outChannels, kernel.length];
  })();
  return {
    [a]: shapeA,
    [b]: shapeB,
    ...(bias !== undefined && { [bias]: [out] }),
    ...(magnitude !== undefined && {
      [magnitude]: spatial === 0 ? [out] : [1, out, ...ones(spatial)],
    }),
  };
}

/** New numbers: the product is zero. Magnitudes are none (NaN), until the base's weight gives them. */
export function initPart(part: LoraPart, rng: Rng): TensorRecord {
  const { layer, a, b, bias } = part;
  // Of an embedding it is A that is zero.
  const first: Initializer = layer instanceof Embedding ? normal(1) : kaimingUniform;
  const drawn = layer instanceof Embedding ? b : a;
  const shapes = shapesOf(part);
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => {
      if (name === drawn) return [name, new Tensor("float32", shape, first(rng.fold(name), shape))];
      if (name === bias) {
        const bound = uniform(1 / Math.sqrt(part.rank));
        return [name, new Tensor("float32", shape, bound(rng.fold(name), shape))];
      }
      const isMagnitude = name === part.magnitude;
      const numbers = new Float32Array(sizeOf(shape)).fill(isMagnitude ? Number.NaN : 0);
      return [name, new Tensor("float32", shape, numbers)];
    }),
  );
}

/** Norm of each output's weights: what DoRA's magnitude is at first. */
export function outputNorms(part: LoraPart, weight: Tensor): Tensor<"float32"> {
  const { layer, magnitude } = part;
  const shape = shapesOf(part)[magnitude!]!;
  const count = sizeOf(shape);
  const numbers = weight.numbers();
  const isTurned = layer instanceof Linear && layer.inputsFirst;
  const squares = new Float64Array(count);
  const width = numbers.length / count;
  for (let i = 0; i < numbers.length; i++) {
    const x = numbers[i]!;
    squares[isTurned ? i % count : Math.floor(i / width)]! += x * x;
  }
  return new Tensor("float32", shape, Float32Array.from(squares, Math.sqrt));
}

/** A site's input with dropout as the part has it. */
function dropped({ dropout, path }: LoraPart, x: Value, context: Context): Value {
  const { noise } = context.options;
  if (dropout === 0 || !context.training || !noise) return x;
  const kept = greaterOrEqual(noise(`lora.${path}`, toStatic(x.shape, "lora dropout")), dropout);
  return mul(x, mul(cast(kept, "float32"), 1 / (1 - dropout)));
}

/** A layer's weight as a float matrix (out, in), whatever form it has. */
function outputsFirst(layer: Linear, context: Context): Value {
  const given = context.options.weights?.get(layer);
  if (given) return given(context);
  const weight = context.get(layer.weight);
  return layer.inputsFirst ? transpose(weight, [1, 0]) : weight;
}

/** What the part adds to its layer's output. */
export function sitePart(part: LoraPart, values: ValueRecord): SiteFn {
  const { layer, a, b, bias, magnitude, scale } = part;
  const [first, second] = [values[a]!, values[b]!];
  const shift = (y: Value, axisShape: readonly number[]): Value =>
    bias === undefined ? y : add(y, mul(reshape(values[bias]!, axisShape), scale));
  if (layer instanceof Embedding) {
    return (ids, y) => {
      const rows = gather(transpose(first, [1, 0]), ids);
      const wide = dot(reshape(rows, [-1, part.rank]), second, { transB: true, alpha: scale });
      return add(y, reshape(wide, y.shape));
    };
  }
  if (layer instanceof Linear) {
    const product = (x: Value): Value => {
      const inner = dot(x, first, { transB: true });
      return shift(dot(inner, second, { transB: true, alpha: scale }), [1, layer.outFeatures]);
    };
    if (magnitude === undefined)
      return (x, y, context) => add(y, product(dropped(part, x, context)));
    return (x, y, context) => {
      const weight = outputsFirst(layer, context);
      const changed = add(weight, mul(dot(second, first), scale));
      const norm = stopGradient(sqrt(sum(square(changed), -1)));
      const ratio = reshape(div(values[magnitude]!, norm), [1, layer.outFeatures]);
      const input = dropped(part, x, context);
      const plain = layer.bias ? sub(y, context.get(layer.bias)) : y;
      // With dropout the base's own product sees the same input as the adapter's.
      const seen = input === x ? plain : dot(input, weight, { transB: true });
      return add(y, add(mul(sub(ratio, 1), seen), mul(ratio, product(input))));
    };
  }
  const spatial = layer.kernel.length;
  const channels = [1, layer.outChannels, ...ones(spatial)];
  const product = (x: Value): Value =>
    shift(mul(conv(conv(x, first, layer.geometry), second), scale), channels);
  if (magnitude === undefined) return (x, y, context) => add(y, product(dropped(part, x, context)));
  return (x, y, context) => {
    const weight = context.get(layer.weight);
    const flat = dot(reshape(second, [-1, part.rank]), reshape(first, [part.rank, -1]));
    const changed = add(weight, mul(reshape(flat, weight.shape), scale));
    const axes = Array.from({ length: 1 + spatial }, (_, i) => i + 1);
    const norm = stopGradient(sqrt(sum(square(changed), axes)));
    const ratio = div(values[magnitude]!, reshape(norm, channels));
    const input = dropped(part, x, context);
    const plain = layer.bias ? sub(y, reshape(context.get(layer.bias), channels)) : y;
    const seen = input === x ? plain : conv(input, weight, layer.geometry);
    return add(y, add(mul(sub(ratio, 1), seen), mul(ratio, product(input))));
  };
}

/** The base's weight, and bias, with the part written in: those that it changes. */
export function mergePart(
  part: LoraPart,
  base: Readonly<Record<string, Tensor>>,
  params: TensorRecord,
): TensorRecord {
  const { layer, path, a, b, bias, magnitude, scale, rank } = part;
  const name = `${path}.weight`;
  const weight = base[name]!;
  const [first, second] = [params[a]!, params[b]!];
  const merged: TensorRecord = {};
  if (layer instanceof Linear) {
    merged[name] = addProduct(weight, second, first, scale, layer.inputsFirst);
  } else {
    // (out, r) (r, in · k · k), or for an embedding (features, r) (r, count), turned.
    const wide = matrixProduct(second, first, rank, scale, layer instanceof Embedding);
    const numbers = Float32Array.from(weight.numbers(), (x, i) => x + wide[i]!);
    merged[name] = new Tensor("float32", weight.shape, numbers);
  }
  if (bias !== undefined) {
    const own = base[`${path}.bias`];
    if (!own) {
      throw new UnsupportedError(
        `lora: "${path}" has no bias, and the adapter has one — it cannot be written into the weights.`,
      );
    }
    const more = params[bias]!.numbers();
    const sums = Float32Array.from(own.numbers(), (x, i) => x + scale * more[i]!);
    merged[`${path}.bias`] = new Tensor("float32", own.shape, sums);
  }
  if (magnitude !== undefined) {
    merged[name] = rescaled(part, merged[name]!, params[magnitude]!);
  }
  return merged;
}

/** Each output's weights times its magnitude / its norm. */
function rescaled(part: LoraPart, weight: Tensor, magnitude: Tensor): Tensor {
  const norms = outputNorms(part, weight).data;
  const sizes = magnitude.numbers();
  const numbers = weight.numbers();
  const isTurned = part.layer instanceof Linear && part.layer.inputsFirst;
  const width = numbers.length / norms.length;
  return new Tensor(
    "float32",
    weight.shape,
    Float32Array.from(numbers, (x, i) => {
      const o = isTurned ? i % norms.length : Math.floor(i / width);
      return (x * sizes[o]!) / norms[o]!;
    }),
  );
}
