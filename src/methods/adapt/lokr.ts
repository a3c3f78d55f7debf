/**
 * LoKr: the Kronecker product of a small matrix and a larger one, which may be of low rank, is added to a weight.
 *
 * Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation", ICLR 2024,
 * arXiv:2309.14859, section 3. Names, shapes, first numbers and fields are PEFT's.
 *
 *   ΔW = (alpha / rank) C ⊗ D,   (C ⊗ D)[a b + b', c d + d'] = C[a, c] D[b', d']
 *
 *   C → lokr_w1 (a, c), or with decomposeBoth lokr_w1_a (a, rank) lokr_w1_b (rank, c); zero at first
 *   D → lokr_w2 (b, d, …kernel) where the rank is not below half its sides, else lokr_w2_a (b, rank)
 *       lokr_w2_b (rank, d · kernel), effective convolutions lokr_t2 (rank, rank, …kernel) with (rank, b), (rank, d)
 *   out = a b, in = c d: the two nearest factors, or decomposeFactor and the rest
 *
 * A linear layer computes C (X Dᵀ) on its input as a matrix X (c, d) and never sees ΔW. Differs: weights that lie
 * (in, out), as GPT-2's, are adapted too, which PEFT refuses. Cost: a c + rank (b + d) numbers a layer.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { byPattern } from "../../adapters/lora.ts";
import { numberIn, patternsIn } from "../../adapters/peft-config.ts";
import { add, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape, transpose } from "../../ir/layout.ts";
import { conv, dot } from "../../ir/linear.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftPatterns } from "../../models/peft-paths.ts";
import { kaimingUniform } from "../../nn/init.ts";
import { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { type Matrix, matrix, matrixOf, multiply } from "../../tensor/linalg/index.ts";
import { type StaticShape, sizeOf } from "../../tensor/shape.ts";
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
} from "./shared/peft-layers.ts";

export interface LokrOptions extends TargetOptions {
  readonly rank?: number;
  /** Scale is alpha / rank. */
  readonly alpha?: number;
  /** Share of outputs whose change is left out in training. */
  readonly rankDropout?: number;
  /** Grow the outputs that stay. */
  readonly rankDropoutScale?: boolean;
  /** Chance that a layer's change is left out in a training step. */
  readonly moduleDropout?: number;
  /** A core beside the matrices for convolutions whose kernel is larger than 1. */
  readonly useEffectiveConv2d?: boolean;
  /** Low rank for the small matrix too. */
  readonly decomposeBoth?: boolean;
  /** Sides of the small matrix; -1 for the two nearest factors. */
  readonly decomposeFactor?: number;
  /** Other ranks for some layers, as LoRA's. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  readonly alphaPattern?: Readonly<Record<string, number>>;
}

const options = {
  rank: { type: "integer", default: 8, range: [1, 65536], about: "rank of the larger matrix" },
  alpha: { type: "number", default: 8, range: [0, 1e6], about: "scale is alpha / rank" },
  rankDropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of outputs whose change is left out in training",
  },
  rankDropoutScale: { type: "flag", default: false, about: "grow the outputs that stay" },
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
  decomposeBoth: { type: "flag", default: false, about: "low rank for the small matrix too" },
  decomposeFactor: {
    type: "integer",
    default: -1,
    range: [-1, 65536],
    about: "sides of the small matrix; -1 for the two nearest factors",
  },
  rankPattern: {
    type: "table",
    default: {},
    range: [1, 65536],
    about: "another rank for some layers, as v_proj:4",
  },
  alphaPattern: {
    type: "table",
    default: {},
    range: [0, 1e6],
    about: "another alpha for some layers",
  },
  ...targetOptions,
} as const satisfies OptionSpecs<LokrOptions>;

interface LokrLayer extends TargetLayer {
  readonly rank: number;
  readonly scale: number;
  /** Sides of C and of D. */
  readonly sides: readonly [a: number, c: number, b: number, d: number];
  /** Sizes of the kernel; empty of a linear layer. */
  readonly kernel: readonly number[];
  readonly form: readonly [c: "whole" | "low", d: "whole" | "low" | "core"];
}

/**
 * A number as two factors, the smaller one first: the nearest, or `factor` and the rest where it divides, else
 * the largest that are not above it.
 */
export function twoFactors(size: number, factor = -1): readonly [smaller: number, larger: number] {
  if (factor > 0 && size % factor === 0) return [factor, size / factor];
  const most = factor === -1 ? size : factor;
  let [m, n] = [1, size];
  const length = m + n;
  while (m < n) {
    let next = m + 1;
    while (size % next !== 0) next++;
    if (next + size / next > length || next > most) break;
    [m, n] = [next, size / next];
  }
  return m > n ? [n, m] : [m, n];
}

const namesOf = ({ name }: TargetLayer) =>
  ({
    w1: `${name}.lokr_w1`,
    w1a: `${name}.lokr_w1_a`,
    w1b: `${name}.lokr_w1_b`,
    w2: `${name}.lokr_w2`,
    w2a: `${name}.lokr_w2_a`,
    w2b: `${name}.lokr_w2_b`,
    t2: `${name}.lokr_t2`,
  }) as const;

function shapesOf(target: LokrLayer): [string, StaticShape][] {
  const { w1, w1a, w1b, w2, w2a, w2b, t2 } = namesOf(target);
  const { rank, kernel, form } = target;
  const [a, c, b, d] = target.sides;
  const first: [string, StaticShape][] =
    form[0] === "whole"
      ? [[w1, [a, c]]]
      : [
          [w1a, [a, rank]],
          [w1b, [rank, c]],
        ];
  if (form[1] === "whole") return [...first, [w2, [b, d, ...kernel]]];
  if (form[1] === "low") return [...first, [w2a, [b, rank]], [w2b, [rank, d * sizeOf(kernel)]]];
  const core = [rank, rank, kernel[0]!, kernel[1] ?? 1];
  return [...first, [t2, core], [w2a, [rank, b]], [w2b, [rank, d]]];
}

/** C (a, c). */
function smallValue(target: LokrLayer, values: ValueRecord): Value {
  const { w1, w1a, w1b } = namesOf(target);
  return target.form[0] === "whole" ? values[w1]! : dot(values[w1a]!, values[w1b]!);
}

/** D (b, d · kernel). */
function largeValue({ kernel, form, sides, ...target }: LokrLayer, values: ValueRecord): Value {
  const { w2, w2a, w2b, t2 } = namesOf(target);
  const size = sizeOf(kernel);
  if (form[1] === "whole") return reshape(values[w2]!, [sides[2], sides[3] * size]);
  if (form[1] === "low") return dot(values[w2a]!, values[w2b]!);
  return coreProduct(values[t2]!, values[w2a]!, values[w2b]!, size);
}

/** (C ⊗ D) x of rows (N, in) → (N, out), by X Dᵀ and then C. */
function kroneckerRows(target: LokrLayer, values: ValueRecord, x: Value, y: Value): Value {
  const { w2a, w2b } = namesOf(target);
  const [a, c, b, d] = target.sides;
  const rows = reshape(x, [-1, d]); // (N · c, d)
  // The thin side stays thin.
  const inner =
    target.form[1] === "low"
      ? dot(dot(rows, values[w2b]!, { transB: true }), values[w2a]!, { transB: true })
      : dot(rows, largeValue(target, values), { transB: true });
  const turned = reshape(transpose(reshape(inner, [-1, c, b]), [0, 2, 1]), [-1, c]); // (N · b, c)
  const small = smallValue(target, values);
  const mixed = dot(turned, small, { transB: true, alpha: target.scale });
  return reshape(transpose(reshape(mixed, [-1, b, a]), [0, 2, 1]), y.shape);
}

/** scale · C ⊗ D in the shape of a convolution's weight. */
function kroneckerKernel(target: LokrLayer, values: ValueRecord): Value {
  const [a, c, b, d] = target.sides;
  const product = mul(
    reshape(smallValue(target, values), [a, 1, c, 1, 1]),
    reshape(largeValue(target, values), [1, b, 1, d, sizeOf(target.kernel)]),
  );
  return mul(reshape(product, [a * b, c * d, ...target.kernel]), target.scale);
}

/** C ⊗ D as (out, in · kernel). */
function deltaOf(target: LokrLayer, params: Readonly<TensorRecord>): Matrix {
  const { w1, w1a, w1b, w2, w2a, w2b, t2 } = namesOf(target);
  const { form, kernel, sides } = target;
  const [a, c, b, d] = sides;
  const size = sizeOf(kernel);
  const product = (left: string, right: string): Matrix =>
    multiply(matrixOf(params[left]!), matrixOf(params[right]!));
  const small = form[0] === "whole" ? matrixOf(params[w1]!) : product(w1a, w1b);
  const large =
    form[1] === "core"
      ? coreProductOf(params[t2]!, params[w2a]!, params[w2b]!, size)
      : form[1] === "low"
        ? product(w2a, w2b)
        : matrix(b, d * size, Float64Array.from(params[w2]!.numbers()));
  const width = d * size;
  const result = matrix(a * b, c * width);
  for (let i = 0; i < a; i++) {
    for (let j = 0; j < b; j++) {
      for (let k = 0; k < c; k++) {
        const factor = small.data[i * c + k]!;
        const start = (i * b + j) * c * width + k * width;
        for (let l = 0; l < width; l++) {
          result.data[start + l] = factor * large.data[j * width + l]!;
        }
      }
    }
  }
  return result;
}

/**
 * Binds LoKr to a model.
 * @throws OptionError for targets or patterns that match no layer; UnsupportedError for layers that do not fit.
 */
export function lokr(model: PretrainedModel, given: LokrOptions = {}): Adapter {
  const read = readOptions<LokrOptions, typeof options>("lokr", options, given);
  const { rankDropout, moduleDropout, rankDropoutScale } = read;
  const { useEffectiveConv2d, decomposeBoth, decomposeFactor } = read;
  const found = targetLayers("lokr", model, read, [1, 2]);
  const paths = found.map(({ path }) => path);
  const rankOf = byPattern("lokr: rankPattern", read.rankPattern, paths, model);
  const alphaOf = byPattern("lokr: alphaPattern", read.alphaPattern, paths, model);
  const layers = found.map((target): LokrLayer => {
    const { path, layer } = target;
    const rank = rankOf(path) ?? read.rank;
    const [inputs, outputs, kernel] =
      layer instanceof Linear
        ? [layer.inFeatures, layer.outFeatures, []]
        : [layer.inChannels / layer.geometry.groups, layer.outChannels, layer.kernel];
    const [c, d] = twoFactors(inputs, decomposeFactor);
    const [a, b] = twoFactors(outputs, decomposeFactor);
    const isCore = useEffectiveConv2d && sizeOf(kernel) > 1;
    return {
      ...target,
      rank,
      scale: (alphaOf(path) ?? read.alpha) / rank,
      sides: [a, c, b, d],
      kernel,
      form: [
        decomposeBoth && rank < Math.max(a, c) / 2 ? "low" : "whole",
        rank >= Math.max(b, d) / 2 ? "whole" : isCore ? "core" : "low",
      ],
    };
  });
  const dropout = { rankDropout, moduleDropout, isScaled: rankDropoutScale };
  return {
    kind: "LOKR",
    title: "LoKr",
    targets: paths,
    mergeable: "exact",
    isAdditive: true,
    init: (rng) =>
      Object.fromEntries(
        layers.flatMap((target) => {
          const { w1, w1a } = namesOf(target);
          return shapesOf(target).map(([name, shape]): [string, Tensor] => [
            name,
            name === w1 || name === w1a
              ? Tensor.zeros(shape, "float32")
              : new Tensor("float32", shape, kaimingUniform(rng.fold(name), shape)),
          ]);
        }),
      ),
    context: (values) => ({
      sites: new Map<Module, SiteFn>(
        layers.map((target): [Module, SiteFn] => [
          target.layer,
          (x, y, context) => {
            const { layer } = target;
            const change =
              layer instanceof Linear
                ? kroneckerRows(target, values, x, y)
                : conv(x, kroneckerKernel(target, values), layer.geometry);
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
      ...commonConfig("LOKR", model, read, paths),
      r: read.rank,
      alpha: read.alpha,
      rank_dropout: rankDropout,
      rank_dropout_scale: rankDropoutScale,
      module_dropout: moduleDropout,
      use_effective_conv2d: useEffectiveConv2d,
      decompose_both: decomposeBoth,
      decompose_factor: decomposeFactor,
      rank_pattern: peftPatterns(model, read.rankPattern, paths, rankOf),
      alpha_pattern: peftPatterns(model, read.alphaPattern, paths, alphaOf),
      init_weights: true,
      layers_pattern: null,
      layers_to_transform: null,
    }),
  };
}

export const lokrKind: AdapterKind<LokrOptions> = {
  kind: "LOKR",
  bind: lokr,
  read: (config, where, model) => {
    const { targets, paths } = readTargets(config, where, model);
    return {
      ...targets,
      rank: numberIn(config, "r", where, 8),
      alpha: numberIn(config, "alpha", where, 8),
      rankDropout: numberIn(config, "rank_dropout", where, 0),
      rankDropoutScale: flagIn(config, "rank_dropout_scale", where, false),
      moduleDropout: numberIn(config, "module_dropout", where, 0),
      useEffectiveConv2d: flagIn(config, "use_effective_conv2d", where, false),
      decomposeBoth: flagIn(config, "decompose_both", where, false),
      decomposeFactor: numberIn(config, "decompose_factor", where, -1),
      rankPattern: patternsIn(config, "rank_pattern", where, paths, model),
      alphaPattern: patternsIn(config, "alpha_pattern", where, paths, model),
    };
  },
};

export const lokrMethod: Method<LokrOptions> = defineMethod<LokrOptions>({
  id: "lokr",
  number: null,
  title: "LoKr",
  capability: "adapt",
  summary: "Adds the Kronecker product of a small matrix and a low-rank one to each weight.",
  paper: {
    title: "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
    year: 2023,
    url: "https://arxiv.org/abs/2309.14859",
  },
  implementation: "parity",
  options,
  sizedBy: "rank",
  roles: { adapter: lokrKind },
  tiny: { rank: 1, alpha: 2 },
});
