/**
 * LT-SFT: lottery-ticket sparse fine-tuning. Train everything, keep the few weights that moved most, go back,
 * and train those alone. The sparse differences of a task and of a language add up.
 *
 * Ansell et al., "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", ACL 2022, arXiv:2110.07560,
 * section 3; the order of phases, what is frozen and what is rewound follow the authors' release.
 *
 *   θ₁ = train(θ₀)                                     full phase
 *   μ_i = 1 for the K largest |θ₁ − θ₀| of all weights  selection, over all tensors together
 *   θ ← θ₀, optimiser and rate anew                    rewind
 *   θ₂ = train(θ₀; g ⊙ μ),  φ = θ₂ − θ₀                sparse phase
 *   loss + λ / N · Σ |θ_i − θ₀_i|                      both phases
 *   θ = θ₀ + φ_task + φ_language                       composition
 *
 *   θ − θ₀ → `.lt_sft_delta`, trained     μ → `.lt_sft_mask`, a buffer     K → density or params
 *   λ → l1     N → weights that may change     n iterations → each frees K/n more
 *
 * Frozen: layer norms, and what `exclude` names. Heads are trained whole, beside the adapter, and rewound with
 * it. `freezeDecoder` leaves the output matrix of masked-language models at θ₀ while the embedding that it is
 * tied to changes.
 *
 * Differs: ties at the threshold are broken by place, so that exactly K are free, where the release frees all
 * of them; the penalty is on the weights that may change, and not on a whole head. Weight decay pulls towards
 * θ₀, not 0. `select: "random"` is the paper's rand-SFT. The paper's rate is 5e-5. Cost: gradients, moments
 * and differences of all weights while it trains; K places and values when it is kept.
 */
import type { Adapter, AdapterKind, AdapterNumbers } from "../../adapters/adapter.ts";
import { checkHarmless, namesIn, numberIn } from "../../adapters/peft-config.ts";
import { FormatError, OptionError } from "../../errors.ts";
import { abs, add, cast, mul } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";
import type { EncoderModel, PretrainedModel } from "../../models/model.ts";
import { peftPrefix } from "../../models/peft-paths.ts";
import type { AroundFn, Context, TensorRecord, ValueRecord } from "../../nn/module.ts";
import { type OptionSpecs, readOptions } from "../../options.ts";
import { Rng } from "../../tensor/rng.ts";
import { sizeOf } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import { headModules, lotteryHook, maskableSlots, names, randomMasks } from "./shared/lottery.ts";
import { SparseDelta } from "./shared/sparse-delta.ts";

export interface LtSftOptions {
  /** Share of the weights that may change; the paper's K is 0.04 to 0.08. */
  readonly density?: number;
  /** K itself, in place of `density`. */
  readonly params?: number;
  /** Share of the steps that go to the full phase. */
  readonly fullShare?: number;
  /** Rounds of full and sparse phase; each frees K/n more weights. */
  readonly iterations?: number;
  /** λ; the paper takes 0.1 for languages. */
  readonly l1?: number;
  /** "random": weights by chance and no full phase. */
  readonly select?: "movement" | "random";
  /** Parts of paths whose weights stay. */
  readonly exclude?: readonly string[];
  /** Keep the output matrix of a masked-language model; for languages. */
  readonly freezeDecoder?: boolean;
}

const options = {
  density: {
    type: "number",
    default: 0.08,
    range: [0, 1],
    open: [true, false],
    about: "share of the weights that may change",
  },
  params: { type: "integer", range: [1, 2 ** 40], about: "their number, in place of the share" },
  fullShare: {
    type: "number",
    default: 0.5,
    range: [0, 1],
    open: [true, true],
    about: "share of the steps that go to the full phase",
  },
  iterations: {
    type: "integer",
    default: 1,
    range: [1, 100],
    about: "rounds of full and sparse phase; each frees its part of the weights",
  },
  l1: {
    type: "number",
    default: 0,
    range: [0, 1e6],
    about: "weight of the mean distance from the base; the paper takes 0.1 for languages",
  },
  select: {
    type: "text",
    default: "movement",
    choices: ["movement", "random"],
    about: "what is freed: what moved most, or weights by chance without a full phase",
  },
  exclude: {
    type: "list",
    default: [],
    about: "parts of paths whose weights stay; layer norms always do",
  },
  freezeDecoder: {
    type: "flag",
    default: false,
    about: "keep the output matrix of a masked-language model, for languages",
  },
} satisfies OptionSpecs<LtSftOptions>;

export interface LtSftAdapter extends Adapter {
  /** Paths of the weights that may change. */
  readonly maskable: readonly string[];
  /** How many of them do. */
  readonly budget: number;
}

/**
 * Binds LT-SFT to a model.
 * @throws OptionError for options outside their range, or a budget beyond the weights that may change.
 */
export function bindLtSft(model: PretrainedModel, given: LtSftOptions = {}): LtSftAdapter {
  const read = readOptions("lt-sft", options, given);
  const { density, fullShare, iterations, l1, select, exclude, freezeDecoder } = read;
  const slots = maskableSlots(model, exclude);
  const maskable = [...slots.keys()];
  const total = maskable.reduce((all, path) => all + sizeOf(slots.get(path)!.shape), 0);
  const budget = read.params ?? Math.max(1, Math.round(density * total));
  if (!(budget >= iterations && budget <= total)) {
    throw new OptionError(
      `lt-sft: params must be a whole number from ${iterations} to ${total}, the weights that may change, got ${budget}.`,
    );
  }
  const embedding = (model as Partial<EncoderModel>).embedding;
  if (freezeDecoder && (model as Partial<EncoderModel>).head?.task !== "masked-lm") {
    throw new OptionError(
      `lt-sft: freezeDecoder is for models with a head for hidden words, this ${model.family} has none.`,
    );
  }
  const isRandom = select === "random";
  const heads = new Map(
    [...model.slots()].filter(([path]) =>
      headModules(model).some((head) => path.startsWith(`${head}.`)),
    ),
  );
  const zeros = (path: string): Tensor<"float32"> =>
    Tensor.zeros(slots.get(path)!.shape, "float32");
  const masksOf = (mask: (path: string, size: number) => Uint8Array<ArrayBuffer>): TensorRecord =>
    Object.fromEntries(
      maskable.map((path) => {
        const { shape } = slots.get(path)!;
        return [names.mask(path), new Tensor("bool", shape, mask(path, sizeOf(shape)))];
      }),
    );
  const buffersOf = (rng: Rng, base?: Readonly<TensorRecord>): TensorRecord => {
    const drawn = isRandom ? randomMasks(slots, budget, rng) : undefined;
    return {
      ...masksOf((path, size) => drawn?.get(path) ?? new Uint8Array(size).fill(1)),
      ...(!isRandom && {
        ...(iterations > 1 && {
          ...Object.fromEntries(
            maskable.flatMap((path) => [
              [names.chosen(path), Tensor.zeros(slots.get(path)!.shape, "bool")],
              [names.start(path), zeros(path)],
            ]),
          ),
        }),
        ...Object.fromEntries(
          [...heads].map(([path, { shape }]) => [
            names.head(path),
            base?.[path]?.clone() ?? Tensor.zeros(shape, "float32"),
          ]),
        ),
      }),
    };
  };
  const deltaValue = (values: ValueRecord, path: string): Value =>
    mul(values[names.delta(path)]!, cast(values[names.mask(path)]!, "float32"));
  const replacing = (values: ValueRecord, path: string): ((context: Context) => Value) => {
    const slot = slots.get(path)!;
    // The base's own value: what stands in its place is left out.
    return (context) =>
      add(context.with({ replace: new Map() }).get(slot), deltaValue(values, path));
  };
  const isMasked = (buffers: Readonly<TensorRecord>, path: string): Uint8Array =>
    buffers[names.mask(path)]!.data as Uint8Array;
  const deltaOf = ({ params, buffers }: AdapterNumbers): SparseDelta =>
    SparseDelta.of(
      Object.fromEntries(maskable.map((path) => [path, params[names.delta(path)]!])),
      Object.fromEntries(maskable.map((path) => [path, isMasked(buffers, path)])),
    );
  return {
    kind: "LT_SFT",
    title: "LT-SFT",
    // It moves whole weights, as full fine-tuning does.
    learningRate: 1e-4,
    targets: [...model.targets.keys()].filter((path) => slots.has(`${path}.weight`)),
    maskable,
    budget,
    mergeable: "exact",
    isAdditive: true,
    init: () => Object.fromEntries(maskable.map((path) => [names.delta(path), zeros(path)])),
    initBuffers: () => buffersOf(new Rng(0).fold("lt-sft")),
    prepare: async (scene) => {
      const missing = maskable.find((path) => !Object.hasOwn(scene.base, path));
      if (missing !== undefined) {
        throw new OptionError(
          `lt-sft: "${missing}" is not there as floats — load the model in full, or exclude it.`,
        );
      }
      return {
        params: Object.fromEntries(maskable.map((path) => [names.delta(path), zeros(path)])),
        buffers: buffersOf(scene.rng.fold("lt-sft"), scene.base),
      };
    },
    context: (values) => {
      const replace = new Map(
        maskable.map((path) => [slots.get(path)!, replacing(values, path)] as const),
      );
      const change = embedding && freezeDecoder ? replace.get(embedding) : undefined;
      if (!embedding || !change) return { replace };
      // The head, which runs after the pass, reads the embedding as it was.
      replace.delete(embedding);
      const around: AroundFn = (forward, context, input, given) => {
        const own = new Map(context.options.replace).set(embedding, change);
        return forward(context.with({ replace: own }), input, given);
      };
      return { replace, around };
    },
    ...(l1 > 0 && {
      penalty: (values: ValueRecord) =>
        mul(
          maskable
            .map((path) => sum(abs(deltaValue(values, path))))
            .reduce((all, part) => add(all, part)),
          l1 / total,
        ),
    }),
    ...(!isRandom && {
      hook: lotteryHook(maskable, [...heads.keys()], budget, iterations, fullShare),
    }),
    merge: (base, params, buffers = {}) => deltaOf({ params, buffers }).apply(base),
    file: {
      pack: ({ params, buffers }) => {
        const rest = Object.entries(params).filter(([name]) => !name.endsWith(".lt_sft_delta"));
        return { ...deltaOf({ params, buffers }).pack(peftPrefix), ...Object.fromEntries(rest) };
      },
      unpack: (stored, where) => {
        const size = (path: string): number | undefined =>
          slots.has(path) ? sizeOf(slots.get(path)!.shape) : undefined;
        const { delta, rest } = SparseDelta.unpack(stored, where, size, peftPrefix);
        const params: TensorRecord = {};
        const buffers: TensorRecord = {};
        for (const path of maskable) {
          const [dense, mask] = [zeros(path), Tensor.zeros(slots.get(path)!.shape, "bool")];
          const { indices = [], values = [] } = delta.entries.get(path) ?? {};
          for (const [i, place] of indices.entries()) {
            dense.data[place] = values[i]!;
            mask.data[place] = 1;
          }
          params[names.delta(path)] = dense;
          buffers[names.mask(path)] = mask;
        }
        const stray = Object.keys(rest).find(
          (name) => !name.startsWith(peftPrefix) || !heads.has(name.slice(peftPrefix.length)),
        );
        if (stray !== undefined) {
          throw new FormatError(`${where}: "${stray}" is no tensor of a sparse fine-tuning.`);
        }
        return { params: { ...params, ...rest }, buffers };
      },
    },
    config: () => ({
      peft_type: "LT_SFT",
      base_model_name_or_path: null,
      density,
      params: budget,
      full_share: fullShare,
      iterations,
      l1,
      select,
      exclude,
      freeze_decoder: freezeDecoder,
      modules_to_save: null,
      task_type: model.kind === "causal-lm" ? "CAUSAL_LM" : null,
    }),
  };
}

/** The sparse difference that an adapter's numbers stand for. */
export function sparseDeltaOf(adapter: LtSftAdapter, numbers: AdapterNumbers): SparseDelta {
  return SparseDelta.of(
    Object.fromEntries(adapter.maskable.map((path) => [path, numbers.params[names.delta(path)]!])),
    Object.fromEntries(
      adapter.maskable.map((path) => [path, numbers.buffers[names.mask(path)]!.data as Uint8Array]),
    ),
  );
}

export const ltSftKind: AdapterKind<LtSftOptions> = {
  kind: "LT_SFT",
  bind: bindLtSft,
  read: (config, where) => {
    checkHarmless(config, where, { target_modules: [null] });
    const { select = "movement", freeze_decoder: freezeDecoder = false } = config;
    return {
      params: numberIn(config, "params", where, Number.NaN),
      density: numberIn(config, "density", where, 0.08),
      fullShare: numberIn(config, "full_share", where, 0.5),
      iterations: numberIn(config, "iterations", where, 1),
      l1: numberIn(config, "l1", where, 0),
      select: select as NonNullable<LtSftOptions["select"]>,
      exclude: namesIn(config, "exclude", where),
      freezeDecoder: freezeDecoder as boolean,
    };
  },
};

export const ltSft: Method<LtSftOptions> = defineMethod({
  id: "lt-sft",
  number: 73,
  title: "LT-SFT",
  capability: "adapt",
  summary:
    "Trains all weights, goes back, and trains those that moved most; such differences of tasks and languages add up.",
  paper: {
    title: "Composable Sparse Fine-Tuning for Cross-Lingual Transfer",
    year: 2022,
    url: "https://arxiv.org/abs/2110.07560",
  },
  implementation: "faithful",
  claim: "doesNotHold",
  options,
  roles: { adapter: ltSftKind },
  tiny: { density: 0.2 },
});
