/**
 * Pictures classed by the names of their classes alone, and how often that is right.
 *
 * Radford et al., ICML 2021, arXiv:2103.00020, §3.1: the class is the label whose text is nearest to the
 * picture, as `zero-shot-image-classification` of transformers has it.
 */
import type { Backend } from "../backend/backend.ts";
import type { Preprocessing } from "../data/images.ts";
import type { LabelledPicture } from "../data/picture-files.ts";
import { pictureBatches } from "../data/picture-set.ts";
import type { Tokenizer } from "../data/tokenizer.ts";
import { MissingError, OptionError, StateError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { Images } from "../host/images.ts";
import type { VisionTextModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { embedClipTexts, ImageEmbedder, labelTexts, zeroShot } from "./image-embed.ts";
import { type ClassificationScores, classificationScores } from "./metrics/classification.ts";

export interface ZeroShotOptions {
  /** What a label becomes before the model reads it; default "This is a photo of {}." */
  readonly template?: string;
  /** Right is also a class among so many likeliest ones, for `topK`; default 5, or all there are. */
  readonly k?: number;
  /** Pictures together; default 8. */
  readonly batchSize?: number;
  readonly onProgress?: (done: number, all: number) => void;
  /** Ends between batches with a StateError. */
  readonly signal?: AbortSignal;
}

export interface ZeroShotScores extends ClassificationScores {
  /** Classes in the order of the table of counts. */
  readonly labels: readonly string[];
  /** The texts that stood for them. */
  readonly texts: readonly string[];
  /** Share of pictures whose class is among the `k` likeliest. */
  readonly topK: number;
  readonly k: number;
  /** Mean -log probability of the right class, in nats. */
  readonly loss: number;
  /** Pictures judged. */
  readonly count: number;
  /** Pictures left out, and why. */
  readonly skipped: readonly string[];
}

/** What the pictures and texts come through. */
export interface ZeroShotScene {
  readonly files: Files;
  readonly images: Images;
  readonly model: VisionTextModel;
  readonly params: TensorRecord;
  readonly tokenizer: Tokenizer;
  readonly preprocessing: Preprocessing;
  readonly backend: Backend;
}

/** Where a class stands among all, from 0; of equal ones the first counts as likelier. */
function rankOf(row: ArrayLike<number>, at: number): number {
  let rank = 0;
  for (let i = 0; i < row.length; i++) {
    if (row[i]! > row[at]! || (row[i] === row[at] && i < at)) rank++;
  }
  return rank;
}

/**
 * Judges a model on pictures with classes. An underscore in a label is read as a space.
 * @throws OptionError for a label that is none of `labels`, or settings outside their range.
 * @throws MissingError when no picture can be read; StateError when ended by the signal.
 */
export async function scoreZeroShot(
  scene: ZeroShotScene,
  pictures: readonly LabelledPicture[],
  labels: readonly string[],
  options: ZeroShotOptions = {},
): Promise<ZeroShotScores> {
  const { model, params, preprocessing, backend, tokenizer } = scene;
  const { k = Math.min(5, labels.length), batchSize = 8, signal } = options;
  if (!(Number.isInteger(k) && k >= 1 && k <= labels.length)) {
    throw new OptionError(`k must be a whole number from 1 to ${labels.length}, got ${k}.`);
  }
  const numbers = new Map(labels.map((label, i) => [label, i]));
  const wrong = pictures.find(({ label }) => !numbers.has(label));
  if (wrong) {
    throw new OptionError(
      `${wrong.path}: class ${JSON.stringify(wrong.label)} is not among ${labels.slice(0, 8).join(", ")}.`,
    );
  }
  const texts = labelTexts(
    labels.map((label) => label.replaceAll("_", " ")),
    options.template,
  );
  const textVectors = await embedClipTexts(model, params, tokenizer, texts, backend);
  const scale = params[scalePath(model)]!.item();
  const embedder = new ImageEmbedder(model, params, preprocessing, backend, { batchSize });
  const [truth, answers, skipped]: [number[], number[], string[]] = [[], [], []];
  let [hits, loss, seen] = [0, 0, 0];
  try {
    const batches = pictureBatches(
      scene.files,
      scene.images,
      pictures,
      preprocessing,
      embedder.batchSize,
    );
    for await (const batch of batches) {
      if (signal?.aborted) throw new StateError("zero-shot: ended before all pictures were seen.");
      const whole = batch.flatMap((item, i) => {
        if (!("reason" in item)) {
          return [{ picture: item, label: numbers.get(pictures[seen + i]!.label)! }];
        }
        skipped.push(item.reason);
        return [];
      });
      seen += batch.length;
      if (whole.length > 0) {
        const vectors = await embedder.embed(whole.map(({ picture }) => picture));
        const { data } = zeroShot(vectors, textVectors, scale);
        for (const [i, { label }] of whole.entries()) {
          const row = data.subarray(i * labels.length, (i + 1) * labels.length);
          let best = 0;
          for (let j = 1; j < row.length; j++) if (row[j]! > row[best]!) best = j;
          truth.push(label);
          answers.push(best);
          if (rankOf(row, label) < k) hits++;
          loss -= Math.log(Math.max(row[label]!, Number.MIN_VALUE));
        }
      }
      options.onProgress?.(seen, pictures.length);
    }
  } finally {
    await embedder.release();
  }
  const count = truth.length;
  if (count === 0) {
    throw new MissingError(
      `zero-shot: none of the ${pictures.length} pictures can be read${skipped.length > 0 ? `, as ${skipped[0]}` : ""}.`,
    );
  }
  return {
    ...classificationScores(truth, answers, labels.length),
    ...{ labels, texts, k, count, skipped, topK: hits / count, loss: loss / count },
  };
}

/** The path of the factor on cosines. */
function scalePath(model: VisionTextModel): string {
  for (const [path, slot] of model.slots()) if (slot === model.logitScale) return path;
  throw new OptionError(`zero-shot: this ${model.family} has no factor on its cosines.`);
}
