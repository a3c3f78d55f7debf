/**
 * Several LoRA adapters of one model as one, as PEFT's `add_weighted_adapter` computes it.
 *
 *   linear            A = Σ ± √|w s| A_i,  B = Σ √|w s| B_i         rough: products mix
 *   cat               A = [w s A_1; …],  B = [B_1, …]               exact, ranks add up
 *   svd               the first r singular directions of Σ w s B A   exact where r holds them all
 *   ties              trim, elect signs, mean of what agrees         Yadav et al. 2023, arXiv:2306.01708
 *   dare-linear, dare-ties    entries kept by chance, scaled up      Yu et al. 2024, arXiv:2311.03099
 *   magnitude-prune   the largest entries, summed
 *
 *   w → weight    s → the adapter's own scale    r → rank
 *
 * What is trimmed or dropped are entries of A and B, as they are before weights; with `-svd` those of each s B A,
 * which then is decomposed. Layers that some adapters lack take part in those that have them.
 *
 * Differs: sums are taken in double precision and rounded once; a layer's rank is its own (`rank_pattern`), so
 * `cat` pads no zeros, and a rank above a layer's directions is cut; the result has no rsLoRA, whose scale PEFT
 * keeps and does not reckon with; one adapter alone is treated as the method says, where PEFT takes linear.
 */
import { OptionError } from "../errors.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import {
  type Matrix,
  matrix,
  multiply,
  productSvd,
  type Svd,
  topSvd,
} from "../tensor/linalg/index.ts";
import { markBand } from "../tensor/magnitude.ts";
import { Rng } from "../tensor/rng.ts";
import type { LoadedAdapter } from "./adapter.ts";
import type { LoraAdapter } from "./lora.ts";
import type { LoraPart } from "./lora-layer.ts";
import { factorsOf, loraOf, type PartFactors, plainLora } from "./lora-parts.ts";

export const combineMethods = [
  "linear",
  "cat",
  "svd",
  "ties",
  "ties-svd",
  "dare-linear",
  "dare-linear-svd",
  "dare-ties",
  "dare-ties-svd",
  "magnitude-prune",
  "magnitude-prune-svd",
] as const;

export type CombineMethod = (typeof combineMethods)[number];

export interface CombineOptions {
  readonly method: CombineMethod;
  /** Of each adapter; negative ones take its effect away. Default 1 each. */
  readonly weights?: readonly number[];
  /** Share of entries that is kept, in (0, 1]; TIES' paper uses 0.2, DARE's 0.1 to 0.5. Needed where entries are dropped. */
  readonly density?: number;
  /** Rank of what `svd` methods make; default the largest of the adapters'. */
  readonly rank?: number;
  /** Which sign wins where TIES elects: of the sum, or of more adapters. Default "total". */
  readonly majoritySign?: "total" | "frequency";
  /** Of DARE's draws; default 0. */
  readonly seed?: number;
}

/** A LoRA that was made of others. */
export interface CombinedAdapter extends LoadedAdapter {
  readonly adapter: LoraAdapter;
  readonly params: TensorRecord;
  /** Share of the sum of squares that an `svd` method's rank holds, by layer; 1 for the others. */
  readonly energy: Readonly<Record<string, number>>;
}

/** What a method does with the entries of matrices that are alike. */
interface Rule {
  readonly drops: "none" | "smallest" | "chance";
  readonly elects: boolean;
}

function ruleOf(method: CombineMethod): Rule {
  return {
    drops: method.startsWith("dare")
      ? "chance"
      : /^(ties|magnitude)/.test(method)
        ? "smallest"
        : "none",
    elects: method.includes("ties"),
  };
}

/** The entries that are kept: floor(density · size) of the largest, or each by chance and scaled up. */
function sparse(values: Float64Array, rule: Rule, density: number, rng: Rng): Float64Array {
  if (rule.drops === "none" || density >= 1) return values;
  const size = values.length;
  if (rule.drops === "chance") {
    const limit = density * 2 ** 32;
    return values.map((x) => (rng.bits() < limit ? x / density : 0));
  }
  const mask = new Uint8Array(size);
  const change = { model: Float32Array.from(values), base: undefined };
  markBand(change, 0, Math.floor(density * size), mask);
  return values.map((x, i) => (mask[i] === 1 ? x : 0));
}

/**
 * Σ w_i x_i of kept entries; where signs are elected, the mean over those whose sign wins, plus where neither does.
 * @param stack arrays of one length
 */
export function combineEntries(
  stack: readonly Float64Array[],
  weights: readonly number[],
  rule: { readonly elects: boolean; readonly majoritySign: "total" | "frequency" },
): Float64Array {
  const result = new Float64Array(stack[0]!.length);
  for (let i = 0; i < result.length; i++) {
    if (!rule.elects) {
      for (const [k, values] of stack.entries()) result[i]! += weights[k]! * values[i]!;
      continue;
    }
    let vote = 0;
    for (const values of stack) {
      vote += rule.majoritySign === "total" ? values[i]! : Math.sign(values[i]!);
    }
    const winner = vote >= 0 ? 1 : -1;
    let [sum, count] = [0, 0];
    for (const [k, values] of stack.entries()) {
      if (Math.sign(values[i]!) !== winner) continue;
      sum += weights[k]! * values[i]!;
      count++;
    }
    result[i] = count > 0 ? sum / count : 0;
  }
  return result;
}

/** One adapter's part in a layer. */
interface Share extends PartFactors {
  readonly rank: number;
  readonly weight: number;
  readonly scale: number;
}

interface Settings {
  readonly method: CombineMethod;
  readonly density: number;
  readonly majoritySign: "total" | "frequency";
  readonly rng: Rng;
}

function below(parts: readonly Matrix[]): Matrix {
  const rows = parts.reduce((sum, part) => sum + part.rows, 0);
  const result = matrix(rows, parts[0]!.columns);
  let at = 0;
  for (const { data } of parts) {
    result.data.set(data, at);
    at += data.length;
  }
  return result;
}

function beside(parts: readonly Matrix[]): Matrix {
  const columns = parts.reduce((sum, part) => sum + part.columns, 0);
  const result = matrix(parts[0]!.rows, columns);
  let left = 0;
  for (const part of parts) {
    for (let i = 0; i < part.rows; i++) {
      const row = part.data.subarray(i * part.columns, (i + 1) * part.columns);
      result.data.set(row, i * columns + left);
    }
    left += part.columns;
  }
  return result;
}

const scaled = (a: Matrix, factor: number): Matrix =>
  matrix(
    a.rows,
    a.columns,
    a.data.map((x) => x * factor),
  );

/** [w s A; …] and [B, …]: their product is the weighted sum. */
function joined(shares: readonly Share[]): PartFactors {
  return {
    a: below(shares.map(({ a, weight, scale }) => scaled(a, weight * scale))),
    b: beside(shares.map(({ b }) => b)),
  };
}

/** A and B summed entry by entry, the sign of a weight on A alone. */
function entrywise(shares: readonly Share[], settings: Settings): PartFactors {
  const { method, density, majoritySign, rng } = settings;
  const rule = { ...ruleOf(method), majoritySign };
  const of = (side: "a" | "b"): Matrix => {
    const stack = shares.map((share, k) =>
      sparse(share[side].data, rule, density, rng.fold(side).fold(k)),
    );
    const weights = shares.map(({ weight, scale }) => {
      const both = weight * scale;
      return Math.sqrt(Math.abs(both)) * (side === "a" && both < 0 ? -1 : 1);
    });
    const { rows, columns } = shares[0]![side];
    return matrix(rows, columns, combineEntries(stack, weights, rule));
  };
  return { a: of("a"), b: of("b") };
}

/** B = U Σ and A = Vᵀ of the first directions, and the share of the energy they hold. */
function decomposed(
  shares: readonly Share[],
  wanted: number,
  settings: Settings,
): { readonly factors: PartFactors; readonly energy: number } {
  const { method, density, majoritySign, rng } = settings;
  let found: Svd;
  let total: number;
  if (method === "svd") {
    const { a, b } = joined(shares);
    found = productSvd(b, a);
    total = found.s.reduce((sum, x) => sum + x * x, 0);
  } else {
    const rule = { ...ruleOf(method), majoritySign };
    const updates = shares.map(({ a, b, scale }) => scaled(multiply(b, a), scale));
    const stack = updates.map(({ data }, k) => sparse(data, rule, density, rng.fold(k)));
    const weights = shares.map(({ weight }) => weight);
    const { rows, columns } = updates[0]!;
    const change = matrix(rows, columns, combineEntries(stack, weights, rule));
    total = change.data.reduce((sum, x) => sum + x * x, 0);
    found = topSvd(change, Math.min(wanted, rows, columns));
  }
  const rank = Math.min(wanted, found.u.rows, found.vt.columns);
  const [a, b] = [matrix(rank, found.vt.columns), matrix(found.u.rows, rank)];
  // A sum of few products has fewer directions than are asked for: the rest stays zero.
  const known = Math.min(rank, found.s.length);
  let kept = 0;
  for (let i = 0; i < known; i++) {
    kept += found.s[i]! ** 2;
    a.data.set(found.vt.data.subarray(i * a.columns, (i + 1) * a.columns), i * a.columns);
    for (let j = 0; j < b.rows; j++) {
      b.data[j * rank + i] = found.u.data[j * found.u.columns + i]! * found.s[i]!;
    }
  }
  return { factors: { a, b }, energy: total > 0 ? Math.min(1, kept / total) : 1 };
}

function check(
  where: string,
  count: number,
  { method, weights, density, rank, majoritySign = "total" }: CombineOptions,
): void {
  if (!combineMethods.includes(method)) {
    throw new OptionError(
      `${where}: method must be ${combineMethods.join(" or ")}, got "${String(method)}".`,
    );
  }
  if (count < 1 || count > 256) {
    throw new OptionError(`${where}: needs from 1 to 256 adapters, got ${count}.`);
  }
  if (weights && weights.length !== count) {
    throw new OptionError(
      `${where}: needs one weight for each adapter, got ${weights.length} for ${count}.`,
    );
  }
  const wrong = weights?.find((weight) => !(Math.abs(weight) <= 1e6));
  if (wrong !== undefined) {
    throw new OptionError(`${where}: weights must be numbers from -1e6 to 1e6, got ${wrong}.`);
  }
  const drops = ruleOf(method).drops !== "none";
  if (drops && density === undefined) {
    throw new OptionError(
      `${where}: ${method} needs a density, the share of entries that is kept — 0.2 is usual.`,
    );
  }
  if (!drops && density !== undefined) {
    throw new OptionError(`${where}: ${method} drops no entries — leave density out.`);
  }
  if (density !== undefined && !(density > 0 && density <= 1)) {
    throw new OptionError(`${where}: density must be a number in (0, 1], got ${density}.`);
  }
  if (rank !== undefined && !method.endsWith("svd")) {
    throw new OptionError(
      `${where}: ${method} makes the adapters' own rank — leave rank out, or take svd or a method that ends with -svd.`,
    );
  }
  if (rank !== undefined && !(Number.isInteger(rank) && rank >= 1 && rank <= 65536)) {
    throw new OptionError(`${where}: rank must be a whole number from 1 to 65536, got ${rank}.`);
  }
  if (majoritySign !== "total" && majoritySign !== "frequency") {
    throw new OptionError(
      `${where}: majoritySign must be total or frequency, got "${String(majoritySign)}".`,
    );
  }
}

/**
 * Combines LoRA adapters of a model into one plain LoRA, whose scale is 1.
 * @param adapters 1 to 256 of them, bound to this model
 * @throws OptionError for options that do not go together, or ranks that differ where they must not.
 * @throws UnsupportedError for adapters that are more than LoRA's products.
 */
export function combineAdapters(
  model: PretrainedModel,
  adapters: readonly LoadedAdapter[],
  options: CombineOptions,
): CombinedAdapter {
  const where = "combine";
  check(where, adapters.length, options);
  const { method, density = 1, majoritySign = "total", seed = 0 } = options;
  const weights = options.weights ?? adapters.map(() => 1);
  const plain = adapters.map((loaded, i) => plainLora(`${where}: adapter ${i + 1}`, loaded));
  const all = new Map<string, { readonly part: LoraPart; readonly shares: Share[] }>();
  for (const [i, { parts }] of plain.entries()) {
    for (const [path, part] of parts) {
      const { rank, scale } = part;
      const shares = all.get(path)?.shares ?? [];
      const own = { ...factorsOf(part, adapters[i]!.params), rank, scale, weight: weights[i]! };
      all.set(path, { part, shares: [...shares, own] });
    }
  }
  const most = Math.max(
    ...[...all.values()].flatMap(({ shares }) => shares.map(({ rank }) => rank)),
  );
  const rng = new Rng(seed).fold("combine");
  const updates = new Map<string, PartFactors>();
  const energy: Record<string, number> = {};
  // In the model's order, whichever adapter has the layer.
  for (const [path] of model.modules()) {
    const found = all.get(path);
    if (!found) continue;
    const { shares } = found;
    const settings = { method, density, majoritySign, rng: rng.fold(path) };
    energy[path] = 1;
    if (method === "cat") updates.set(path, joined(shares));
    else if (method.endsWith("svd")) {
      const made = decomposed(shares, options.rank ?? most, settings);
      updates.set(path, made.factors);
      energy[path] = made.energy;
    } else {
      const ranks = new Set(shares.map(({ rank }) => rank));
      if (ranks.size > 1) {
        throw new OptionError(
          `${where}: ${method} needs equal ranks, and "${path}" has ${[...ranks].join(" and ")} — take cat, svd or a method that ends with -svd.`,
        );
      }
      updates.set(path, entrywise(shares, settings));
    }
  }
  return { ...loraOf(model, updates), energy };
}
