/**
 * Eight tasks of small grey pictures from three sources and two alphabets, a body that is trained on parts of all
 * of them, and its fine-tunes: what merging experiments start from.
 *
 * Each task has a linear head on the base's features, fitted once and frozen, so that fine-tunes differ in the
 * body alone and can be added up.
 */

import type { Compiled } from "../backend/compile.ts";
import { compile } from "../backend/compile.ts";
import { add, mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { sum } from "../ir/reduce.ts";
import { Vit } from "../models/vit.ts";
import { crossEntropy } from "../nn/losses.ts";
import type { TensorRecord, ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Objective } from "../train/objective.ts";
import type { Trainee } from "../train/program.ts";
import { loadDigits } from "./data/digits.ts";
import { loadFashionMnist } from "./data/fashion-mnist.ts";
import { loadGlyphs } from "./data/glyphs.ts";
import {
  type ImageSet,
  inverted,
  joinImages,
  mirrored,
  relabel,
  resized,
  rotated,
  sampleImages,
  splitImages,
} from "./data/image-set.ts";
import { loadMnist } from "./data/mnist.ts";
import type { ExperimentContext } from "./experiment.ts";
import {
  type PixelExample,
  pixelClassification,
  pixelSet,
  train,
  visionTrainee,
} from "./vision.ts";

/** Outputs of every task's head; tasks with fewer classes leave some unused. */
export const outputs = 10;
/** Pictures of one forward pass. */
const rows = 50;

export interface MergeTask {
  readonly name: string;
  readonly train: ImageSet;
  readonly test: ImageSet;
}

export interface BodySizes {
  readonly dModel: number;
  readonly nLayers: number;
  /** Steps of the base's training. */
  readonly baseSteps: number;
  /** Training pictures of a task, of its head and of its fine-tuning. */
  readonly images: number;
  readonly epochs: number;
  /** Of the fine-tunes. */
  readonly learningRate: number;
  /** Pictures on which settings are chosen, of each task. */
  readonly validation: number;
  readonly test: number;
}

/** A linear head: (outputs, D) and (outputs,). */
export interface Head {
  readonly weight: Float32Array;
  readonly bias: Float32Array;
}

/** A base and its fine-tunes of one seed. */
export interface Family {
  readonly model: Vit;
  /** The body's parameters by path; those of the fine-tunes have the same. */
  readonly base: TensorRecord;
  readonly tuned: readonly TensorRecord[];
  readonly heads: readonly Head[];
}

/** Pictures of a seed, one entry a task. */
export interface Pictures {
  readonly train: readonly ImageSet[];
  readonly validation: readonly ImageSet[];
  readonly test: readonly ImageSet[];
}

/** Tops of Fashion-MNIST by their own name, everything else as one class. */
const tops = [0, 2, 3, 4, 6];

function topClasses(set: ImageSet): ImageSet {
  const classes = [...tops.map((label) => set.classes[label]!), "rest"];
  return relabel(set, classes, (label) => {
    const at = tops.indexOf(label);
    return at < 0 ? tops.length : at;
  });
}

/** The tasks, with all their pictures. */
export async function openTasks(context: ExperimentContext): Promise<readonly MergeTask[]> {
  const mnist = await loadMnist(context);
  const fashion = await loadFashionMnist(context);
  const digits = await loadDigits(context);
  const isQuick = context.budget === "quick";
  const counts = isQuick ? { train: 400, test: 200 } : {};
  const glyphs = await Promise.all([0, 1].map((set) => loadGlyphs(context, set, counts)));
  const of = (
    name: string,
    data: { readonly train: ImageSet; readonly test: ImageSet },
    change: (set: ImageSet) => ImageSet,
  ): MergeTask => {
    const rng = new Rng(0).fold("merge-tasks", name);
    // Enough for every seed; turning all of a large set would take long.
    const part = (set: ImageSet, count: number): ImageSet =>
      change(sampleImages(set, Math.min(count, set.count), rng));
    return { name, train: part(data.train, 4000), test: part(data.test, 1000) };
  };
  const same = (set: ImageSet): ImageSet => set;
  return [
    of("digits upright", mnist, same),
    of("digits on their side", mnist, (set) => rotated(set, 90)),
    of("digits inverted", mnist, inverted),
    of("clothes", fashion, same),
    of("tops, mirrored", fashion, (set) => mirrored(topClasses(set))),
    of("small digits", digits, (set) => resized(set, 28, 28)),
    of("symbols 1", glyphs[0]!, same),
    of("symbols 2", glyphs[1]!, same),
  ];
}

/** Pictures of a seed: validation is taken from training pictures that nothing is trained on. */
export function picturesOf(
  tasks: readonly MergeTask[],
  { images, validation, test }: BodySizes,
  seed: number,
): Pictures {
  const parts = tasks.map(({ name, train: all, test: held }) => {
    const rng = new Rng(seed).fold("pictures", name);
    const [kept, rest] = splitImages(all, Math.min(validation, Math.floor(all.count / 4)), rng);
    return {
      train: sampleImages(rest, Math.min(images, rest.count), rng.fold("train")),
      validation: kept,
      test: sampleImages(held, Math.min(test, held.count), rng.fold("test")),
    };
  });
  return {
    train: parts.map((part) => part.train),
    validation: parts.map((part) => part.validation),
    test: parts.map((part) => part.test),
  };
}

function bodyOf({ dModel, nLayers }: BodySizes, labels: readonly string[]): Vit {
  return new Vit({
    dModel,
    nLayers,
    nHeads: dModel / 16,
    dFeedForward: 4 * dModel,
    imageSize: [28, 28],
    patchSize: [7, 7],
    channels: 1,
    head: { task: "sequence-classification", labels, problem: "single_label_classification" },
  });
}

const isBody = (path: string): boolean => !path.startsWith("classifier.");

/** Labels from here on are quarter turns; those below classes of three sources. */
const turnsFrom = 30;
const baseLabels = Array.from({ length: turnsFrom + 4 }, (_, i) => String(i));

/** Classes compete with classes, turns with turns: each picture has a label of one kind. */
function groupedClassification(model: Vit): Objective<Vit, PixelExample> {
  const plain = pixelClassification(model) as Objective<Vit, PixelExample>;
  return {
    ...plain,
    batch: (examples, options) => {
      const size = options.rows * baseLabels.length;
      const bias = new Float32Array(size);
      examples.forEach(({ label }, row) => {
        for (let k = 0; k < baseLabels.length; k++) {
          if (k >= turnsFrom !== label >= turnsFrom) bias[row * baseLabels.length + k] = -1e4;
        }
      });
      const shape = [options.rows, baseLabels.length];
      return {
        ...plain.batch(examples, options),
        bias: new Tensor("float32", shape, bias),
      };
    },
    loss: ({ model: seen, context }, { pixels, targets, weights, bias }) => {
      const { logits } = seen.forward(context, pixels!);
      const losses = crossEntropy(add(logits!, bias!), targets!, { reduction: "none" });
      return { sum: sum(mul(losses, weights!)) };
    },
  };
}

/**
 * Trains the base: ten classes each of upright digits, clothes and the first symbols, and the quarter turn of
 * pictures of all tasks.
 */
async function trainBase(
  context: ExperimentContext,
  pictures: Pictures,
  sizes: BodySizes,
  seed: number,
): Promise<TensorRecord> {
  const model = bodyOf(sizes, baseLabels);
  const rng = new Rng(seed).fold("base");
  const few = (set: ImageSet, name: string): ImageSet =>
    sampleImages(set, Math.ceil(set.count / 2), rng.fold(name));
  const labelled = [0, 3, 6].map((task, i) =>
    relabel(few(pictures.train[task]!, `labelled ${task}`), baseLabels, (label) => 10 * i + label),
  );
  const turned = pictures.train.map((set, task) => {
    const part = few(set, `turned ${task}`);
    const own = rng.fold("turns", task);
    const turns = Array.from({ length: part.count }, () => own.integer(4));
    return relabel(
      rotated(part, (image) => 90 * turns[image]!),
      baseLabels,
      (_, image) => turnsFrom + turns[image]!,
    );
  });
  const { params } = model.init(rng.fold("init"));
  const trainee: Trainee<Vit> = {
    ...(visionTrainee(model, params) as Trainee<Vit>),
    objective: groupedClassification(model) as never,
  };
  context.progress("training the base");
  const trained = await train(
    context,
    trainee as never,
    pixelSet(joinImages([...labelled, ...turned])),
    {
      steps: sizes.baseSteps,
      batchSize: 64,
      learningRate: 2e-3,
      schedule: "cosine",
      warmup: 0.1,
      weightDecay: 0.05,
      seed,
    },
  );
  const body = Object.entries(trained.params).filter(([path]) => isBody(path));
  return Object.fromEntries(body);
}

/** A linear head by gradient descent with momentum on all features at once. @param features (N, D) */
export function fitHead(features: Float32Array, labels: Int32Array, width: number): Head {
  const weight = new Float32Array(outputs * width);
  const bias = new Float32Array(outputs);
  const [speed, speedBias] = [new Float32Array(weight.length), new Float32Array(outputs)];
  const [slope, slopeBias] = [new Float64Array(weight.length), new Float64Array(outputs)];
  const logits = new Float64Array(outputs);
  const count = labels.length;
  for (let step = 0; step < 200; step++) {
    slope.fill(0);
    slopeBias.fill(0);
    for (let n = 0; n < count; n++) {
      const row = features.subarray(n * width, (n + 1) * width);
      softmaxOf(row, { weight, bias }, logits);
      for (let k = 0; k < outputs; k++) {
        const error = (logits[k]! - (labels[n] === k ? 1 : 0)) / count;
        slopeBias[k]! += error;
        for (let i = 0; i < width; i++) slope[k * width + i]! += error * row[i]!;
      }
    }
    for (let i = 0; i < weight.length; i++) {
      speed[i] = 0.9 * speed[i]! - 0.1 * (slope[i]! + 1e-3 * weight[i]!);
      weight[i]! += speed[i]!;
    }
    for (let k = 0; k < outputs; k++) {
      speedBias[k] = 0.9 * speedBias[k]! - 0.1 * slopeBias[k]!;
      bias[k]! += speedBias[k]!;
    }
  }
  return { weight, bias };
}

/** Probabilities of a head for one row of features. */
function softmaxOf(row: Float32Array, { weight, bias }: Head, into: Float64Array): void {
  let most = Number.NEGATIVE_INFINITY;
  for (let k = 0; k < outputs; k++) {
    let value = bias[k]!;
    for (let i = 0; i < row.length; i++) value += weight[k * row.length + i]! * row[i]!;
    into[k] = value;
    most = Math.max(most, value);
  }
  let total = 0;
  for (let k = 0; k < outputs; k++) {
    into[k] = Math.exp(into[k]! - most);
    total += into[k]!;
  }
  for (let k = 0; k < outputs; k++) into[k]! /= total;
}

/** Runs bodies over pictures: compiled once for all weights of one architecture. */
export class Judge {
  readonly #model: Vit;
  readonly #compiled: Compiled<Tensor>;
  readonly #signal: AbortSignal;

  private constructor(model: Vit, compiled: Compiled<Tensor>, signal: AbortSignal) {
    this.#model = model;
    this.#compiled = compiled;
    this.#signal = signal;
  }

  static async open(context: ExperimentContext, model: Vit, body: TensorRecord): Promise<Judge> {
    const pixels = Tensor.zeros([rows, 1, 28, 28], "float32");
    const compiled = await compile<Tensor>(
      ((values: ValueRecord, x: Value) => model.forward(model.context(values), x).pooled) as never,
      [Judge.#whole(body, model), pixels],
      { backend: context.backend },
    );
    return new Judge(model, compiled, context.signal);
  }

  /** The body with a head of zeros, whose logits nobody reads; a program takes values in one order. */
  static #whole(body: TensorRecord, model: Vit): TensorRecord {
    const all: TensorRecord = {
      ...body,
      "classifier.weight": Tensor.zeros([outputs, model.sizes.dPooled], "float32"),
      "classifier.bias": Tensor.zeros([outputs], "float32"),
    };
    return Object.fromEntries(Object.entries(all).sort(([a], [b]) => (a < b ? -1 : 1)));
  }

  /** What heads read, (N, D). */
  async features(body: TensorRecord, set: ImageSet): Promise<Float32Array> {
    const size = 28 * 28;
    const width = this.#model.sizes.dPooled;
    const whole = Judge.#whole(body, this.#model);
    const found = new Float32Array(set.count * width);
    for (let start = 0; start < set.count; start += rows) {
      this.#signal.throwIfAborted();
      const count = Math.min(rows, set.count - start);
      const pixels = new Float32Array(rows * size);
      for (let i = 0; i < count * size; i++) pixels[i] = 2 * set.pixels[start * size + i]! - 1;
      const x = new Tensor("float32", [rows, 1, 28, 28], pixels);
      const pooled = (await this.#compiled.run(whole, x)).data as Float32Array;
      found.set(pooled.subarray(0, count * width), start * width);
    }
    return found;
  }

  /** Share of right answers, and mean cross-entropy in nats. */
  async scores(
    body: TensorRecord,
    head: Head,
    set: ImageSet,
  ): Promise<{ readonly accuracy: number; readonly loss: number }> {
    const features = await this.features(body, set);
    const chances = new Float64Array(outputs);
    const width = this.#model.sizes.dPooled;
    let [right, loss] = [0, 0];
    for (let n = 0; n < set.count; n++) {
      softmaxOf(features.subarray(n * width, (n + 1) * width), head, chances);
      const label = set.labels[n]!;
      if (chances.every((chance) => chance <= chances[label]!)) right++;
      loss -= Math.log(Math.max(1e-12, chances[label]!));
    }
    return { accuracy: right / set.count, loss: loss / set.count };
  }

  release(): Promise<void> {
    return this.#compiled.release();
  }
}

const prefixed = (prefix: string, record: TensorRecord): TensorRecord =>
  Object.fromEntries(Object.entries(record).map(([name, tensor]) => [prefix + name, tensor]));

function unprefixed(prefix: string, record: TensorRecord): TensorRecord {
  return Object.fromEntries(
    Object.entries(record).flatMap(([name, tensor]) =>
      name.startsWith(prefix) ? [[name.slice(prefix.length), tensor]] : [],
    ),
  );
}

/** The base, heads and fine-tunes of a seed: trained once and kept. */
export async function familyOf(
  context: ExperimentContext,
  pictures: Pictures,
  sizes: BodySizes,
  seed: number,
): Promise<Family> {
  const labels = Array.from({ length: outputs }, (_, i) => String(i));
  const model = bodyOf(sizes, labels);
  const kept = await context.remember({ what: "family", seed, ...sizes }, async () => {
    const base = await trainBase(context, pictures, sizes, seed);
    const all: TensorRecord = prefixed("base/", base);
    const judge = await Judge.open(context, model, base);
    const width = model.sizes.dPooled;
    for (const [task, set] of pictures.train.entries()) {
      context.progress(`fine-tuning ${task + 1} of ${pictures.train.length}`);
      const head = fitHead(await judge.features(base, set), set.labels, width);
      const weight = new Tensor("float32", [outputs, width], Float32Array.from(head.weight));
      const bias = new Tensor("float32", [outputs], Float32Array.from(head.bias));
      const params = { ...base, "classifier.weight": weight, "classifier.bias": bias };
      const trainee = visionTrainee(model, params, { only: isBody });
      const trained = await train(context, trainee as never, pixelSet(set), {
        epochs: sizes.epochs,
        batchSize: 64,
        learningRate: sizes.learningRate,
        schedule: "cosine",
        seed,
      });
      Object.assign(all, prefixed(`tuned ${task}/`, trained.params), {
        [`head ${task}/weight`]: weight,
        [`head ${task}/bias`]: bias,
      });
    }
    await judge.release();
    return all;
  });
  return {
    model,
    base: unprefixed("base/", kept),
    tuned: pictures.train.map((_, task) => unprefixed(`tuned ${task}/`, kept)),
    heads: pictures.train.map((_, task) => ({
      weight: kept[`head ${task}/weight`]!.data as Float32Array,
      bias: kept[`head ${task}/bias`]!.data as Float32Array,
    })),
  };
}
