/**
 * Generalised task arithmetic: the algorithm of which task arithmetic, TIES, DARE, DELLA and Model Breadcrumbs
 * are settings, as mergekit arranges it.
 *
 *   τ_t = θ_t - θ_0                     task vector
 *   τ̂_t = m_t ⊙ τ_t                     sparsify: kept entries and their factors
 *   γ   = sgn(Σ_t w_t τ̂_t)              consensus, where asked: the sign that wins; plus where the sum is 0
 *   τ   = Σ_t [sgn(w_t τ̂_t) = γ] w_t τ̂_t, over the sum of the weights that take part where normalised
 *   θ   = θ_0 + λ τ
 *
 * Beside the inputs it holds one byte (DELLA: four) an entry and model.
 */

import {
  add,
  div,
  equal,
  less,
  lessOrEqual,
  maximum,
  minimum,
  mul,
  sub,
  where,
} from "../../../ir/elementwise.ts";
import type { Value } from "../../../ir/graph.ts";
import type { Change } from "../../../tensor/magnitude.ts";
import type { Rng } from "../../../tensor/rng.ts";
import type { StaticShape } from "../../../tensor/shape.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import type { MergeInput } from "../../method.ts";
import { ChunkedKernel, chunkedKernel } from "./chunks.ts";
import { numbersOf } from "./role.ts";
import type { Kept } from "./sparsify.ts";

/** Options that every member of the family has. */
export interface TaskVectorOptions {
  /** Factor of this model's task vector. */
  readonly weight: number;
  /** Divide by the sum of the weights that take part. */
  readonly normalize: boolean;
  /** Factor of the merged task vector. */
  readonly lambda: number;
}

/** A task vector before it is made. */
export interface Task extends Change {
  readonly base: Float32Array;
  readonly shape: StaticShape;
  readonly size: number;
  /** θ_t - θ_0 */
  delta(): Float32Array;
}

/** What a member of the family does of its own. */
export interface Family<O> {
  /** Kept entries of one task vector; default: all. */
  readonly sparsify?: (task: Task, options: O, rng: Rng) => Kept;
  /** Only entries of the sign that wins take part. */
  readonly hasConsensus: boolean;
}

/** θ_t - θ_0, rounded to float32. */
export function taskVector(model: Float32Array, base: Float32Array): Float32Array {
  const delta = new Float32Array(model.length);
  for (let i = 0; i < delta.length; i++) delta[i] = model[i] - base[i];
  return delta;
}

/** θ_0 + λ τ for so many models, with or without factors of their entries. */
function makeKernel(
  count: number,
  hasFactors: boolean,
  how: { readonly hasConsensus: boolean; readonly normalize: boolean },
): ChunkedKernel {
  const models = Array.from({ length: count }, (_, t) => t);
  const names = ["lambda", "whole", ...models.flatMap((t) => [`weight${t}`, `scale${t}`])];
  return new ChunkedKernel(1 + count * (hasFactors ? 2 : 1), names, (arrays, numbers) => {
    const [base] = arrays;
    const deltas = models.map((t) => {
      const delta = mul(sub(arrays[1 + t], base), numbers[`scale${t}`]);
      return hasFactors ? mul(delta, arrays[1 + count + t]) : delta;
    });
    const sum = (values: readonly Value[]): Value => values.reduce((a, b) => add(a, b));
    const lambda = numbers["lambda"];
    if (!how.hasConsensus) return add(base, mul(sum(deltas), div(lambda, numbers["whole"])));
    const up = sum(deltas.map((delta) => maximum(delta, 0)));
    const down = sum(deltas.map((delta) => minimum(delta, 0)));
    const isUp = lessOrEqual(0, add(up, down));
    const taken = mul(where(isUp, up, down), lambda);
    if (!how.normalize) return add(base, taken);
    const weightOf = (side: (delta: Value) => Value): Value =>
      sum(deltas.map((delta, t) => where(side(delta), numbers[`weight${t}`], 0)));
    const weight = where(
      isUp,
      weightOf((delta) => less(0, delta)),
      weightOf((delta) => less(delta, 0)),
    );
    return add(base, div(taken, where(equal(weight, 0), 1, weight)));
  });
}

/**
 * θ_0 + λ τ of kept entries.
 * @param base θ_0; each of `models` has its length
 * @param weights w_t, one for each model
 */
export function combine(
  base: Float32Array,
  models: readonly Float32Array[],
  kept: readonly Kept[],
  weights: readonly number[],
  how: { readonly hasConsensus: boolean; readonly normalize: boolean; readonly lambda: number },
): Float32Array<ArrayBuffer> {
  const { hasConsensus, normalize, lambda } = how;
  const hasFactors = kept.some((one) => one !== undefined);
  const key = `task vectors ${models.length} ${hasFactors} ${hasConsensus} ${normalize}`;
  const kernel = chunkedKernel(key, () => makeKernel(models.length, hasFactors, how));
  const total = weights.reduce((a, b) => a + b, 0);
  const ones = hasFactors ? new Uint8Array(base.length).fill(1) : undefined;
  const numbers: Record<string, number> = {
    lambda,
    // As mergekit: weights that cancel divide by nothing.
    whole: normalize && Math.abs(total) >= 1e-8 ? total : 1,
  };
  for (const [t, weight] of weights.entries()) {
    numbers[`weight${t}`] = weight;
    numbers[`scale${t}`] = weight * (kept[t]?.scale ?? 1);
  }
  const factors = ones ? kept.map((one) => one?.factors ?? ones) : [];
  return kernel.run([base, ...models, ...factors], numbers);
}

/** A merge by a member of the family; `options` has one for each model. */
export function mergeTaskVectors<O extends TaskVectorOptions>(
  input: MergeInput,
  options: readonly O[],
  family: Family<O>,
): Tensor<"float32"> {
  const { base, models } = numbersOf(input);
  const shape = input.base!.shape;
  const kept = models.map((model, t) =>
    family.sparsify?.(
      { model, base, shape, size: base.length, delta: () => taskVector(model, base) },
      options[t],
      input.rng.fold(t),
    ),
  );
  const { normalize, lambda } = options[0];
  const merged = combine(
    base,
    models,
    kept,
    options.map(({ weight }) => weight),
    { hasConsensus: family.hasConsensus, normalize, lambda },
  );
  return new Tensor("float32", shape, merged);
}
