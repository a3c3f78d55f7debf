/**
 * AdaLoRA: updates kept as a singular value decomposition, of which training masks the triplets that matter least
 * until a budget of ranks is met.
 *
 * Zhang et al., "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023,
 * arXiv:2303.10512, sections 3.1 to 3.3. Names, shapes, first numbers and fields are PEFT's.
 *
 *   ΔW = (alpha / initR) P Λ Q                                            eq. 3
 *   R  = orthRegWeight · mean over P and Q of ‖PᵀP - I‖, ‖QQᵀ - I‖        added to the loss; eq. 4
 *
 *   Q → lora_A (initR, in)       Λ → lora_E (initR, 1), zero at first       P → lora_B (out, initR)
 *
 * The ranks that stay are chosen after each optimiser step by `shared/rank-budget.ts`. Files hold the triplets
 * that stay, and `rank_pattern` says which they are; here every layer keeps its initR. Follows PEFT where it differs from
 * the paper: norms in R are not squared, and scores come from the weights after the step. `totalStep` is the length
 * of the run where it is not given. Cost: initR (in + out + 1) numbers a layer, and twice as many of state.
 */
import type { Adapter, AdapterKind, AdapterNumbers } from "../../adapters/adapter.ts";
import { checkHarmless, numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError, UnsupportedError } from "../../errors.ts";
import { isJsonObject, type JsonObject } from "../../io/json.ts";
import { add, div, mul, sqrt, sub } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape, transpose } from "../../ir/layout.ts";
import { conv, dot } from "../../ir/linear.ts";
import { sum } from "../../ir/reduce.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftPath } from "../../models/peft-paths.ts";
import { normal } from "../../nn/init.ts";
import { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { identity, type Matrix, matrixOf, multiply } from "../../tensor/linalg/index.ts";
import type { StaticShape } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import { columnsKept, columnsSpread, rowsKept, rowsSpread } from "./shared/kept-ranks.ts";
import {
  changedWeight,
  commonConfig,
  dropped,
  isFanInFirst,
  plus,
  readTargets,
  storedTensors,
  type TargetLayer,
  type TargetOptions,
  targetLayers,
  targetOptions,
  weightSizes,
} from "./shared/peft-layers.ts";
import {
  budgetBuffers,
  budgetHook,
  maskName,
  stepsName,
  type Triplets,
} from "./shared/rank-budget.ts";

export interface AdaLoraOptions extends TargetOptions {
  /** Mean rank of a layer at the end. */
  readonly targetR?: number;
  /** Rank of every layer at first. */
  readonly initR?: number;
  /** Steps before the first rank is masked. */
  readonly tinit?: number;
  /** Steps at the end with the ranks as they are. */
  readonly tfinal?: number;
  /** Steps from one choice of ranks to the next. */
  readonly deltaT?: number;
  /** Smoothing of the sensitivity. */
  readonly beta1?: number;
  /** Smoothing of the uncertainty. */
  readonly beta2?: number;
  readonly orthRegWeight?: number;
  /** Steps in all; default those of the run. */
  readonly totalStep?: number;
  /** Scale is alpha / initR. */
  readonly alpha?: number;
  /** Share of the input zeroed in training. */
  readonly dropout?: number;
}

const options = {
  targetR: {
    type: "integer",
    default: 8,
    range: [1, 4096],
    about: "mean rank of a layer at the end",
  },
  initR: { type: "integer", default: 12, range: [1, 4096], about: "rank of every layer at first" },
  tinit: {
    type: "integer",
    default: 0,
    range: [0, 1e8],
    about: "steps before the first rank is masked",
  },
  tfinal: {
    type: "integer",
    default: 0,
    range: [0, 1e8],
    about: "steps at the end with the ranks as they are",
  },
  deltaT: {
    type: "integer",
    default: 1,
    range: [1, 1e6],
    about: "steps from one choice of ranks to the next",
  },
  beta1: {
    type: "number",
    default: 0.85,
    range: [0, 1],
    open: [true, true],
    about: "smoothing of the sensitivity",
  },
  beta2: {
    type: "number",
    default: 0.85,
    range: [0, 1],
    open: [true, true],
    about: "smoothing of the uncertainty",
  },
  orthRegWeight: {
    type: "number",
    default: 0.5,
    range: [0, 1e6],
    about: "weight of the penalty that keeps the singular vectors orthogonal",
  },
  totalStep: {
    type: "integer",
    range: [1, 1e8],
    about: "steps of the schedule; those of the run where not given",
  },
  alpha: { type: "number", default: 8, range: [0, 1e6], about: "scale is alpha / initR" },
  dropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of the input zeroed in training",
  },
  ...targetOptions,
} as const satisfies OptionSpecs<AdaLoraOptions>;

/** Options as a folder gives them: with the triplets that it holds, by the layer's path. */
interface StoredOptions extends AdaLoraOptions {
  readonly rankPattern?: Readonly<Record<string, readonly boolean[]>>;
}

interface SvdLayer extends TargetLayer, Triplets {}

/**
 * Binds AdaLoRA to a model.
 * @throws OptionError for targets that match no layer, a targetR above initR, or a schedule without room;
 * UnsupportedError for convolutions of groups.
 */
export function adalora(model: PretrainedModel, given: AdaLoraOptions = {}): Adapter {
  const { rankPattern, ...own } = given as StoredOptions;
  const read = readOptions<AdaLoraOptions, typeof options>("adalora", options, own);
  const { initR, targetR, tinit, tfinal, orthRegWeight, alpha, dropout, totalStep } = read;
  if (targetR > initR) {
    throw new OptionError(`adalora: targetR ${targetR} must not be above initR ${initR}.`);
  }
  if (totalStep !== undefined && tinit >= totalStep - tfinal) {
    throw new OptionError(
      `adalora: ${tinit} steps before and ${tfinal} after leave none of ${totalStep} to choose ranks in.`,
    );
  }
  const layers = targetLayers("adalora", model, read, [2]).map((target): SvdLayer => {
    const { name, path, layer } = target;
    if (!(layer instanceof Linear) && layer.geometry.groups !== 1) {
      throw new UnsupportedError(
        `adalora: "${path}" is a convolution of ${layer.geometry.groups} groups, which it does not fit — leave it out of targetModules.`,
      );
    }
    const [out, width] = weightSizes(target);
    const names = { a: `${name}.lora_A`, e: `${name}.lora_E`, b: `${name}.lora_B` };
    return { ...target, ...names, rank: initR, out, width };
  });
  const paths = layers.map(({ path }) => path);
  // As PEFT adds a little to the rank before it divides.
  const scale = (alpha > 0 ? alpha : initR) / (initR + 1e-5);
  const shapes = (of: (layer: SvdLayer) => number): Record<string, StaticShape> =>
    Object.fromEntries(
      layers.flatMap((layer): [string, StaticShape][] => [
        [layer.a, [of(layer), layer.width]],
        [layer.e, [of(layer), 1]],
        [layer.b, [layer.out, of(layer)]],
      ]),
    );
  const stays = layers.map(
    ({ path }) => rankPattern?.[path] ?? new Array<boolean>(initR).fill(true),
  );
  const firstMask = Float32Array.from(stays.flat(), Number);
  /** Which triplets of each layer stay. */
  const masksOf = ({ [maskName]: mask }: Readonly<TensorRecord>): boolean[][] => {
    const flat = mask?.numbers() ?? firstMask;
    return layers.map((_, i) =>
      Array.from({ length: initR }, (_unused, j) => flat[i * initR + j] !== 0),
    );
  };
  const delta = (layer: SvdLayer, values: ValueRecord): Value =>
    dot(values[layer.b]!, mul(values[layer.a]!, values[layer.e]!), { alpha: scale });
  return {
    kind: "ADALORA",
    title: "AdaLoRA",
    targets: paths,
    mergeable: "exact",
    isAdditive: true,
    hook: budgetHook(layers, read),
    init: (rng) =>
      Object.fromEntries(
        Object.entries(shapes(() => initR)).map(([name, shape]) => [
          name,
          name.endsWith(".lora_E")
            ? Tensor.zeros(shape, "float32")
            : new Tensor("float32", shape, normal(0.02)(rng.fold(name), shape)),
        ]),
      ),
    initBuffers: () => budgetBuffers(layers, firstMask),
    file: {
      pack: ({ params, buffers }: AdapterNumbers): TensorRecord => {
        const masks = masksOf(buffers);
        const packed: TensorRecord = { ...params };
        for (const [i, layer] of layers.entries()) {
          for (const name of [layer.a, layer.e]) packed[name] = rowsKept(params[name]!, masks[i]!);
          packed[layer.b] = columnsKept(params[layer.b]!, masks[i]!);
        }
        return packed;
      },
      unpack: (stored, where): AdapterNumbers => {
        const ranks = new Map(
          layers.map((layer, i) => [layer, stays[i]!.filter(Boolean).length] as const),
        );
        const params = storedTensors(
          stored,
          shapes((layer) => ranks.get(layer)!),
          where,
        );
        for (const [i, layer] of layers.entries()) {
          for (const name of [layer.a, layer.e]) {
            params[name] = rowsSpread(params[name]!, stays[i]!);
          }
          params[layer.b] = columnsSpread(params[layer.b]!, stays[i]!);
        }
        return { params, buffers: budgetBuffers(layers, firstMask) };
      },
    },
    context: (values) => ({
      sites: new Map<Module, SiteFn>(
        layers.map((target): [Module, SiteFn] => [
          target.layer,
          (x, y, context) => {
            const { layer, path } = target;
            const seen = dropped(`adalora.${path}`, x, dropout, context);
            if (!(layer instanceof Linear)) {
              const kernel = reshape(delta(target, values), layer.weight.shape);
              return add(y, conv(seen, kernel, layer.geometry));
            }
            const right = mul(values[target.a]!, values[target.e]!);
            const inner = dot(seen, right, { transB: true });
            return add(y, dot(inner, values[target.b]!, { transB: true, alpha: scale }));
          },
        ]),
      ),
    }),
    ...(orthRegWeight > 0 && {
      penalty: (values: ValueRecord): Value => {
        const norms = layers.flatMap(({ a, b }) => [
          departure(values[a]!),
          departure(transpose(values[b]!, [1, 0])),
        ]);
        return mul(div(norms.reduce(add), norms.length), orthRegWeight);
      },
    }),
    merge: (base, params) =>
      Object.assign(
        {},
        ...layers.map((target) =>
          changedWeight(target, base, (weight) => plus(weight, deltaOf(target, params), scale)),
        ),
      ),
    config: (numbers) => {
      const masks = masksOf(numbers?.buffers ?? {});
      const isWhole = masks.every((mask) => mask.every(Boolean));
      const steps = numbers?.buffers[stepsName]?.numbers()[0] ?? 0;
      return {
        ...commonConfig("ADALORA", model, read, paths),
        init_r: initR,
        target_r: targetR,
        tinit,
        tfinal,
        deltaT: read.deltaT,
        beta1: read.beta1,
        beta2: read.beta2,
        orth_reg_weight: orthRegWeight,
        // PEFT refuses a schedule without room, also of an adapter that is trained no more.
        total_step: totalStep ?? Math.max(steps, tinit + tfinal + 1),
        rank_pattern: isWhole
          ? null
          : Object.fromEntries(
              layers.map(({ path }, i) => [`${peftPath(model, path)}.lora_E`, masks[i]!]),
            ),
        lora_alpha: alpha,
        lora_dropout: dropout,
        fan_in_fan_out: isFanInFirst(layers),
        alpha_pattern: {},
        bias: "none",
        init_lora_weights: true,
        layers_pattern: null,
        layers_to_transform: null,
        r: 8,
        use_dora: false,
        use_rslora: false,
      };
    },
  };
}

/** ‖V Vᵀ - I‖ of V (r, n). */
function departure(v: Value): Value {
  const rank = v.shape[0] as number;
  const one = new Tensor("float32", [rank, rank], Float32Array.from(identity(rank).data));
  const off = sub(dot(v, v, { transB: true }), one);
  return sqrt(sum(mul(off, off)));
}

/** P Λ Q. */
function deltaOf({ a, e, b }: SvdLayer, params: Readonly<TensorRecord>): Matrix {
  const right = matrixOf(params[a]!);
  const values = params[e]!.numbers();
  for (let i = 0; i < right.data.length; i++) {
    right.data[i]! *= values[Math.floor(i / right.columns)]!;
  }
  return multiply(matrixOf(params[b]!), right);
}

/** `rank_pattern`: for each layer's `lora_E` which triplets a file holds. */
function patternIn(
  config: JsonObject,
  where: string,
  model: PretrainedModel,
  paths: readonly string[],
  initR: number,
): Readonly<Record<string, readonly boolean[]>> | undefined {
  const table = config["rank_pattern"] ?? null;
  if (table === null) return undefined;
  const wrong = (what: string): FormatError => new FormatError(`${where}: rank_pattern ${what}.`);
  if (!isJsonObject(table)) throw wrong("must be a table of lists, or null");
  const byName = new Map(paths.map((path) => [`${peftPath(model, path)}.lora_E`, path]));
  const found: Record<string, readonly boolean[]> = {};
  for (const [name, list] of Object.entries(table)) {
    const path = byName.get(name);
    if (path === undefined) throw wrong(`names "${name}", which is no adapted layer's lora_E`);
    const isMask =
      Array.isArray(list) &&
      list.length === initR &&
      list.every((item) => typeof item === "boolean");
    if (!isMask) throw wrong(`"${name}" must be a list of ${initR} times true or false`);
    found[path] = list as boolean[];
  }
  return found;
}

export const adaloraKind: AdapterKind<AdaLoraOptions> = {
  kind: "ADALORA",
  bind: adalora,
  read: (config, where, model): StoredOptions => {
    checkHarmless(config, where, {
      use_dora: [false, null],
      use_rslora: [false, null],
      lora_bias: [false, null],
      layer_replication: [null],
      target_parameters: [null],
      trainable_token_indices: [null],
      alpha_pattern: [
        null,
        ...(emptyTable(config["alpha_pattern"]) ? [config["alpha_pattern"]] : []),
      ],
    });
    const { targets, paths } = readTargets(config, where, model);
    const initR = numberIn(config, "init_r", where, 12);
    const rankPattern = patternIn(config, where, model, paths, initR);
    return {
      ...targets,
      initR,
      targetR: Math.min(initR, numberIn(config, "target_r", where, 8)),
      tinit: numberIn(config, "tinit", where, 0),
      tfinal: numberIn(config, "tfinal", where, 0),
      deltaT: numberIn(config, "deltaT", where, 1),
      beta1: numberIn(config, "beta1", where, 0.85),
      beta2: numberIn(config, "beta2", where, 0.85),
      orthRegWeight: numberIn(config, "orth_reg_weight", where, 0.5),
      ...(config["total_step"] != null && { totalStep: numberIn(config, "total_step", where, 1) }),
      alpha: numberIn(config, "lora_alpha", where, 8),
      dropout: numberIn(config, "lora_dropout", where, 0),
      ...(rankPattern && { rankPattern }),
    };
  },
};

const emptyTable = (value: unknown): boolean =>
  isJsonObject(value as never) && Object.keys(value as object).length === 0;

export const adaloraMethod: Method<AdaLoraOptions> = defineMethod<AdaLoraOptions>({
  id: "adalora",
  number: null,
  title: "AdaLoRA",
  capability: "adapt",
  summary:
    "Trains updates as singular triplets and masks those that matter least, down to a budget.",
  paper: {
    title: "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
    year: 2023,
    url: "https://arxiv.org/abs/2303.10512",
  },
  implementation: "parity",
  options,
  sizedBy: "initR",
  roles: { adapter: adaloraKind },
  tiny: { initR: 3, targetR: 2 },
});
