/** The task of pictures as surfaces open it: a folder, a model, an adapter, a judgement. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parityBackend } from "../../../test/support/fixture.ts";
import { toyClasses, toyPicture } from "../../../test/support/toy-pictures.ts";
import { lora } from "../../adapters/lora.ts";
import { nodeHost } from "../../host/node.ts";
import { nodeImages } from "../../host/node-images.ts";
import { families } from "../../models/families.ts";
import { Rng } from "../../tensor/rng.ts";
import { finetune } from "../finetune.ts";
import { imageClassificationKind } from "./picture-kind.ts";
import { taskAdapter, taskTrainee } from "./task.ts";

const { files } = nodeHost();
const images = await nodeImages();
const backend = await parityBackend();
const tower = {
  hidden_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 3,
  intermediate_size: 48,
};
const model = families["vit"]!({ ...tower, image_size: 16, patch_size: 4 });
const { params } = model.init(new Rng(3));
let root = "";

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "plasticity-kind-"));
  for (const [label, name] of toyClasses.entries()) {
    await mkdir(join(root, name));
    for (let i = 0; i < 24; i++) {
      const { data, width, height } = toyPicture(label, i);
      const png = sharp(data, { raw: { width, height, channels: 3 } }).png();
      await writeFile(join(root, name, `${i}.png`), await png.toBuffer());
    }
  }
  await writeFile(join(root, "plain", "bad.png"), "no picture");
});
afterAll(() => rm(root, { recursive: true }));

test("opens a folder, trains an adapter with a new head, and judges both it and the whole model", async () => {
  const options = { rng: new Rng(1), share: 0.2, augmentation: false } as const;
  const task = await imageClassificationKind.open(files, { model, params }, images, root, options);
  expect(task.train.count + task.heldOut.count).toBe(72);
  expect(task.about).toMatch(
    /^3 classes \(across, down, plain\); 1 pictures left out, as .*bad\.png/,
  );
  expect(JSON.parse(task.files["preprocessor_config.json"]!)).toMatchObject({
    image_processor_type: "ViTImageProcessor",
    size: { height: 16, width: 16 },
  });
  const adapter = taskAdapter(task, lora(task.model, { rank: 4, alpha: 8 }));
  const trainee = taskTrainee(task, { adapter, params: adapter.init(new Rng(2)) });
  const trained = await finetune(trainee, task.train, backend, {
    steps: 250,
    batchSize: 24,
    learningRate: 1e-2,
  });
  const scores = await task.measure({ ...trainee, trained: trained.params }, backend);
  expect(Object.keys(scores)).toEqual(["accuracy", "macroF1", "loss"]);
  const merged = { ...task.params, ...adapter.merge(task.params, trained.params) };
  const judged = await imageClassificationKind.open(
    files,
    { model: task.model, params: merged },
    images,
    root,
    { ...options, judgeOnly: true },
  );
  expect(judged.heldOut.count).toBe(72);
  const all = await judged.measure(taskTrainee(judged), backend, { batchSize: 24 });
  expect(all["accuracy"]).toBeGreaterThan(0.9);
}, 30_000);

test("refuses models that see nothing or have no head to be judged", async () => {
  const options = { rng: new Rng(1), judgeOnly: true };
  await expect(
    imageClassificationKind.open(files, { model, params }, images, root, options),
  ).rejects.toThrow("image-classification: the vit has no head for it — fine-tune it with");
  const bert = families["bert"]!({ ...tower, vocab_size: 9, architectures: ["BertModel"] });
  await expect(
    imageClassificationKind.open(files, { model: bert, params: {} }, images, root, options),
  ).rejects.toThrow("image-classification: a bert sees no pictures — take a ViT or a ResNet.");
});

test("keeps running statistics out of what is trained", async () => {
  const net = families["resnet"]!({
    embedding_size: 4,
    hidden_sizes: [4],
    depths: [1],
    layer_type: "basic",
  });
  const { params: own, state } = net.init(new Rng(4));
  const task = await imageClassificationKind.open(
    files,
    { model: net, params: { ...own, ...state } },
    images,
    root,
    { rng: new Rng(1) },
  );
  const { trained, frozen } = taskTrainee(task);
  expect(Object.keys(frozen).every((path) => /running_|num_batches/.test(path))).toBe(true);
  expect(Object.keys(frozen)).toHaveLength(9);
  expect(Object.keys(trained).filter((path) => path.startsWith("classifier."))).toHaveLength(2);
});
