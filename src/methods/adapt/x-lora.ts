/**
 * X-LoRA: several finished LoRA adapters mixed token by token and layer by layer, by a small gate that reads the
 * model's own hidden states. Only the gate is trained.
 *
 * Buehler & Buehler, "X-LoRA: Mixture of Low-Rank Adapter Experts, a Flexible Framework for Large Language Models
 * with Applications in Protein Mechanics and Design", APL Machine Learning 2024, arXiv:2402.07148, section 2.
 *
 *   H   = hidden states of the base alone, or with every expert at a constant     first pass, no gradient
 *   z   = W_D ReLU(… ReLU(W_1 H + b_1)) + b_D       per token: experts numbers for all layers, or for each
 *   λ   = softmax(z / T), or z; then the k largest, softmax over them where asked
 *   y   = W₀ x + Σ_i λ_i g s_i B_i A_i x            second pass, s_i = alpha_i / r_i of the expert itself
 *
 *   depth, size → D and the gate's width      T → temperature      k → topK      g → globalWeight
 *   λ           → scalings (S, layers, experts), a layer being one that an expert sits on
 *
 * λ of token s comes from H at s, which has seen tokens up to s alone: decoding keeps keys and values of both
 * passes. Names and settings of files are PEFT's `XLORA`. Experts stand in the order of their names, as files
 * keep them.
 *
 * Differs: files also hold the experts where those are trained (PEFT writes the gate alone); a constant in the
 * first pass goes to every expert, also with topK; experts are plain LoRAs on linear layers. PEFT takes only
 * experts named 0, 1, …: files call them so, and keep other names beside. Its version 0.21 leaves the gate's
 * layers of those numbers out of the files it writes: such a file is refused here by the names that it lacks.
 *
 * Cost: a forward pass of the base more; numbers dModel · experts (· layers) at depth 1.
 */

import type {
  Adapter,
  AdapterKind,
  AdapterNumbers,
  BindScene,
  LoadedAdapter,
} from "../../adapters/adapter.ts";
import type { LoraAdapter } from "../../adapters/lora.ts";
import { namesIn, numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError, UnsupportedError } from "../../errors.ts";
import { isJsonObject, type JsonObject } from "../../io/json.ts";
import { add, stopGradient } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { expand } from "../../ir/layout.ts";
import { asWeights } from "../../models/folder.ts";
import type {
  ForwardOptions,
  ForwardResult,
  LanguageModel,
  PretrainedModel,
} from "../../models/model.ts";
import type {
  AroundFn,
  Context,
  Module,
  SiteFn,
  TensorRecord,
  ValueRecord,
} from "../../nn/module.ts";
import type { Rng } from "../../tensor/rng.ts";
import { sameShape, showShape } from "../../tensor/shape.ts";
import { defineMethod, type Method } from "../method.ts";
import {
  type ExpertPart,
  type GateForm,
  gateOutputs,
  gatePrefix,
  gateShapes,
  initGate,
  layerScalings,
  mixture,
  scalingsOf,
} from "./x-lora-gate.ts";
import { readXLora, type XLoraOptions, xLoraOptions } from "./x-lora-options.ts";

/** Finished LoRA adapters by name, and where they came from. */
export type Experts = Readonly<Record<string, LoadedAdapter & { readonly folder?: string }>>;

export interface XLoraAdapter extends Adapter {
  /** Names, in the order of the scalings. */
  readonly experts: readonly string[];
  /** λ of each token: ids (B, T) → (B·T, layers, experts); layers are those of `targets`. */
  scalings(values: ValueRecord, context: Context, ids: Value, options?: ForwardOptions): Value;
}

export interface XLoraParts {
  /**
   * What the gate reads in place of each token's own hidden state: (B·T, D) for (B·T, D). For gates of whole
   * texts; what it gives must not depend on later tokens where text is generated.
   */
  readonly pool?: (hidden: Value, ids: Value) => Value;
}

const expertPrefix = "xlora_experts.";
const signal = "x-lora";
const where = "x-lora";

/** As files keep names: numbers by size, others by their letters. */
function inOrder(names: readonly string[]): string[] {
  const areNumbers = names.every((name) => /^\d+$/.test(name));
  return [...names].sort((a, b) => (areNumbers ? Number(a) - Number(b) : a < b ? -1 : 1));
}

/** @throws OptionError for names that are twice there, or none. */
function foldersOf(adapters: readonly string[] = []): Map<string, string> {
  const folders = new Map<string, string>();
  for (const [i, text] of adapters.entries()) {
    const at = text.indexOf("=");
    const name = at < 0 ? String(i) : text.slice(0, at);
    const folder = text.slice(at + 1);
    if (!/^[^\s.=+,]+$/.test(name) || folder === "") {
      throw new OptionError(
        `${where}: adapters: "${text}" must be name=folder, with a name without spaces and dots.`,
      );
    }
    if (folders.has(name)) {
      throw new OptionError(`${where}: adapters: two experts are named "${name}".`);
    }
    folders.set(name, folder);
  }
  if (folders.size > 0) return folders;
  throw new OptionError(
    `${where}: adapters: needs the folders of experts, as adapters=maths=runs/maths+law=runs/law.`,
  );
}

/** What an expert is here. @throws UnsupportedError for what is no plain LoRA of linear layers. */
function plainLora(name: string, { adapter }: LoadedAdapter): LoraAdapter {
  const own = adapter as Partial<LoraAdapter> & Adapter;
  if (own.kind === "LORA" && own.isPlain && own.layers) return own as LoraAdapter;
  throw new UnsupportedError(
    `${where}: expert "${name}" is ${own.kind === "LORA" ? "no plain LoRA of linear layers (DoRA, a bias, an embedding or tokens of its own)" : `a ${own.title}`} — experts are plain LoRAs.`,
  );
}

/** @throws UnsupportedError for a model whose hidden states are not those of a text. */
function languageModel(model: PretrainedModel): LanguageModel {
  if (model.kind === "causal-lm" && !(model as LanguageModel).stateShapes) {
    return model as LanguageModel;
  }
  throw new UnsupportedError(
    `${where}: reads the hidden states of a causal language model with keys and values, not of a ${model.family}.`,
  );
}

/**
 * X-LoRA over experts that are at hand.
 * @param experts finished LoRA adapters of this model, one or more
 * @throws OptionError for options outside their range; UnsupportedError for other kinds of experts or models.
 */
export function mixExperts(
  base: PretrainedModel,
  experts: Experts,
  given: XLoraOptions = {},
  { pool }: XLoraParts = {},
): XLoraAdapter {
  const model = languageModel(base);
  const read = readXLora(given);
  const { depth, size, dropout, layerwise, globalWeight, scalingPassValue, temperature } = read;
  const names = inOrder(Object.keys(experts));
  if (names.length === 0) throw new OptionError(`${where}: needs one expert or more, got none.`);
  if (read.softmaxTopK && read.topK === undefined) {
    throw new OptionError(`${where}: softmaxTopK needs topK, the number of experts that count.`);
  }
  const loras = names.map((name) => plainLora(name, experts[name]!));
  const adapted = new Set(loras.flatMap((one) => [...one.layers.keys()]));
  // The order of the gate's outputs is that of the modules, as PEFT counts them.
  const targets = [...model.modules()].map(([path]) => path).filter((path) => adapted.has(path));
  const form: GateForm = {
    dModel: model.sizes.dModel,
    experts: names.length,
    layers: targets.length,
    depth,
    size,
    dropout,
    layerwise,
    softmax: read.softmax,
    temperature,
    topK: read.topK,
    softmaxTopK: read.softmaxTopK,
  };
  const own = (name: string, tensor: string): string => `${expertPrefix}${name}.${tensor}`;
  const numbers: TensorRecord = {};
  const parts = targets.map((path): readonly ExpertPart[] =>
    loras.flatMap((one, expert) => {
      const layer = one.layers.get(path);
      if (!layer) return [];
      const name = names[expert]!;
      const { rank, scale, dropout: share, a, b } = layer;
      for (const tensor of [a, b]) numbers[own(name, tensor)] = experts[name]!.params[tensor]!;
      return [{ expert, rank, scale, dropout: share, a: own(name, a), b: own(name, b) }];
    }),
  );
  const isTrained = read.trainableAdapters;
  const shapes = {
    ...gateShapes(form),
    ...(isTrained &&
      Object.fromEntries(Object.entries(numbers).map(([name, { shape }]) => [name, shape]))),
  };

  const site =
    (values: ValueRecord, layer: number): SiteFn =>
    (x, y, context) => {
      const all = context.options.signals?.[signal];
      // Without scalings it is the first pass, where every expert counts alike.
      const scalings = all ? layerScalings(form, all, layer) : scalingPassValue;
      const part = mixture(parts[layer]!, form.experts, globalWeight, values, x, scalings, context);
      return add(y, part);
    };

  /** The first pass, and λ (N, groups, experts) of what it gives. */
  const gated = (
    forward: (context: Context, ids: Value, options: ForwardOptions) => ForwardResult,
    context: Context,
    values: ValueRecord,
    ids: Value,
    given: ForwardOptions,
  ): { readonly first: ForwardResult; readonly scalings: Value } => {
    const { past, rows: _, ...rest } = given;
    const bare = context.with({
      training: false,
      checkpoint: false,
      around: undefined,
      ...(scalingPassValue === 0 && { sites: new Map() }),
    });
    const half = model.sizes.nLayers;
    const first = forward(bare, ids, {
      ...rest,
      ...(past && { past: { ...past, layers: past.layers.slice(0, half) } }),
    });
    const hidden = stopGradient(first.hidden);
    const seen = pool ? pool(hidden, ids) : hidden;
    return { first, scalings: scalingsOf(form, gateOutputs(form, values, seen, context)) };
  };

  return {
    kind: "XLORA",
    title: "X-LoRA",
    experts: names,
    targets,
    mergeable: "no",
    passes: 2,
    init: (rng: Rng): TensorRecord => ({
      ...initGate(form, rng),
      ...(isTrained &&
        Object.fromEntries(Object.entries(numbers).map(([name, one]) => [name, one.clone()]))),
    }),
    initBuffers: () => (isTrained ? {} : numbers),
    scalings: (values, context, ids, given = {}) => {
      const forward = (inner: Context, tokens: Value, how: ForwardOptions): ForwardResult =>
        model.forward(inner, tokens, how);
      const { scalings } = gated(forward, context, values, ids, given);
      return expand(scalings, [scalings.shape[0]!, form.layers, form.experts]);
    },
    context: (values) => {
      const around = ((forward, context, input, given) => {
        const how = given as ForwardOptions;
        const ids = input as Value;
        const pass = forward as unknown as (
          context: Context,
          ids: Value,
          options: ForwardOptions,
        ) => ForwardResult;
        const { first, scalings } = gated(pass, context, values, ids, how);
        const { past } = how;
        const second = pass(
          context.with({ signals: { ...context.options.signals, [signal]: scalings } }),
          ids,
          {
            ...how,
            ...(past && { past: { ...past, layers: past.layers.slice(model.sizes.nLayers) } }),
          },
        );
        return { ...second, present: [...first.present, ...second.present] };
      }) as AroundFn;
      const sites = new Map<Module, SiteFn>(
        targets.map((path, layer) => [model.targets.get(path)!, site(values, layer)]),
      );
      return { around, sites };
    },
    merge: () => {
      throw new UnsupportedError(
        `${where}: cannot be merged — its mixture is another one for each token.`,
      );
    },
    file: {
      pack: ({ params }) => params,
      unpack: (stored, place) => unpacked(stored, shapes, isTrained ? {} : numbers, place),
    },
    config: () => ({
      peft_type: "XLORA",
      adapters: Object.fromEntries(names.map((name, i) => [i, experts[name]!.folder ?? name])),
      ...(names.some((name, i) => name !== String(i)) && { adapter_names: names }),
      auto_mapping: null,
      base_model_name_or_path: null,
      enable_softmax: form.softmax,
      enable_softmax_topk: form.softmaxTopK,
      global_scaling_weight: globalWeight,
      hidden_size: form.dModel,
      inference_mode: true,
      layerwise_scalings: layerwise,
      revision: null,
      scaling_pass_value: scalingPassValue,
      softmax_temperature: temperature,
      task_type: "CAUSAL_LM",
      top_k_lora: form.topK ?? null,
      use_trainable_adapters: isTrained,
      xlora_depth: depth,
      xlora_dropout_p: dropout,
      xlora_size: size,
    }),
  };
}

/** @throws FormatError for tensors that are missing, too many or of another shape. */
function unpacked(
  stored: Readonly<TensorRecord>,
  shapes: Readonly<Record<string, readonly number[]>>,
  buffers: TensorRecord,
  place: string,
): AdapterNumbers {
  const missing = Object.keys(shapes).filter((name) => !Object.hasOwn(stored, name));
  const unexpected = Object.keys(stored).filter((name) => !Object.hasOwn(shapes, name));
  if (missing.length > 0 || unexpected.length > 0) {
    throw new FormatError(
      `${place}: is not this gate: missing [${missing.slice(0, 3).join(", ")}], unexpected [${unexpected.slice(0, 3).join(", ")}]${
        missing.some((name) => name.startsWith(gatePrefix))
          ? " — PEFT 0.21 leaves layers out whose number is an expert's name"
          : ""
      }.`,
      { missing, unexpected },
    );
  }
  const params = Object.entries(shapes).map(([name, shape]) => {
    const tensor = asWeights(stored[name]!, `${place}: tensor "${name}"`);
    if (sameShape(tensor.shape, shape)) return [name, tensor];
    throw new FormatError(
      `${place}: "${name}" must have shape ${showShape(shape)}, got ${showShape(tensor.shape)}.`,
    );
  });
  return { params: Object.fromEntries(params), buffers };
}

/**
 * Binds X-LoRA to a model, and reads its experts.
 * @throws OptionError for options outside their range, or without a scene to read folders in.
 */
export async function bindXLora(
  model: PretrainedModel,
  given: XLoraOptions,
  scene?: BindScene,
): Promise<XLoraAdapter> {
  languageModel(model);
  const folders = foldersOf(readXLora(given).adapters);
  if (!scene) {
    throw new OptionError(`${where}: there is nothing to read the experts' folders with.`);
  }
  const experts: Record<string, LoadedAdapter & { readonly folder: string }> = {};
  for (const [name, folder] of folders) {
    experts[name] = { ...(await scene.load(folder)), folder };
  }
  return mixExperts(model, experts, given);
}

/** A flag of an adapter_config.json. */
function flagIn(config: JsonObject, field: string, place: string, missing: boolean): boolean {
  const value = config[field] ?? missing;
  if (typeof value === "boolean") return value;
  throw new FormatError(
    `${place}: ${field} must be true or false, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

export const xLoraKind: AdapterKind<XLoraOptions> = {
  kind: "XLORA",
  bind: bindXLora,
  read: (config, place, model) => {
    const { adapters } = config;
    const isTable =
      isJsonObject(adapters) && Object.values(adapters).every((one) => typeof one === "string");
    if (!isTable) {
      throw new FormatError(
        `${place}: adapters must map names to folders, got ${(JSON.stringify(adapters) ?? "nothing").slice(0, 80)}.`,
      );
    }
    const width = numberIn(config, "hidden_size", place, 4096);
    const { dModel } = languageModel(model).sizes;
    if (width !== dModel) {
      throw new FormatError(
        `${place}: hidden_size is ${width}, this ${model.family} has ${dModel} — was the adapter made for another model?`,
      );
    }
    const topK =
      config["top_k_lora"] == null ? undefined : numberIn(config, "top_k_lora", place, 1);
    const keys = inOrder(Object.keys(adapters));
    const names = namesIn(config, "adapter_names", place, keys);
    if (names.length !== keys.length) {
      throw new FormatError(
        `${place}: adapter_names must be ${keys.length}, one for each of adapters, got ${names.length}.`,
      );
    }
    return {
      adapters: keys.map((key, i) => `${names[i]}=${adapters[key] as string}`),
      depth: numberIn(config, "xlora_depth", place, 1),
      size: numberIn(config, "xlora_size", place, 2048),
      dropout: numberIn(config, "xlora_dropout_p", place, 0.2),
      layerwise: flagIn(config, "layerwise_scalings", place, false),
      softmax: flagIn(config, "enable_softmax", place, true),
      temperature: numberIn(config, "softmax_temperature", place, 1),
      ...(topK !== undefined && { topK }),
      softmaxTopK: flagIn(config, "enable_softmax_topk", place, false),
      scalingPassValue: numberIn(config, "scaling_pass_value", place, 0),
      globalWeight: numberIn(config, "global_scaling_weight", place, 1),
      trainableAdapters: flagIn(config, "use_trainable_adapters", place, false),
    };
  },
};

export const xLora: Method<XLoraOptions> = defineMethod({
  id: "x-lora",
  number: 54,
  title: "X-LoRA",
  capability: "adapt",
  summary:
    "Mixes several finished LoRA adapters by scalings that a small head reads from a first pass, token by token and layer by layer.",
  paper: {
    title:
      "X-LoRA: Mixture of Low-Rank Adapter Experts, a Flexible Framework for Large Language Models with Applications in Protein Mechanics and Design",
    year: 2024,
    url: "https://arxiv.org/abs/2402.07148",
  },
  implementation: "parity",
  claim: "undecided",
  buildsOn: ["lora"],
  options: xLoraOptions,
  roles: { adapter: xLoraKind },
  isChangedAtFirst: true,
  tiny: { adapters: ["one", "two"], depth: 2, size: 8, layerwise: true },
});
