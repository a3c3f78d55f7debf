/**
 * Hydra against single branches and other light ways to fine-tune, at equal numbers of trained parameters.
 *
 * Kim et al., arXiv:2309.06922. A vision transformer learns 32 classes of textured shapes; then each arm learns
 * small tasks from few pictures. Every arm has the same new head, batches and steps; rate and scale are chosen
 * from the same candidates on a fifth of the training pictures.
 */
import type { Adapter } from "../adapters/adapter.ts";
import { lora } from "../adapters/lora.ts";
import { withModules } from "../adapters/saved-modules.ts";
import { bindHydra, branchSubspaceReport, outputLayers } from "../methods/adapt/hydra.ts";
import { Vit } from "../models/vit.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import type { Trainee } from "../train/program.ts";
import { withAdapter } from "../train/trainee.ts";
import { type VitBase, vitBase } from "./bases/vit.ts";
import { bottleneck } from "./bottleneck.ts";
import { asColour, type ImageSet, resized, sampleImages, splitImages } from "./data/image-set.ts";
import { loadMnist } from "./data/mnist.ts";
import type { Arm, Budget, Experiment, ExperimentContext, Metrics } from "./experiment.ts";
import { drawTask, loadBrightShapes } from "./shape-tasks.ts";
import { accuracy, answers, pixelClassification, pixelSet, train } from "./vision.ts";

const sizes = {
  full: { steps: 80, batchSize: 32, images: 400, test: 600 },
  quick: { steps: 8, batchSize: 16, images: 60, test: 60 },
} as const;

const arms: Readonly<Record<string, string>> = {
  linear: "the head alone",
  bitfit: "head and biases",
  full: "all parameters",
  lora: "LoRA, rank 8: parallel branches alone",
  seqlora: "sequential branches alone, rank 14",
  adapter: "sequential bottlenecks of 14 units",
  adaptformer: "bottlenecks of 28 units beside the feed-forward layers",
  hydra: "both branches, ranks 4 and 7",
};
const withScale = ["lora", "seqlora", "adapter", "adaptformer", "hydra"];

/** Directions of a weight that count as its main ones. */
const topDirections = 8;

interface TaskData {
  readonly train: ImageSet;
  /** A fifth of the training pictures, for tuning alone. */
  readonly valid: ImageSet;
  readonly test: ImageSet;
}

interface Shared {
  readonly base: VitBase;
  readonly tasks: Readonly<Record<string, TaskData>>;
}

/** The base's body under a new head for a task's classes. */
function modelFor(
  { model, params }: VitBase,
  classes: readonly string[],
  seed: number,
): { readonly model: Vit; readonly params: TensorRecord } {
  const made = withLabels(model, classes);
  const fresh = made.init(new Rng(seed).fold("head")).params;
  const kept = Object.keys(fresh).map((path) => [
    path,
    path.startsWith("classifier.") ? fresh[path]! : params[path]!,
  ]);
  return { model: made, params: Object.fromEntries(kept) };
}

function withLabels(model: Vit, labels: readonly string[]): Vit {
  const { config, sizes: own } = model;
  const number = (name: string): number => config[name] as number;
  const [height, width] = own.imageSize;
  const patch = number("patch_size");
  return new Vit({
    dModel: own.dModel,
    nLayers: number("num_hidden_layers"),
    nHeads: number("num_attention_heads"),
    dFeedForward: number("intermediate_size"),
    imageSize: [height, width],
    patchSize: [patch, patch],
    channels: own.channels,
    head: { task: "sequence-classification", labels, problem: "single_label_classification" },
  });
}

function adapterOf(arm: string, model: Vit, scale: number): Adapter {
  const outputs = outputLayers(model);
  switch (arm) {
    case "lora":
      return lora(model, { rank: 8, alpha: 8 * scale, targetModules: outputs });
    case "seqlora":
      return bindHydra(model, { branches: "sequential", seqRank: 14, bias: false, scale });
    case "adapter":
      return bottleneck(model, { form: "sequential", rank: 14, scale, outputs });
    case "adaptformer":
      return bottleneck(model, {
        form: "parallel",
        rank: 28,
        scale,
        outputs: outputs.filter((path) => !path.includes("attention")),
        inputOf: (path) => path.replace("output.dense", "intermediate.dense"),
      });
    default:
      return bindHydra(model, { rank: 4, seqRank: 7, bias: false, scale });
  }
}

/** What an arm trains. */
function traineeFor(
  arm: string,
  model: Vit,
  params: TensorRecord,
  scale: number,
  seed: number,
): { readonly trainee: Trainee<Vit>; readonly adapter?: Adapter } {
  const objective = pixelClassification(model) as NonNullable<Trainee["objective"]>;
  if (!withScale.includes(arm)) {
    const isTrained = (path: string): boolean =>
      arm === "full" ||
      path.startsWith("classifier.") ||
      (arm === "bitfit" && path.endsWith(".bias"));
    const pick = (wanted: boolean): TensorRecord =>
      Object.fromEntries(Object.entries(params).filter(([path]) => isTrained(path) === wanted));
    return { trainee: { model, objective, trained: pick(true), frozen: pick(false) } };
  }
  const adapter = adapterOf(arm, model, scale);
  const whole = withModules(adapter, model, ["classifier"], { params });
  const loaded = { adapter: whole, params: whole.init(new Rng(seed).fold("adapter")) };
  return { trainee: { model, objective, ...withAdapter(model, params, loaded) }, adapter: whole };
}

/** What is told of Hydra's branches, and of how exactly an adapter merges. */
async function inspect(
  cell: { readonly arm: string; readonly scale: number },
  adapter: Adapter,
  trainee: Trainee<Vit>,
  base: TensorRecord,
  test: ImageSet,
  { backend, signal }: ExperimentContext,
): Promise<Record<string, number>> {
  if (adapter.mergeable !== "exact") return {};
  const { model, objective } = trainee;
  const merged = { ...base, ...adapter.merge(base, trainee.trained) };
  const plain = { model, objective: objective!, trained: merged, frozen: {} };
  const [one, two] = [
    await answers(trainee, test, backend, { signal }),
    await answers(plain, test, backend, { signal }),
  ];
  const mergeGap = one.logits.reduce(
    (most, x, i) => Math.max(most, Math.abs(x - two.logits[i]!)),
    0,
  );
  if (cell.arm !== "hydra") return { mergeGap };
  const own = bindHydra(model, { rank: 4, seqRank: 7, bias: false, scale: cell.scale });
  const report = branchSubspaceReport(own, base, trainee.trained, topDirections);
  const mean = (of: (one: (typeof report)[number]) => number): number =>
    report.reduce((sum, layer) => sum + of(layer), 0) / report.length;
  return {
    mergeGap,
    parallelShare: mean(({ parallel }) => parallel),
    sequentialShare: mean(({ sequential }) => sequential),
    randomShare: mean(({ random }) => random),
  };
}

export const experiment: Experiment<Shared> = {
  id: "hydra",
  title: "Hydra",
  version: "1",
  metrics: {
    accuracy: "share of right answers on test pictures",
    validAccuracy: "the same on a fifth of the training pictures, which tuning reads",
    parameters: "trained numbers, the head's left out",
    finalLoss: "mean training loss of the last ten steps, nats",
    mergeGap: "largest difference of a logit after merging",
    parallelShare: "share of the parallel branch's change in the weight's first 8 directions",
    sequentialShare: "the same of the sequential branch",
    randomShare: "the same of a random change",
  },
  needs: { data: ["mnist"], bases: ["shapesVit"] },
  plan: (budget: Budget) => {
    const { steps, batchSize } = sizes[budget];
    const isQuick = budget === "quick";
    const rates = isQuick ? [3e-3] : [1e-3, 3e-3];
    const scales = isQuick ? [1] : [0.1, 1, 4];
    const grid = Object.keys(arms).map((name) => [
      name,
      rates.flatMap((learningRate) =>
        withScale.includes(name)
          ? scales.map((scale) => ({ learningRate, scale }))
          : [{ learningRate, scale: 1 }],
      ),
    ]);
    const cost = { steps, examples: steps * batchSize };
    return {
      arms: Object.entries(arms).map(([name, about]): Arm => ({ name, about, cost })),
      tasks: ["digits", "counting", "orientation", "position"],
      tuning: {
        metric: "validAccuracy",
        direction: "higher",
        tasks: ["digits", "counting"],
        grid: Object.fromEntries(grid),
      },
      ...(isQuick && { seeds: 1 }),
    };
  },
  open: async (context) => {
    const isQuick = context.budget === "quick";
    const { images, test } = sizes[context.budget];
    const data = loadBrightShapes(
      context,
      isQuick ? { train: 320, test: 160 } : { train: 6000, test: 1000 },
    );
    const base = await vitBase(context, "shapesVit", data, {
      dModel: 64,
      nLayers: 4,
      patch: 8,
      learningRate: 1e-3,
      ...(isQuick ? { images: 320, epochs: 3 } : { images: 6000, epochs: 14 }),
    });
    const rng = new Rng(27);
    const mnist = await loadMnist(context);
    // Bright on dark, as the shapes are.
    const digits = (set: ImageSet, count: number, part: string): ImageSet =>
      asColour(resized(sampleImages(set, count, rng.fold("digits", part)), 32, 32));
    const split = (name: string, train: ImageSet, judged: ImageSet): TaskData => {
      const [own, valid] = splitImages(train, Math.round(0.8 * train.count), rng.fold(name));
      return { train: own, valid, test: judged };
    };
    const drawn = (["counting", "orientation", "position"] as const).map((task) => [
      task,
      split(
        task,
        drawTask(task, images, rng.fold(task, "train")),
        drawTask(task, test, rng.fold(task, "test")),
      ),
    ]);
    return {
      base,
      tasks: {
        digits: split(
          "digits",
          digits(mnist.train, images, "train"),
          digits(mnist.test, test, "test"),
        ),
        ...Object.fromEntries(drawn),
      },
    };
  },
  run: async (cell, { base, tasks }, context): Promise<Metrics> => {
    const { steps, batchSize } = sizes[context.budget];
    const { backend, signal } = context;
    const task = tasks[cell.task]!;
    const scale = (cell.settings["scale"] as number | undefined) ?? 1;
    const { model, params } = modelFor(base, task.train.classes, cell.seed);
    const made = traineeFor(cell.arm, model, params, scale, cell.seed);
    const result = await train(context, made.trainee, pixelSet(task.train), {
      steps,
      batchSize,
      learningRate: cell.settings["learningRate"] as number,
      schedule: "cosine",
      warmup: 0.1,
      weightDecay: 1e-4,
      seed: cell.seed,
    });
    const done = { ...made.trainee, trained: result.params };
    const last = result.losses.slice(-10);
    const parameters = Object.entries(result.params)
      .filter(([path]) => !path.includes("classifier."))
      .reduce((sum, [, { size }]) => sum + size, 0);
    return {
      accuracy: await accuracy(done, task.test, backend, { signal }),
      validAccuracy: await accuracy(done, task.valid, backend, { signal }),
      parameters,
      finalLoss: last.reduce((sum, x) => sum + x, 0) / last.length,
      ...(made.adapter &&
        cell.phase === "verdict" &&
        (await inspect({ arm: cell.arm, scale }, made.adapter, done, params, task.test, context))),
    };
  },
};
