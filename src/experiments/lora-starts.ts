/**
 * First numbers of LoRA from weights and gradients, for comparison with those that data give. Each is W₀'s own
 * part, or a direction that does not leave the model as it is, so the base is reduced by it at first.
 *
 *   PiSSA    W = U Σ Vᵀ: B = U_r √Σ_r, A = √Σ_r V_rᵀ      Meng et al. 2024, arXiv:2404.02948
 *   OLoRA    W = Q R: B = Q_r, A = R_r                    Büyükakyüz 2024, arXiv:2406.01775
 *   LoRA-GA  ∂L/∂W = U Σ Vᵀ: B = c U_{r…2r}, A = c V_{…r}ᵀ  Wang, Yu & Li 2024, arXiv:2407.05000
 *            with c = (out)^¼ / √γ / s and γ = 16
 *
 * A and B are divided by the root of LoRA's scale s, so that s B A is what is written above.
 */
import type { LoraAdapter } from "../adapters/lora.ts";
import type { TensorRecord } from "../nn/module.ts";
import {
  columnsOf,
  type Matrix,
  matrix,
  matrixOf,
  qr,
  rowsOf,
  svd,
  tensorOf,
  transpose,
} from "../tensor/linalg/index.ts";

export type LoraStart = "pissa" | "olora" | "lora-ga";

interface Factors {
  readonly a: Matrix;
  readonly b: Matrix;
}

function times(a: Matrix, factor: number): Matrix {
  return matrix(
    a.rows,
    a.columns,
    a.data.map((x) => x * factor),
  );
}

/** @param source (out, in): the weight, of LoRA-GA its gradient */
export function startFactors(
  start: LoraStart,
  source: Matrix,
  rank: number,
  scale: number,
): Factors {
  const root = 1 / Math.sqrt(scale);
  if (start === "olora") {
    const { q, r } = qr(source);
    return { a: times(rowsOf(r, 0, rank), root), b: times(columnsOf(q, 0, rank), root) };
  }
  const { u, s, vt } = svd(source);
  if (start === "lora-ga") {
    const factor = source.rows ** 0.25 / 4 / scale;
    // Where there are fewer than 2r directions the later half overlaps the first.
    const from = Math.min(rank, u.columns - rank);
    return {
      a: times(rowsOf(vt, 0, rank), factor),
      b: times(columnsOf(u, from, from + rank), factor),
    };
  }
  const [a, b] = [rowsOf(vt, 0, rank), columnsOf(u, 0, rank)];
  for (let i = 0; i < rank; i++) {
    const own = Math.sqrt(s[i]!) * root;
    for (let j = 0; j < a.columns; j++) a.data[i * a.columns + j]! *= own;
    for (let j = 0; j < b.rows; j++) b.data[j * rank + i]! *= own;
  }
  return { a, b };
}

/** First numbers of every layer of an adapter. @param sources by the layer's path, as the layer keeps weights */
export function loraStart(
  start: LoraStart,
  adapter: LoraAdapter,
  sources: (path: string) => TensorRecord[string],
): TensorRecord {
  const params: TensorRecord = {};
  for (const [path, { layer, rank, scale, a, b }] of adapter.layers) {
    const own = matrixOf(sources(path));
    const factors = startFactors(start, layer.inputsFirst ? transpose(own) : own, rank, scale);
    params[a] = tensorOf(factors.a);
    params[b] = tensorOf(factors.b);
  }
  return params;
}
