/**
 * Hydra: two low-rank branches beside a frozen linear layer, one that learns from its input and one that mixes
 * its output anew; both merge into the weight.
 *
 * Kim et al., "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning", Neural Networks
 * 2024, arXiv:2309.06922, sections 3.2 and 3.3; placement, biases and first numbers after the authors'
 * release.
 *
 *   f₀(x) = W₀ x + b₀
 *   y  = f₀(x) + s g_p(x) + s g_s(f₀(x)),    g(u) = U (D u + d) + e
 *   W  = W₀ + s (U_p D_p + U_s D_s W₀)                            merged
 *   b  = b₀ + s (U_s D_s b₀ + U_p d_p + e_p + U_s d_s + e_s)
 *
 *   W₀ → weight (out, in)      D_p → hydra_par.down (rank, in)       U_p → hydra_par.up (out, rank)
 *   s  → scale                 D_s → hydra_seq.down (seqRank, out)   U_s → hydra_seq.up (out, seqRank)
 *   d (rank,), e (out,) → biases     D Xavier-uniform, d, U and e zero at first
 *
 * Sites, where none are named: attention's output and the second feed-forward layer of each block. One branch
 * alone is `branches: "parallel"` (LoRA with biases) or `"sequential"` (SeqLoRA).
 *
 * Differs: each layer merges with its own weight, where the release takes the feed-forward layer's for both;
 * layers without a bias get branches without biases, so that they merge too. Cost of a layer:
 * rank (in + out) + 2 seqRank out numbers, and biases.
 */
import { type Adapter, type AdapterKind, matchTargets, targetsOf } from "../../adapters/adapter.ts";
import { checkHarmless, namesIn, numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError } from "../../errors.ts";
import { add, cast, greaterOrEqual, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { dot } from "../../ir/linear.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftPrefix } from "../../models/peft-paths.ts";
import { xavierUniform } from "../../nn/init.ts";
import type { Linear } from "../../nn/linear.ts";
import type { Context, Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import {
  columnsOf,
  frobenius,
  type Matrix,
  matrix,
  matrixOf,
  multiply,
  rowsOf,
  svd,
  tensorOf,
  transpose,
} from "../../tensor/linalg/index.ts";
import type { Rng } from "../../tensor/rng.ts";
import { type StaticShape, toStatic } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";

export interface HydraOptions {
  /** Of the branch that reads the layer's input. */
  readonly rank?: number;
  /** Of the branch that reads the layer's output; default `rank`. */
  readonly seqRank?: number;
  /** Factor of both branches; the paper tunes it per task, from 0.01 to 10. */
  readonly scale?: number;
  /** Share of what lies between down and up that is zeroed in training. */
  readonly dropout?: number;
  /** Biases in layers that have one. */
  readonly bias?: boolean;
  readonly branches?: "both" | "parallel" | "sequential";
  /** Layers by the last parts of their path. Default: attention's output and the second feed-forward layer. */
  readonly targetModules?: readonly string[] | "all-linear";
}

const options = {
  rank: { type: "integer", default: 2, range: [1, 4096], about: "rank of the parallel branch" },
  seqRank: {
    type: "integer",
    range: [1, 4096],
    about: "rank of the sequential branch; as the other where it is not given",
  },
  scale: {
    type: "number",
    default: 1,
    range: [-1000, 1000],
    about: "factor of both branches; the paper tunes it from 0.01 to 10",
  },
  dropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of the inner numbers zeroed in training",
  },
  bias: { type: "flag", default: true, about: "biases, in layers that have one themselves" },
  branches: {
    type: "text",
    default: "both",
    choices: ["both", "parallel", "sequential"],
    about: "which of the two; sequential alone is SeqLoRA",
  },
  targetModules: {
    type: "list",
    words: ["all-linear"],
    about:
      "layers by the last part of their name; the outputs of attention and feed-forward where not given",
  },
} satisfies OptionSpecs<HydraOptions>;

/** Names of attention's output and of the second feed-forward layer in the families that are known here. */
const outputs =
  /(^|\.)(o_proj|down_proj|c_proj|output\.dense|out_lin|lin2|attention\.dense|dense_4h_to_h|out_proj|fc2|o|wo)$/;

/** The layers where Hydra sits by itself. @throws OptionError where a model has no such layers. */
export function outputLayers(model: PretrainedModel): string[] {
  const found = [...model.targets.keys()].filter((path) => outputs.test(path));
  if (found.length > 0) return found;
  throw new OptionError(
    `hydra: attention's output and the feed-forward layer of this ${model.family} are not known — name layers by targetModules.`,
  );
}

/** One branch of a layer: names of its numbers, and their sizes. */
interface Branch {
  readonly kind: "par" | "seq";
  readonly rank: number;
  /** Numbers that it reads. */
  readonly width: number;
  readonly down: string;
  readonly up: string;
  /** Where the layer has a bias. */
  readonly downBias?: string;
  readonly upBias?: string;
}

interface HydraLayer {
  readonly path: string;
  readonly layer: Linear;
  readonly branches: readonly Branch[];
}

export interface HydraAdapter extends Adapter {
  readonly layers: readonly HydraLayer[];
  readonly scale: number;
}

function branchOf(
  path: string,
  layer: Linear,
  kind: Branch["kind"],
  rank: number,
  bias: boolean,
): Branch {
  const name = `${peftPrefix}${path}.hydra_${kind}`;
  return {
    kind,
    rank,
    width: kind === "par" ? layer.inFeatures : layer.outFeatures,
    down: `${name}.down.weight`,
    up: `${name}.up.weight`,
    ...(bias && layer.bias && { downBias: `${name}.down.bias`, upBias: `${name}.up.bias` }),
  };
}

/** U (D u + d) + e of rows u: (N, width) → (N, out). */
function branchValue(
  branch: Branch,
  values: ValueRecord,
  u: Value,
  context: Context,
  dropout: number,
): Value {
  let inner = dot(u, values[branch.down]!, { transB: true });
  if (branch.downBias) inner = add(inner, values[branch.downBias]!);
  const { noise } = context.options;
  if (dropout > 0 && context.training && noise) {
    const kept = greaterOrEqual(
      noise(branch.down, toStatic(inner.shape, "hydra dropout")),
      dropout,
    );
    inner = mul(inner, mul(cast(kept, "float32"), 1 / (1 - dropout)));
  }
  const out = dot(inner, values[branch.up]!, { transB: true });
  return branch.upBias ? add(out, values[branch.upBias]!) : out;
}

/** U D of a branch, (out, width), in double precision. */
function productOf(branch: Branch, params: Readonly<TensorRecord>): Matrix {
  return multiply(matrixOf(params[branch.up]!), matrixOf(params[branch.down]!));
}

/** U d + e, (out, 1). */
function shiftOf(branch: Branch, params: Readonly<TensorRecord>): Matrix {
  const up = matrixOf(params[branch.up]!);
  if (!branch.downBias) return matrix(up.rows, 1);
  const column = (name: string): Matrix => matrixOf(params[name]!.reshape([params[name]!.size, 1]));
  return sum(multiply(up, column(branch.downBias)), column(branch.upBias!));
}

function sum(a: Matrix, b: Matrix, scale = 1): Matrix {
  return matrix(
    a.rows,
    a.columns,
    a.data.map((x, i) => x + scale * b.data[i]!),
  );
}

/** W₀ as (out, in), whichever way the layer keeps it. */
function weightOf({ path, layer }: HydraLayer, base: Readonly<Record<string, Tensor>>): Matrix {
  const weight = matrixOf(base[`${path}.weight`]!);
  return layer.inputsFirst ? transpose(weight) : weight;
}

/** Δ of each branch: U_p D_p, and U_s D_s W₀. */
function deltaOf(branch: Branch, weight: Matrix, params: Readonly<TensorRecord>): Matrix {
  if (branch.kind === "par") return productOf(branch, params);
  // D W₀ first: the thin side stays thin.
  return multiply(matrixOf(params[branch.up]!), multiply(matrixOf(params[branch.down]!), weight));
}

/** The layer's weight and bias with both branches written in, by name. */
function mergeLayer(
  own: HydraLayer,
  base: Readonly<Record<string, Tensor>>,
  params: Readonly<TensorRecord>,
  scale: number,
): TensorRecord {
  const before = weightOf(own, base);
  const biasName = `${own.path}.bias`;
  let weight = before;
  const bias0 = own.layer.bias && matrixOf(base[biasName]!.reshape([own.layer.outFeatures, 1]));
  let bias = bias0;
  for (const branch of own.branches) {
    weight = sum(weight, deltaOf(branch, before, params), scale);
    if (!bias || !bias0) continue;
    bias = sum(bias, shiftOf(branch, params), scale);
    // The sequential branch reads f₀ with its bias.
    if (branch.kind === "seq") bias = sum(bias, multiply(productOf(branch, params), bias0), scale);
  }
  return {
    [`${own.path}.weight`]: tensorOf(own.layer.inputsFirst ? transpose(weight) : weight),
    ...(bias && { [biasName]: tensorOf(bias).reshape([own.layer.outFeatures]) }),
  };
}

/**
 * Binds Hydra to a model.
 * @throws OptionError for options outside their range, or targets that match no layer.
 */
export function bindHydra(model: PretrainedModel, given: HydraOptions = {}): HydraAdapter {
  const read = readOptions("hydra", options, given);
  const { rank, scale, dropout, bias, branches, seqRank = rank } = read;
  const targets = read.targetModules ? targetsOf(model, read.targetModules) : outputLayers(model);
  const layers = targets.map((path): HydraLayer => {
    const layer = model.targets.get(path)!;
    const own: Branch[] = [];
    if (branches !== "sequential") own.push(branchOf(path, layer, "par", rank, bias));
    if (branches !== "parallel") own.push(branchOf(path, layer, "seq", seqRank, bias));
    return { path, layer, branches: own };
  });
  const shapes = layers.flatMap(({ layer, branches: own }) =>
    own.flatMap((branch): [string, StaticShape][] => [
      [branch.down, [branch.rank, branch.width]],
      ...(branch.downBias ? [[branch.downBias, [branch.rank]] as [string, StaticShape]] : []),
      [branch.up, [layer.outFeatures, branch.rank]],
      ...(branch.upBias ? [[branch.upBias, [layer.outFeatures]] as [string, StaticShape]] : []),
    ]),
  );
  return {
    kind: "HYDRA",
    title: "Hydra",
    targets,
    layers,
    scale,
    mergeable: "exact",
    init: (rng: Rng): TensorRecord =>
      Object.fromEntries(
        shapes.map(([name, shape]) => [
          name,
          name.endsWith(".down.weight")
            ? new Tensor("float32", shape, xavierUniform(rng.fold(name), shape))
            : Tensor.zeros(shape, "float32"),
        ]),
      ),
    context: (values) => ({
      sites: new Map<Module, SiteFn>(
        layers.map(({ layer, branches: own }) => [
          layer,
          (x, y, context) =>
            own.reduce((total, branch) => {
              const input = branch.kind === "par" ? x : y;
              return add(total, mul(branchValue(branch, values, input, context, dropout), scale));
            }, y),
        ]),
      ),
    }),
    merge: (base, params) =>
      Object.assign({}, ...layers.map((own) => mergeLayer(own, base, params, scale))),
    config: () => ({
      peft_type: "HYDRA",
      base_model_name_or_path: null,
      r: rank,
      seq_r: seqRank,
      scale,
      hydra_dropout: dropout,
      bias,
      branches,
      target_modules: targets,
      modules_to_save: null,
      task_type: model.kind === "causal-lm" ? "CAUSAL_LM" : null,
    }),
  };
}

/** How far each branch's change lies in the directions that the frozen weight uses most. */
export interface BranchSubspace {
  readonly layer: string;
  /** ‖U_kᵀ Δ V_k‖ / ‖Δ‖ of the parallel branch; NaN where there is none, or it is zero. */
  readonly parallel: number;
  readonly sequential: number;
  /** The same of a random matrix: k / √(out · in). */
  readonly random: number;
}

/**
 * Projects what both branches add to a weight on its first k singular directions (section 4.4 of the paper).
 * @param base the frozen weights by path
 * @param k at most the smaller side of every layer
 * @throws OptionError for another k.
 */
export function branchSubspaceReport(
  adapter: HydraAdapter,
  base: Readonly<Record<string, Tensor>>,
  params: Readonly<TensorRecord>,
  k: number,
): BranchSubspace[] {
  return adapter.layers.map((own) => {
    const weight = weightOf(own, base);
    const side = Math.min(weight.rows, weight.columns);
    if (!(Number.isInteger(k) && k >= 1 && k <= side)) {
      throw new OptionError(
        `hydra: k must be a whole number from 1 to ${side}, the smaller side of "${own.path}", got ${k}.`,
      );
    }
    const { u, vt } = svd(weight);
    const [left, right] = [columnsOf(u, 0, k), rowsOf(vt, 0, k)];
    const share = (kind: Branch["kind"]): number => {
      const branch = own.branches.find((one) => one.kind === kind);
      if (!branch) return Number.NaN;
      const delta = deltaOf(branch, weight, params);
      const inside = multiply(multiply(left, delta, { transA: true }), right, { transB: true });
      return frobenius(inside) / frobenius(delta);
    };
    return {
      layer: own.path,
      parallel: share("par"),
      sequential: share("seq"),
      random: k / Math.sqrt(weight.rows * weight.columns),
    };
  });
}

/** Fields that mean something else in files of other kinds, and are no part of this one. */
const harmless = { layers_to_transform: [null], layers_pattern: [null] };

export const hydraKind: AdapterKind<HydraOptions> = {
  kind: "HYDRA",
  bind: bindHydra,
  read: (config, where, model) => {
    checkHarmless(config, where, harmless);
    const { bias = true, branches = "both" } = config;
    const targetModules = namesIn(config, "target_modules", where);
    const unknown = targetModules.find((name) => matchTargets(model, [name]).length === 0);
    if (unknown !== undefined) {
      throw new FormatError(
        `${where}: target_modules names "${unknown}", which is no layer of this ${model.family}.`,
      );
    }
    const rank = numberIn(config, "r", where, 2);
    return {
      rank,
      seqRank: numberIn(config, "seq_r", where, rank),
      scale: numberIn(config, "scale", where, 1),
      dropout: numberIn(config, "hydra_dropout", where, 0),
      bias: bias as boolean,
      branches: branches as NonNullable<HydraOptions["branches"]>,
      targetModules,
    };
  },
};

export const hydra: Method<HydraOptions> = defineMethod({
  id: "hydra",
  number: 27,
  title: "Hydra",
  capability: "adapt",
  summary:
    "Two low-rank branches beside a layer: one learns from its input, one mixes its output anew.",
  paper: {
    title: "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning",
    year: 2023,
    url: "https://arxiv.org/abs/2309.06922",
  },
  implementation: "faithful",
  claim: "undecided",
  options,
  sizedBy: "rank",
  roles: { adapter: hydraKind },
});
