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
 * Sums are taken in double precision and rounded once. Beside the inputs it holds one byte (DELLA: four) an
 * entry and model, and one task vector while that is ranked.
 */

import type { Rng } from "../../../tensor/rng.ts";
import type { StaticShape } from "../../../tensor/shape.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import type { MergeInput } from "../../method.ts";
import { numbersOf } from "./role.ts";
import type { Change } from "./select.ts";
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

const part = 8192;

/** θ_t - θ_0, rounded to float32. */
export function taskVector(model: Float32Array, base: Float32Array): Float32Array {
  const delta = new Float32Array(model.length);
  for (let i = 0; i < delta.length; i++) delta[i] = model[i] - base[i];
  return delta;
}

/** Adds weight · kept entries of model - base from `start` on. */
function addTask(
  sums: Float64Array,
  model: Float32Array,
  base: Float32Array,
  kept: Kept,
  weight: number,
  start: number,
): void {
  const size = sums.length;
  if (!kept) {
    for (let i = 0; i < size; i++) sums[i] += weight * (model[start + i] - base[start + i]);
    return;
  }
  const { factors } = kept;
  const factor = weight * kept.scale;
  for (let i = 0; i < size; i++) {
    const at = start + i;
    const own = factors[at];
    if (own !== 0) sums[i] += factor * own * (model[at] - base[at]);
  }
}

/** Sums of entries above 0 and of those below, and the weights of both. */
interface Sides {
  readonly up: Float64Array;
  readonly down: Float64Array;
  readonly upWeights: Float64Array;
  readonly downWeights: Float64Array;
}

/** The same by sign; zero takes no part. */
function addBySign(
  { up, down, upWeights, downWeights }: Sides,
  model: Float32Array,
  base: Float32Array,
  kept: Kept,
  weight: number,
  start: number,
): void {
  const size = up.length;
  const factors = kept?.factors;
  const factor = weight * (kept?.scale ?? 1);
  for (let i = 0; i < size; i++) {
    const at = start + i;
    const own = factors ? factors[at] : 1;
    if (own === 0) continue;
    const value = factor * own * (model[at] - base[at]);
    if (value > 0) {
      up[i] += value;
      upWeights[i] += weight;
    } else if (value < 0) {
      down[i] += value;
      downWeights[i] += weight;
    }
  }
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
  const result = new Float32Array(base.length);
  const total = weights.reduce((a, b) => a + b, 0);
  // As mergekit: weights that cancel divide by nothing.
  const whole = normalize && Math.abs(total) >= 1e-8 ? total : 1;
  const memory = Array.from({ length: hasConsensus ? 4 : 1 }, () => new Float64Array(part));
  for (let start = 0; start < base.length; start += part) {
    const size = Math.min(part, base.length - start);
    const [up, down, upWeights, downWeights] = memory.map((all) => all.subarray(0, size).fill(0));
    if (!hasConsensus) {
      for (let t = 0; t < models.length; t++) {
        addTask(up, models[t], base, kept[t], weights[t], start);
      }
      for (let i = 0; i < size; i++) result[start + i] = base[start + i] + (lambda * up[i]) / whole;
      continue;
    }
    const sides = { up, down, upWeights, downWeights };
    for (let t = 0; t < models.length; t++) {
      addBySign(sides, models[t], base, kept[t], weights[t], start);
    }
    for (let i = 0; i < size; i++) {
      const isUp = up[i] + down[i] >= 0;
      const taken = isUp ? up[i] : down[i];
      const weight = isUp ? upWeights[i] : downWeights[i];
      result[start + i] =
        base[start + i] + (lambda * taken) / (normalize && weight !== 0 ? weight : 1);
    }
  }
  return result;
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
