/**
 * First numbers of LoRA from weights and gradients, for comparison with those that data give: PiSSA, OLoRA and
 * LoRA-GA. Each is W₀'s own part, or a direction that does not leave the model as it is, so the base is reduced by
 * it at first. Decompositions are whole and exact.
 */
import type { LoraAdapter } from "../adapters/lora.ts";
import { loraGaFactors } from "../methods/adapt/lora-ga.ts";
import { oloraFactors } from "../methods/adapt/olora.ts";
import { pissaFactors } from "../methods/adapt/pissa.ts";
import { type Factors, outputsFirst } from "../methods/adapt/shared/first-factors.ts";
import type { TensorRecord } from "../nn/module.ts";
import { type Matrix, qr, svd, tensorOf } from "../tensor/linalg/index.ts";

export type LoraStart = "pissa" | "olora" | "lora-ga";

/** @param source (out, in): the weight, of LoRA-GA its gradient */
export function startFactors(
  start: LoraStart,
  source: Matrix,
  rank: number,
  scale: number,
): Factors {
  if (start === "olora") return oloraFactors(qr(source), rank);
  if (start === "lora-ga") return loraGaFactors(svd(source), rank);
  return pissaFactors(svd(source), rank, scale);
}

/** First numbers of every layer of an adapter. @param sources by the layer's path, as the layer keeps weights */
export function loraStart(
  start: LoraStart,
  adapter: LoraAdapter,
  sources: (path: string) => TensorRecord[string],
): TensorRecord {
  const params: TensorRecord = {};
  for (const [path, { layer, rank, scale, a, b }] of adapter.layers) {
    const factors = startFactors(start, outputsFirst(layer, sources(path)), rank, scale);
    params[a] = tensorOf(factors.a);
    params[b] = tensorOf(factors.b);
  }
  return params;
}
