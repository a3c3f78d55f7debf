/**
 * OFT: inputs of a layer are rotated block by block, which keeps the angles between the weights of its outputs.
 *
 * Qiu et al., "Controlling Text-to-Image Diffusion by Orthogonal Finetuning", NeurIPS 2023, arXiv:2306.07280,
 * eq. 4 and section 3.3 (constrained OFT); on the input's side and by a series: Qiu et al., "Orthogonal Finetuning
 * Made Scalable", arXiv:2506.19847, section 4. Names, shapes and fields are PEFT's from version 0.18 on.
 *
 *   y = W Rᵀ x + b,   R = diag(R₁ … R_D),   merged: W Rᵀ
 *   R_i = I + 2 Q_i + 2 Q_i² + … + Q_iⁿ⁻¹ (Cayley-Neumann), or (I - Q_i) (I + Q_i)⁻¹ (Cayley)
 *
 *   D → blocks of a layer, b → blockSize: D b = in       Q_i → skew-symmetric (b, b), zero at first
 *   oft_R.weight (D, b (b - 1) / 2): what of each Q_i lies above its diagonal; (1, …) with blockShare
 *
 * Where a size does not divide a layer's inputs, the nearest that does is taken. With `coft` each Q_i is pulled
 * back to ‖Q_i‖ ≤ eps / √D. Differs: `moduleDropout` replaces blocks by the identity in training as PEFT
 * describes it, whose linear layers leave it out. Cost: in (b - 1) / 2 numbers a layer.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import type { StepHook } from "../../adapters/hook.ts";
import { numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError } from "../../errors.ts";
import { add, div, maximum, minimum, mul, sqrt, stopGradient, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { concat, slice } from "../../ir/layout.ts";
import { sum } from "../../ir/reduce.ts";
import type { PretrainedModel } from "../../models/model.ts";
import type { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import type { Matrix } from "../../tensor/linalg/index.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  cayley,
  cayleyMatrix,
  cayleyNeumann,
  cayleyNeumannMatrix,
  rotateBlocks,
  rotateWeight,
  skewMatrix,
  skewOf,
  withIdentity,
} from "./shared/orthogonal.ts";
import {
  changedWeight,
  commonConfig,
  flagIn,
  isFanInFirst,
  linearLayers,
  outputWith,
  readTargets,
  type TargetLayer,
  type TargetOptions,
  targetOptions,
} from "./shared/peft-layers.ts";

export interface OftOptions extends TargetOptions {
  /** Sides of a block; 0 where `blocks` says how many there are. */
  readonly blockSize?: number;
  /** Blocks of a layer; 0 where `blockSize` says how large they are. PEFT's `r`. */
  readonly blocks?: number;
  /** Blocks that are the identity in a training step, as a share of all. */
  readonly moduleDropout?: number;
  /** Keep rotations near the identity. */
  readonly coft?: boolean;
  /** How near. */
  readonly eps?: number;
  /** One rotation for all blocks of a layer. */
  readonly blockShare?: boolean;
  /** The series in place of the inverse. */
  readonly useCayleyNeumann?: boolean;
  /** Terms of the series. */
  readonly numCayleyNeumannTerms?: number;
}

const options = {
  blockSize: {
    type: "integer",
    default: 32,
    range: [0, 4096],
    about: "sides of a block of inputs that are rotated together; 0 to give the number of blocks",
  },
  blocks: {
    type: "integer",
    default: 0,
    range: [0, 65536],
    about: "blocks of a layer, with a blockSize of 0",
  },
  moduleDropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of blocks that stay as they are in a training step",
  },
  coft: { type: "flag", default: false, about: "keep rotations near the identity" },
  eps: {
    type: "number",
    default: 6e-5,
    range: [0, 1e3],
    open: [true, false],
    about: "how near, with coft",
  },
  blockShare: { type: "flag", default: false, about: "one rotation for all blocks of a layer" },
  useCayleyNeumann: {
    type: "flag",
    default: true,
    about: "a short series in place of the inverse: faster, and not quite orthogonal",
  },
  numCayleyNeumannTerms: { type: "integer", default: 5, range: [2, 64], about: "terms of it" },
  ...targetOptions,
} as const satisfies OptionSpecs<OftOptions>;

interface OftLayer extends TargetLayer<Linear> {
  readonly tensor: string;
  readonly size: number;
  /** Rotations that are trained: one where they are shared. */
  readonly count: number;
}

/** The divisor of `inputs` nearest to a number, the lower one of two. */
export function nearestDivisor(inputs: number, wanted: number): number {
  if (wanted >= inputs) return inputs;
  let [low, high] = [wanted, wanted];
  while (inputs % high !== 0) high++;
  while (inputs % low !== 0) low--;
  return wanted - low <= high - wanted ? low : high;
}

/**
 * Binds OFT to a model.
 * @throws OptionError for targets that match no layer, or both or neither of `blocks` and `blockSize`;
 * UnsupportedError for layers that are not linear.
 */
export function oft(model: PretrainedModel, given: OftOptions = {}): Adapter {
  const read = readOptions<OftOptions, typeof options>("oft", options, given);
  const { blocks, blockSize, moduleDropout, coft, eps, blockShare } = read;
  const { useCayleyNeumann, numCayleyNeumannTerms: terms } = read;
  if ((blocks === 0) === (blockSize === 0)) {
    throw new OptionError(
      `oft: give one of blocks and blockSize and 0 for the other, got ${blocks} and ${blockSize}.`,
    );
  }
  const layers = linearLayers("oft", model, read).map((target): OftLayer => {
    const inputs = target.layer.inFeatures;
    const size =
      blocks === 0 ? nearestDivisor(inputs, blockSize) : inputs / nearestDivisor(inputs, blocks);
    if (size < 2) {
      throw new OptionError(
        `oft: "${target.path}" falls into blocks of ${size}, which nothing rotates — give fewer blocks.`,
      );
    }
    const count = blockShare ? 1 : inputs / size;
    return { ...target, tensor: `${target.name}.oft_R.weight`, size, count };
  });
  const widthOf = ({ size }: OftLayer): number => (size * (size - 1)) / 2;
  const radius = ({ count }: OftLayer): number => eps / Math.sqrt(count);

  /** R of every layer, those of one block size in one go. */
  const rotations = (values: ValueRecord): Map<OftLayer, Value> => {
    const found = new Map<OftLayer, Value>();
    for (const size of new Set(layers.map((one) => one.size))) {
      const alike = layers.filter((one) => one.size === size);
      const above = alike.map((one) => {
        const own = values[one.tensor]!;
        return coft ? pulledBack(own, radius(one)) : own;
      });
      const q = skewOf(above.length === 1 ? above[0]! : concat(above, 0), size);
      const all = useCayleyNeumann ? cayleyNeumann(q, terms) : cayley(q);
      let at = 0;
      for (const one of alike) {
        found.set(one, slice(all, 0, at, at + one.count));
        at += one.count;
      }
    }
    return found;
  };
  const paths = layers.map(({ path }) => path);
  return {
    kind: "OFT",
    title: "OFT",
    targets: paths,
    mergeable: "exact",
    ...(coft && { hook: pullBack(layers.map((one) => [one.tensor, widthOf(one), radius(one)])) }),
    init: () =>
      Object.fromEntries(
        layers.map((one) => [one.tensor, Tensor.zeros([one.count, widthOf(one)], "float32")]),
      ),
    context: (values) => {
      const rotation = rotations(values);
      return {
        sites: new Map<Module, SiteFn>(
          layers.map((one): [Module, SiteFn] => [
            one.layer,
            (x, _, context) => {
              const own = withIdentity(rotation.get(one)!, 1, moduleDropout, one.path, context);
              return outputWith(one.layer, rotateBlocks(x, own), context);
            },
          ]),
        ),
      };
    },
    merge: (base, params) =>
      Object.assign(
        {},
        ...layers.map((one) => {
          const numbers = params[one.tensor]!.numbers();
          const width = widthOf(one);
          const own = Array.from({ length: one.count }, (_, i): Matrix => {
            const q = skewMatrix(numbers, i * width, one.size);
            if (coft) {
              const norm = Math.hypot(...q.data);
              const shrink = norm > radius(one) ? radius(one) / norm : 1;
              for (let j = 0; j < q.data.length; j++) q.data[j]! *= shrink;
            }
            return useCayleyNeumann ? cayleyNeumannMatrix(q, terms) : cayleyMatrix(q);
          });
          return changedWeight(one, base, (weight) => rotateWeight(weight, own));
        }),
      ),
    config: () => ({
      ...commonConfig("OFT", model, read, paths),
      r: blocks,
      oft_block_size: blockSize,
      module_dropout: moduleDropout,
      coft,
      eps,
      block_share: blockShare,
      use_cayley_neumann: useCayleyNeumann,
      num_cayley_neumann_terms: terms,
      fan_in_fan_out: isFanInFirst(layers),
      bias: "none",
      init_weights: true,
      layers_pattern: null,
      layers_to_transform: null,
      // From this version on the series is the one above; PEFT warns of files without it.
      peft_version: "0.21.2",
    }),
  };
}

/** Rows as they are within the radius, else on it; the gradient passes as if nothing was done. */
function pulledBack(above: Value, radius: number): Value {
  // Each number stands in the matrix twice.
  const norm = sqrt(mul(sum(mul(above, above), -1, { keepDims: true }), 2));
  const shrink = minimum(div(radius, maximum(norm, 1e-30)), 1);
  return add(above, stopGradient(mul(above, sub(shrink, 1))));
}

/** The parameters themselves, pulled back after each step. */
function pullBack(
  tensors: readonly (readonly [name: string, width: number, radius: number])[],
): StepHook {
  return {
    changes: [],
    reads: { params: true },
    after: ({ params }) => {
      const changed: TensorRecord = {};
      for (const [name, width, radius] of tensors) {
        const numbers = Float32Array.from(params[name]!.numbers());
        for (let row = 0; row < numbers.length; row += width) {
          const own = numbers.subarray(row, row + width);
          const norm = Math.SQRT2 * Math.hypot(...own);
          if (norm > radius) for (let i = 0; i < width; i++) own[i]! *= radius / norm;
        }
        changed[name] = new Tensor("float32", params[name]!.shape, numbers);
      }
      return { params: changed };
    },
  };
}

export const oftKind: AdapterKind<OftOptions> = {
  kind: "OFT",
  bind: oft,
  read: (config, where, model) => {
    if (config["oft_block_size"] === undefined) {
      throw new FormatError(
        `${where}: lacks oft_block_size, as PEFT before 0.14 wrote it — train the adapter anew.`,
      );
    }
    return {
      ...readTargets(config, where, model).targets,
      blocks: numberIn(config, "r", where, 0),
      blockSize: numberIn(config, "oft_block_size", where, 32),
      moduleDropout: numberIn(config, "module_dropout", where, 0),
      coft: flagIn(config, "coft", where, false),
      eps: numberIn(config, "eps", where, 6e-5),
      blockShare: flagIn(config, "block_share", where, false),
      useCayleyNeumann: flagIn(config, "use_cayley_neumann", where, true),
      numCayleyNeumannTerms: numberIn(config, "num_cayley_neumann_terms", where, 5),
    };
  },
};

export const oftMethod: Method<OftOptions> = defineMethod<OftOptions>({
  id: "oft",
  number: null,
  title: "OFT",
  capability: "adapt",
  summary: "Rotates the inputs of each layer block by block, and keeps the angles between weights.",
  paper: {
    title: "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
    year: 2023,
    url: "https://arxiv.org/abs/2306.07280",
  },
  implementation: "parity",
  options,
  sizedBy: "blockSize",
  roles: { adapter: oftKind },
  tiny: { blockSize: 4 },
});
