/**
 * EVA against other first numbers of LoRA, on tasks that the base was not trained for.
 *
 * Paischer et al. 2024, arXiv:2410.07170. Every arm of a task and a seed has the same new head, the same batches
 * and the same steps; rates are chosen from the same three. Full fine-tuning stands beside, at all parameters.
 */
import type { PrepareScene } from "../adapters/adapter.ts";
import { type LoraOptions, lora } from "../adapters/lora.ts";
import { withModules } from "../adapters/saved-modules.ts";
import type { AnyExampleSet } from "../data/set.ts";
import { type ClassExample, taskSet } from "../data/task-examples.ts";
import { eva } from "../methods/adapt/eva.ts";
import { takenFromBase } from "../methods/initialise.ts";
import { headedModel } from "../models/headed.ts";
import type { EncoderModel, PretrainedModel, VisionModel } from "../models/model.ts";
import type { Module, TensorRecord } from "../nn/module.ts";
import { matrixOf, multiply, qr, transpose } from "../tensor/linalg/index.ts";
import { Rng } from "../tensor/rng.ts";
import { scoreExamples } from "../train/finetune.ts";
import type { AnyObjective } from "../train/objective.ts";
import { prepareScene } from "../train/prepare.ts";
import type { Trainee } from "../train/program.ts";
import { sequenceClassification } from "../train/tasks/sequence-classification.ts";
import { withAdapter } from "../train/trainee.ts";
import { brownLm, tokensOf } from "./bases/language-model.ts";
import { fashionVit } from "./bases/vit.ts";
import { genreNames, ofGenres, splitBrown, textOf } from "./data/brown.ts";
import { type ImageSet, inverted, rotated, sampleImages } from "./data/image-set.ts";
import { loadMnist } from "./data/mnist.ts";
import type { Arm, Budget, CellResult, Experiment, Outcome } from "./experiment.ts";
import { windowExamples } from "./language.ts";
import { type LoraStart, loraStart } from "./lora-starts.ts";
import { pixelClassification, pixelSet, train } from "./vision.ts";

const sizes = {
  full: { steps: 100, batchSize: 32, images: 1000, test: 1000, windows: 60, rank: 4, batches: 48 },
  quick: { steps: 8, batchSize: 16, images: 64, test: 64, windows: 8, rank: 2, batches: 6 },
} as const;

const arms: Readonly<Record<string, string>> = {
  "lora-random": "LoRA from random A and zero B",
  pissa: "LoRA from the weight's first singular directions",
  olora: "LoRA from the weight's QR decomposition",
  "lora-ga": "LoRA from the singular directions of the first gradient",
  "eva-rho1": "EVA with all ranks alike (rho 1)",
  eva: "EVA with ranks where they explain most (rho 2)",
  full: "all parameters",
};

/** Genres whose files the language model was not trained on. */
const newGenres = "jklmnpr";

interface Task {
  readonly model: PretrainedModel;
  /** The base without its head. */
  readonly params: TensorRecord;
  readonly head: string;
  readonly objective: AnyObjective;
  readonly train: AnyExampleSet;
  readonly test: AnyExampleSet;
}

type Shared = Readonly<Record<string, Task>>;

const vision = (
  base: { readonly model: VisionModel; readonly params: TensorRecord },
  [trained, judged]: readonly [ImageSet, ImageSet],
): Task => ({
  model: base.model,
  params: base.params,
  head: "classifier",
  objective: pixelClassification(base.model) as AnyObjective,
  train: pixelSet(trained),
  test: pixelSet(judged),
});

/** The task's weights with a new head, the same for all arms. */
function withNewHead({ model, params, head }: Task, seed: number): TensorRecord {
  const fresh = model.init(new Rng(seed).fold("head")).params;
  const isHead = (path: string): boolean => path.startsWith(`${head}.`);
  return Object.fromEntries(
    Object.entries(params).map(([path, tensor]) => [path, isHead(path) ? fresh[path]! : tensor]),
  );
}

/** Mean over layers of the share of variance that lies in the span of A, on the first batch. */
async function explainedBy(
  scene: PrepareScene,
  options: LoraOptions,
  params: TensorRecord,
): Promise<number> {
  const { layers } = lora(scene.model, options);
  for await (const batch of scene.inputs([...layers.keys()])) {
    const shares = [...layers].map(([path, { a }]) => {
      const rows = matrixOf(batch[path]!);
      for (let j = 0; j < rows.columns; j++) {
        let mean = 0;
        for (let i = 0; i < rows.rows; i++) mean += rows.data[i * rows.columns + j]! / rows.rows;
        for (let i = 0; i < rows.rows; i++) rows.data[i * rows.columns + j]! -= mean;
      }
      const inside = multiply(rows, qr(transpose(matrixOf(params[a]!))).q);
      const squares = (data: Float64Array): number => data.reduce((sum, x) => sum + x * x, 0);
      return squares(inside.data) / Math.max(1e-30, squares(rows.data));
    });
    return shares.reduce((sum, share) => sum + share, 0) / shares.length;
  }
  return 0;
}

/** What an arm begins with. */
interface Begun {
  readonly base: TensorRecord;
  readonly options: LoraOptions;
  readonly params: TensorRecord;
}

async function begin(
  arm: string,
  scene: PrepareScene,
  base: TensorRecord,
  rank: number,
  maxBatches: number,
  seed: number,
): Promise<Begun> {
  // Scale 1 for all, as the paper leaves it.
  const options: LoraOptions = { rank, alpha: rank, targetModules: "all-linear" };
  const adapter = lora(scene.model, options);
  if (arm === "eva" || arm === "eva-rho1") {
    const made = await eva.roles.initialiser!.initialise(scene, options, {
      rho: arm === "eva" ? 2 : 1,
      batches: maxBatches,
    });
    return { base, options: made.lora, params: made.params };
  }
  if (arm === "lora-random") {
    return { base, options, params: adapter.init(new Rng(seed).fold("lora")) };
  }
  const weights = adapter.targets.map((path) => `${path}.weight`);
  const sources = arm === "lora-ga" ? await scene.gradients(weights, 4) : base;
  const params = loraStart(arm as LoraStart, adapter, (path) => sources[`${path}.weight`]!);
  return { base: takenFromBase(base, adapter, params), options, params };
}

/** Moving mean of the last ten losses. */
function smoothed(losses: readonly number[]): number[] {
  return losses.map((_, i) => {
    const part = losses.slice(Math.max(0, i - 9), i + 1);
    return part.reduce((sum, x) => sum + x, 0) / part.length;
  });
}

const sizeOf = (params: TensorRecord): number =>
  Object.values(params).reduce((sum, { size }) => sum + size, 0);

export const experiment: Experiment<Shared> = {
  id: "eva",
  title: "EVA",
  version: "2",
  metrics: {
    accuracy: "share of right answers on test examples",
    lossArea: "mean training loss over the first 30 % of the steps, nats",
    stepsToLora:
      "share of the steps until the loss is where LoRA from random numbers ends; 1 if never",
    parameters: "trained numbers, the head's left out",
    explained: "share of the inputs' variance in the span of A at first; 0 for full fine-tuning",
    initShare: "time of the first numbers as a share of the training's; differs between runs",
  },
  needs: { data: ["fashion-mnist", "mnist", "brown"], bases: ["fashionVit", "brownLm"] },
  plan: (budget: Budget) => {
    const { steps, batchSize } = sizes[budget];
    const cost = { steps, examples: steps * batchSize };
    const rates = (budget === "quick" ? [3e-3] : [3e-3, 1e-2, 3e-2]).map((learningRate) => ({
      learningRate,
    }));
    const fullRates = (budget === "quick" ? [1e-3] : [1e-3, 3e-3, 1e-2]).map((learningRate) => ({
      learningRate,
    }));
    return {
      arms: Object.entries(arms).map(([name, about]): Arm => ({ name, about, cost })),
      tasks: budget === "quick" ? ["digits", "genres"] : ["digits", "turned", "genres"],
      tuning: {
        metric: "accuracy",
        direction: "higher",
        perTask: true,
        grid: Object.fromEntries(
          Object.keys(arms).map((name) => [name, name === "full" ? fullRates : rates]),
        ),
      },
      ...(budget === "quick" && { seeds: 1 }),
    };
  },
  open: async (context) => {
    const isQuick = context.budget === "quick";
    const { images, test, windows } = sizes[context.budget];
    const base = await fashionVit(context, { dModel: 48, images: isQuick ? 300 : 12_000 });
    const digits = await loadMnist(context);
    const rng = new Rng(38);
    const some = (set: ImageSet, count: number, name: string): ImageSet =>
      sampleImages(set, Math.min(count, set.count), rng.fold(name));
    const turn = (set: ImageSet): ImageSet => inverted(rotated(set, 90));
    const lm = await brownLm(context, {
      genres: "abcdefgh",
      dModel: 48,
      nLayers: 3,
      ...(!isQuick && { vocabSize: 2000, steps: 1000 }),
    });
    const genres = [...newGenres];
    const examplesOf = (files: typeof lm.trainFiles, count: number): ClassExample[] =>
      genres.flatMap((genre, target) => {
        const tokens = tokensOf(lm.tokenizer, ofGenres(files, genre).map(textOf));
        const found = windowExamples(tokens, 48);
        const every = Math.max(1, Math.floor(found.length / count));
        return found
          .filter((_, i) => i % every === 0)
          .slice(0, count)
          .map(({ ids }) => ({
            ids: Int32Array.from(ids),
            isCut: false,
            start: 0,
            kept: ids.length,
            target,
          }));
      });
    const split = splitBrown(lm.brown.files, isQuick ? 2 : 5);
    const setOf = (list: readonly ClassExample[]): AnyExampleSet =>
      taskSet(list, ({ ids, target }) => ({
        length: ids.length,
        loss: 1,
        all: [ids, [target as number]],
      }));
    const headed = headedModel(
      lm.model,
      lm.params,
      {
        task: "sequence-classification",
        labels: genres.map((genre) => genreNames[genre]!),
        problem: "single_label_classification",
      },
      rng.fold("genres"),
    );
    return {
      digits: vision(base, [
        some(digits.train, images, "digits"),
        some(digits.test, test, "digits test"),
      ]),
      turned: vision(base, [
        turn(some(base.data.train, images, "turned")),
        turn(some(base.data.test, test, "turned test")),
      ]),
      genres: {
        model: headed.model,
        params: headed.params,
        head: headed.model.head!.modules[0]!,
        objective: sequenceClassification(headed.model as EncoderModel) as AnyObjective,
        train: setOf(examplesOf(split.train, windows)),
        test: setOf(examplesOf(split.heldOut, windows)),
      },
    };
  },
  run: async (cell, shared, context): Promise<Outcome> => {
    const { steps, batchSize, rank, batches } = sizes[context.budget];
    const { clock } = context.host;
    const task = shared[cell.task]!;
    const { model, objective, head } = task;
    const base = withNewHead(task, cell.seed);
    const { sizes: own } = model as { readonly sizes?: { readonly maxPositions?: number } };
    const maxLength = own?.maxPositions;
    const common = { model, objective, ...(maxLength !== undefined && { maxLength }) };
    const scene = prepareScene(
      { ...common, frozen: base, trained: {} },
      task.train,
      context.backend,
      { batchSize, seed: cell.seed, signal: context.signal },
    );
    const before = clock.monotonic();
    let trainee: Trainee<Module> = { ...common, frozen: {}, trained: base };
    let [explained, parameters] = [0, sizeOf(base)];
    let begun: Begun | undefined;
    if (cell.arm !== "full") begun = await begin(cell.arm, scene, base, rank, batches, cell.seed);
    const initTime = clock.monotonic() - before;
    if (begun) {
      const adapter = withModules(lora(model, begun.options), model, [head], { params: base });
      const first = { ...adapter.init(new Rng(cell.seed)), ...begun.params };
      trainee = { ...common, ...withAdapter(model, begun.base, { adapter, params: first }) };
      explained = await explainedBy(scene, begun.options, begun.params);
      parameters = sizeOf(begun.params);
    }
    const start = clock.monotonic();
    const { params, losses } = await train(context, trainee, task.train, {
      steps,
      batchSize,
      learningRate: cell.settings["learningRate"] as number,
      schedule: "cosine",
      warmup: 0.1,
      weightDecay: 0,
      seed: cell.seed,
    });
    const trainTime = clock.monotonic() - start;
    const { accuracy } = await scoreExamples(
      { ...trainee, trained: params },
      task.test,
      context.backend,
      { batchSize: 100 },
    );
    const early = losses.slice(0, Math.ceil(0.3 * steps));
    return {
      metrics: {
        accuracy,
        lossArea: early.reduce((sum, x) => sum + x, 0) / early.length,
        parameters,
        explained,
        initShare: begun ? initTime / trainTime : 0,
      },
      series: { loss: losses },
    };
  },
  derive: (results) => {
    const endOf = ({ seed, task }: CellResult): number => {
      const own = results.find(
        (other) => other.arm === "lora-random" && other.seed === seed && other.task === task,
      );
      return own?.series?.["loss"]
        ? smoothed(own.series["loss"]).at(-1)!
        : Number.NEGATIVE_INFINITY;
    };
    return results.map((result) => {
      const losses = smoothed(result.series?.["loss"] ?? []);
      const end = endOf(result);
      // Not before ten steps, so that one easy batch decides nothing.
      const at = losses.findIndex((loss, i) => i >= 9 && loss <= end);
      const stepsToLora = at < 0 ? 1 : (at + 1) / losses.length;
      return { ...result, metrics: { ...result.metrics, stepsToLora } };
    });
  },
};
