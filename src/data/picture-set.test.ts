/** Folders and lists of pictures, and the set that decodes them; broken ones among them. */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { toyClasses, toyPicture } from "../../test/support/toy-pictures.ts";
import { nodeHost } from "../host/node.ts";
import { nodeImages } from "../host/node-images.ts";
import { Rng } from "../tensor/rng.ts";
import { defaultPreprocessing } from "./images.ts";
import { findPictures, readPictures } from "./picture-files.ts";
import { pictureBatches, preparePictures } from "./picture-set.ts";

const { files } = nodeHost();
const images = await nodeImages();
const rule = defaultPreprocessing("vit", [8, 8]);
let root = "";

const png = (label: number, seed: number): Promise<Buffer> => {
  const { data, width, height } = toyPicture(label, seed, 12);
  return sharp(data, { raw: { width, height, channels: 3 } })
    .png()
    .toBuffer();
};

/** A folder for each class with so many pictures. */
async function write(folder: string, count: number, seed = 0): Promise<void> {
  for (const [label, name] of toyClasses.entries()) {
    await mkdir(join(folder, name), { recursive: true });
    for (let i = 0; i < count; i++) {
      await writeFile(join(folder, name, `${i}.png`), await png(label, seed + i));
    }
  }
}

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "plasticity-set-"));
  await write(join(root, "plain"), 10);
  await writeFile(join(root, "plain", "across", "notes.txt"), "no picture");
  await mkdir(join(root, "plain", "empty"));
  await write(join(root, "parted", "train"), 3);
  await write(join(root, "parted", "test"), 2, 50);
  await mkdir(join(root, "broken", "good"), { recursive: true });
  await mkdir(join(root, "broken", "bad"));
  await writeFile(join(root, "broken", "good", "a.png"), await png(0, 1));
  await writeFile(join(root, "broken", "good", "b.png"), await png(1, 1));
  await writeFile(join(root, "broken", "bad", "c.png"), await png(2, 1));
  await writeFile(join(root, "broken", "bad", "cut.png"), (await png(2, 2)).subarray(0, 60));
  await writeFile(join(root, "broken", "bad", "empty.png"), "");
  await writeFile(join(root, "broken", "bad", "text.jpg"), "this is no picture");
});
afterAll(() => rm(root, { recursive: true }));

describe("readPictures", () => {
  test("takes folders as classes in order of their names, and leaves other files and empty folders", async () => {
    const { train, heldOut, labels } = await readPictures(files, join(root, "plain"), {
      share: 0.3,
    });
    expect(labels).toEqual(["across", "down", "plain"]);
    expect(train.length + heldOut.length).toBe(30);
    expect(heldOut.length).toBeGreaterThan(2);
    expect(train.every(({ path, label }) => path.includes(`/${label}/`))).toBe(true);
    expect(await readPictures(files, `${root}/plain`, { share: 0.3 })).toEqual({
      train,
      heldOut,
      labels,
    });
  });

  test("takes train and test as they are named", async () => {
    const { train, heldOut, labels } = await readPictures(files, join(root, "parted"));
    expect([train.length, heldOut.length, labels.length]).toEqual([9, 6, 3]);
  });

  test("takes records with paths from their own folder", async () => {
    const path = join(root, "list.csv");
    await writeFile(path, "photo,label\nplain/across/0.png,x\nplain/down/1.png,y\n");
    const { train, labels } = await readPictures(files, path, { map: { photo: "path" }, share: 0 });
    expect(labels).toEqual(["x", "y"]);
    expect(train[0]).toEqual({ path: join(root, "plain/across/0.png"), label: "x" });
    const lines = join(root, "list.jsonl");
    await writeFile(
      lines,
      '{"file_name": "plain/down/1.png", "label": 4}\n{"image": "a.png", "class": 5}\n',
    );
    expect((await readPictures(files, lines, { share: 0 })).labels).toEqual(["4", "5"]);
  });

  test("says what a record, a folder or a path lacks", async () => {
    const path = join(root, "bad.jsonl");
    await writeFile(path, '{"path": "a.png"}\n');
    await expect(readPictures(files, path)).rejects.toThrow(
      `${path}:1: needs a class in "label" or "class" — it has path.`,
    );
    await writeFile(path, '{"label": "a"}\n');
    await expect(readPictures(files, path)).rejects.toThrow('needs a picture\'s path in "path"');
    await expect(readPictures(files, join(root, "plain", "empty"))).rejects.toThrow(
      "has no folders with pictures — give each class a folder of its name",
    );
    await expect(readPictures(files, join(root, "none"))).rejects.toThrow("is not there");
    await expect(findPictures(files, join(root, "plain", "empty"))).rejects.toThrow(
      "holds no pictures",
    );
  });
});

describe("preparePictures", () => {
  test("skips broken pictures with a reason that names the file, or fails at the first", async () => {
    const { train, labels } = await readPictures(files, join(root, "broken"), { share: 0 });
    const { set, skipped, files: kept } = await preparePictures(files, images, train, labels, rule);
    expect(set.count).toBe(3);
    expect(kept.map(({ label }) => label)).toEqual(["bad", "good", "good"]);
    expect(skipped.map(({ reason }) => reason.replaceAll(root, ""))).toEqual([
      expect.stringMatching(/^\/broken\/bad\/cut\.png: is damaged or cut short/),
      "/broken/bad/empty.png: is empty, a picture is needed.",
      expect.stringMatching(/^\/broken\/bad\/text\.jpg: is no picture, it begins with 74 68 69 73/),
    ]);
    await expect(
      preparePictures(files, images, train, labels, rule, { broken: "fail" }),
    ).rejects.toThrow("cut.png: is damaged");
    const bad = train.filter(({ path }) => path.endsWith("empty.png"));
    await expect(preparePictures(files, images, bad, labels, rule)).rejects.toThrow(
      "pictures: none of 1 can be read — the first:",
    );
  });

  test("refuses files and pictures that are too large", async () => {
    const { train, labels } = await readPictures(files, join(root, "broken"), { share: 0 });
    const { skipped } = await preparePictures(files, images, train.slice(-2), labels, rule, {
      maxPixels: 1000,
    });
    expect(skipped).toEqual([]);
    await expect(
      preparePictures(files, images, train.slice(-2), labels, rule, { maxPixels: 100 }),
    ).rejects.toThrow("has 12 × 12 pixels, 100 are the most");
    await expect(
      preparePictures(files, images, train.slice(-1), labels, rule, {
        maxBytes: 20,
        broken: "fail",
      }),
    ).rejects.toThrow("20");
  });

  test("gives the same examples whether it keeps pictures or reads them again", async () => {
    const { train, labels } = await readPictures(files, join(root, "plain"), { share: 0 });
    const kept = await preparePictures(files, images, train, labels, rule);
    const read = await preparePictures(files, images, train, labels, rule, { keepBytes: 0 });
    expect(read.set.dataHash).toBe(kept.set.dataHash);
    expect(await read.set.get([3, 25])).toEqual(await kept.set.get([3, 25]));
    const [example] = await kept.set.get([25]);
    expect([example!.label, example!.picture.width, example!.picture.height]).toEqual([2, 8, 8]);
    await expect(kept.set.get([30])).rejects.toThrow("index 30 is outside the set of 30");
  });

  test("changes examples at random in a step, by the stream and the example alone", async () => {
    const { train, labels } = await readPictures(files, join(root, "plain"), { share: 0 });
    const { set } = await preparePictures(files, images, train, labels, rule);
    const plain = await set.get([0, 1]);
    const changed = await set.get([0, 1], new Rng(1).fold("examples", 7));
    expect(changed[0]!.picture.data).not.toEqual(plain[0]!.picture.data);
    const [again] = await set.get([1], new Rng(1).fold("examples", 7));
    expect(again).toEqual(changed[1]);
    const other = await set.get([0, 1], new Rng(1).fold("examples", 8));
    expect(other[0]!.picture.data).not.toEqual(changed[0]!.picture.data);
    const still = await preparePictures(files, images, train, labels, rule, {
      augmentation: false,
    });
    expect(await still.set.get([0, 1], new Rng(1))).toEqual(plain);
  });

  test("another byte in a file, or another label, is other data", async () => {
    const { train, labels } = await readPictures(files, join(root, "broken"), { share: 0 });
    const good = train.filter(({ path }) => /[abc]\.png$/.test(path));
    const hash = async (list: typeof good): Promise<string> =>
      (await preparePictures(files, images, list, labels, rule)).set.dataHash;
    const first = await hash(good);
    expect(
      await hash(good.map((file, i) => (i === 0 ? { ...file, label: "good" } : file))),
    ).not.toBe(first);
    expect(await hash(good.slice(1))).not.toBe(first);
  });
});

describe("pictureBatches", () => {
  test("gives pictures in order, and reasons in place of broken ones", async () => {
    const paths = (await findPictures(files, join(root, "broken"))).map((path) => ({ path }));
    const found = [];
    for await (const batch of pictureBatches(files, images, paths, rule, 4)) found.push(...batch);
    expect(found.map((item) => ("reason" in item ? "broken" : item.width))).toEqual([
      8,
      "broken",
      "broken",
      "broken",
      8,
      8,
    ]);
  });
});
