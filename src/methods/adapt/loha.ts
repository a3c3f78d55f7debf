/**
 * LoHa: the elementwise product of two low-rank products is added to a weight, so that its rank reaches rank².
 *
 * Hyeon-Woo, Ye-Bin and Oh, "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
 * ICLR 2022, arXiv:2108.06098, proposition 1 (and 3 for convolutions); as an adapter: Yeh et al., "Navigating
 * Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", ICLR 2024, arXiv:2309.14859.
 * Names, shapes, first numbers and fields are PEFT's.
 *
 *   ΔW = (alpha / rank) (X₁ Y₁) ∘ (X₂ Y₂)                               linear, or a convolution as a matrix
 *   ΔW[o, i, k] = (alpha / rank) Π_n Σ_{p,q} T_n[p, q, k] X_n[p, o] Y_n[q, i]     effective convolution
 *
 *   X₁, X₂ → hada_w1_a, hada_w2_a (out, rank), effective (rank, out)      T₁, T₂ → hada_t1, hada_t2
 *   Y₁, Y₂ → hada_w1_b, hada_w2_b (rank, in · k · k), effective (rank, in)    (rank, rank, k, k); Y₂ zero at first
 *
 * (X₁ Y₁) ∘ (X₂ Y₂) is a product of rank rank² whose factors are products of columns and of rows. Where that is
 * cheaper than a whole weight, a linear layer computes with it. Differs: weights that lie (in, out), as GPT-2's,
 * are adapted too, which PEFT refuses; X of effective convolutions gets the true derivative, where PEFT 0.21 takes
 * the other factor's core. Cost: 2 rank (in + out) numbers a layer.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { byPattern } from "../../adapters/lora.ts";
import { numberIn, patternsIn } from "../../adapters/peft-config.ts";
import { add, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape } from "../../ir/layout.ts";
import { conv, dot } from "../../ir/linear.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftPatterns } from "../../models/peft-paths.ts";
import { kaimingUniform } from "../../nn/init.ts";
import { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { type Matrix, matrix, matrixOf, multiply } from "../../tensor/linalg/index.ts";
import type { StaticShape } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import { coreProduct, coreProductOf } from "./shared/core-product.ts";
import {
  changedWeight,
  commonConfig,
  droppedOutputs,
  flagIn,
  plus,
  readTargets,
  type TargetLayer,
  type TargetOptions,
  targetLayers,
  targetOptions,
  weightSizes,
} from "./shared/peft-layers.ts";

export interface LohaOptions extends TargetOptions {
  /** Of each of the two products. */
  readonly rank?: number;
  /** Scale is alpha / rank. */
  readonly alpha?: number;
  /** Share of outputs whose change is left out in training. */
  readonly rankDropout?: number;
  /** Chance that a layer's change is left out in a training step. */
  readonly moduleDropout?: number;
  /** Cores in place of matrices for convolutions whose kernel is larger than 1. */
  readonly useEffectiveConv2d?: boolean;
  /** Other ranks for some layers, as LoRA's. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  readonly alphaPattern?: Readonly<Record<string, number>>;
}

const options = {
  rank: {
    type: "integer",
    default: 8,
    range: [1, 4096],
    about: "rank of each of the two products",
  },
  alpha: { type: "number", default: 8, range: [0, 1e6], about: "scale is alpha / rank" },
  rankDropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of outputs whose change is left out in training",
  },
  moduleDropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "chance that a layer's change is left out in a training step",
  },
  useEffectiveConv2d: {
    type: "flag",
    default: false,
    about: "a core beside the matrices for convolutions with a kernel larger than 1",
  },
  rankPattern: {
    type: "table",
    default: {},
    range: [1, 4096],
    about: "another rank for some layers, as v_proj:4",
  },
  alphaPattern: {
    type: "table",
    default: {},
    range: [0, 1e6],
    about: "another alpha for some layers",
  },
  ...targetOptions,
} as const satisfies OptionSpecs<LohaOptions>;

interface LohaLayer extends TargetLayer {
  readonly rank: number;
  readonly scale: number;
  /** Size of the kernel where the layer has cores. */
  readonly core: number | undefined;
  readonly names: Readonly<Record<"w1a" | "w1b" | "w2a" | "w2b" | "t1" | "t2", string>>;
}

function shapesOf({ rank, core, names, ...target }: LohaLayer): [string, StaticShape][] {
  const [out, width] = weightSizes(target);
  const { w1a, w1b, w2a, w2b, t1, t2 } = names;
  if (core === undefined) {
    const [left, right] = [
      [out, rank],
      [rank, width],
    ];
    return [w1a, w1b, w2a, w2b].map((name, i) => [name, i % 2 === 0 ? left : right]);
  }
  const kernel = target.layer instanceof Linear ? [] : target.layer.kernel;
  const shape = [rank, rank, kernel[0]!, kernel[1] ?? 1];
  const [left, right] = [
    [rank, out],
    [rank, width / core],
  ];
  return [
    [t1, shape],
    [w1a, left],
    [w1b, right],
    [t2, shape],
    [w2a, left],
    [w2b, right],
  ];
}

/** ΔW / scale as (out, width). */
function deltaValue({ core, names }: LohaLayer, values: ValueRecord): Value {
  const { w1a, w1b, w2a, w2b, t1, t2 } = names;
  const one = (a: string, b: string, t: string): Value =>
    core === undefined
      ? dot(values[a]!, values[b]!)
      : coreProduct(values[t]!, values[a]!, values[b]!, core);
  return mul(one(w1a, w1b, t1), one(w2a, w2b, t2));
}

function deltaOf({ core, names }: LohaLayer, params: Readonly<TensorRecord>): Matrix {
  const { w1a, w1b, w2a, w2b, t1, t2 } = names;
  const one = (a: string, b: string, t: string): Matrix =>
    core === undefined
      ? multiply(matrixOf(params[a]!), matrixOf(params[b]!))
      : coreProductOf(params[t]!, params[a]!, params[b]!, core);
  const [first, second] = [one(w1a, w1b, t1), one(w2a, w2b, t2)];
  return matrix(
    first.rows,
    first.columns,
    first.data.map((x, i) => x * second.data[i]!),
  );
}

/** scale · ΔW x of rows (N, in), by whichever way costs less for each row. */
function linearChange(target: LohaLayer, layer: Linear, values: ValueRecord, x: Value): Value {
  const { rank, scale, names } = target;
  const { inFeatures, outFeatures } = layer;
  if (rank * rank * (inFeatures + outFeatures) >= inFeatures * outFeatures) {
    return dot(x, deltaValue(target, values), { transB: true, alpha: scale });
  }
  // Column i of X₁ times column j of X₂, and row i of Y₁ times row j of Y₂, for each pair.
  const square = rank * rank;
  const left = mul(
    reshape(values[names.w1a]!, [outFeatures, rank, 1]),
    reshape(values[names.w2a]!, [outFeatures, 1, rank]),
  );
  const right = mul(
    reshape(values[names.w1b]!, [rank, 1, inFeatures]),
    reshape(values[names.w2b]!, [1, rank, inFeatures]),
  );
  const inner = dot(x, reshape(right, [square, inFeatures]), { transB: true });
  return dot(inner, reshape(left, [outFeatures, square]), { transB: true, alpha: scale });
}

/**
 * Binds LoHa to a model.
 * @throws OptionError for targets or patterns that match no layer; UnsupportedError for layers that do not fit.
 */
export function loha(model: PretrainedModel, given: LohaOptions = {}): Adapter {
  const read = readOptions<LohaOptions, typeof options>("loha", options, given);
  const { rankDropout, moduleDropout, useEffectiveConv2d } = read;
  const found = targetLayers("loha", model, read, [1, 2]);
  const paths = found.map(({ path }) => path);
  const rankOf = byPattern("loha: rankPattern", read.rankPattern, paths, model);
  const alphaOf = byPattern("loha: alphaPattern", read.alphaPattern, paths, model);
  const layers = found.map((target): LohaLayer => {
    const { path, name, layer } = target;
    const rank = rankOf(path) ?? read.rank;
    const kernel = layer instanceof Linear ? 1 : layer.kernel.reduce((a, b) => a * b, 1);
    return {
      ...target,
      rank,
      scale: (alphaOf(path) ?? read.alpha) / rank,
      core: useEffectiveConv2d && kernel > 1 ? kernel : undefined,
      names: {
        w1a: `${name}.hada_w1_a`,
        w1b: `${name}.hada_w1_b`,
        w2a: `${name}.hada_w2_a`,
        w2b: `${name}.hada_w2_b`,
        t1: `${name}.hada_t1`,
        t2: `${name}.hada_t2`,
      },
    };
  });
  const dropout = { rankDropout, moduleDropout, isScaled: true };
  return {
    kind: "LOHA",
    title: "LoHa",
    targets: paths,
    mergeable: "exact",
    isAdditive: true,
    init: (rng) =>
      Object.fromEntries(
        layers.flatMap((target) =>
          shapesOf(target).map(([name, shape]) => [
            name,
            name === target.names.w2b
              ? Tensor.zeros(shape, "float32")
              : new Tensor("float32", shape, kaimingUniform(rng.fold(name), shape)),
          ]),
        ),
      ),
    context: (values) => ({
      sites: new Map<Module, SiteFn>(
        layers.map((target): [Module, SiteFn] => [
          target.layer,
          (x, y, context) => {
            const { layer, scale } = target;
            const change =
              layer instanceof Linear
                ? linearChange(target, layer, values, x)
                : conv(
                    x,
                    mul(reshape(deltaValue(target, values), layer.weight.shape), scale),
                    layer.geometry,
                  );
            return add(y, droppedOutputs(target, change, dropout, context));
          },
        ]),
      ),
    }),
    merge: (base, params) =>
      Object.assign(
        {},
        ...layers.map((target) =>
          changedWeight(target, base, (weight) =>
            plus(weight, deltaOf(target, params), target.scale),
          ),
        ),
      ),
    config: () => ({
      ...commonConfig("LOHA", model, read, paths),
      r: read.rank,
      alpha: read.alpha,
      rank_dropout: rankDropout,
      module_dropout: moduleDropout,
      use_effective_conv2d: useEffectiveConv2d,
      rank_pattern: peftPatterns(model, read.rankPattern, paths, rankOf),
      alpha_pattern: peftPatterns(model, read.alphaPattern, paths, alphaOf),
      init_weights: true,
      layers_pattern: null,
      layers_to_transform: null,
    }),
  };
}

export const lohaKind: AdapterKind<LohaOptions> = {
  kind: "LOHA",
  bind: loha,
  read: (config, where, model) => {
    const { targets, paths } = readTargets(config, where, model);
    return {
      ...targets,
      rank: numberIn(config, "r", where, 8),
      alpha: numberIn(config, "alpha", where, 8),
      rankDropout: numberIn(config, "rank_dropout", where, 0),
      moduleDropout: numberIn(config, "module_dropout", where, 0),
      useEffectiveConv2d: flagIn(config, "use_effective_conv2d", where, false),
      rankPattern: patternsIn(config, "rank_pattern", where, paths, model),
      alphaPattern: patternsIn(config, "alpha_pattern", where, paths, model),
    };
  },
};

export const lohaMethod: Method<LohaOptions> = defineMethod<LohaOptions>({
  id: "loha",
  number: null,
  title: "LoHa",
  capability: "adapt",
  summary: "Adds the elementwise product of two low-rank products to each weight.",
  paper: {
    title: "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
    year: 2021,
    url: "https://arxiv.org/abs/2108.06098",
  },
  implementation: "parity",
  options,
  sizedBy: "rank",
  roles: { adapter: lohaKind },
  tiny: { rank: 2, alpha: 2 },
});
