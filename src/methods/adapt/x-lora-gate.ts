/**
 * X-LoRA's arithmetic inside a graph: the gate that reads hidden states, its scalings, and the mixture of LoRA
 * experts in a layer. The equations stand in the header of `x-lora.ts`.
 */
import type { LoraLayer } from "../../adapters/lora.ts";
import { add, cast, div, greaterOrEqual, mul, relu, where } from "../../ir/elementwise.ts";
import { softmax } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { oneHot } from "../../ir/indexing.ts";
import { concat, reshape, slice } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import { sum, topK } from "../../ir/reduce.ts";
import { kaimingUniform, uniform } from "../../nn/init.ts";
import type { Context, TensorRecord, ValueRecord } from "../../nn/module.ts";
import type { Rng } from "../../tensor/rng.ts";
import { type StaticShape, toStatic } from "../../tensor/shape.ts";
import { Tensor } from "../../tensor/tensor.ts";

/** The gate's sizes, and how its outputs become scalings. */
export interface GateForm {
  /** Width of the hidden states. */
  readonly dModel: number;
  readonly experts: number;
  readonly layers: number;
  readonly depth: number;
  readonly size: number;
  readonly dropout: number;
  readonly layerwise: boolean;
  readonly softmax: boolean;
  readonly temperature: number;
  readonly topK: number | undefined;
  readonly softmaxTopK: boolean;
}

/** One linear layer of the gate: where it stands, and its sizes. */
interface GateLayer {
  readonly weight: string;
  readonly bias: string;
  readonly shape: readonly [out: number, inputs: number];
}

export const gatePrefix = "base_model.internal_xlora_classifier.layers.";

/** Linear layers of the gate, named as PEFT counts: ReLU and dropout have places of their own. */
export function gateLayers(form: GateForm): readonly GateLayer[] {
  const { dModel, depth, size, experts, layers, layerwise, dropout } = form;
  const between = dropout > 0 ? 3 : 2;
  return Array.from({ length: depth }, (_, i) => {
    const out = i < depth - 1 ? size : experts * (layerwise ? layers : 1);
    const name = `${gatePrefix}${i * between}`;
    return {
      weight: `${name}.weight`,
      bias: `${name}.bias`,
      shape: [out, i === 0 ? dModel : size] as const,
    };
  });
}

/** Shapes of the gate's numbers, by name. */
export function gateShapes(form: GateForm): Record<string, StaticShape> {
  return Object.fromEntries(
    gateLayers(form).flatMap(({ weight, bias, shape }): [string, StaticShape][] => [
      [weight, shape],
      [bias, [shape[0]]],
    ]),
  );
}

/** New numbers, as PyTorch's linear layers begin. */
export function initGate(form: GateForm, rng: Rng): TensorRecord {
  return Object.fromEntries(
    gateLayers(form).flatMap(({ weight, bias, shape }) => {
      const bound = uniform(1 / Math.sqrt(shape[1]));
      return [
        [weight, new Tensor("float32", shape, kaimingUniform(rng.fold(weight), shape))],
        [bias, new Tensor("float32", [shape[0]], bound(rng.fold(bias), [shape[0]]))],
      ];
    }),
  );
}

/** The gate's raw outputs: hidden (N, D) → (N, groups, experts), one group for each layer or one for all. */
export function gateOutputs(
  form: GateForm,
  values: ValueRecord,
  hidden: Value,
  context: Context,
): Value {
  const { noise } = context.options;
  const layers = gateLayers(form);
  let x = hidden;
  for (const [i, { weight, bias }] of layers.entries()) {
    x = add(dot(x, values[weight]!, { transB: true }), values[bias]!);
    if (i === layers.length - 1) break;
    x = relu(x);
    if (form.dropout === 0 || !context.training || !noise) continue;
    const kept = greaterOrEqual(noise(weight, toStatic(x.shape, "x-lora dropout")), form.dropout);
    x = mul(x, mul(cast(kept, "float32"), 1 / (1 - form.dropout)));
  }
  return reshape(x, [-1, form.layerwise ? form.layers : 1, form.experts]);
}

/** λ of raw outputs (N, groups, experts), of the same shape. */
export function scalingsOf(form: GateForm, outputs: Value): Value {
  const { temperature, topK: kept, softmaxTopK } = form;
  const open = form.softmax ? softmax(div(outputs, temperature), -1) : outputs;
  if (kept === undefined || kept >= form.experts) return softmaxTopK ? softmax(open, -1) : open;
  // Exactly k where several are equal: the first ones.
  const chosen = sum(oneHot(topK(open, kept, -1).indices, form.experts), -2);
  if (!softmaxTopK) return mul(open, chosen);
  return mul(softmax(where(greaterOrEqual(chosen, 0.5), open, -1e30), -1), chosen);
}

/** An expert's part in one layer: names of its numbers, and what its product is multiplied by. */
export interface ExpertPart extends Pick<LoraLayer, "rank" | "scale" | "dropout"> {
  /** Its place among the experts. */
  readonly expert: number;
  readonly a: string;
  readonly b: string;
}

/** λ of one layer, (N, experts), or one number for all. */
export type LayerScalings = Value | number;

/** Of all layers' scalings (N, groups, experts) those of one. */
export function layerScalings(form: GateForm, scalings: Value, layer: number): Value {
  const at = form.layerwise ? layer : 0;
  return reshape(slice(scalings, 1, at, at + 1), [-1, form.experts]);
}

/**
 * Σ_i λ_i g s_i B_i A_i dropout(x) of rows x: (N, in) → (N, out).
 * @param experts how many there are in all
 * @param weight g
 */
export function mixture(
  parts: readonly ExpertPart[],
  experts: number,
  weight: number,
  values: ValueRecord,
  x: Value,
  scalings: LayerScalings,
  context: Context,
): Value {
  const { noise } = context.options;
  const isDropped = context.training && noise && parts.some(({ dropout }) => dropout > 0);
  const first = parts.map(({ a }) => values[a]!);
  const inner = isDropped
    ? concat(
        parts.map(({ a, dropout }) => {
          if (dropout === 0) return dot(x, values[a]!, { transB: true });
          const kept = greaterOrEqual(noise(a, toStatic(x.shape, "x-lora dropout")), dropout);
          const seen = mul(x, mul(cast(kept, "float32"), 1 / (1 - dropout)));
          return dot(seen, values[a]!, { transB: true });
        }),
        1,
      )
    : dot(x, concat(first, 0), { transB: true });
  // Each expert keeps the scale that it was trained with: row i of `spread` has it at the expert's ranks.
  const ranks = parts.reduce((total, { rank }) => total + rank, 0);
  const spread = Tensor.zeros([experts, ranks], "float32");
  const whole = new Float32Array(ranks);
  let at = 0;
  for (const { expert, rank, scale } of parts) {
    spread.data.fill(weight * scale, expert * ranks + at, expert * ranks + at + rank);
    whole.fill(weight * scale, at, at + rank);
    at += rank;
  }
  const factors =
    typeof scalings === "number"
      ? new Tensor(
          "float32",
          [1, ranks],
          whole.map((scale) => scale * scalings),
        )
      : dot(scalings, spread);
  const second = concat(
    parts.map(({ b }) => values[b]!),
    1,
  );
  return dot(mul(inner, factors), second, { transB: true });
}
