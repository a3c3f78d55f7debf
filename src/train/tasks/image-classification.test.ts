/** Classifying pictures: a toy set is learnt in full, with LoRA, and by a network with batch norm. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { parityBackend } from "../../../test/support/fixture.ts";
import { toyClasses, toySet } from "../../../test/support/toy-pictures.ts";
import { lora } from "../../adapters/lora.ts";
import { loadAdapter, saveAdapter } from "../../adapters/peft.ts";
import { defaultPreprocessing } from "../../data/images.ts";
import { nodeHost } from "../../host/node.ts";
import { families } from "../../models/families.ts";
import type { VisionModel } from "../../models/model.ts";
import { withLabels } from "../../models/picture-head.ts";
import { Rng } from "../../tensor/rng.ts";
import { finetune } from "../finetune.ts";
import { batchStatistics } from "./batch-statistics.ts";
import {
  imageClassification,
  mergedParams,
  pictureAdapterTrainee,
  pictureTrainee,
  scorePictures,
} from "./image-classification.ts";

const backend = await parityBackend();
const { files } = nodeHost();
const folder = await mkdtemp(join(tmpdir(), "plasticity-pictures-"));
afterAll(() => rm(folder, { recursive: true }));

const vitConfig = {
  model_type: "vit",
  architectures: ["ViTModel"],
  hidden_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  intermediate_size: 48,
  image_size: 16,
  patch_size: 4,
};
const netConfig = {
  model_type: "resnet",
  architectures: ["ResNetModel"],
  embedding_size: 8,
  hidden_sizes: [8, 16],
  depths: [1, 1],
  layer_type: "basic",
};

/** A new model with a head for the toy classes. */
function made(config: Readonly<Record<string, unknown>>) {
  const model = families[config["model_type"] as string]!(config) as VisionModel;
  const { params, state } = model.init(new Rng(3));
  return withLabels(model, { ...params, ...state }, toyClasses, new Rng(4));
}

const train = toySet(32, 1000);
const heldOut = toySet(20, 9000);
const rule = defaultPreprocessing("vit", [16, 16]);

describe("image classification", () => {
  const vit = made(vitConfig);
  const objective = imageClassification(vit.model, rule);

  test("a new ViT learns three classes of stripes, and knows held-out ones", async () => {
    const trainee = pictureTrainee(vit.model, vit.params, objective);
    const before = await scorePictures(trainee, heldOut, backend);
    expect(before.accuracy).toBeLessThan(0.7);
    const { params } = await finetune(trainee, train, backend, {
      steps: 90,
      batchSize: 24,
      learningRate: 4e-3,
      seed: 1,
    });
    const scores = await scorePictures({ ...trainee, trained: params }, heldOut, backend);
    expect(scores.accuracy).toBeGreaterThan(0.9);
    expect(scores.top5).toBe(1);
    expect(scores.confusion.map((row) => row.reduce((a, b) => a + b))).toEqual([20, 20, 20]);
    const metrics = mergedParams(trainee, params);
    expect(Object.keys(metrics).sort()).toEqual(
      [...vit.model.slots()].map(([path]) => path).sort(),
    );
  }, 30_000);

  test("LoRA on query and value trains with the head, saves as PEFT does, and loads to the same scores", async () => {
    const adapter = lora(vit.model, { rank: 4, alpha: 8 });
    expect(adapter.targets).toHaveLength(4);
    const own = pictureAdapterTrainee(vit.model, vit.params, objective, adapter, new Rng(5));
    const { params, losses } = await finetune(own.trainee, train, backend, {
      steps: 120,
      batchSize: 24,
      learningRate: 1e-2,
      seed: 2,
    });
    expect(losses.at(-1)!).toBeLessThan(0.7 * losses[0]!);
    const trained = { ...own.trainee, trained: params };
    const scores = await scorePictures(trained, heldOut, backend);
    await saveAdapter(files, join(folder, "lora"), own.adapter, params);
    const again = await loadAdapter(files, join(folder, "lora"), vit.model);
    expect(again.adapter.config()["modules_to_save"]).toEqual(["classifier"]);
    const merged = mergedParams(trained, again.params);
    const whole = await scorePictures(
      pictureTrainee(vit.model, merged, objective),
      heldOut,
      backend,
    );
    expect(whole.loss).toBeCloseTo(scores.loss, 4);
    expect(whole.confusion).toEqual(scores.confusion);
  }, 30_000);

  test("keeps a head for the same classes and makes another one new", () => {
    expect(withLabels(vit.model, vit.params, toyClasses, new Rng(9)).params).toBe(vit.params);
    const other = withLabels(vit.model, vit.params, ["a", "b", "c"], new Rng(9));
    expect(other.fresh).toEqual(["classifier.weight", "classifier.bias"]);
    expect(other.params["vit.layernorm.weight"]).toBe(vit.params["vit.layernorm.weight"]);
  });

  test("a padded batch repeats its examples without weight", async () => {
    const examples = await train.get([0, 1]);
    const batch = objective.batch(examples as never, { rows: 3 });
    expect([...batch.weights.data]).toEqual([1, 1, 0]);
    expect([...batch["targets"]!.data]).toEqual([0, 1, 0]);
    const size = 3 * 16 * 16;
    const pixels = batch["pixels"]!.data as Float32Array;
    expect(pixels.slice(2 * size)).toEqual(pixels.slice(0, size));
  });

  test("refuses models without a head, and CLIP, in a sentence", () => {
    const bare = families["vit"]!(vitConfig) as VisionModel;
    expect(() => imageClassification(bare, rule)).toThrow(
      "image-classification: the vit has no head — give it one by withLabels.",
    );
    const clip = families["clip_vision_model"]!({ image_size: 8, patch_size: 4 }) as VisionModel;
    expect(() => withLabels(clip, {}, ["a", "b"], new Rng(1))).toThrow(
      "image-classification: a clip_vision_model has no classifier — take a ViT or a ResNet",
    );
  });
});

describe("batch norm in training", () => {
  const net = made(netConfig);
  const pixels = defaultPreprocessing("resnet", [16, 16]);
  const square = { ...pixels, resize: { width: 16, height: 16 } };

  test("with batch statistics the network learns, and running ones are computed afterwards", async () => {
    const objective = imageClassification(net.model, square, { statistics: "batch" });
    const trainee = pictureTrainee(net.model, net.params, objective);
    const { params } = await finetune(trainee, train, backend, {
      steps: 60,
      batchSize: 24,
      learningRate: 1e-2,
      seed: 1,
    });
    const trained = { ...trainee, trained: params };
    const stale = await scorePictures(trained, heldOut, backend);
    const whole = mergedParams(trainee, params);
    const state = await batchStatistics(net.model, whole, objective, train, backend, {
      batchSize: 24,
    });
    const updated = pictureTrainee(net.model, { ...whole, ...state }, objective);
    const scores = await scorePictures(updated, heldOut, backend);
    expect(scores.accuracy).toBeGreaterThan(0.9);
    expect(scores.loss).toBeLessThan(stale.loss);
  }, 30_000);

  test("with running statistics a step leaves them alone and a batch does not matter to a picture", async () => {
    const objective = imageClassification(net.model, square);
    const trainee = pictureTrainee(net.model, net.params, objective);
    expect(Object.keys(trainee.frozen).every((path) => /running_|num_batches/.test(path))).toBe(
      true,
    );
    const { losses } = await finetune(trainee, train, backend, {
      steps: 30,
      batchSize: 24,
      learningRate: 1e-2,
    });
    expect(losses.at(-1)!).toBeLessThan(losses[0]!);
  }, 30_000);

  test("statistics of one batch are the means and unbiased variances of what the norm reads", async () => {
    const objective = imageClassification(net.model, square, { statistics: "batch" });
    const state = await batchStatistics(net.model, net.params, objective, train, backend, {
      batches: 1,
      batchSize: 24,
    });
    expect(Object.keys(state)).toHaveLength(2 * 6);
    const whole = { ...net.params, ...state };
    // Twice the same: what they are computed from does not depend on the running ones.
    const again = await batchStatistics(net.model, whole, objective, train, backend, {
      batches: 1,
      batchSize: 24,
    });
    expect(again).toEqual(state);
  });
});
