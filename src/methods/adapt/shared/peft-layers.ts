/**
 * What adapters have in common that PEFT names: which layers they sit on, a layer's product with another input,
 * its weight on the host, and fields of the configuration.
 */
import { loraLayers } from "../../../adapters/lora-targets.ts";
import { checkHarmless, namesIn, targetsIn } from "../../../adapters/peft-config.ts";
import { FormatError, UnsupportedError } from "../../../errors.ts";
import type { JsonObject } from "../../../io/json.ts";
import { add, cast, div, greaterOrEqual, maximum, mul } from "../../../ir/elementwise.ts";
import type { Value } from "../../../ir/graph.ts";
import { reshape } from "../../../ir/layout.ts";
import { conv, dot } from "../../../ir/linear.ts";
import { mean } from "../../../ir/reduce.ts";
import { asWeights } from "../../../models/folder.ts";
import type { PretrainedModel } from "../../../models/model.ts";
import { peftName, peftTargets } from "../../../models/peft-paths.ts";
import { AnyConv, ConvTranspose1d, ConvTranspose2d } from "../../../nn/conv.ts";
import { Linear } from "../../../nn/linear.ts";
import type { Context, TensorRecord } from "../../../nn/module.ts";
import type { ListOption } from "../../../options.ts";
import { type Matrix, matrix, transpose } from "../../../tensor/linalg/index.ts";
import { type StaticShape, sameShape, showShape, toStatic } from "../../../tensor/shape.ts";
import { Tensor } from "../../../tensor/tensor.ts";

export interface TargetOptions {
  /**
   * Layers by the last parts of their path; "all-linear" for every linear one of the blocks. Default: the
   * model's own.
   */
  readonly targetModules?: readonly string[] | "all-linear";
  /** Layers to leave out, named alike; default none. */
  readonly excludeModules?: readonly string[];
}

export const targetOptions: {
  readonly targetModules: ListOption;
  readonly excludeModules: ListOption & { readonly default: readonly string[] };
} = {
  targetModules: {
    type: "list",
    words: ["all-linear"],
    about: "layers to adapt, by the last part of their name; the model's own where not given",
  },
  excludeModules: { type: "list", default: [], about: "layers to leave out, named alike" },
};

/** A layer that an adapter sits on. */
export interface TargetLayer<L extends Linear | AnyConv = Linear | AnyConv> {
  readonly path: string;
  /** How files name it: names of its tensors begin with this and a dot. */
  readonly name: string;
  readonly layer: L;
}

/**
 * The layers that the options mean.
 * @param id of the method, begins an error
 * @param spatial numbers of spatial axes that a convolution may have: [2] for pictures alone
 * @throws OptionError for names that match no layer; UnsupportedError for layers that do not fit.
 */
export function targetLayers(
  id: string,
  model: PretrainedModel,
  { targetModules, excludeModules = [] }: TargetOptions,
  spatial: readonly number[] = [],
): TargetLayer[] {
  const found = loraLayers(model, targetModules, excludeModules);
  return [...found].map(([path, layer]) => {
    const refuse = (what: string): never => {
      throw new UnsupportedError(
        `${id}: "${path}" is ${what}, which it does not fit — leave it out of targetModules.`,
      );
    };
    if (layer instanceof Linear) return { path, name: peftName(model, path), layer };
    if (!(layer instanceof AnyConv)) return refuse("an embedding");
    if (layer instanceof ConvTranspose1d || layer instanceof ConvTranspose2d) {
      return refuse("a transposed convolution");
    }
    const axes = layer.kernel.length;
    if (!spatial.includes(axes)) refuse(`a convolution of ${axes} spatial axes`);
    return { path, name: peftName(model, path), layer };
  });
}

/** The same where convolutions do not fit at all. */
export function linearLayers(
  id: string,
  model: PretrainedModel,
  options: TargetOptions,
): TargetLayer<Linear>[] {
  return targetLayers(id, model, options) as TargetLayer<Linear>[];
}

/** Sizes of a layer's weight as a matrix: outputs, and all that one output reads. */
export function weightSizes({ layer }: TargetLayer): readonly [out: number, width: number] {
  if (layer instanceof Linear) return [layer.outFeatures, layer.inFeatures];
  const [out, ...rest] = layer.weight.shape as number[];
  return [out!, rest.reduce((a, b) => a * b, 1)];
}

/** Sizes 1 for the spatial axes of a layer's output: none of a linear one. */
export function spatialOnes(layer: Linear | AnyConv): number[] {
  return layer instanceof Linear ? [] : layer.kernel.map(() => 1);
}

/** The layer's product with rows (N, in) or pictures (N, C, …), without its bias. */
export function productWith(layer: Linear | AnyConv, x: Value, context: Context): Value {
  if (!(layer instanceof Linear)) return conv(x, context.get(layer.weight), layer.geometry);
  return (
    context.options.linear?.get(layer)?.(x, context) ??
    dot(x, context.get(layer.weight), { transB: !layer.inputsFirst })
  );
}

/** A layer's bias so that it adds to its output; undefined where it has none. */
export function biasOf(layer: Linear | AnyConv, context: Context): Value | undefined {
  if (!layer.bias) return undefined;
  const bias = context.get(layer.bias);
  return layer instanceof Linear ? bias : reshape(bias, [1, -1, ...spatialOnes(layer)]);
}

/** What the layer gives for another input. */
export function outputWith(layer: Linear | AnyConv, x: Value, context: Context): Value {
  const [y, bias] = [productWith(layer, x, context), biasOf(layer, context)];
  return bias ? add(y, bias) : y;
}

/**
 * 1 with chance 1 - share, else 0, for each of `shape`; undefined where nothing is dropped.
 * @param site names the noise
 */
export function keptMask(
  site: string,
  shape: StaticShape,
  share: number,
  context: Context,
): Value | undefined {
  const { noise } = context.options;
  if (share === 0 || !context.training || !noise) return undefined;
  return cast(greaterOrEqual(noise(site, shape), share), "float32");
}

/** The input with a share of its numbers zeroed in training, the others grown to make up for it. */
export function dropped(site: string, x: Value, share: number, context: Context): Value {
  if (share === 0 || !context.training) return x;
  const kept = keptMask(site, toStatic(x.shape, `${site} dropout`), share, context);
  return kept ? mul(x, mul(kept, 1 / (1 - share))) : x;
}

/** Shares of outputs, and of whole layers, whose change is left out in training. */
export interface OutputDropout {
  readonly rankDropout: number;
  readonly moduleDropout: number;
  /** Grow the outputs that stay. */
  readonly isScaled: boolean;
}

/** A layer's change (N, out) or (N, out, …) with outputs, or all of it, left out as LyCORIS does. */
export function droppedOutputs(
  { path, layer }: TargetLayer,
  change: Value,
  { rankDropout, moduleDropout, isScaled }: OutputDropout,
  context: Context,
): Value {
  const ones = spatialOnes(layer);
  const out = change.shape[1] as number;
  let result = change;
  const outputs = keptMask(`rank.${path}`, [out], rankDropout, context);
  if (outputs) {
    // Where all were dropped there is nothing to grow.
    const scaled = isScaled ? div(outputs, maximum(mean(outputs), 1 / out)) : outputs;
    result = mul(result, reshape(scaled, [1, out, ...ones]));
  }
  const whole = keptMask(`module.${path}`, [1], moduleDropout, context);
  return whole ? mul(result, reshape(whole, [1, 1, ...ones])) : result;
}

/**
 * A layer's weight with something done to it as a matrix (out, width), in double precision and rounded once.
 * @returns it by name, as the layer stores it
 */
export function changedWeight(
  target: TargetLayer,
  base: Readonly<Record<string, Tensor>>,
  change: (weight: Matrix) => Matrix,
): TensorRecord {
  const { layer, path } = target;
  const name = `${path}.weight`;
  const stored = base[name]!;
  const [out, width] = weightSizes(target);
  const isTurned = layer instanceof Linear && layer.inputsFirst;
  const numbers = Float64Array.from(stored.numbers());
  const weight = isTurned ? transpose(matrix(width, out, numbers)) : matrix(out, width, numbers);
  const changed = change(weight);
  const { data } = isTurned ? transpose(changed) : changed;
  return { [name]: new Tensor("float32", stored.shape, Float32Array.from(data)) };
}

/** W + scale · Δ. */
export function plus(weight: Matrix, delta: Matrix, scale: number): Matrix {
  const { rows, columns, data } = weight;
  return matrix(
    rows,
    columns,
    data.map((x, i) => x + scale * delta.data[i]!),
  );
}

const taskTypes: Readonly<Record<string, string>> = {
  "causal-lm": "CAUSAL_LM",
  seq2seq: "SEQ_2_SEQ_LM",
};

/** Fields of adapter_config.json that all of these kinds write. */
export function commonConfig(
  kind: string,
  model: PretrainedModel,
  options: TargetOptions,
  paths: readonly string[],
): Record<string, unknown> {
  const { targetModules = model.defaultTargets, excludeModules = [] } = options;
  const wanted =
    targetModules === "all-linear" ? paths.map((path) => path.split(".").at(-1)!) : targetModules;
  return {
    peft_type: kind,
    auto_mapping: null,
    base_model_name_or_path: null,
    revision: null,
    inference_mode: true,
    task_type: taskTypes[model.kind] ?? null,
    modules_to_save: null,
    target_modules: [...new Set(peftTargets(model, wanted, paths))].sort(),
    exclude_modules: excludeModules.length > 0 ? [...excludeModules].sort() : null,
  };
}

/** Whether weights lie (in, out), as GPT-2's do: PEFT's `fan_in_fan_out`. */
export function isFanInFirst(layers: readonly TargetLayer[]): boolean {
  return layers.some(({ layer }) => layer instanceof Linear && layer.inputsFirst);
}

const harmless: Readonly<Record<string, readonly unknown[]>> = {
  bias: ["none", null],
  layers_to_transform: [null],
  layers_pattern: [null],
};

/**
 * Which layers a configuration names, and checks fields that change what is computed.
 * @throws FormatError, UnsupportedError for what is not carried.
 */
export function readTargets(
  config: JsonObject,
  where: string,
  model: PretrainedModel,
): { readonly targets: TargetOptions; readonly paths: readonly string[] } {
  checkHarmless(config, where, harmless);
  const excludeModules = namesIn(config, "exclude_modules", where);
  const { targetModules, paths } = targetsIn(config, where, model, excludeModules);
  return {
    targets: { targetModules, ...(excludeModules.length > 0 && { excludeModules }) },
    paths,
  };
}

/** @throws FormatError for what is neither true nor false. */
export function flagIn(
  config: JsonObject,
  field: string,
  where: string,
  missing: boolean,
): boolean {
  const value = config[field] ?? missing;
  if (typeof value === "boolean") return value;
  throw new FormatError(
    `${where}: ${field} must be true or false, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

/**
 * Tensors of a file: all of these shapes and no others, as float32.
 * @throws FormatError that names what is missing, left over or of another shape.
 */
export function storedTensors(
  stored: Readonly<TensorRecord>,
  shapes: Readonly<Record<string, StaticShape>>,
  where: string,
): TensorRecord {
  const missing = Object.keys(shapes).filter((name) => !Object.hasOwn(stored, name));
  const unexpected = Object.keys(stored).filter((name) => !Object.hasOwn(shapes, name));
  if (missing.length > 0 || unexpected.length > 0) {
    throw new FormatError(
      `${where}: the tensors do not fit: missing [${missing.slice(0, 3).join(", ")}], unexpected [${unexpected.slice(0, 3).join(", ")}] — was the adapter made for another model?`,
      { missing, unexpected },
    );
  }
  return Object.fromEntries(
    Object.entries(shapes).map(([name, shape]) => {
      const tensor = stored[name]!;
      if (!sameShape(tensor.shape, shape)) {
        throw new FormatError(
          `${where}: "${name}" must have shape ${showShape(shape)}, got ${showShape(tensor.shape)}.`,
        );
      }
      return [name, asWeights(tensor, `${where}: tensor "${name}"`)];
    }),
  );
}
