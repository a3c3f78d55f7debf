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
import type { LanguageModel } from "../models/model.ts";
import { kaimingUniform } from "../nn/init.ts";
import type { Linear } from "../nn/linear.ts";
import type { ContextOptions, Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import { toStatic } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type Adapter, matchTargets } from "./adapter.ts";

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
}

const prefix = "base_model.model.";

/** Names of a layer's two matrices in a file. */
function names(path: string): { a: string; b: string } {
  return { a: `${prefix}${path}.lora_A.weight`, b: `${prefix}${path}.lora_B.weight` };
}

export interface LoraAdapter extends Adapter {
  readonly rank: number;
  readonly alpha: number;
  readonly scale: number;
}

/**
 * Binds LoRA to a model.
 * @throws OptionError for a rank below 1 or targets that match no layer.
 */
export function lora(model: LanguageModel, options: LoraOptions = {}): LoraAdapter {
  const { rank = 8, dropout = 0, rankStabilized = false } = options;
  if (!Number.isInteger(rank) || rank < 1 || rank > 65536) {
    throw new OptionError(`rank must be a whole number from 1 to 65536, got ${rank}.`);
  }
  if (!(dropout >= 0 && dropout < 1)) {
    throw new OptionError(`dropout must be in [0, 1), got ${dropout}.`);
  }
  const alpha = options.alpha ?? 2 * rank;
  if (!Number.isFinite(alpha)) throw new OptionError(`alpha must be a number, got ${alpha}.`);
  const wanted = options.targetModules ?? model.defaultTargets;
  const targets = wanted === "all-linear" ? [...model.targets.keys()] : matchTargets(model, wanted);
  if (targets.length === 0) {
    const known = [...new Set([...model.targets.keys()].map((path) => path.split(".").at(-1)))];
    throw new OptionError(
      `targetModules [${(wanted as readonly string[]).join(", ")}] match no layer of this ${model.family} — it has ${known.join(", ")}.`,
    );
  }
  const scale = rankStabilized ? alpha / Math.sqrt(rank) : alpha / rank;
  const layers = targets.map((path): readonly [string, Linear] => [path, model.targets.get(path)!]);
  const shapes = layers.map(([path, layer]) => ({
    ...names(path),
    layer,
    path,
    shapeA: [rank, layer.inFeatures],
    shapeB: [layer.outFeatures, rank],
  }));
  return {
    kind: "LORA",
    rank,
    alpha,
    scale,
    targets,
    mergeable: "exact",
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
        shapes.map(({ a, b, layer, path }) => [
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
      for (const { a, b, layer, path } of shapes) {
        const name = `${path}.weight`;
        merged[name] = addProduct(base[name]!, params[b]!, params[a]!, scale, layer.inputsFirst);
      }
      return merged;
    },
    config: () => peftConfig({ rank, alpha, dropout, rankStabilized }, wanted, layers[0]![1]),
  };
}

/** W + scale · B A, in double precision; transposed where the layer stores inputs first. */
function addProduct(
  weight: Tensor,
  b: Tensor,
  a: Tensor,
  scale: number,
  inputsFirst: boolean,
): Tensor<"float32"> {
  const [out, rank] = b.shape as [number, number];
  const inputs = a.shape[1]!;
  const [left, right] = [b.numbers(), a.numbers()];
  const result = Float32Array.from(weight.numbers());
  for (let o = 0; o < out; o++) {
    for (let i = 0; i < inputs; i++) {
      let sum = 0;
      for (let r = 0; r < rank; r++) sum += left[o * rank + r]! * right[r * inputs + i]!;
      const at = inputsFirst ? i * out + o : o * inputs + i;
      result[at] = result[at]! + scale * sum;
    }
  }
  return new Tensor("float32", weight.shape, result);
}

function peftConfig(
  options: Required<Omit<LoraOptions, "targetModules">>,
  targets: readonly string[] | "all-linear",
  layer: Linear,
): Record<string, unknown> {
  return {
    alpha_pattern: {},
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
    rank_pattern: {},
    revision: null,
    target_modules: targets === "all-linear" ? targets : [...targets].sort(),
    task_type: "CAUSAL_LM",
    use_dora: false,
    use_rslora: options.rankStabilized,
  };
}
