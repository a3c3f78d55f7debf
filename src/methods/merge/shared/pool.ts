/**
 * Breadcrumbs of many tasks beside one base, in memory: a task is added or taken away without reading the
 * others again. What is kept of a task are the entries of its band, as places and values.
 */
import { OptionError, ShapeError } from "../../../errors.ts";
import type { TensorRecord } from "../../../nn/module.ts";
import { isFloat } from "../../../tensor/dtype.ts";
import { sameShape, showShape } from "../../../tensor/shape.ts";
import { Tensor } from "../../../tensor/tensor.ts";
import { type Granularity, keepBand, rowLength } from "./sparsify.ts";
import { taskVector } from "./task-vectors.ts";

export interface BreadcrumbOptions {
  /** β: share of the smallest changes that is left out, in [0, 1); default 0.9. */
  readonly bottom?: number;
  /** 1 - γ: share of the largest changes that is left out, in [0, 1); default 0.01. */
  readonly top?: number;
  /** What is ranked together; default "tensor". */
  readonly granularity?: Granularity;
}

/** Kept entries of one tensor's task vector. */
export interface SparseVector {
  /** Places in the flat tensor, growing. */
  readonly places: Uint32Array;
  readonly values: Float32Array;
}

/** A sparse task vector: kept changes by parameter. Parameters without any are left out. */
export type Breadcrumb = ReadonlyMap<string, SparseVector>;

function checkShares(bottom: number, top: number): void {
  if (bottom >= 0 && top >= 0 && bottom + top < 1) return;
  throw new OptionError(
    `breadcrumb: bottom and top must be shares from 0 that leave something between them, got ${bottom} and ${top}.`,
  );
}

/** The numbers of a parameter in two records. @throws ShapeError when one lacks it or shapes differ. */
function pairOf(name: string, base: TensorRecord, other: TensorRecord): [Tensor, Tensor] {
  const [a, b] = [base[name], other[name]];
  if (!a || !b) {
    throw new ShapeError(
      `breadcrumb: the ${a ? "fine-tune" : "base"} lacks "${name}" — both must have the same parameters.`,
    );
  }
  if (sameShape(a.shape, b.shape)) return [a, b];
  throw new ShapeError(
    `breadcrumb: "${name}" has shape ${showShape(b.shape)}, the base's is ${showShape(a.shape)}.`,
  );
}

/**
 * The breadcrumb of a fine-tune: of each float parameter the changes between the β and γ quantiles of |θ_t - θ_0|.
 * A parameter of one element is kept whole; whole numbers are skipped.
 * @param base θ_0 by name; @param tuned θ_t, the same names and shapes
 * @throws OptionError for shares that leave nothing; ShapeError for records that do not fit.
 */
export function breadcrumb(
  base: TensorRecord,
  tuned: TensorRecord,
  options: BreadcrumbOptions = {},
): Breadcrumb {
  const { bottom = 0.9, top = 0.01, granularity = "tensor" } = options;
  checkShares(bottom, top);
  const found = new Map<string, SparseVector>();
  for (const name of new Set([...Object.keys(base), ...Object.keys(tuned)])) {
    const [a, b] = pairOf(name, base, tuned);
    if (!isFloat(a.dtype) || a.size === 0) continue;
    const delta = taskVector(b.to("float32").data, a.to("float32").data);
    const row = rowLength(a.shape, granularity);
    const band = [Math.floor(top * row), row - Math.floor(bottom * row)] as const;
    const factors = keepBand({ model: delta, base: undefined }, row, band)?.factors;
    const places: number[] = [];
    for (let i = 0; i < delta.length; i++) {
      if ((factors ? factors[i] !== 0 : true) && delta[i] !== 0) places.push(i);
    }
    if (places.length === 0) continue;
    const values = Float32Array.from(places, (place) => delta[place]);
    found.set(name, { places: Uint32Array.from(places), values });
  }
  return found;
}

/**
 * θ_0 + α Σ_t m_t ⊙ τ_t; the base's parameters that no task changes are shared.
 * @param options α, the factor of every task; default 0.3, the paper's
 */
export function mergeBreadcrumbs(
  base: TensorRecord,
  crumbs: Iterable<Breadcrumb>,
  options: { readonly alpha?: number } = {},
): TensorRecord {
  const { alpha = 0.3 } = options;
  if (!Number.isFinite(alpha)) throw new OptionError(`alpha must be a number, got ${alpha}.`);
  const sums = new Map<string, Float64Array>();
  for (const crumb of crumbs) {
    for (const [name, { places, values }] of crumb) {
      const tensor = base[name];
      if (!tensor) throw new ShapeError(`breadcrumb: the base lacks "${name}".`);
      const sum = sums.get(name) ?? new Float64Array(tensor.size);
      sums.set(name, sum);
      for (let i = 0; i < places.length; i++) sum[places[i]] += values[i];
    }
  }
  const merged: TensorRecord = { ...base };
  for (const [name, sum] of sums) {
    const from = base[name].to("float32");
    const data = from.data.slice();
    for (let i = 0; i < data.length; i++) data[i] += alpha * sum[i];
    merged[name] = new Tensor("float32", from.shape, data);
  }
  return merged;
}

/** Breadcrumbs by task's name, and the model that they make together. */
export class BreadcrumbPool {
  readonly #base: TensorRecord;
  readonly #alpha: number;
  readonly #crumbs = new Map<string, Breadcrumb>();

  /** @param options α as in `mergeBreadcrumbs` */
  constructor(base: TensorRecord, options: { readonly alpha?: number } = {}) {
    this.#base = base;
    this.#alpha = options.alpha ?? 0.3;
  }

  get tasks(): readonly string[] {
    return [...this.#crumbs.keys()];
  }

  /** @throws OptionError when there is a task of that name. */
  add(task: string, crumb: Breadcrumb): this {
    if (this.#crumbs.has(task)) {
      throw new OptionError(`breadcrumb: there is a task "${task}" already — remove it first.`);
    }
    this.#crumbs.set(task, crumb);
    return this;
  }

  /** @throws OptionError when there is no such task. */
  remove(task: string): this {
    if (this.#crumbs.delete(task)) return this;
    throw new OptionError(
      `breadcrumb: there is no task "${task}" — there are ${this.tasks.join(", ") || "none"}.`,
    );
  }

  /** The weights of all tasks together; of no task, the base's. */
  materialise(): TensorRecord {
    return mergeBreadcrumbs(this.#base, this.#crumbs.values(), { alpha: this.#alpha });
  }
}
