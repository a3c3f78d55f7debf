/**
 * LoRA: a product of two thin matrices beside each chosen layer.
 *
 * Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
 *
 *   y = W x + (alpha / rank) B A x      A (rank, in), B (out, rank), B zero at first
 *
 * With it: rsLoRA (Kalajdzievski 2023, arXiv:2312.03732), DoRA (Liu et al., ICML 2024, arXiv:2402.09353),
 * LoRA+ (Hayou et al., ICML 2024, arXiv:2402.12354), a bias beside B, convolutions, embeddings, and single
 * rows of an embedding trained whole. Names and configuration are PEFT's. Cost: rank · (in + out) parameters a
 * layer.
 */
import { OptionError } from "../errors.ts";
import type { PretrainedModel } from "../models/model.ts";
import { eitherForm, peftPatterns, peftTargets } from "../models/peft-paths.ts";
import { Embedding } from "../nn/embedding.ts";
import { Linear } from "../nn/linear.ts";
import type { ContextOptions, Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import { dequantizeWeight } from "../nn/quantize.ts";
import type { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Adapter, AdapterKind, AdapterNumbers, PrepareScene } from "./adapter.ts";
import {
  initPart,
  type LoraPart,
  loraPart,
  mergePart,
  outputNorms,
  sitePart,
} from "./lora-layer.ts";
import { loraConfig, readLora } from "./lora-peft.ts";
import { loraLayers } from "./lora-targets.ts";
import { compilePattern } from "./pattern.ts";
import { tokenSlots, trainedTokens } from "./trained-tokens.ts";

export interface LoraOptions {
  /** Rank of the update; the paper uses 1 to 64. Default 8. */
  readonly rank?: number;
  /** Scale of the update is alpha / rank; default 2 · rank. */
  readonly alpha?: number;
  /** Share of the adapter's input zeroed in training, in [0, 1); default 0. */
  readonly dropout?: number;
  /** Scale by alpha / √rank instead (rsLoRA); default false. */
  readonly rankStabilized?: boolean;
  /** A magnitude for each output, trained apart from the direction (DoRA); default false. */
  readonly useDora?: boolean;
  /** Train a bias with B; default false. */
  readonly loraBias?: boolean;
  /**
   * Layers by the last parts of their path: linear ones, convolutions, embeddings; "all-linear" for every
   * linear one of the blocks. Default: the model's own.
   */
  readonly targetModules?: readonly string[] | "all-linear";
  /** Layers to leave out, as `targetModules` names them. */
  readonly excludeModules?: readonly string[];
  /**
   * Other ranks for some layers: by a regular expression for the path or its last parts, the first
   * that matches counts (PEFT's `rank_pattern`).
   */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Other alphas for some layers, as `rankPattern`. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /** Ids of tokens whose embeddings are trained whole; default none. */
  readonly trainableTokens?: readonly number[];
  /** How many times A's learning rate B takes (LoRA+; its paper: 16); default 1. */
  readonly rateRatio?: number;
}

/** What one linear layer has: its two matrices by name, and what their product is multiplied by. */
export interface LoraLayer extends LoraPart {
  readonly layer: Linear;
}

export interface LoraAdapter extends Adapter {
  /** Of layers that no pattern names. */
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
  /** Every linear layer it sits on, by path. */
  readonly layers: ReadonlyMap<string, LoraLayer>;
  /** Every layer it sits on, by path: linear ones, convolutions, embeddings. */
  readonly parts: ReadonlyMap<string, LoraPart>;
  /** Products beside linear layers and nothing else: what a bank and a GGUF file can hold. */
  readonly isPlain: boolean;
  readonly options: LoraOptions;
}

/**
 * The number of the first pattern that matches a path. Files keep patterns in the order of their
 * names, so an order that decides and is another one is refused.
 */
export function byPattern(
  where: string,
  patterns: Readonly<Record<string, number>>,
  targets: readonly string[],
  model: PretrainedModel,
): (path: string) => number | undefined {
  const entries = Object.entries(patterns).map(([text, value]) => ({
    text,
    value,
    matches: eitherForm(model, compilePattern(text, where)),
  }));
  const sorted = [...entries].sort((a, b) => (a.text < b.text ? -1 : 1));
  const used = new Set<string>();
  for (const path of targets) {
    const [first, kept] = [entries, sorted].map((list) => list.find((one) => one.matches(path)));
    for (const { text, matches } of entries) if (matches(path)) used.add(text);
    if (first?.value === kept?.value) continue;
    throw new OptionError(
      `${where}: "${first!.text}" and "${kept!.text}" both match "${path}" and give ${first!.value} and ${kept!.value} — files keep patterns sorted by name; let only one of them match.`,
    );
  }
  const idle = entries.find(({ text }) => !used.has(text));
  if (idle) {
    throw new OptionError(
      `${where}: "${idle.text}" matches none of the layers that are adapted — the first is "${targets[0]}".`,
    );
  }
  return (path) => entries.find(({ matches }) => matches(path))?.value;
}

function checkRank(what: string, rank: number): void {
  if (Number.isInteger(rank) && rank >= 1 && rank <= 65536) return;
  throw new OptionError(`${what} must be a whole number from 1 to 65536, got ${rank}.`);
}

function checkAlpha(what: string, alpha: number): void {
  if (!Number.isFinite(alpha)) throw new OptionError(`${what} must be a number, got ${alpha}.`);
}

/**
 * Binds LoRA to a model.
 * @throws OptionError for a rank below 1, or targets or patterns that match no layer.
 * @throws UnsupportedError for a layer that LoRA does not fit.
 */
export function lora(model: PretrainedModel, options: LoraOptions = {}): LoraAdapter {
  const { rank = 8, dropout = 0, rankStabilized = false, useDora = false } = options;
  const { loraBias = false, rateRatio = 1, trainableTokens = [] } = options;
  checkRank("rank", rank);
  if (!(dropout >= 0 && dropout < 1)) {
    throw new OptionError(`dropout must be in [0, 1), got ${dropout}.`);
  }
  if (!(rateRatio > 0 && rateRatio <= 1e4)) {
    throw new OptionError(`rateRatio must be in (0, 10000], got ${rateRatio}.`);
  }
  if (useDora && loraBias) {
    throw new OptionError("useDora and loraBias exclude each other — leave one of them out.");
  }
  const alpha = options.alpha ?? 2 * rank;
  checkAlpha("alpha", alpha);
  const wanted = options.targetModules ?? model.defaultTargets;
  const bases = loraLayers(model, wanted, options.excludeModules);
  const targets = [...bases.keys()];
  const { rankPattern = {}, alphaPattern = {} } = options;
  for (const [text, own] of Object.entries(rankPattern)) checkRank(`rankPattern "${text}"`, own);
  for (const [text, own] of Object.entries(alphaPattern)) checkAlpha(`alphaPattern "${text}"`, own);
  const rankOf = byPattern("rankPattern", rankPattern, targets, model);
  const alphaOf = byPattern("alphaPattern", alphaPattern, targets, model);
  const scaleOf = (r: number, a: number): number => a / (rankStabilized ? Math.sqrt(r) : r);
  const parts = [...bases].map(([path, layer]) => {
    const own = { rank: rankOf(path) ?? rank, alpha: alphaOf(path) ?? alpha };
    const scale = scaleOf(own.rank, own.alpha);
    const settings = { ...own, scale, dropout, isDora: useDora, hasBias: loraBias };
    return loraPart(model, path, layer, settings);
  });
  const linear = parts.filter((part): part is LoraLayer => part.layer instanceof Linear);
  const tokens = trainableTokens.length > 0 ? trainedTokens(model, trainableTokens) : undefined;
  const isTied = parts.some(
    ({ path, layer }) =>
      layer instanceof Embedding && Object.values(model.tied).includes(`${path}.weight`),
  );
  const secondMatrices = new Set(parts.map(({ b }) => b));
  const isPlain = linear.length === parts.length && !useDora && !loraBias && !tokens;
  const needsBase = useDora || tokens !== undefined;
  return {
    kind: "LORA",
    title: useDora ? "DoRA" : "LoRA",
    rank,
    alpha,
    scale: scaleOf(rank, alpha),
    options,
    isPlain,
    layers: new Map(linear.map((part) => [part.path, part])),
    parts: new Map(parts.map((part) => [part.path, part])),
    targets,
    // Written into a tied embedding it would change the logits too, which it does not beside it.
    mergeable: isTied ? "no" : "exact",
    isAdditive: !needsBase && !isTied,
    ...(rateRatio !== 1 && {
      learningRateScale: (name: string) => (secondMatrices.has(name) ? rateRatio : 1),
    }),
    init: (rng: Rng): TensorRecord =>
      Object.assign({}, ...parts.map((part) => initPart(part, rng)), tokens?.init()),
    ...(needsBase && {
      prepare: async ({ base, rng }: PrepareScene): Promise<AdapterNumbers> => {
        const params: TensorRecord = Object.assign(
          {},
          ...parts.map((part) => initPart(part, rng)),
          tokens?.rowsOf(base),
        );
        for (const part of parts) {
          if (part.magnitude === undefined) continue;
          params[part.magnitude] = outputNorms(part, floatWeight(part, base));
        }
        return { params, buffers: {} };
      },
    }),
    context: (values: ValueRecord): ContextOptions => ({
      sites: new Map<Module, SiteFn>(parts.map((part) => [part.layer, sitePart(part, values)])),
      ...(tokens && { replace: tokenSlots(tokens, values) }),
    }),
    merge: (base, params): TensorRecord => {
      const merged: TensorRecord = Object.assign({}, tokens?.merge(base, params));
      for (const part of parts) {
        Object.assign(merged, mergePart(part, { ...base, ...merged }, params));
      }
      return merged;
    },
    config: () =>
      loraConfig({
        options: { rank, alpha, dropout, rankStabilized, useDora, loraBias },
        targets:
          wanted === "all-linear"
            ? peftTargets(
                model,
                targets.map((path) => path.split(".").at(-1)!),
                targets,
              )
            : peftTargets(model, wanted, targets),
        excluded: options.excludeModules ?? [],
        rankPattern: peftPatterns(model, rankPattern, targets, rankOf),
        alphaPattern: peftPatterns(model, alphaPattern, targets, alphaOf),
        tokens: trainableTokens,
        inputsFirst: linear[0]?.layer.inputsFirst ?? false,
      }),
  };
}

/** A layer's weight as floats as the layer stores it, also where it is kept in 4 or 8 bits. */
function floatWeight({ layer, path }: LoraPart, base: Readonly<TensorRecord>): Tensor {
  const name = `${path}.weight`;
  const weight = base[name];
  if (weight) return weight;
  const [packed, scales] = [base[`${name}.packed`], base[`${name}.scales`]];
  if (!packed || !scales || !(layer instanceof Linear)) {
    throw new OptionError(`lora: the base has no "${name}" to take magnitudes from.`);
  }
  const { inFeatures, outFeatures } = layer;
  const blockSize = inFeatures / scales.shape[1]!;
  const bits = ((packed.shape[2]! * 8) / blockSize) as 4 | 8;
  const numbers = dequantizeWeight({
    packed: packed as Tensor<"uint8">,
    scales: scales as Tensor<"float32">,
    attrs: { bits, blockSize, inFeatures, outFeatures },
  });
  // Quantised rows are outputs, whichever way the layer stores its weight.
  if (!layer.inputsFirst) return new Tensor("float32", [outFeatures, inFeatures], numbers);
  const turned = new Float32Array(numbers.length);
  for (let o = 0; o < outFeatures; o++) {
    for (let i = 0; i < inFeatures; i++) turned[i * outFeatures + o] = numbers[o * inFeatures + i]!;
  }
  return new Tensor("float32", [inFeatures, outFeatures], turned);
}

/** LoRA as adapter folders name it. */
export const loraKind: AdapterKind<LoraOptions> = {
  kind: "LORA",
  bind: lora,
  read: readLora,
};
