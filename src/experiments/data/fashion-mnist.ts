/**
 * Fashion-MNIST (Xiao, Rasul & Vollgraf, arXiv:1708.07747) from the Debian package `dataset-fashion-mnist`. Where
 * Debian cannot be reached full MNIST stands in, and the result says so.
 */
import type { ExperimentContext } from "../experiment.ts";
import { type DataSetInfo, gunzip, openPackage, readFile, unreachable } from "./data-set.ts";
import { type ImageData, quickImages } from "./glyphs.ts";
import { readIdxImages } from "./idx.ts";
import type { ImageSet } from "./image-set.ts";
import { loadMnistFull } from "./mnist.ts";

const folder = "usr/share/datasets/fashion-mnist";
const imagesChecksum = "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7";

export const fashionMnistInfo: DataSetInfo = {
  name: "fashion-mnist",
  about: "60,000 + 10,000 pictures of clothes, 28 × 28",
  licence: "MIT (Zalando SE)",
  bytes: 30_900_000,
  request: {
    registry: "debian",
    name: "dataset-fashion-mnist",
    keep: (path) => path.startsWith(folder),
    checksums: {
      [`${folder}/train-images-idx3-ubyte.gz`]: imagesChecksum,
      [`${folder}/train-labels-idx1-ubyte.gz`]:
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
      [`${folder}/t10k-images-idx3-ubyte.gz`]:
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
      [`${folder}/t10k-labels-idx1-ubyte.gz`]:
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
    },
  },
};

export const fashionNames: readonly string[] = [
  "t-shirt",
  "trouser",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "ankle boot",
];

/** Fashion-MNIST, or what stands in: full MNIST without Debian, made-up symbols under the quick budget. */
export async function loadFashionMnist(context: ExperimentContext): Promise<ImageData> {
  if (context.budget === "quick") return quickImages(context, "fashion-mnist", fashionNames, 1000);
  let found: Awaited<ReturnType<typeof openPackage>>;
  try {
    found = await openPackage(context, fashionMnistInfo);
  } catch (error) {
    const why = unreachable(error);
    if (why === undefined) throw error;
    return loadMnistFull(context, `fashion-mnist: ${why}`);
  }
  const read = async (part: "train" | "t10k"): Promise<ImageSet> => {
    const [images, labels] = await Promise.all(
      ["images-idx3", "labels-idx1"].map(async (kind) => {
        const path = `${folder}/${part}-${kind}-ubyte.gz`;
        return gunzip(await readFile(context, found, path), path);
      }),
    );
    return readIdxImages(images!, labels!, fashionNames, found.source);
  };
  const record = {
    name: "fashion-mnist",
    source: found.source,
    checksum: imagesChecksum,
    licence: fashionMnistInfo.licence,
  };
  context.recordData(record);
  return { train: await read("train"), test: await read("t10k"), record };
}
