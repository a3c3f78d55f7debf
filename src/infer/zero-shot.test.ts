/** Pictures in folders judged by the names of the folders, against the model's own logits. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parityBackend } from "../../test/support/fixture.ts";
import { clipParams, clipRule, clipTokenizer, tinyClip } from "../../test/support/tiny-clip.ts";
import { toyPicture } from "../../test/support/toy-pictures.ts";
import { evaluate } from "../backend/compile.ts";
import { pixelsOf } from "../data/images.ts";
import { readPictures } from "../data/picture-files.ts";
import { nodeHost } from "../host/node.ts";
import { nodeImages } from "../host/node-images.ts";
import type { Value } from "../ir/graph.ts";
import { clipLogits } from "../models/clip.ts";
import type { ValueRecord } from "../nn/module.ts";
import { Tensor } from "../tensor/tensor.ts";
import { scoreZeroShot, type ZeroShotScene } from "./zero-shot.ts";

const { files } = nodeHost();
const labels = ["cat", "dog", "photo_of"];
const each = 5;
const picture = (label: number, i: number) => toyPicture((label + i) % 3, 10 * label + i, 8);
let root = "";
let scene: ZeroShotScene;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "plasticity-zero-shot-"));
  for (const [label, name] of labels.entries()) {
    await mkdir(join(root, name));
    for (let i = 0; i < each; i++) {
      const { data, width, height } = picture(label, i);
      const png = sharp(data, { raw: { width, height, channels: 3 } }).png();
      await writeFile(join(root, name, `${i}.png`), await png.toBuffer());
    }
  }
  await writeFile(join(root, "cat", "bad.png"), "no picture");
  scene = {
    ...{ files, images: await nodeImages(), model: tinyClip, params: clipParams },
    ...{ tokenizer: clipTokenizer, preprocessing: clipRule, backend: await parityBackend() },
  };
});
afterAll(() => rm(root, { recursive: true }));

test("counts as the model's own logits do", async () => {
  const { train, heldOut } = await readPictures(files, root, { share: 0 });
  const scores = await scoreZeroShot(scene, [...train, ...heldOut], labels, {
    ...{ template: "a {}", k: 2, batchSize: 4 },
  });
  expect(scores.texts).toEqual(["a cat", "a dog", "a photo of"]);
  expect(scores.count).toBe(3 * each);
  expect(scores.skipped).toHaveLength(1);
  expect(scores.skipped[0]).toContain("bad.png");

  // <s> a cat </s>, <s> a dog </s>, <s> a photo of </s>; what follows the end is not seen.
  const ids = Tensor.from([6, 1, 4, 7, 8, 6, 1, 5, 7, 8, 6, 1, 2, 3, 7], [3, 5], "int32");
  const shown = labels.flatMap((_, label) =>
    Array.from({ length: each }, (_x, i) => picture(label, i)),
  );
  const logits = await evaluate<Tensor>(
    scene.backend,
    (p: ValueRecord, x: Value, t: Value) => {
      const context = tinyClip.context(p);
      const [seen, read] = [tinyClip.embedImages(context, x), tinyClip.embedTexts(context, t)];
      return clipLogits(tinyClip, context, seen, read);
    },
    clipParams,
    pixelsOf(shown, clipRule),
    ids,
  );
  const confusion = labels.map(() => labels.map(() => 0));
  let [hits, loss] = [0, 0];
  for (let row = 0; row < shown.length; row++) {
    const truth = Math.floor(row / each);
    const own = Array.from(logits.numbers()).slice(3 * row, 3 * row + 3);
    const order = [0, 1, 2].sort((a, b) => own[b]! - own[a]!);
    confusion[truth]![order[0]!]!++;
    if (order.slice(0, 2).includes(truth)) hits++;
    loss += Math.log(own.reduce((sum, x) => sum + Math.exp(x - own[truth]!), 0));
  }
  expect(scores.confusion).toEqual(confusion);
  expect(scores.accuracy).toBe(labels.reduce((sum, _, i) => sum + confusion[i]![i]!, 0) / 15);
  // All answers alike would make any count right.
  expect(confusion.filter((row) => row.some((n, i) => n > 0 && i !== 0)).length).toBeGreaterThan(0);
  expect(scores.topK).toBe(hits / 15);
  expect(scores.loss).toBeCloseTo(loss / 15, 4);
});

test("names labels, settings and folders that do not fit", async () => {
  const { train } = await readPictures(files, root, { share: 0 });
  await expect(scoreZeroShot(scene, train, ["cat", "dog"])).rejects.toThrow(
    'class "photo_of" is not among cat, dog.',
  );
  await expect(scoreZeroShot(scene, train, labels, { k: 4 })).rejects.toThrow(
    "k must be a whole number from 1 to 3, got 4.",
  );
  await expect(scoreZeroShot(scene, train, labels, { template: "a cat" })).rejects.toThrow(
    'zero-shot: the template must hold {} for the label, got "a cat".',
  );
  const bad = [{ path: join(root, "cat", "bad.png"), label: "cat" }];
  await expect(scoreZeroShot(scene, bad, labels, { template: "a {}" })).rejects.toThrow(
    /^zero-shot: none of the 1 pictures can be read, as .*bad\.png/,
  );
});
