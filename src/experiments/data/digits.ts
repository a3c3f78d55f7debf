/**
 * The digits of scikit-learn: 1,797 pictures of 8 × 8 from the UCI set "Optical Recognition of Handwritten Digits"
 * (Alpaydin & Kaynak, 1998), in the Debian package `python3-sklearn`. Where Debian cannot be reached symbols drawn
 * by code, made as small, stand in.
 */
import { FormatError } from "../../errors.ts";
import { Rng } from "../../tensor/rng.ts";
import type { ExperimentContext } from "../experiment.ts";
import { type DataSetInfo, gunzip, openPackage, readFile, unreachable } from "./data-set.ts";
import { drawGlyphs, glyphStrokes, type ImageData, madeUp } from "./glyphs.ts";
import { imageSet, resized, takeImages } from "./image-set.ts";
import { digitNames } from "./mnist.ts";

const path = "usr/lib/python3/dist-packages/sklearn/datasets/data/digits.csv.gz";
const checksum = "46abec6b12486ad9e51943373abcf22bbea1b5a51a1619b361570d8893f1464a";

export const digitsInfo: DataSetInfo = {
  name: "digits",
  about: "1,797 handwritten digits, 8 × 8",
  licence: "UCI Machine Learning Repository, CC BY 4.0",
  bytes: 2_000_000,
  request: {
    registry: "debian",
    name: "python3-sklearn",
    keep: (name) => name === path,
    checksums: { [path]: checksum },
  },
};

/** 8 × 8 digits, every fifth for testing. Values from 0 to 1. */
export async function loadDigits(context: ExperimentContext): Promise<ImageData> {
  let text: string;
  let source: string;
  try {
    if (context.budget === "quick") return standIn(context, "digits, under the quick budget");
    const found = await openPackage(context, digitsInfo);
    source = found.source;
    text = new TextDecoder().decode(await gunzip(await readFile(context, found, path), path));
  } catch (error) {
    const why = unreachable(error);
    if (why === undefined) throw error;
    return standIn(context, `digits: ${why}`);
  }
  const rows = text.split("\n").filter((row) => row !== "");
  const pixels = new Float32Array(rows.length * 64);
  const labels = Int32Array.from(rows, (row, i) => {
    const numbers = row.split(",").map(Number);
    if (numbers.length !== 65 || numbers.some((x) => !(x >= 0 && x <= 16))) {
      throw new FormatError(
        `${source}: row ${i + 1} of digits.csv must hold 65 numbers from 0 to 16.`,
      );
    }
    for (let k = 0; k < 64; k++) pixels[i * 64 + k] = numbers[k]! / 16;
    return numbers[64]!;
  });
  const all = imageSet({ pixels, labels, channels: 1, height: 8, width: 8, classes: digitNames });
  const indices = rows.map((_, i) => i);
  const record = { name: "digits", source, checksum, licence: digitsInfo.licence };
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

function standIn(context: ExperimentContext, why: string): ImageData {
  const rng = new Rng(1002).fold("digits");
  const glyphs = glyphStrokes(1002);
  const draw = (count: number, name: string) =>
    resized(drawGlyphs(glyphs, count, 32, rng.fold(name), { classes: digitNames }), 8, 8);
  const record = madeUp("digits", { set: 1002, version: 1 }, why);
  context.recordData(record);
  return { train: draw(1440, "train"), test: draw(360, "test"), record };
}
