/** Frozen weights of four or eight bits, in blocks that share a scale. */
import { OptionError, ShapeError } from "../errors.ts";
import type { QuantizedAttrs } from "../ir/attrs.ts";
import { dequantize, quantizedLinear } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Linear } from "./linear.ts";
import type { ContextOptions, Module } from "./module.ts";

export interface QuantizeOptions {
  /** Bits of a weight; default 4. */
  readonly bits?: 4 | 8;
  /** Weights of a row that share a scale: a power of two from 16 that divides its length; default 32. */
  readonly blockSize?: number;
  /**
   * "int8" lets decoding round what a weight is multiplied with to 8 bits a block, as llama.cpp does: several
   * times faster, and off by about 0.4 %. Default "float32".
   */
  readonly activations?: "float32" | "int8";
}

export interface QuantizedWeight {
  /** (out, blocks, bytes) uint8; with 4 bits two to a byte, the low half first. */
  readonly packed: Tensor<"uint8">;
  /** (out, blocks) */
  readonly scales: Tensor<"float32">;
  readonly attrs: QuantizedAttrs;
}

/**
 * A weight as whole numbers q and a scale s for each block: w ≈ s (q - 2^(bits-1)).
 *
 * The element furthest from 0 sets the scale and stands at -2^(bits-1) exactly, the form of GGUF's
 * Q4_0; so s may be negative. All others round to the nearest step: they are off by at most |s| / 2,
 * and by at most |s| where an element of opposite sign is within half a step of the furthest.
 *
 * @param weight row-major numbers of (out, in)
 * @throws ShapeError when the numbers do not fill the shape.
 * @throws OptionError when the block size does not divide `in`.
 */
export function quantizeWeight(
  weight: Float32Array,
  [outFeatures, inFeatures]: readonly [out: number, inputs: number],
  options: QuantizeOptions = {},
): QuantizedWeight {
  const { bits = 4, blockSize = 32, activations } = options;
  if (weight.length !== outFeatures * inFeatures) {
    throw new ShapeError(
      `quantizeWeight: (${outFeatures}, ${inFeatures}) holds ${outFeatures * inFeatures} numbers, got ${weight.length}.`,
    );
  }
  if (bits !== 4 && bits !== 8) {
    throw new OptionError(`quantizeWeight: bits must be 4 or 8, got ${String(bits)}.`);
  }
  const isPower = Number.isInteger(blockSize) && blockSize >= 16 && !(blockSize & (blockSize - 1));
  if (!isPower || inFeatures % blockSize !== 0) {
    throw new OptionError(
      `quantizeWeight: blockSize must be a power of two from 16 that divides ${inFeatures}, got ${blockSize}.`,
    );
  }
  const blocks = inFeatures / blockSize;
  const half = 2 ** (bits - 1);
  const bytes = (blockSize * bits) / 8;
  const packed = new Uint8Array(outFeatures * blocks * bytes);
  const scales = new Float32Array(outFeatures * blocks);
  for (let block = 0; block < scales.length; block++) {
    const first = block * blockSize;
    let furthest = 0;
    for (let i = first; i < first + blockSize; i++) {
      const w = weight[i]!;
      if (!Number.isFinite(w)) {
        throw new OptionError(
          `quantizeWeight: element ${i} is ${w} — only finite weights have a scale.`,
        );
      }
      if (Math.abs(w) > Math.abs(furthest)) furthest = w;
    }
    const scale = Math.fround(furthest / -half);
    scales[block] = scale;
    for (let i = 0; i < blockSize; i++) {
      const steps = scale === 0 ? 0 : Math.round(weight[first + i]! / scale);
      const q = Math.min(half - 1, Math.max(-half, steps)) + half;
      if (bits === 8) packed[first + i] = q;
      else packed[block * bytes + (i >> 1)]! |= q << (4 * (i & 1));
    }
  }
  return {
    packed: new Tensor("uint8", [outFeatures, blocks, bytes], packed),
    scales: new Tensor("float32", [outFeatures, blocks], scales),
    attrs: { bits, blockSize, inFeatures, outFeatures, ...(activations && { activations }) },
  };
}

/** The float numbers that a quantised weight stands for, row-major (out, in). */
export function dequantizeWeight({
  packed,
  scales,
  attrs,
}: QuantizedWeight): Float32Array<ArrayBuffer> {
  const { bits, blockSize, inFeatures, outFeatures } = attrs;
  const half = 2 ** (bits - 1);
  return Float32Array.from({ length: outFeatures * inFeatures }, (_, i) => {
    const q = bits === 8 ? packed.data[i]! : (packed.data[i >> 1]! >> (4 * (i & 1))) & 15;
    return (q - half) * scales.data[Math.floor(i / blockSize)]!;
  });
}

/** The weight of a linear layer quantised, whichever way the layer stores it. */
export function quantizeLinear(
  layer: Linear,
  weight: Tensor,
  options: QuantizeOptions = {},
): QuantizedWeight {
  const { inFeatures, outFeatures, inputsFirst } = layer;
  const numbers = weight.to("float32").data;
  const rows = inputsFirst
    ? Float32Array.from(
        { length: numbers.length },
        (_, i) => numbers[(i % inFeatures) * outFeatures + Math.floor(i / inFeatures)]!,
      )
    : numbers;
  return quantizeWeight(rows, [outFeatures, inFeatures], options);
}

/** A quantised weight inside a trace. */
export interface QuantizedValue {
  readonly packed: Value | Tensor;
  readonly scales: Value | Tensor;
  readonly attrs: QuantizedAttrs;
}

/** What `ContextOptions.weights` says of the same layers: (out, in) each. */
export function quantizedWeights(
  layers: Iterable<readonly [Linear, QuantizedValue]>,
): ContextOptions["weights"] & {} {
  return new Map<Module, () => Value>(
    [...layers].map(([layer, { packed, scales, attrs }]) => [
      layer,
      () => dequantize(packed, scales, attrs),
    ]),
  );
}

/**
 * What `ContextOptions.linear` says of layers whose weights are quantised; such a layer's own `weight`
 * is not read. The weights take no gradient, inputs do.
 */
export function quantizedLayers(
  layers: Iterable<readonly [Linear, QuantizedValue]>,
): ContextOptions["linear"] & {} {
  return new Map<Module, (rows: Value) => Value>(
    [...layers].map(([layer, { packed, scales, attrs }]) => {
      if (attrs.inFeatures !== layer.inFeatures || attrs.outFeatures !== layer.outFeatures) {
        throw new ShapeError(
          `quantizedLayers: a weight (${attrs.outFeatures}, ${attrs.inFeatures}) does not fit a layer (${layer.outFeatures}, ${layer.inFeatures}).`,
        );
      }
      return [layer, (rows) => quantizedLinear(rows, packed, scales, attrs)];
    }),
  );
}
