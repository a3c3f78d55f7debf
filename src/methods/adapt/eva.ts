/**
 * EVA: LoRA begins with the directions in which the activations of the training data vary most, and layers
 * where few directions explain much get more rank.
 *
 * Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
 * 2024, arXiv:2410.07170, sections 3.1 and 3.2, algorithm 1; incremental SVD after Ross et al., "Incremental
 * Learning for Robust Visual Tracking", IJCV 2008.
 *
 *   M_t  = [Σ V (of batch t−1); X − μ_b; √(n n_b / (n + n_b)) (μ − μ_b)]    rows stacked
 *   U Σ Vᵀ = M_t, the first k = round(ρ r) kept                             until cos(v_t, v_{t−1}) ≥ τ
 *   ξ_ij = (σ_ij² / (N − 1)) / Σ Var(X_i)                                   share of layer i's variance
 *   r_i  = how many of layer i's ξ are among the Σ r largest of all         ranks
 *   A_i  = V_i[: r_i],  B_i = 0,  α_i = α r_i / r                           first numbers, scale kept
 *
 *   X → rows of a layer's input, (n_b, in), padding left out    V → components (k, in)
 *   Σ → singularValues    μ → mean    n → count    ρ → rho      τ → tau
 *
 * Layers that read the same input share one decomposition; of those the first gets the largest rank. A layer
 * with rank 0 gets no adapter. The result is a plain LoRA: rank_pattern, alpha_pattern and target_modules.
 *
 * Differs: the decomposition is exact to double precision where PEFT draws a random subspace; whitening
 * divides the rows of layers that share an input once, PEFT once for each of them; with `rankStabilized` it
 * is α / √r that stays; a limit of batches ends what does not converge. Cost: one decomposition of
 * (k + n_b + 1, in) for each distinct input and batch, until it rests.
 */
import type { PrepareScene } from "../../adapters/adapter.ts";
import { type LoraOptions, lora } from "../../adapters/lora.ts";
import { OptionError } from "../../errors.ts";
import type { TensorRecord } from "../../nn/module.ts";
import { type Matrix, matrix, topSvd } from "../../tensor/linalg/index.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { defineMethod, type Initialised, type Method } from "../method.ts";

export interface EvaOptions {
  /** A layer's rank is at most rho times the LoRA rank; 1 keeps all ranks alike. The paper uses 1 and 2. */
  readonly rho?: number;
  /** Cosine of a direction before and after a batch from which on it rests. */
  readonly tau?: number;
  /** Divide each direction by the root of its singular value; PEFT's advice for vision. */
  readonly whiten?: boolean;
  /** Keep alpha / rank in layers whose rank changes. */
  readonly adjustScaling?: boolean;
  /** Batches at most. */
  readonly batches?: number;
}

/** What is known of a layer's inputs so far. */
export interface IncrementalSvd {
  /** Rows seen. */
  readonly count: number;
  /** Of each feature, (in). */
  readonly mean: Float64Array;
  /** Sum over rows and features of squared distances from the mean: total variance times rows. */
  readonly squares: number;
  /** Directions of most variance about the mean, (k, in), the largest entry of each positive. */
  readonly components: Matrix;
  readonly singularValues: Float64Array;
}

/**
 * Takes in a batch of rows.
 * @param rows (n_b, in), at least k of them
 * @param k directions that are kept, at most `in`
 * @returns undefined for fewer rows than k: too few to see k directions
 */
export function incrementalSvd(
  known: IncrementalSvd | undefined,
  rows: Tensor<"float32">,
  k: number,
): IncrementalSvd | undefined {
  const [size, width] = rows.shape as [number, number];
  if (size < k) return known;
  const batchMean = new Float64Array(width);
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < width; j++) batchMean[j]! += rows.data[i * width + j]! / size;
  }
  const kept = known ? k : 0;
  const stacked = matrix(kept + size + (known ? 1 : 0), width);
  let squares = known?.squares ?? 0;
  for (let i = 0; i < size; i++) {
    for (let j = 0; j < width; j++) {
      const centred = rows.data[i * width + j]! - batchMean[j]!;
      stacked.data[(kept + i) * width + j] = centred;
      squares += centred * centred;
    }
  }
  const count = (known?.count ?? 0) + size;
  const mean = batchMean.slice();
  if (known) {
    const last = (kept + size) * width;
    const factor = Math.sqrt((known.count * size) / count);
    for (let j = 0; j < width; j++) {
      for (let i = 0; i < kept; i++) {
        stacked.data[i * width + j] =
          known.singularValues[i]! * known.components.data[i * width + j]!;
      }
      const moved = factor * (known.mean[j]! - batchMean[j]!);
      stacked.data[last + j] = moved;
      squares += moved * moved;
      mean[j] = (known.count * known.mean[j]! + size * batchMean[j]!) / count;
    }
  }
  const { s, vt } = topSvd(stacked, k);
  return { count, mean, squares, components: vt, singularValues: s };
}

/** ξ: the share of all variance that each direction explains; zeros where nothing varies. */
export function explainedRatios({ singularValues, squares }: IncrementalSvd): number[] {
  return Array.from(singularValues, (s) => (squares > 0 ? (s * s) / squares : 0));
}

/** Which directions rest: the cosine with their earlier selves is at least tau. */
export function atRest(before: IncrementalSvd, after: IncrementalSvd, tau: number): boolean[] {
  const { rows, columns, data } = after.components;
  return Array.from({ length: rows }, (_, i) => {
    let dot = 0;
    for (let j = i * columns; j < (i + 1) * columns; j++) {
      dot += data[j]! * before.components.data[j]!;
    }
    return dot >= tau;
  });
}

/** A layer of which ranks are given out. */
export interface RankedLayer {
  readonly path: string;
  /** Shares of variance, falling. */
  readonly explained: readonly number[];
  /** The first layer with the same input; itself where it is the first. */
  readonly first: string;
}

/**
 * Gives out a budget of ranks to the largest shares of all layers; of equal ones the earlier layer's. Of
 * layers with the same input the first never has the smaller rank.
 */
export function redistributeRanks(
  layers: readonly RankedLayer[],
  budget: number,
): Map<string, number> {
  // First layers stand before those that share with them, as in PEFT.
  const ordered = [
    ...layers.filter(({ path, first }) => path === first),
    ...layers.filter(({ path, first }) => path !== first),
  ];
  const pool = ordered.flatMap(({ path, explained }) =>
    explained.map((share) => ({ path, share })),
  );
  const taken = pool.sort((a, b) => b.share - a.share).slice(0, budget);
  const ranks = new Map(layers.map(({ path }) => [path, 0]));
  for (const { path } of taken) ranks.set(path, ranks.get(path)! + 1);
  for (const { path, first } of ordered) {
    const [own, other] = [ranks.get(path)!, ranks.get(first)!];
    if (other >= own) continue;
    ranks.set(first, own).set(path, other);
  }
  return ranks;
}

/** A layer while its input is looked at. */
interface Watched {
  readonly path: string;
  readonly rank: number;
  /** Directions looked for. */
  most: number;
  first: string;
  svd: IncrementalSvd | undefined;
  rests: readonly boolean[];
}

/** What EVA finds out about the inputs of layers. */
export interface EvaPlan {
  readonly ranks: Readonly<Record<string, number>>;
  /** Shares of variance of each layer's directions, as many as were looked for. */
  readonly explained: Readonly<Record<string, readonly number[]>>;
  /** Rows of A: (rank, in) for each layer with a rank above 0. */
  readonly directions: Readonly<Record<string, Tensor<"float32">>>;
  readonly batchesUsed: number;
  /** Layers whose directions did not rest before the limit of batches. */
  readonly unsettled: readonly string[];
  /** Paths of layers with the same input, the first of each first. */
  readonly shared: readonly (readonly string[])[];
}

/** Groups layers whose inputs are the same numbers in the first batch; directions are then looked for alike. */
function share(layers: readonly Watched[], batch: Readonly<Record<string, Tensor>>): void {
  for (const [i, layer] of layers.entries()) {
    const own = batch[layer.path]!;
    const same = layers.slice(0, i).find(({ path, first }) => {
      return path === first && isSame(batch[path]!, own);
    });
    layer.first = same?.path ?? layer.path;
  }
  for (const layer of layers) {
    const group = layers.filter(({ first }) => first === layer.first);
    layer.most = Math.max(...group.map(({ most }) => most));
  }
}

function isSame(a: Tensor, b: Tensor): boolean {
  if (a === b) return true;
  if (a.size !== b.size || a.shape[1] !== b.shape[1]) return false;
  for (let i = 0; i < a.size; i++) if (a.data[i] !== b.data[i]) return false;
  return true;
}

/**
 * Looks at the training data until the directions of every layer rest.
 * @param wanted rank of each layer by path
 * @throws OptionError when no batch has as many rows as directions are looked for.
 */
export async function evaPlan(
  scene: PrepareScene,
  wanted: ReadonlyMap<string, number>,
  options: Required<Pick<EvaOptions, "rho" | "tau" | "batches" | "whiten">>,
): Promise<EvaPlan> {
  const layers = [...wanted].map(([path, rank]): Watched => {
    const most = Math.min(
      Math.round(rank * options.rho),
      scene.model.targets.get(path)!.inFeatures,
    );
    return { path, rank, most, first: path, svd: undefined, rests: [] };
  });
  const byPath = new Map(layers.map((layer) => [layer.path, layer]));
  const budget = layers.reduce((sum, { rank }) => sum + rank, 0);
  let ranks = new Map(layers.map(({ path, most }) => [path, most]));
  const firsts = (): Watched[] => layers.filter(({ path, first }) => path === first);
  const needs = ({ path, svd, rests }: Watched): boolean => {
    const rank = ranks.get(path)!;
    return !svd || !Array.from({ length: rank }, (_, i) => rests[i]).every(Boolean);
  };
  const ranked = (): RankedLayer[] =>
    layers.map(({ path, first }) => ({
      path,
      first,
      explained: explainedRatios(byPath.get(first)!.svd!),
    }));
  let used = 0;
  while (used < options.batches && firsts().some(needs)) {
    const start = used;
    for await (const batch of scene.inputs(layers.map(({ path }) => path))) {
      if (used === 0) share(layers, batch);
      for (const layer of firsts()) {
        if (!needs(layer)) continue;
        const before = layer.svd;
        layer.svd = incrementalSvd(before, batch[layer.path]!, layer.most);
        if (before && layer.svd && layer.svd !== before) {
          layer.rests = atRest(before, layer.svd, options.tau);
        }
      }
      used++;
      if (firsts().every(({ svd }) => svd)) ranks = redistributeRanks(ranked(), budget);
      const open = firsts().filter(needs).length;
      scene.onProgress?.(
        `EVA: ${used} batches, ${firsts().length - open} of ${firsts().length} inputs at rest`,
      );
      if (open === 0 || used === options.batches) break;
    }
    const unseen = firsts().find(({ svd }) => !svd);
    if (unseen) {
      throw new OptionError(
        `eva: no batch has ${unseen.most} rows for "${unseen.path}", as many as directions are looked for — larger batches, a lower rank or a lower rho would do.`,
        { batches: used - start },
      );
    }
  }
  const directions: Record<string, Tensor<"float32">> = {};
  for (const { path, first } of layers) {
    const rank = ranks.get(path)!;
    if (rank > 0) directions[path] = rowsOfA(byPath.get(first)!.svd!, rank, options.whiten);
  }
  return {
    ranks: Object.fromEntries(ranks),
    explained: Object.fromEntries(ranked().map(({ path, explained }) => [path, explained])),
    directions,
    batchesUsed: used,
    unsettled: firsts()
      .filter(needs)
      .map(({ path }) => path),
    shared: firsts()
      .map(({ path }) => layers.filter(({ first }) => first === path).map((layer) => layer.path))
      .filter((group) => group.length > 1),
  };
}

/** A: the first directions, divided by the root of their singular value to whiten. */
function rowsOfA(svd: IncrementalSvd, rank: number, whiten: boolean): Tensor<"float32"> {
  const { columns, data } = svd.components;
  const numbers = new Float32Array(rank * columns);
  for (let i = 0; i < rank; i++) {
    const root = whiten ? Math.sqrt(svd.singularValues[i]!) : 1;
    for (let j = 0; j < columns; j++) {
      // A direction in which nothing varies stays zero: it has no scale.
      numbers[i * columns + j] = root > 0 ? data[i * columns + j]! / root : 0;
    }
  }
  return new Tensor("float32", [rank, columns], numbers);
}

/** LoRA with EVA's ranks and directions. */
async function initialise(
  scene: PrepareScene,
  options: LoraOptions,
  { rho = 2, tau = 0.99, whiten = false, adjustScaling = true, batches = 256 }: EvaOptions,
): Promise<Initialised> {
  const before = lora(scene.model, options);
  const wanted = new Map([...before.layers].map(([path, { rank }]) => [path, rank]));
  const plan = await evaPlan(scene, wanted, { rho, tau, whiten, batches });
  const rankPattern: Record<string, number> = {};
  const alphaPattern: Record<string, number> = {};
  const targetModules = before.targets.filter((path) => plan.ranks[path]! > 0);
  for (const path of targetModules) {
    const own = before.layers.get(path)!;
    const ratio = plan.ranks[path]! / own.rank;
    const factor = !adjustScaling ? 1 : options.rankStabilized ? Math.sqrt(ratio) : ratio;
    if (plan.ranks[path] !== before.rank) rankPattern[path] = plan.ranks[path]!;
    if (own.alpha * factor !== before.alpha) alphaPattern[path] = own.alpha * factor;
  }
  const rank = before.rank;
  const made = {
    ...options,
    rank,
    alpha: before.alpha,
    targetModules,
    rankPattern,
    alphaPattern,
  } satisfies LoraOptions;
  const params: TensorRecord = {};
  for (const [path, { a, b, layer }] of lora(scene.model, made).layers) {
    params[a] = plan.directions[path]!;
    params[b] = Tensor.zeros([layer.outFeatures, plan.ranks[path]!], "float32");
  }
  const { ranks, explained, batchesUsed, unsettled, shared } = plan;
  const dropped = before.targets.filter((path) => ranks[path] === 0);
  scene.onProgress?.(
    `EVA: ranks from ${Math.min(...Object.values(ranks))} to ${Math.max(...Object.values(ranks))} after ${batchesUsed} batches`,
  );
  return {
    lora: made,
    params,
    report: { ranks, explained, batchesUsed, unsettled, shared, dropped },
  };
}

export const eva: Method<EvaOptions> = defineMethod({
  id: "eva",
  number: 38,
  title: "EVA",
  capability: "adapt",
  summary:
    "LoRA from the directions in which the data's activations vary most, with ranks where they explain most.",
  paper: {
    title: "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation",
    year: 2024,
    url: "https://arxiv.org/abs/2410.07170",
  },
  implementation: "parity",
  claim: "doesNotHold",
  options: {
    rho: {
      type: "number",
      default: 2,
      range: [1, 1000],
      about: "most rank of a layer, as a multiple of the rank; 1 keeps all alike",
    },
    tau: {
      type: "number",
      default: 0.99,
      range: [0, 1],
      about: "cosine with its earlier self from which on a direction rests",
    },
    whiten: {
      type: "flag",
      default: false,
      about: "divide each direction by the root of its singular value",
    },
    adjustScaling: {
      type: "flag",
      default: true,
      about: "keep alpha / rank in layers whose rank changes",
    },
    batches: {
      type: "integer",
      default: 256,
      range: [2, 100_000],
      about: "batches that are looked at, at most",
    },
  },
  roles: { initialiser: { readsData: true, initialise } },
  tiny: { batches: 8, tau: 0.5 },
});
