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
import { add, mul, sub } from "../../ir/elementwise.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type MergeRole, type Method } from "../method.ts";
import { ChunkedKernel, chunkedKernel } from "./shared/chunks.ts";
import { normalizeOption, weightOption } from "./shared/role.ts";

export interface LinearOptions {
  /** Factor of this model; the uniform soup has 1 for all. */
  readonly weight?: number;
  /** Divide by the sum of the weights; default true. */
  readonly normalize?: boolean;
}

/** Σ_t w_t θ_t; divided, it goes from the first model towards the others, so that equal models stay as they are. */
function makeKernel(count: number, isNormalized: boolean): ChunkedKernel {
  const names = Array.from({ length: count }, (_, t) => `weight${t}`);
  return new ChunkedKernel(count, names, (models, numbers) => {
    const [first, ...others] = models;
    const start = isNormalized ? first : mul(first, numbers["weight0"]);
    return others.reduce((sum, model, t) => {
      const part = isNormalized ? sub(model, first) : model;
      return add(sum, mul(part, numbers[`weight${t + 1}`]));
    }, start);
  });
}

/**
 * Σ_t w_t θ_t, over Σ_t w_t where normalised.
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
  const key = `linear ${models.length} ${isNormalized}`;
  const kernel = chunkedKernel(key, () => makeKernel(models.length, isNormalized));
  const numbers = weights.map((weight, t) => [`weight${t}`, weight / total] as const);
  return kernel.run(models, Object.fromEntries(numbers));
}

const role: MergeRole<LinearOptions> = {
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
