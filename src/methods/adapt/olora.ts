/**
 * OLoRA: LoRA that begins with orthonormal directions of each weight.
 *
 * Büyükakyüz, "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models", 2024, arXiv:2406.01775,
 * equations 3 to 5.
 *
 *   W = Q R
 *   B = Q_r, A = R_r            first r columns and rows
 *   W_res = W - s B A           the base beside which they are trained
 *
 *   s → scale, alpha / r    r → rank, at most min(in, out)
 *
 * Differs: signs are such that the diagonal of R is not negative; Q_r is found from the first r columns of W,
 * which determine it. Cost: r · in · out products a layer; what is kept has rank 2r on the whole base.
 */
import type { PrepareScene } from "../../adapters/adapter.ts";
import type { LoraOptions } from "../../adapters/lora.ts";
import { columnsOf, multiply, type Qr, qr, rowsOf } from "../../tensor/linalg/index.ts";
import { defineMethod, type Initialised, type Method, type NoOptions } from "../method.ts";
import {
  energyOf,
  type Factors,
  factoredLora,
  firstFactors,
  outputsFirst,
} from "./shared/first-factors.ts";

/** A and B of a weight's decomposition. */
export function oloraFactors({ q, r }: Qr, rank: number): Factors {
  return { a: rowsOf(r, 0, rank), b: columnsOf(q, 0, rank) };
}

function initialise(scene: PrepareScene, options: LoraOptions): Initialised {
  const adapter = factoredLora("olora", scene, options);
  const shares: Record<string, number> = {};
  const params = firstFactors(scene, "OLoRA", adapter, ({ path, layer, rank }) => {
    const weight = outputsFirst(layer, scene.base[`${path}.weight`]!);
    const { q } = qr(columnsOf(weight, 0, rank));
    const r = multiply(q, weight, { transA: true });
    // Rounding aside these are zeros.
    for (let i = 0; i < rank; i++) r.data.fill(0, i * r.columns, i * r.columns + i);
    shares[path] = energyOf(r) / Math.max(Number.MIN_VALUE, energyOf(weight));
    return oloraFactors({ q, r }, rank);
  });
  return { lora: options, params, isTakenFromBase: true, report: { energy: shares } };
}

export const olora: Method = defineMethod<NoOptions>({
  id: "olora",
  number: null,
  title: "OLoRA",
  capability: "adapt",
  summary: "LoRA that begins as the first part of each weight's QR decomposition.",
  paper: {
    title: "OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models",
    year: 2024,
    url: "https://arxiv.org/abs/2406.01775",
  },
  implementation: "parity",
  options: {},
  roles: { initialiser: { readsData: false, readsWeights: true, initialise } },
});
