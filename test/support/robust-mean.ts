/**
 * A small real experiment for tests of the runner: which estimate of a middle stands outliers? Each cell draws
 * samples of which one in ten is wild, and measures how far an estimate lies from the truth.
 */
import { StateError } from "../../src/errors.ts";
import type { Cell, Experiment, Metrics, Plan } from "../../src/experiments/experiment.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

interface Shared {
  readonly wild: number;
}

const estimators: Readonly<Record<string, (sorted: Float64Array, cell: Cell) => number>> = {
  mean: (x) => x.reduce((a, b) => a + b, 0) / x.length,
  median: (x) => (x[Math.floor((x.length - 1) / 2)]! + x[Math.ceil((x.length - 1) / 2)]!) / 2,
  trimmed: (x, { settings }) => {
    const cut = Math.floor(Number(settings["trim"]) * x.length);
    if (2 * cut >= x.length) throw new StateError("robust-mean: nothing is left after trimming.");
    return x.slice(cut, x.length - cut).reduce((a, b) => a + b, 0) / (x.length - 2 * cut);
  },
};

const cost = { steps: 0, examples: 200 };

export const experiment: Experiment<Shared> = {
  id: "robust-mean",
  title: "Robust means",
  version: "1",
  metrics: { error: "distance from the true middle, in standard deviations", samples: "a count" },
  plan: (budget): Plan => ({
    arms: [
      { name: "mean", about: "the arithmetic mean", cost },
      { name: "median", about: "the middle value", cost },
      { name: "trimmed", about: "the mean without both ends", cost },
    ],
    tasks: ["few", "many"],
    tuning: {
      metric: "error",
      direction: "lower",
      // The first fails, the second trims too little.
      grid: { trimmed: [{ trim: 0.5 }, { trim: 0.01 }, { trim: 0.2 }] },
    },
    ...(budget === "quick" && { seeds: 2 }),
  }),
  open: async (context) => {
    context.recordData({
      name: "samples",
      source: "made by code",
      checksum: "0",
      licence: "made by this package",
    });
    return { wild: 8 };
  },
  run: async (cell, { wild }, context): Promise<Metrics> => {
    context.signal.throwIfAborted();
    // Every arm sees the same samples: the stream is the seed's and the task's.
    const rng = new Rng(cell.seed).fold(cell.task);
    const count = cell.task === "few" ? 40 : 200;
    const { x } = await context.remember({ seed: cell.seed, task: cell.task }, async () => ({
      x: new Tensor(
        "float32",
        [count],
        Float32Array.from({ length: count }, () =>
          rng.uniform() < 0.1 ? wild + rng.normal() : rng.normal(),
        ),
      ),
    }));
    const sorted = Float64Array.from(x!.numbers()).sort();
    return { error: Math.abs(estimators[cell.arm]!(sorted, cell)), samples: count };
  },
};

/** Its claim; tests change parts of it. */
export const claim: Readonly<Record<string, unknown>> & {
  readonly seeds: readonly number[];
  readonly tuningSeeds: readonly number[];
} = {
  id: "robust-mean",
  claim: "Trimming makes the mean stand outliers.",
  metric: "error",
  direction: "lower",
  minimumEffect: 0.2,
  test: { kind: "pairedT", p: 0.05 },
  predicted: {
    says: "The trimmed mean errs less than the mean by 0.2.",
    rules: [{ left: "trimmed", right: "mean" }],
  },
  falsifier: {
    says: "The mean errs less.",
    rules: [{ left: "mean", right: "trimmed", atLeast: 0, test: { kind: "standardErrors", k: 1 } }],
  },
  headroom: { says: "The mean errs at all.", rules: [{ arm: "mean", atLeast: 0.1 }] },
  seeds: [1, 2, 3, 4],
  tuningSeeds: [101],
  budget: { minutes: 1 },
};
