/**
 * IA³: a factor for each output of some layers, and for each input of the second feed-forward layer.
 *
 * Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
 * NeurIPS 2022, arXiv:2205.05638, section 3.3. Names, shapes and fields are PEFT's.
 *
 *   keys, values   y = l ∘ (W x + b)       merged: diag(l) W, l ∘ b
 *   feed-forward   y = W (l ∘ x) + b       merged: W diag(l)
 *
 *   l → ia3_l   (out, 1), of a feed-forward layer (1, in), of a convolution (1, channels, 1, 1); ones at first
 *
 * Differs: where PEFT has no table entry for a family, layers are found by the names that keys, values and the
 * second feed-forward layer bear. Cost: one number for each output, or input, of a layer.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { namesIn } from "../../adapters/peft-config.ts";
import { OptionError } from "../../errors.ts";
import { mul } from "../../ir/elementwise.ts";
import { reshape } from "../../ir/layout.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { eitherForm, isNamed, peftPath, peftTargets } from "../../models/peft-paths.ts";
import { Linear } from "../../nn/linear.ts";
import type { Module, SiteFn, TensorRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { matrix } from "../../tensor/linalg/index.ts";
import { type StaticShape, sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  changedWeight,
  commonConfig,
  isFanInFirst,
  outputWith,
  readTargets,
  spatialOnes,
  type TargetLayer,
  type TargetOptions,
  targetLayers,
  targetOptions,
} from "./shared/peft-layers.ts";

export interface Ia3Options extends TargetOptions {
  /** Of the layers, those whose inputs are scaled; default: second feed-forward layers. */
  readonly feedforwardModules?: readonly string[];
}

const options = {
  ...targetOptions,
  targetModules: {
    type: "list",
    words: ["all-linear"],
    about: "layers to scale; keys, values and the second feed-forward layer where not given",
  },
  feedforwardModules: {
    type: "list",
    about:
      "of these, the layers whose inputs are scaled; the second feed-forward ones where not given",
  },
} as const satisfies OptionSpecs<Ia3Options>;

/** Names that keys and values bear, alone or in one layer with queries. */
const keysAndValues = [
  ...["k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin"],
  ...["c_attn", "qkv_proj", "query_key_value"],
];
const feedForward = [
  ...["down_proj", "mlp.c_proj", "output.dense", "wo", "fc2", "lin2", "dense_4h_to_h"],
];

interface ScaledLayer extends TargetLayer {
  readonly isFeedForward: boolean;
  /** Of its factors. */
  readonly tensor: string;
  readonly shape: StaticShape;
}

/** Names that mean a layer here. */
function known(model: PretrainedModel, names: readonly string[]): string[] {
  const paths = [...model.targets.keys()];
  return names.filter((name) => paths.some((path) => isNamed(model, path, name)));
}

/** PEFT takes a path that ends with the name, at whatever letter. */
function endsWith(model: PretrainedModel, path: string, names: readonly string[]): boolean {
  return names.some((name) => eitherForm(model, (form) => form.endsWith(name))(path));
}

/**
 * Binds IA³ to a model.
 * @throws OptionError for targets that match no layer, or a feed-forward name that matches none of them.
 */
export function ia3(model: PretrainedModel, given: Ia3Options = {}): Adapter {
  const read = readOptions<Ia3Options, typeof options>("ia3", options, given);
  const targetModules = read.targetModules ?? [
    ...known(model, keysAndValues),
    ...known(model, feedForward),
  ];
  if (targetModules.length === 0) {
    throw new OptionError(
      `ia3: keys, values and feed-forward layers of this ${model.family} are not known — name layers by targetModules.`,
    );
  }
  const wanted = { ...read, targetModules };
  const found = targetLayers("ia3", model, wanted, [2]);
  const names = read.feedforwardModules ?? feedForward;
  const idle = read.feedforwardModules?.find(
    (name) => !found.some(({ path }) => endsWith(model, path, [name])),
  );
  if (idle !== undefined) {
    throw new OptionError(
      `ia3: feedforwardModules "${idle}" names none of the layers that are scaled — the first is "${found[0]!.path}".`,
    );
  }
  const layers = found.map((target): ScaledLayer => {
    const { layer, path, name } = target;
    const isFeedForward = read.feedforwardModules
      ? endsWith(model, path, names)
      : names.some((one) => isNamed(model, path, one));
    const [inputs, outputs] =
      layer instanceof Linear
        ? [layer.inFeatures, layer.outFeatures]
        : [layer.inChannels, layer.outChannels];
    const count = isFeedForward ? inputs : outputs;
    const isColumn = layer instanceof Linear && !isFeedForward;
    const shape = isColumn ? [count, 1] : [1, count, ...spatialOnes(layer)];
    return { ...target, isFeedForward, tensor: `${name}.ia3_l`, shape };
  });
  const paths = layers.map(({ path }) => path);
  return {
    kind: "IA3",
    title: "IA³",
    targets: paths,
    mergeable: "exact",
    // As the paper trains it, section 3.5.
    learningRate: 3e-3,
    init: () =>
      Object.fromEntries(
        layers.map(({ tensor, shape }) => [
          tensor,
          new Tensor("float32", shape, new Float32Array(sizeOf(shape)).fill(1)),
        ]),
      ),
    context: (values) => ({
      sites: new Map<Module, SiteFn>(
        layers.map(({ layer, isFeedForward, tensor, shape }): [Module, SiteFn] => {
          const factors = reshape(values[tensor]!, [1, sizeOf(shape), ...spatialOnes(layer)]);
          if (!isFeedForward) return [layer, (_, y) => mul(y, factors)];
          return [layer, (x, _, context) => outputWith(layer, mul(x, factors), context)];
        }),
      ),
    }),
    merge: (base, params) =>
      Object.assign({}, ...layers.map((target) => mergeLayer(target, base, params))),
    config: () => ({
      ...commonConfig("IA3", model, wanted, paths),
      ...namedLayers(model, targetModules, read.feedforwardModules ?? feedForward, layers),
      fan_in_fan_out: isFanInFirst(layers),
      init_ia3_weights: true,
    }),
  };
}

/** The layer's weight, and bias, times its factors. */
function mergeLayer(
  target: ScaledLayer,
  base: Readonly<Record<string, Tensor>>,
  params: Readonly<TensorRecord>,
): TensorRecord {
  const { layer, path, isFeedForward, tensor } = target;
  const factors = params[tensor]!.numbers();
  const spread = layer instanceof Linear ? 1 : layer.kernel.reduce((a, b) => a * b, 1);
  const groups = layer instanceof Linear ? 1 : layer.geometry.groups;
  const merged = changedWeight(target, base, ({ rows, columns, data }) =>
    matrix(
      rows,
      columns,
      data.map((x, i) => {
        const [o, at] = [Math.floor(i / columns), i % columns];
        if (!isFeedForward) return x * factors[o]!;
        // In a convolution of groups an output reads the channels of its own group.
        const first = Math.floor((o * groups) / rows) * (columns / spread);
        return x * factors[first + Math.floor(at / spread)]!;
      }),
    ),
  );
  if (isFeedForward || !layer.bias) return merged;
  const bias = base[`${path}.bias`]!;
  const numbers = Float32Array.from(bias.numbers(), (x, i) => x * factors[i]!);
  return { ...merged, [`${path}.bias`]: new Tensor("float32", bias.shape, numbers) };
}

/** Both lists of names so that PEFT finds the same layers by them: the second must be part of the first. */
function namedLayers(
  model: PretrainedModel,
  wanted: readonly string[] | "all-linear",
  names: readonly string[],
  layers: readonly ScaledLayer[],
): Record<string, readonly string[]> {
  const paths = layers.map(({ path }) => path);
  const last = (path: string): string => path.split(".").at(-1)!;
  const targets = peftTargets(model, wanted === "all-linear" ? paths.map(last) : wanted, paths);
  const scaled = layers.filter(({ isFeedForward }) => isFeedForward).map(({ path }) => path);
  const used = names.filter((name) => scaled.some((path) => endsWith(model, path, [name])));
  const own = model.peftPaths ? peftTargets(model, used, scaled) : used;
  const isRight =
    own.every((name) => targets.includes(name)) &&
    layers.every(({ path, isFeedForward }) => endsWith(model, path, own) === isFeedForward);
  const full = (list: readonly string[]): string[] => list.map((path) => peftPath(model, path));
  return {
    target_modules: [...new Set(isRight ? targets : full(paths))].sort(),
    feedforward_modules: [...new Set(isRight ? own : full(scaled))].sort(),
  };
}

export const ia3Kind: AdapterKind<Ia3Options> = {
  kind: "IA3",
  bind: ia3,
  read: (config, where, model) => {
    const { targets, paths } = readTargets(config, where, model);
    const feedforwardModules = namesIn(config, "feedforward_modules", where).filter((name) =>
      paths.some((path) => endsWith(model, path, [name])),
    );
    return { ...targets, feedforwardModules };
  },
};

export const ia3Method: Method<Ia3Options> = defineMethod<Ia3Options>({
  id: "ia3",
  number: null,
  title: "IA³",
  capability: "adapt",
  summary: "Scales keys, values and the inner numbers of feed-forward layers by trained factors.",
  paper: {
    title:
      "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
    year: 2022,
    url: "https://arxiv.org/abs/2205.05638",
  },
  implementation: "parity",
  options,
  roles: { adapter: ia3Kind },
});
