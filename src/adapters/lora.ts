/**
 * LoRA: a product of two thin matrices beside each chosen linear layer.
 *
 * Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv:2106.09685.
 *
 *   y = W x + (alpha / rank) B A x      A (rank, in), B (out, rank), B zero at first
 *
 * Parameter names and configuration are PEFT's. Cost: rank · (in + out) parameters a layer.
 */
import { OptionError } from "../errors.ts";
import { add, cast, greaterOrEqual, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { dot } from "../ir/linear.ts";
import type { PretrainedModel } from "../models/model.ts";
import { kaimingUniform } from "../nn/init.ts";
import type { Linear } from "../nn/linear.ts";
import type { ContextOptions, Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { toStatic } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type Adapter, type AdapterKind, targetsOf } from "./adapter.ts";
import { compilePattern } from "./pattern.ts";
import { checkHarmless, numberIn, patternsIn, targetsIn } from "./peft-config.ts";

export interface LoraOptions {
  /** Rank of the update; the paper uses 1 to 64. Default 8. */
  readonly rank?: number;
  /** Scale of the update is alpha / rank; default 2 · rank. */
  readonly alpha?: number;
  /** Share of the adapter's input zeroed in training, in [0, 1); default 0. */
  readonly dropout?: number;
  /** Scale by alpha / √rank instead (Kalajdzievski 2023); default false. */
  readonly rankStabilized?: boolean;
  /** Layers by the last parts of their path; "all-linear" for every one. Default: the model's own. */
  readonly targetModules?: readonly string[] | "all-linear";
  /**
   * Other ranks for some layers: by a regular expression for the path or its last parts, the first
   * that matches counts (PEFT's `rank_pattern`).
   */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Other alphas for some layers, as `rankPattern`. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
}

const prefix = "base_model.model.";

/** Names of a layer's two matrices in a file. */
function names(path: string): { a: string; b: string } {
  return { a: `${prefix}${path}.lora_A.weight`, b: `${prefix}${path}.lora_B.weight` };
}

/** What one layer has: its two matrices by name, and what their product is multiplied by. */
export interface LoraLayer {
  readonly layer: Linear;
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
  /** Names of A (rank, in) and B (out, rank). */
  readonly a: string;
  readonly b: string;
}

export interface LoraAdapter extends Adapter {
  /** Of layers that no pattern names. */
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
  /** Every layer it sits on, by path. */
  readonly layers: ReadonlyMap<string, LoraLayer>;
}

/**
 * The number of the first pattern that matches a path. Files keep patterns in the order of their
 * names, so an order that decides and is another one is refused.
 */
function byPattern(
  where: string,
  patterns: Readonly<Record<string, number>>,
  targets: readonly string[],
): (path: string) => number | undefined {
  const entries = Object.entries(patterns).map(([text, value]) => ({
    text,
    value,
    matches: compilePattern(text, where),
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
 */
export function lora(model: PretrainedModel, options: LoraOptions = {}): LoraAdapter {
  const { rank = 8, dropout = 0, rankStabilized = false } = options;
  checkRank("rank", rank);
  if (!(dropout >= 0 && dropout < 1)) {
    throw new OptionError(`dropout must be in [0, 1), got ${dropout}.`);
  }
  const alpha = options.alpha ?? 2 * rank;
  checkAlpha("alpha", alpha);
  const wanted = options.targetModules ?? model.defaultTargets;
  const targets = targetsOf(model, wanted);
  const { rankPattern = {}, alphaPattern = {} } = options;
  for (const [text, own] of Object.entries(rankPattern)) checkRank(`rankPattern "${text}"`, own);
  for (const [text, own] of Object.entries(alphaPattern)) checkAlpha(`alphaPattern "${text}"`, own);
  const rankOf = byPattern("rankPattern", rankPattern, targets);
  const alphaOf = byPattern("alphaPattern", alphaPattern, targets);
  const scaleOf = (r: number, a: number): number => a / (rankStabilized ? Math.sqrt(r) : r);
  const layers = new Map(
    targets.map((path): [string, LoraLayer] => {
      const own = { rank: rankOf(path) ?? rank, alpha: alphaOf(path) ?? alpha };
      const scale = scaleOf(own.rank, own.alpha);
      return [path, { layer: model.targets.get(path)!, ...own, scale, ...names(path) }];
    }),
  );
  const shapes = [...layers].map(([path, own]) => ({
    ...own,
    path,
    shapeA: [own.rank, own.layer.inFeatures],
    shapeB: [own.layer.outFeatures, own.rank],
  }));
  return {
    kind: "LORA",
    title: "LoRA",
    rank,
    alpha,
    scale: scaleOf(rank, alpha),
    layers,
    targets,
    mergeable: "exact",
    isAdditive: true,
    init: (rng: Rng): TensorRecord => {
      const params: TensorRecord = {};
      for (const { a, b, shapeA, shapeB } of shapes) {
        params[a] = new Tensor("float32", shapeA, kaimingUniform(rng.fold(a), shapeA));
        params[b] = Tensor.zeros(shapeB, "float32");
      }
      return params;
    },
    context: (values: ValueRecord): ContextOptions => ({
      sites: new Map<Module, SiteFn>(
        shapes.map(({ a, b, layer, path, scale }) => [
          layer,
          (x, y, context) => {
            const { noise } = context.options;
            let input: Value = x;
            if (dropout > 0 && context.training && noise) {
              const kept = greaterOrEqual(
                noise(`lora.${path}`, toStatic(x.shape, "lora dropout")),
                dropout,
              );
              input = mul(x, mul(cast(kept, "float32"), 1 / (1 - dropout)));
            }
            const inner = dot(input, values[a]!, { transB: true });
            return add(y, dot(inner, values[b]!, { transB: true, alpha: scale }));
          },
        ]),
      ),
    }),
    merge: (base, params): TensorRecord => {
      const merged: TensorRecord = {};
      for (const { a, b, layer, path, scale } of shapes) {
        const name = `${path}.weight`;
        merged[name] = addProduct(base[name]!, params[b]!, params[a]!, scale, layer.inputsFirst);
      }
      return merged;
    },
    config: () =>
      peftConfig(
        { rank, alpha, dropout, rankStabilized, rankPattern, alphaPattern },
        wanted === "all-linear" ? targets.map((path) => path.split(".").at(-1)!) : wanted,
        shapes[0]!.layer,
      ),
  };
}

/**
 * W + scale · B A, in double precision and rounded once; transposed where the layer stores inputs
 * first. Row by row, so that the inner loop runs along memory: about 1e9 products a second.
 */
function addProduct(
  weight: Tensor,
  b: Tensor,
  a: Tensor,
  scale: number,
  inputsFirst: boolean,
): Tensor<"float32"> {
  const [rows, columns] = weight.shape as [number, number];
  const rank = Math.ceil(b.shape[1]! / 4) * 4;
  // (rows of W, rank) and (rank, columns of W); more rank than there is counts as zeros.
  const left = inputsFirst ? padded(a, rows, rank, true) : padded(b, rows, rank, false);
  const right = inputsFirst ? padded(b, rank, columns, true) : padded(a, rank, columns, false);
  const result = Float32Array.from(weight.numbers());
  const sums = new Float64Array(columns);
  for (let row = 0; row < rows; row++) {
    sums.fill(0);
    // Four at a time: the sums are read and written a quarter as often.
    for (let r = 0; r < rank; r += 4) {
      const at = row * rank + r;
      const l0 = left[at]!;
      const l1 = left[at + 1]!;
      const l2 = left[at + 2]!;
      const l3 = left[at + 3]!;
      const r0 = r * columns;
      const r1 = r0 + columns;
      const r2 = r1 + columns;
      const r3 = r2 + columns;
      for (let i = 0; i < columns; i++) {
        sums[i]! +=
          l0 * right[r0 + i]! + l1 * right[r1 + i]! + l2 * right[r2 + i]! + l3 * right[r3 + i]!;
      }
    }
    const start = row * columns;
    for (let i = 0; i < columns; i++) {
      result[start + i] = result[start + i]! + scale * sums[i]!;
    }
  }
  return new Tensor("float32", weight.shape, result);
}

/** A matrix, or its transpose, in double precision, with zeros up to the size. */
function padded(matrix: Tensor, rows: number, columns: number, isTurned: boolean): Float64Array {
  const [m, n] = matrix.shape as [number, number];
  const numbers = matrix.numbers();
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      result[isTurned ? j * columns + i : i * columns + j] = numbers[i * n + j]!;
    }
  }
  return result;
}

function peftConfig(
  options: Required<Omit<LoraOptions, "targetModules">>,
  targets: readonly string[],
  layer: Linear,
): Record<string, unknown> {
  return {
    alpha_pattern: options.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: null,
    bias: "none",
    fan_in_fan_out: layer.inputsFirst,
    inference_mode: true,
    init_lora_weights: true,
    layers_pattern: null,
    layers_to_transform: null,
    lora_alpha: options.alpha,
    lora_dropout: options.dropout,
    modules_to_save: null,
    peft_type: "LORA",
    r: options.rank,
    rank_pattern: options.rankPattern,
    revision: null,
    // Written out, as PEFT does: its own "all-linear" means other layers for some models.
    target_modules: [...new Set(targets)].sort(),
    task_type: "CAUSAL_LM",
    use_dora: false,
    use_rslora: options.rankStabilized,
  };
}

/** Settings that change what LoRA computes and that are not carried here: field → harmless values. */
const harmless: Readonly<Record<string, readonly unknown[]>> = {
  use_dora: [false, null],
  bias: ["none"],
  layers_to_transform: [null],
  layer_replication: [null],
  lora_bias: [false],
  trainable_token_indices: [null],
  target_parameters: [null],
  exclude_modules: [null],
};

/** LoRA as adapter folders name it. */
export const loraKind: AdapterKind<LoraOptions> = {
  kind: "LORA",
  bind: lora,
  read: (config, where, model) => {
    checkHarmless(config, where, harmless);
    const { targetModules, paths } = targetsIn(config, where, model);
    return {
      rank: numberIn(config, "r", where, 8),
      alpha: numberIn(config, "lora_alpha", where, 8),
      dropout: numberIn(config, "lora_dropout", where, 0),
      rankStabilized: config["use_rslora"] === true,
      targetModules,
      rankPattern: patternsIn(config, "rank_pattern", where, paths),
      alphaPattern: patternsIn(config, "alpha_pattern", where, paths),
    };
  },
};
