/**
 * Symbols drawn by code: sets of ten polylines each, and what stands in for photographs under the quick
 * budget.
 */
import { Rng } from "../../tensor/rng.ts";
import { sha256Hex } from "../cells.ts";
import type { DataRecord, ExperimentContext } from "../experiment.ts";
import type { DataSetInfo } from "./data-set.ts";
import { drawStrokes, type Jitter, jittered, type Stroke } from "./draw.ts";
import { type ImageSet, imageSet } from "./image-set.ts";

export const glyphsInfo: DataSetInfo = {
  name: "glyphs",
  about: "sets of ten polyline symbols, drawn by code with random affine changes",
  licence: "made by this package (Apache-2.0)",
};

/** Training and test pictures. */
export interface ImageData {
  readonly train: ImageSet;
  readonly test: ImageSet;
  readonly record: DataRecord;
}

const grid = 4;

/** Symbols of a set: each a polyline over points of a grid; none of two has the same points. */
export function glyphStrokes(set: number, count = 10): readonly (readonly Stroke[])[] {
  const rng = new Rng(set).fold("glyphs");
  const seen = new Set<string>();
  const glyphs: Stroke[][] = [];
  while (glyphs.length < count) {
    const length = 4 + rng.integer(3);
    const chosen = [...rng.permutation(grid * grid).subarray(0, length)];
    const key = [...chosen].sort((a, b) => a - b).join();
    if (seen.has(key)) continue;
    seen.add(key);
    const points = chosen.flatMap((at) => [
      (at % grid) / (grid - 1),
      Math.floor(at / grid) / (grid - 1),
    ]);
    glyphs.push([points]);
  }
  return glyphs;
}

/** Pictures of symbols, classes in turn; grey, `size` pixels a side. */
export function drawGlyphs(
  glyphs: readonly (readonly Stroke[])[],
  count: number,
  size: number,
  rng: Rng,
  options: Jitter & { readonly noise?: number; readonly classes?: readonly string[] } = {},
): ImageSet {
  const { noise = 0.05, classes = glyphs.map((_, i) => `symbol ${i}`) } = options;
  const pixels = new Float32Array(count * size * size);
  const labels = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    const own = rng.fold(i);
    const label = i % glyphs.length;
    const strokes = jittered(glyphs[label]!, size, own, options);
    const plane = drawStrokes(strokes, size, size, 1.2 + 1.6 * own.uniform());
    for (let k = 0; k < plane.length; k++) {
      plane[k] = Math.min(1, Math.max(0, plane[k]! + noise * own.normal()));
    }
    pixels.set(plane, i * size * size);
    labels[i] = label;
  }
  return imageSet({ pixels, labels, channels: 1, height: size, width: size, classes });
}

/** Of data that code makes: a hash of what it is made from. */
export function madeUp(name: string, settings: object, standsInFor?: string): DataRecord {
  return {
    name,
    source: "made by code",
    checksum: sha256Hex(JSON.stringify(settings)),
    licence: glyphsInfo.licence,
    ...(standsInFor !== undefined && { standsInFor }),
  };
}

/** A set of ten polyline symbols, 28 pixels a side. @param set which ten; 0, 1, 2, … */
export async function loadGlyphs(
  context: ExperimentContext,
  set: number,
  { train = 4000, test = 1000 }: { readonly train?: number; readonly test?: number } = {},
): Promise<ImageData> {
  const glyphs = glyphStrokes(set);
  const rng = new Rng(set).fold("pictures");
  const record = madeUp(`glyphs ${set}`, { set, train, test, version: 1 });
  context.recordData(record);
  return {
    train: drawGlyphs(glyphs, train, 28, rng.fold("train")),
    test: drawGlyphs(glyphs, test, 28, rng.fold("test")),
    record,
  };
}

/** Made-up pictures in the place of a data set of 28 × 28 grey ones, for the quick budget. */
export function quickImages(
  context: ExperimentContext,
  name: string,
  classes: readonly string[],
  set: number,
): ImageData {
  const glyphs = glyphStrokes(set, classes.length);
  const rng = new Rng(set).fold(name);
  const record = madeUp(name, { name, set, version: 2 }, `${name}, under the quick budget`);
  context.recordData(record);
  const options = { classes, rotate: 5, shift: 1, shear: 0.05 };
  return {
    train: drawGlyphs(glyphs, 600, 28, rng.fold("train"), options),
    test: drawGlyphs(glyphs, 300, 28, rng.fold("test"), options),
    record,
  };
}
