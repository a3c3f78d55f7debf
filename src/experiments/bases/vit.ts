/** Vision transformers trained from scratch on pictures held as numbers; `fashionVit` on Fashion-MNIST. */
import { Vit } from "../../models/vit.ts";
import { Rng } from "../../tensor/rng.ts";
import { loadFashionMnist } from "../data/fashion-mnist.ts";
import type { ImageData } from "../data/glyphs.ts";
import { sampleImages } from "../data/image-set.ts";
import type { ExperimentContext } from "../experiment.ts";
import { accuracy, pixelSet, train, visionTrainee } from "../vision.ts";
import { type OpenedBase, openBase } from "./base.ts";

export interface VitBaseOptions {
  /** Default 64. */
  readonly dModel?: number;
  /** Default 4. */
  readonly nLayers?: number;
  /** Default dModel / 16. */
  readonly nHeads?: number;
  /** Pixels of a patch; must divide the picture's sides. Default 7 for 28 pixels, else 4. */
  readonly patch?: number;
  /** Training pictures; default 20,000, or all. */
  readonly images?: number;
  /** Default 2. */
  readonly epochs?: number;
  /** Default 64. */
  readonly batchSize?: number;
  /** Default 2e-3. */
  readonly learningRate?: number;
  /** Default 0. */
  readonly seed?: number;
}

export interface VitBase extends OpenedBase<Vit> {
  readonly data: ImageData;
  /** On test pictures. */
  readonly accuracy: number;
}

/**
 * A ViT trained on a data set's training pictures, all parameters. AdamW, cosine, 10 % warmup.
 * @param name of the base in results
 */
export async function vitBase(
  context: ExperimentContext,
  name: string,
  data: ImageData,
  options: VitBaseOptions = {},
): Promise<VitBase> {
  const isQuick = context.budget === "quick";
  const { height, width, channels, classes, count } = data.train;
  const { dModel = 64, nLayers = 4, batchSize = 64, learningRate = 2e-3, seed = 0 } = options;
  const { nHeads = Math.max(1, dModel / 16), patch = height === 28 ? 7 : 4 } = options;
  const images = Math.min(count, options.images ?? (isQuick ? 600 : 20_000));
  const epochs = options.epochs ?? (isQuick ? 6 : 2);
  const settings = {
    dModel,
    nLayers,
    nHeads,
    patch,
    images,
    epochs,
    batchSize,
    learningRate,
    seed,
  };
  const request = { name, version: "1", settings, dataChecksum: data.record.checksum };
  const base = await openBase(context, request, async () => {
    const model = new Vit({
      dModel,
      nLayers,
      nHeads,
      dFeedForward: 4 * dModel,
      imageSize: [height, width],
      patchSize: [patch, patch],
      channels,
      head: {
        task: "sequence-classification",
        labels: classes,
        problem: "single_label_classification",
      },
    });
    const rng = new Rng(seed).fold(name);
    const { params } = model.init(rng.fold("init"));
    const chosen = sampleImages(data.train, images, rng.fold("images"));
    const trainee = visionTrainee(model, params);
    const trained = await train(context, trainee, pixelSet(chosen), {
      epochs,
      batchSize,
      learningRate,
      schedule: "cosine",
      warmup: 0.1,
      weightDecay: 0.05,
      seed,
    });
    const done = { ...trainee, trained: trained.params };
    const { backend, signal } = context;
    return {
      model,
      params: { ...trainee.frozen, ...trained.params },
      metrics: { accuracy: await accuracy(done, data.test, backend, { signal }) },
    };
  });
  return { ...base, data, accuracy: base.metrics["accuracy"]! };
}

/** The ViT on Fashion-MNIST, or on what stands in for it. */
export async function fashionVit(
  context: ExperimentContext,
  options: VitBaseOptions = {},
): Promise<VitBase> {
  return vitBase(context, "fashionVit", await loadFashionMnist(context), options);
}
