/**
 * Model Stock: how far to go from the base to the average, by the angle between fine-tunes.
 *
 * Jang, Yun, Han, "Model Stock: All we need is just a few fine-tuned models", ECCV 2024, arXiv:2403.19522.
 *
 *   cos φ = mean over pairs of ⟨θ_i - θ_0, θ_j - θ_0⟩ / (‖θ_i - θ_0‖ ‖θ_j - θ_0‖)
 *   t     = N cos φ / (1 + (N - 1) cos φ)              N fine-tunes
 *   θ     = t · mean_i θ_i + (1 - t) θ_0
 *
 *   θ_0 → base    θ_i → tensors[i]    filterWise → each row along the last dimension has its own angle
 *
 * Differs: the paper has one angle for all pairs; for more than two models their mean is taken, as mergekit
 * does. Where fine-tunes cancel (1 + (N - 1) cos φ is 0) the base stays. Cost: N (N - 1) / 2 inner products.
 */
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type MergeRole, type Method } from "../method.ts";
import { numbersOf } from "./shared/role.ts";
import { rowLength } from "./shared/sparsify.ts";

export interface ModelStockOptions {
  /** An angle for each row along the last dimension, in place of one for each tensor; default false. */
  readonly filterWise?: boolean;
}

/** The share t of the way from the base to the average, by the mean cosine of N fine-tunes. */
export function stockRatio(count: number, cos: number): number {
  const divisor = 1 + (count - 1) * cos;
  return divisor < 1e-9 ? 0 : (count * cos) / divisor;
}

/** Mean cosine between the changes of all pairs, for the entries from `start` on. */
export function meanCosine(
  base: Float32Array,
  models: readonly Float32Array[],
  start: number,
  size: number,
): number {
  const count = models.length;
  const norms = models.map((model) => {
    let sum = 0;
    for (let i = start; i < start + size; i++) sum += (model[i] - base[i]) ** 2;
    return Math.sqrt(sum);
  });
  let total = 0;
  for (let a = 0; a < count; a++) {
    for (let b = a + 1; b < count; b++) {
      const [x, y] = [models[a], models[b]];
      let dot = 0;
      for (let i = start; i < start + size; i++) dot += (x[i] - base[i]) * (y[i] - base[i]);
      const product = norms[a] * norms[b];
      if (product > 0) total += Math.min(1, Math.max(-1, dot / product));
    }
  }
  return total / ((count * (count - 1)) / 2);
}

/** θ of one tensor, an angle for each `row` entries. */
export function stock(
  base: Float32Array,
  models: readonly Float32Array[],
  row: number,
): Float32Array<ArrayBuffer> {
  const result = new Float32Array(base.length);
  for (let start = 0; start < base.length; start += row) {
    const t = stockRatio(models.length, meanCosine(base, models, start, row));
    for (let i = start; i < start + row; i++) {
      let sum = 0;
      for (let m = 0; m < models.length; m++) sum += models[m][i] - base[i];
      result[i] = base[i] + (t * sum) / models.length;
    }
  }
  return result;
}

const role: MergeRole<ModelStockOptions> = {
  needsBase: true,
  models: { least: 2 },
  perModel: [],
  merge: (input, [{ filterWise }]) => {
    const { base, models } = numbersOf(input);
    const { shape } = input.base!;
    const row = rowLength(shape, filterWise ? "row" : "tensor");
    return new Tensor("float32", shape, stock(base, models, Math.max(1, row)));
  },
};

export const modelStock: Method<ModelStockOptions> = defineMethod<ModelStockOptions>({
  id: "model-stock",
  number: null,
  title: "Model Stock",
  capability: "merge",
  summary: "Goes from the base towards the average as far as the angle between fine-tunes says.",
  paper: {
    title: "Model Stock: All we need is just a few fine-tuned models",
    year: 2024,
    url: "https://arxiv.org/abs/2403.19522",
  },
  implementation: "parity",
  options: {
    filterWise: {
      type: "flag",
      default: false,
      about: "an angle for each row along the last dimension, in place of one for each tensor",
    },
  },
  roles: { merge: role },
});
