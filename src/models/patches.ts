/** What models of patches share: their sizes in config.json, and patches as a sequence. */
import { OptionError, ShapeError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, transpose } from "../ir/layout.ts";
import { showShape } from "../tensor/shape.ts";
import type { VisionSizes } from "./model.ts";

type Json = Readonly<Record<string, unknown>>;

/** (B, D, h, w) → (B, h·w, D) */
export function patchSequence(x: Value): Value {
  const [batch, width, height, columns] = x.shape as [number, number, number, number];
  return transpose(reshape(x, [batch, width, height * columns]), [0, 2, 1]);
}

/** @throws ShapeError for pictures of another size than the model's. */
export function needPictures(where: string, pixels: Value, sizes: VisionSizes): void {
  const wanted = [sizes.channels, ...sizes.imageSize];
  if (pixels.rank === 4 && wanted.every((n, i) => pixels.shape[i + 1] === n)) return;
  throw new ShapeError(
    `${where}: needs pictures (B, ${wanted.join(", ")}), got ${showShape(pixels.shape)} — resize and crop them to the size of the model.`,
  );
}

/** @throws OptionError when no patch fits into a picture. */
export function checkPatches(
  where: string,
  imageSize: readonly [number, number],
  patchSize: readonly [number, number],
): void {
  if (patchSize.every((size, i) => size <= imageSize[i]!)) return;
  throw new OptionError(
    `${where}: patch_size ${patchSize.join("×")} is larger than image_size ${imageSize.join("×")}.`,
  );
}

/** Pictures of one side above this are of no published model. */
const maxSide = 16384;

/** A size as config.json writes it: one number, or height and width. */
export function readSides(
  where: string,
  json: Json,
  key: string,
  missing: number,
): readonly [height: number, width: number] {
  const value = json[key] ?? missing;
  const sides = Array.isArray(value) ? (value as unknown[]) : [value, value];
  const isSide = (x: unknown): x is number =>
    Number.isInteger(x) && (x as number) >= 1 && (x as number) <= maxSide;
  if (sides.length === 2 && isSide(sides[0]) && isSide(sides[1])) return [sides[0], sides[1]];
  throw new OptionError(
    `${where}: "${key}" must be one or two whole numbers from 1 to ${maxSide}, got ${JSON.stringify(value).slice(0, 80)}.`,
  );
}

/** A size as config.json writes it. */
export const oneOrBoth = ([height, width]: readonly [number, number]): number | number[] =>
  height === width ? height : [height, width];
