/**
 * Linear merging: the weighted average of models' weights.
 *
 * Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
 * increasing inference time", ICML 2022, arXiv:2203.05482.
 *
 *   θ = Σ_t w_t θ_t / Σ_t w_t      without the division where `normalize` is off
 *
 *   θ_t → tensors[t]    w_t → weight
 *
 * Differs: none for the uniform soup; the greedy soup chooses among models by their scores and is left to the
 * caller. Cost: one pass over the models.
 */
import { OptionError } from "../../errors.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Method } from "../method.ts";
import { normalizeOption, type StreamedMergeRole, weightOption } from "./shared/role.ts";

export interface LinearOptions {
  /** Factor of this model; the uniform soup has 1 for all. */
  readonly weight?: number;
  /** Divide by the sum of the weights; default true. */
  readonly normalize?: boolean;
}

/**
 * Σ_t w_t θ_t, over Σ_t w_t where normalised; summed in double precision and rounded once.
 * @throws OptionError when weights that are divided by add up to 0.
 */
export function weightedSum(
  models: readonly Float32Array[],
  weights: readonly number[],
  isNormalized: boolean,
): Float32Array<ArrayBuffer> {
  const total = isNormalized ? weights.reduce((a, b) => a + b, 0) : 1;
  if (Math.abs(total) < 1e-8) {
    throw new OptionError(
      `linear: the weights ${weights.join(", ")} add up to ${total}, and cannot be divided by it — change one, or set normalize to false.`,
    );
  }
  const result = new Float32Array(models[0].length);
  const part = 8192;
  const sums = new Float64Array(part);
  for (let start = 0; start < result.length; start += part) {
    const size = Math.min(part, result.length - start);
    sums.fill(0);
    for (let t = 0; t < models.length; t++) {
      const [model, weight] = [models[t], weights[t]];
      for (let i = 0; i < size; i++) sums[i] += weight * model[start + i];
    }
    for (let i = 0; i < size; i++) result[start + i] = sums[i] / total;
  }
  return result;
}

const role: StreamedMergeRole<LinearOptions> = {
  needsBase: false,
  models: { least: 1 },
  perModel: ["weight"],
  isElementwise: true,
  keepsEqual: (options) =>
    options[0].normalize! ||
    Math.abs(options.reduce((sum, { weight }) => sum + weight!, -1)) < 1e-12,
  merge: ({ tensors }, options) =>
    new Tensor(
      "float32",
      tensors[0].shape,
      weightedSum(
        tensors.map(({ data }) => data),
        options.map(({ weight }) => weight!),
        options[0].normalize!,
      ),
    ),
};

export const linear: Method<LinearOptions> = defineMethod<LinearOptions>({
  id: "linear",
  number: null,
  title: "Model soups",
  capability: "merge",
  summary: "The weighted average of the weights of models that came from one.",
  paper: {
    title:
      "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
    year: 2022,
    url: "https://arxiv.org/abs/2203.05482",
  },
  implementation: "parity",
  options: {
    weight: weightOption(1, "factor of this model"),
    normalize: normalizeOption(true),
  },
  roles: { merge: role },
});
