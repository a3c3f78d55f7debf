/**
 * Bottleneck adapters: small layers down, up and a skip in each block of a frozen model.
 *
 * Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", ICML 2019, arXiv:1902.00751, section 2.1;
 * Pfeiffer et al., "AdapterFusion", EACL 2021, arXiv:2005.00247; He et al., "Towards a Unified View of
 * Parameter-Efficient Transfer Learning", ICLR 2022, arXiv:2110.04366, section 3.3; Chen et al.,
 * "AdaptFormer", NeurIPS 2022, arXiv:2205.13535, equations 4 and 5.
 *
 *   A(u) = W_up f(W_down n(u) + b_down) + b_up      n the identity or a layer norm of its own
 *   y ← y + s A(u)                                  y what a part of the block adds to the stream h
 *
 *   | style       | where                                | u                  | f    | s, n           |
 *   |-------------|--------------------------------------|--------------------|------|----------------|
 *   | houlsby     | after attention and after feed-forward | y                | silu | 1              |
 *   | pfeiffer    | after feed-forward                   | y                  | relu | 1              |
 *   | parallel    | beside feed-forward                  | what that layer reads | relu | 4           |
 *   | adaptformer | beside feed-forward                  | h                  | relu | 0.1, layer norm |
 *
 *   W_down → bottleneck_<place>.down.weight (width, dModel)      W_up → bottleneck_<place>.up.weight (dModel, width)
 *   b → .down.bias, .up.bias      n → .norm.weight, .norm.bias      s → .scale (1,), where it is trained
 *
 * W_down begins Kaiming-uniform (a = √5), all else with zeros, so that the model is unchanged at first.
 * Differs: Houlsby's f is swish as in AdapterHub (the paper leaves it open); Pfeiffer's reads what the
 * feed-forward layer gives, whatever norm stands behind it. In models that normalise after the sum (BERT) the
 * stream h is what the part read. Cost of a place: 2 · width · dModel numbers, and biases.
 */
import type { Adapter, AdapterKind } from "../../adapters/adapter.ts";
import { checkHarmless, numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError, UnsupportedError } from "../../errors.ts";
import type { JsonObject } from "../../io/json.ts";
import { add, cast, greaterOrEqual, mul } from "../../ir/elementwise.ts";
import { layerNorm } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { dot } from "../../ir/linear.ts";
import type { BlockSites } from "../../models/blocks.ts";
import type { PretrainedModel } from "../../models/model.ts";
import { peftName } from "../../models/peft-paths.ts";
import { activationNamed } from "../../nn/activation.ts";
import { constant, kaimingUniform, ones, zeros } from "../../nn/init.ts";
import type { Context, Initializer, Module, SiteFn, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { type StaticShape, toStatic } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";

const styles = ["houlsby", "pfeiffer", "parallel", "adaptformer"] as const;
type Style = (typeof styles)[number];
const activations = ["relu", "gelu", "silu", "tanh"] as const;

export interface BottleneckOptions {
  readonly style?: Style;
  /** Numbers between down and up; default the stream's width by `reduction`. */
  readonly width?: number;
  /** Where no width is given: how many times narrower than the stream. */
  readonly reduction?: number;
  /** f; default the style's. */
  readonly activation?: (typeof activations)[number];
  /** s, at first where it is trained; default the style's. */
  readonly scale?: number;
  readonly trainScale?: boolean;
  /** A layer norm before down; default the style's. */
  readonly layerNorm?: boolean;
  /** Share of the numbers between down and up that is zeroed in training. */
  readonly dropout?: number;
  readonly bias?: boolean;
  /** Blocks by index; default all. */
  readonly blocks?: readonly number[];
}

const options = {
  style: {
    type: "text",
    default: "pfeiffer",
    choices: styles,
    about: "where it sits: after parts of a block, or beside its feed-forward layer",
  },
  width: {
    type: "integer",
    range: [1, 65536],
    about: "numbers between down and up; by reduction where it is not given",
  },
  reduction: {
    type: "number",
    default: 16,
    range: [1, 65536],
    about: "how many times narrower than the stream",
  },
  activation: {
    type: "text",
    choices: activations,
    about: "between down and up; silu for houlsby, relu for the others",
  },
  scale: {
    type: "number",
    range: [-1000, 1000],
    about: "factor on what is added; 4 for parallel, 0.1 for adaptformer, else 1",
  },
  trainScale: { type: "flag", default: false, about: "train that factor too" },
  layerNorm: {
    type: "flag",
    about: "a layer norm before down; adaptformer has one",
  },
  dropout: {
    type: "number",
    default: 0,
    range: [0, 1],
    open: [false, true],
    about: "share of the inner numbers zeroed in training; AdaptFormer takes 0.1",
  },
  bias: { type: "flag", default: true, about: "biases of down and up" },
  blocks: { type: "numbers", range: [0, 9999], about: "blocks by index; all where not given" },
} as const satisfies OptionSpecs<BottleneckOptions>;

const defaults: Readonly<Record<Style, { activation: string; scale: number; layerNorm: boolean }>> =
  {
    houlsby: { activation: "silu", scale: 1, layerNorm: false },
    pfeiffer: { activation: "relu", scale: 1, layerNorm: false },
    parallel: { activation: "relu", scale: 4, layerNorm: false },
    adaptformer: { activation: "relu", scale: 0.1, layerNorm: true },
  };

/** Settings of a model's adapters, complete. */
interface Form {
  readonly style: Style;
  readonly activation: string;
  readonly scale: number;
  readonly trainScale: boolean;
  readonly hasNorm: boolean;
  readonly hasBias: boolean;
  readonly dropout: number;
}

/** One adapter: where it sits, and the names and sizes of its numbers. */
export interface BottleneckPlace {
  /** The block's path. */
  readonly path: string;
  readonly part: "attention" | "ffn";
  /** Whose site it takes. */
  readonly module: Module;
  readonly dModel: number;
  readonly width: number;
  /** What the names of its numbers begin with. */
  readonly name: string;
}

export interface BottleneckAdapter extends Adapter {
  readonly places: readonly BottleneckPlace[];
}

type Part = readonly [name: string, shape: StaticShape, init: Initializer];

function partsOf({ name, width, dModel }: BottleneckPlace, form: Form): Part[] {
  const parts: Part[] = [[`${name}.down.weight`, [width, dModel], kaimingUniform]];
  if (form.hasBias) parts.push([`${name}.down.bias`, [width], zeros]);
  parts.push([`${name}.up.weight`, [dModel, width], zeros]);
  if (form.hasBias) parts.push([`${name}.up.bias`, [dModel], zeros]);
  if (form.hasNorm) {
    parts.push([`${name}.norm.weight`, [dModel], ones], [`${name}.norm.bias`, [dModel], zeros]);
  }
  if (form.trainScale) parts.push([`${name}.scale`, [1], constant(form.scale)]);
  return parts;
}

/** s A(u) of rows u: (N, dModel) → the same. */
export function bottleneckValue(
  { name }: BottleneckPlace,
  form: Form,
  values: ValueRecord,
  u: Value,
  context: Context,
): Value {
  const biased = (x: Value, bias: string): Value =>
    form.hasBias ? add(x, values[`${name}.${bias}.bias`]!) : x;
  const read = form.hasNorm
    ? layerNorm(u, values[`${name}.norm.weight`]!, values[`${name}.norm.bias`]!)
    : u;
  const down = biased(dot(read, values[`${name}.down.weight`]!, { transB: true }), "down");
  let inner = activationNamed(form.activation)(down);
  const { noise } = context.options;
  if (form.dropout > 0 && context.training && noise) {
    const draws = noise(name, toStatic(inner.shape, "bottleneck dropout"));
    const kept = cast(greaterOrEqual(draws, form.dropout), "float32");
    inner = mul(inner, mul(kept, 1 / (1 - form.dropout)));
  }
  const up = biased(dot(inner, values[`${name}.up.weight`]!, { transB: true }), "up");
  return mul(up, form.trainScale ? values[`${name}.scale`]! : form.scale);
}

function siteOf(place: BottleneckPlace, form: Form, values: ValueRecord): SiteFn {
  return (input, output, context, { stream }) => {
    const reads: Readonly<Record<Style, Value>> = {
      houlsby: output,
      pfeiffer: output,
      parallel: input,
      adaptformer: stream ?? input,
    };
    return add(output, bottleneckValue(place, form, values, reads[form.style], context));
  };
}

/** The blocks that are adapted. */
function chosenBlocks(
  model: PretrainedModel,
  chosen: readonly number[] | undefined,
): readonly BlockSites[] {
  const blocks = model.blocks ?? [];
  if (blocks.length === 0) {
    throw new UnsupportedError(
      `bottleneck: a ${model.family} has no blocks of attention and feed-forward layers — take an adapter of single layers, as lora.`,
    );
  }
  if (!chosen) return blocks;
  const wrong = chosen.find((at, i) => !blocks[at] || chosen.indexOf(at) !== i);
  if (wrong !== undefined || chosen.length === 0) {
    throw new OptionError(
      `bottleneck: blocks must name some of 0 to ${blocks.length - 1}, each once, got ${wrong ?? "none"}.`,
    );
  }
  return [...chosen].sort((a, b) => a - b).map((at) => blocks[at]!);
}

/**
 * Binds bottleneck adapters to a model.
 * @throws OptionError for options outside their range, or blocks that the model does not have.
 * @throws UnsupportedError for a model without blocks.
 */
export function bindBottleneck(
  model: PretrainedModel,
  given: BottleneckOptions = {},
): BottleneckAdapter {
  const read = readOptions<BottleneckOptions, typeof options>("bottleneck", options, given);
  const { style } = read;
  const form: Form = {
    style,
    activation: read.activation ?? defaults[style].activation,
    scale: read.scale ?? defaults[style].scale,
    trainScale: read.trainScale,
    hasNorm: read.layerNorm ?? defaults[style].layerNorm,
    hasBias: read.bias,
    dropout: read.dropout,
  };
  const places = chosenBlocks(model, read.blocks).flatMap((block) => {
    const { path, dModel } = block;
    const width = read.width ?? Math.max(1, Math.round(dModel / read.reduction));
    const at = (part: BottleneckPlace["part"], module: Module): BottleneckPlace => ({
      ...{ path, part, module, dModel, width },
      name: peftName(model, `${path}.bottleneck_${part}`),
    });
    const after = at("ffn", block.feedForward);
    return style === "houlsby" ? [at("attention", block.attention), after] : [after];
  });
  const parts = places.flatMap((place) => partsOf(place, form));
  return {
    kind: "BOTTLENECK",
    title: "Bottleneck adapters",
    places,
    targets: [...new Set(places.map(({ path }) => path))],
    mergeable: "no",
    init: (rng) =>
      Object.fromEntries(
        parts.map(([name, shape, init]) => [
          name,
          new Tensor("float32", shape, init(rng.fold(name), shape)),
        ]),
      ),
    context: (values) => ({
      sites: new Map(places.map((place) => [place.module, siteOf(place, form, values)])),
    }),
    merge: () => {
      throw new UnsupportedError(
        "bottleneck: cannot be merged — what stands between its layers is not linear; use it beside the model.",
      );
    },
    config: () => ({
      peft_type: "BOTTLENECK",
      base_model_name_or_path: null,
      style,
      width: read.width ?? null,
      reduction: read.reduction,
      activation: form.activation,
      scale: form.scale,
      train_scale: form.trainScale,
      layer_norm: form.hasNorm,
      dropout: form.dropout,
      bias: form.hasBias,
      blocks: read.blocks ? [...read.blocks].sort((a, b) => a - b) : null,
      modules_to_save: null,
      task_type: model.kind === "causal-lm" ? "CAUSAL_LM" : null,
    }),
  };
}

function flagIn(config: JsonObject, field: string, where: string): boolean | undefined {
  const value = config[field] ?? undefined;
  if (value === undefined || typeof value === "boolean") return value;
  throw new FormatError(`${where}: ${field} must be true or false, got ${JSON.stringify(value)}.`);
}

export const bottleneckKind: AdapterKind<BottleneckOptions> = {
  kind: "BOTTLENECK",
  bind: bindBottleneck,
  read: (config, where) => {
    checkHarmless(config, where, { target_modules: [null], layers_to_transform: [null] });
    const { style, activation, blocks } = config;
    const number = (field: string): number | undefined =>
      (config[field] ?? null) === null ? undefined : numberIn(config, field, where, 0);
    const read = {
      style,
      activation: activation ?? undefined,
      blocks: blocks ?? undefined,
      width: number("width"),
      reduction: number("reduction"),
      scale: number("scale"),
      dropout: number("dropout"),
      trainScale: flagIn(config, "train_scale", where),
      layerNorm: flagIn(config, "layer_norm", where),
      bias: flagIn(config, "bias", where),
    };
    const there = Object.entries(read).filter(([, value]) => value !== undefined);
    // Words and lists are checked with the options.
    return Object.fromEntries(there) as BottleneckOptions;
  },
};

export const bottleneck: Method<BottleneckOptions> = defineMethod<BottleneckOptions>({
  id: "bottleneck",
  number: null,
  aliases: ["adapter", "adaptformer"],
  title: "Bottleneck adapters",
  capability: "adapt",
  summary:
    "Adds small layers down and up to each block of a frozen model, after its parts or beside its feed-forward layer.",
  paper: {
    title: "Parameter-Efficient Transfer Learning for NLP",
    year: 2019,
    url: "https://arxiv.org/abs/1902.00751",
  },
  implementation: "faithful",
  options,
  tiny: { width: 3, style: "houlsby" },
  sizedBy: "width",
  roles: { adapter: bottleneckKind },
});
