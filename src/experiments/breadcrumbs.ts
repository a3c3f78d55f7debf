/**
 * Model Breadcrumbs against task arithmetic and its relatives: from two to eight fine-tunes of one small vision
 * transformer become one, with settings that were chosen on pairs of tasks and kept.
 *
 * A cell is an arm, a base's seed and a number of tasks. Normalised accuracy is the merged model's over that of
 * each task's own fine-tune, averaged over tasks and subsets of tasks. `normalised` has the settings frozen from
 * two tasks, `oracle` those that are best on validation pictures at this number of tasks. Every arm but plain
 * averaging chooses its scale, and its masks where it has any, by the same pictures.
 */

import {
  type Kept,
  keepBand,
  keepByChance,
  keepLargest,
} from "../methods/merge/shared/sparsify.ts";
import { combine } from "../methods/merge/shared/task-vectors.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Arm, Budget, Cell, Experiment, ExperimentContext, Metrics } from "./experiment.ts";
import {
  type BodySizes,
  type Family,
  familyOf,
  Judge,
  type MergeTask,
  openTasks,
  type Pictures,
  picturesOf,
} from "./merge-tasks.ts";

interface Sizes extends BodySizes {
  /** Numbers of tasks that are merged. */
  readonly counts: readonly number[];
  /** Subsets of tasks that settings are chosen on, at two tasks and at more. */
  readonly pairs: number;
  /** Subsets of tasks that judge. */
  readonly subsets: number;
  readonly alphas: readonly number[];
  readonly bottoms: readonly number[];
  readonly tops: readonly number[];
}

const sizes: Readonly<Record<Budget, Sizes>> = {
  full: {
    ...{ dModel: 64, nLayers: 3, baseSteps: 1200, images: 2500, epochs: 3, learningRate: 3e-4 },
    ...{ validation: 50, test: 250, counts: [2, 3, 4, 5, 6, 7, 8], pairs: 4, subsets: 3 },
    alphas: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1],
    bottoms: [0, 0.5, 0.7, 0.85, 0.9, 0.95],
    tops: [0.03, 0.01, 0.005, 0],
  },
  quick: {
    ...{ dModel: 32, nLayers: 2, baseSteps: 120, images: 160, epochs: 3, learningRate: 5e-4 },
    ...{ validation: 50, test: 100, counts: [2, 8], pairs: 2, subsets: 2 },
    alphas: [0.3, 1],
    bottoms: [0, 0.9],
    tops: [0.01, 0],
  },
};

/** A way to mask: what is left out below and above, or what share is kept. */
interface Mask {
  readonly bottom?: number;
  readonly top?: number;
  readonly density?: number;
}

type ArmName = keyof typeof about;

const about = {
  average: "the mean of the fine-tunes' weights",
  "task-arithmetic": "the sum of all changes, scaled",
  ties: "TIES: large changes of the sign that wins, averaged and scaled",
  dare: "DARE: changes kept by chance and scaled up, summed and scaled",
  "random-mask": "changes kept by chance at the breadcrumbs' density, summed and scaled",
  "only-bottom": "the smallest changes left out",
  "only-top": "the largest changes left out",
  breadcrumbs: "the smallest and the largest changes left out",
} as const;

/** Every pair of what is left out below and above; one of them, or both, may be nothing. */
function bandsOf({ bottoms, tops }: Sizes): readonly Required<Pick<Mask, "bottom" | "top">>[] {
  return bottoms.flatMap((bottom) => tops.map((top) => ({ bottom, top })));
}

/** What an arm chooses among; those with masks by magnitude share out the bands. */
function masksOf(arm: ArmName, size: Sizes, density: number): readonly Mask[] {
  const bands = bandsOf(size);
  switch (arm) {
    case "average":
    case "task-arithmetic":
      return [{ bottom: 0, top: 0 }];
    case "ties":
      return [{ density: 0.1 }, { density: 0.2 }, { density: 0.3 }];
    case "dare":
      return [{ density: 0.1 }, { density: 0.2 }, { density: 0.5 }];
    case "random-mask":
      return [{ density }];
    case "only-bottom":
      return bands.filter(({ bottom, top }) => bottom > 0 && top === 0);
    case "only-top":
      return bands.filter(({ bottom, top }) => bottom === 0 && top > 0);
    case "breadcrumbs":
      return bands.filter(({ bottom, top }) => bottom > 0 && top > 0);
  }
}

/** Arms whose grids are parts of one. */
const byMagnitude: ReadonlySet<string> = new Set([
  "task-arithmetic",
  "only-bottom",
  "only-top",
  "breadcrumbs",
]);

/** The body's parameters one after another, and where each lies. */
class Flat {
  readonly names: readonly string[];
  readonly #like: TensorRecord;
  readonly size: number;

  constructor(like: TensorRecord) {
    this.#like = like;
    this.names = Object.keys(like).sort();
    this.size = this.names.reduce((sum, name) => sum + like[name]!.size, 0);
  }

  from(record: TensorRecord): Float32Array<ArrayBuffer> {
    const flat = new Float32Array(this.size);
    let at = 0;
    for (const name of this.names) {
      const { data, size } = record[name]!;
      flat.set(data as Float32Array, at);
      at += size;
    }
    return flat;
  }

  /** base + alpha · direction, as parameters. */
  to(base: Float32Array, direction: Float32Array, alpha: number): TensorRecord {
    const moved = new Float32Array(this.size);
    for (let i = 0; i < this.size; i++) moved[i] = base[i]! + alpha * direction[i]!;
    const record: TensorRecord = {};
    this.each((name, start, size) => {
      const { shape } = this.#like[name]!;
      record[name] = new Tensor("float32", shape, moved.slice(start, start + size));
    });
    return record;
  }

  each(visit: (name: string, start: number, size: number) => void): void {
    let at = 0;
    for (const name of this.names) {
      const { size } = this.#like[name]!;
      visit(name, at, size);
      at += size;
    }
  }
}

/** What is open of one seed. */
interface Opened {
  readonly family: Family;
  readonly pictures: Pictures;
  readonly judge: Judge;
  readonly flat: Flat;
  readonly base: Float32Array;
  readonly tuned: readonly Float32Array[];
  /** Of each task's own fine-tune, on validation and test pictures. */
  readonly own: { readonly validation: readonly number[]; readonly test: readonly number[] };
  readonly facts: { readonly fineTuned: number; readonly gain: number; readonly barrier: number };
}

interface Shared {
  readonly tasks: readonly MergeTask[];
  readonly seeds: Map<number, Promise<Opened>>;
}

async function openSeed(seed: number, shared: Shared, context: ExperimentContext): Promise<Opened> {
  const size = sizes[context.budget];
  const pictures = picturesOf(shared.tasks, size, seed);
  const family = await familyOf(context, pictures, size, seed);
  const judge = await Judge.open(context, family.model, family.base);
  const flat = new Flat(family.base);
  const [base, tuned] = [flat.from(family.base), family.tuned.map((body) => flat.from(body))];
  const own = { validation: [] as number[], test: [] as number[] };
  let [before, barrier] = [0, 0];
  for (const [task, head] of family.heads.entries()) {
    const [held, judged] = [pictures.validation[task]!, pictures.test[task]!];
    own.validation.push((await judge.scores(family.tuned[task]!, head, held)).accuracy);
    const start = await judge.scores(family.base, head, judged);
    const end = await judge.scores(family.tuned[task]!, head, judged);
    const change = tuned[task]!.map((value, i) => value - base[i]!);
    const middle = await judge.scores(flat.to(base, change, 0.5), head, judged);
    own.test.push(end.accuracy);
    before += start.accuracy;
    barrier += middle.loss - (start.loss + end.loss) / 2;
  }
  const count = family.heads.length;
  const fineTuned = own.test.reduce((a, b) => a + b, 0) / count;
  const facts = { fineTuned, gain: fineTuned - before / count, barrier: barrier / count };
  return { family, pictures, judge, flat, base, tuned, own, facts };
}

function seedOf(cell: Cell, shared: Shared, context: ExperimentContext): Promise<Opened> {
  const found = shared.seeds.get(cell.seed) ?? openSeed(cell.seed, shared, context);
  shared.seeds.set(cell.seed, found);
  return found;
}

/** Subsets of tasks, each once where there are enough. */
function subsetsOf(count: number, of: number, wanted: number, rng: Rng): readonly number[][] {
  if (count === of) return [Array.from({ length: of }, (_, i) => i)];
  const seen = new Map<string, number[]>();
  for (let tries = 0; tries < 1000 && seen.size < wanted; tries++) {
    const chosen = [...rng.permutation(of).subarray(0, count)].sort((a, b) => a - b);
    seen.set(chosen.join(), chosen);
  }
  return [...seen.values()];
}

/** Kept entries of one tensor of a task's change, by the arm's mask. */
function keptOf(arm: ArmName, mask: Mask, model: Float32Array, base: Float32Array, rng: Rng): Kept {
  const change = { model, base };
  const size = model.length;
  if (arm === "ties") return keepLargest(change, mask.density!);
  if (arm === "dare") return keepByChance(size, mask.density!, true, rng);
  if (arm === "random-mask") return keepByChance(size, mask.density!, false, rng);
  const { bottom = 0, top = 0 } = mask;
  return keepBand(change, size, [Math.floor(top * size), size - Math.floor(bottom * size)]);
}

/** What is added to the base, before it is scaled, for subsets of tasks. */
function directionsOf(
  arm: ArmName,
  mask: Mask,
  subsets: readonly (readonly number[])[],
  { flat, base, tuned }: Opened,
  seed: number,
): Float32Array[] {
  const directions = subsets.map(() => new Float32Array(flat.size));
  const isTies = arm === "ties";
  const how = { hasConsensus: isTies, normalize: isTies, lambda: 1 };
  flat.each((name, start, size) => {
    const end = start + size;
    const zero = base.subarray(start, end);
    const models = tuned.map((model) => model.subarray(start, end));
    const kept = models.map((model, task) =>
      keptOf(arm, mask, model, zero, new Rng(seed).fold("mask", task, name)),
    );
    for (const [i, subset] of subsets.entries()) {
      const merged = combine(
        zero,
        subset.map((task) => models[task]!),
        subset.map((task) => kept[task]),
        subset.map(() => 1),
        how,
      );
      for (let k = 0; k < size; k++) directions[i]![start + k] = merged[k]! - zero[k]!;
    }
  });
  return directions;
}

/** Normalised and plain accuracy of merged weights on the tasks of a subset. */
async function judged(
  opened: Opened,
  kind: "validation" | "test",
  subset: readonly number[],
  direction: Float32Array,
  alpha: number,
): Promise<{ readonly normalised: number; readonly accuracy: number }> {
  const { flat, base, judge, family, pictures, own } = opened;
  const body = flat.to(base, direction, alpha);
  let [normalised, accuracy] = [0, 0];
  for (const task of subset) {
    const found = await judge.scores(body, family.heads[task]!, pictures[kind][task]!);
    accuracy += found.accuracy / subset.length;
    normalised += found.accuracy / own[kind][task]! / subset.length;
  }
  return { normalised, accuracy };
}

/** Normalised validation accuracy of every mask and scale at every number of tasks: (counts, masks, alphas). */
function gridOf(
  arm: ArmName,
  masks: readonly Mask[],
  opened: Opened,
  cell: Cell,
  context: ExperimentContext,
): Promise<Float32Array> {
  const size = sizes[context.budget];
  const { counts, alphas, pairs } = size;
  // Arms with masks by magnitude read one grid.
  const name = byMagnitude.has(arm) ? "bands" : arm;
  const key = { what: "grid", name, seed: cell.seed, masks: JSON.stringify(masks), ...size };
  const make = async (): Promise<TensorRecord> => {
    const grid = new Float32Array(counts.length * masks.length * alphas.length);
    const rng = new Rng(cell.seed).fold("tuning subsets");
    const wanted = counts.map((count) =>
      subsetsOf(count, opened.tuned.length, count === 2 ? pairs : 1, rng.fold(count)),
    );
    for (const [m, mask] of masks.entries()) {
      context.progress(`choosing settings, ${m + 1} of ${masks.length}`);
      for (const [c, subsets] of wanted.entries()) {
        const directions = directionsOf(arm, mask, subsets, opened, cell.seed);
        for (const [a, alpha] of alphas.entries()) {
          let total = 0;
          for (const [i, subset] of subsets.entries()) {
            const found = await judged(opened, "validation", subset, directions[i]!, alpha);
            total += found.normalised / subsets.length;
          }
          grid[(c * masks.length + m) * alphas.length + a] = total;
        }
      }
    }
    return { grid: new Tensor("float32", [counts.length, masks.length, alphas.length], grid) };
  };
  const flatKey = Object.fromEntries(
    Object.entries(key).map(([field, value]) => [
      field,
      typeof value === "object" ? JSON.stringify(value) : value,
    ]),
  );
  return context
    .remember(flatKey as Readonly<Record<string, string | number>>, make)
    .then(({ grid }) => grid!.data as Float32Array);
}

interface Choice {
  readonly mask: Mask;
  readonly alpha: number;
}

/** The best settings at a number of tasks; the earlier of equal ones. */
function bestOf(
  grid: Float32Array,
  masks: readonly Mask[],
  allowed: readonly Mask[],
  alphas: readonly number[],
  at: number,
): Choice {
  let best: (Choice & { readonly value: number }) | undefined;
  for (const [m, mask] of masks.entries()) {
    if (!allowed.some((one) => JSON.stringify(one) === JSON.stringify(mask))) continue;
    for (const [a, alpha] of alphas.entries()) {
      const value = grid[(at * masks.length + m) * alphas.length + a]!;
      if (!best || value > best.value) best = { mask, alpha, value };
    }
  }
  return best!;
}

/** Share of the changes that a mask keeps. */
function shareOf({ bottom = 0, top = 0, density }: Mask): number {
  return density ?? 1 - bottom - top;
}

async function run(cell: Cell, shared: Shared, context: ExperimentContext): Promise<Metrics> {
  const size = sizes[context.budget];
  const arm = cell.arm as ArmName;
  const count = Number(cell.task.slice(1));
  const at = size.counts.indexOf(count);
  const opened = await seedOf(cell, shared, context);
  const bands = bandsOf(size);
  let [frozen, oracle]: [Choice, Choice] = [
    { mask: { bottom: 0, top: 0 }, alpha: 1 / count },
    { mask: { bottom: 0, top: 0 }, alpha: 1 / count },
  ];
  if (arm !== "average") {
    let density = 1;
    if (arm === "random-mask") {
      const grid = await gridOf("breadcrumbs", bands, opened, cell, context);
      const crumbs = masksOf("breadcrumbs", size, 1);
      density = shareOf(bestOf(grid, bands, crumbs, size.alphas, 0).mask);
    }
    const allowed = masksOf(arm, size, density);
    const masks = byMagnitude.has(arm) ? bands : allowed;
    const grid = await gridOf(arm, masks, opened, cell, context);
    frozen = bestOf(grid, masks, allowed, size.alphas, 0);
    oracle = bestOf(grid, masks, allowed, size.alphas, at);
  }
  const rng = new Rng(cell.seed).fold("test subsets", count);
  const subsets = subsetsOf(count, opened.tuned.length, size.subsets, rng);
  const score = async ({ mask, alpha }: Choice) => {
    const directions = directionsOf(arm, mask, subsets, opened, cell.seed);
    let [normalised, accuracy] = [0, 0];
    for (const [i, subset] of subsets.entries()) {
      const found = await judged(opened, "test", subset, directions[i]!, alpha);
      normalised += found.normalised / subsets.length;
      accuracy += found.accuracy / subsets.length;
    }
    return { normalised, accuracy };
  };
  const kept = await score(frozen);
  const isSame = JSON.stringify(oracle) === JSON.stringify(frozen);
  const best = isSame ? kept : await score(oracle);
  return {
    normalised: kept.normalised,
    accuracy: kept.accuracy,
    oracle: best.normalised,
    gap: best.normalised - kept.normalised,
    alpha: frozen.alpha,
    oracleAlpha: oracle.alpha,
    kept: shareOf(frozen.mask),
    top: frozen.mask.top ?? 0,
    ...opened.facts,
  };
}

export const experiment: Experiment<Shared> = {
  id: "breadcrumbs",
  title: "Model Breadcrumbs: merging two to eight fine-tunes",
  version: "1",
  metrics: {
    normalised: "accuracy over that of each task's fine-tune, settings frozen from two tasks",
    accuracy: "share of right answers, settings frozen from two tasks",
    oracle: "as normalised, with the settings that are best on validation at this number of tasks",
    gap: "oracle less normalised",
    alpha: "scale, frozen",
    oracleAlpha: "scale that is best at this number of tasks",
    kept: "share of the changes that is kept, frozen",
    top: "share of the largest changes that is left out, frozen",
    fineTuned: "mean accuracy of the fine-tunes on their own tasks",
    gain: "fineTuned less the base's accuracy with the same heads",
    barrier:
      "loss half way between base and fine-tune less the mean of both ends' losses, in nats, mean over tasks",
  },
  needs: { data: ["mnist", "fashion-mnist", "digits", "glyphs"] },
  plan: (budget) => ({
    arms: Object.entries(about).map(
      ([name, text]): Arm => ({ name, about: text, cost: { steps: 0, examples: 0 } }),
    ),
    tasks: sizes[budget].counts.map((count) => `t${count}`),
    ...(budget === "quick" && { seeds: 1 }),
  }),
  open: async (context) => ({ tasks: await openTasks(context), seeds: new Map() }),
  run,
  close: async ({ seeds }) => {
    for (const opened of seeds.values()) await (await opened).judge.release();
  },
};
