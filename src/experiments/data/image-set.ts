/** Labelled pictures as numbers, and what experiments do with them: choose, turn, invert, spoil. */
import { OptionError } from "../../errors.ts";
import type { Rng } from "../../tensor/rng.ts";

/** Pictures of one size with a class each. */
export interface ImageSet {
  /** (N, C, H, W), from 0 to 1. */
  readonly pixels: Float32Array<ArrayBuffer>;
  /** (N,), from 0. */
  readonly labels: Int32Array<ArrayBuffer>;
  readonly count: number;
  readonly channels: number;
  readonly height: number;
  readonly width: number;
  /** Names of the classes. */
  readonly classes: readonly string[];
}

/** Numbers of one picture. */
export function sizeOfImage({ channels, height, width }: ImageSet): number {
  return channels * height * width;
}

/** @throws OptionError where numbers and sizes do not fit. */
export function imageSet(parts: Omit<ImageSet, "count">): ImageSet {
  const { pixels, labels, channels, height, width, classes } = parts;
  if (pixels.length !== labels.length * channels * height * width) {
    throw new OptionError(
      `images: ${pixels.length} numbers are not ${labels.length} pictures of ${channels} × ${height} × ${width}.`,
    );
  }
  const wrong = labels.find((label) => label < 0 || label >= classes.length);
  if (wrong !== undefined) {
    throw new OptionError(`images: label ${wrong} is none of ${classes.length} classes.`);
  }
  return { ...parts, count: labels.length };
}

/** The pictures of these numbers, in order; pixels are copied. */
export function takeImages(set: ImageSet, indices: ArrayLike<number>): ImageSet {
  const size = sizeOfImage(set);
  const pixels = new Float32Array(indices.length * size);
  const labels = new Int32Array(indices.length);
  for (let i = 0; i < indices.length; i++) {
    const from = indices[i]!;
    if (!(Number.isInteger(from) && from >= 0 && from < set.count)) {
      throw new OptionError(`images: there is no picture ${from} among ${set.count}.`);
    }
    pixels.set(set.pixels.subarray(from * size, (from + 1) * size), i * size);
    labels[i] = set.labels[from]!;
  }
  return { ...set, pixels, labels, count: indices.length };
}

/** `count` pictures at random, without one twice; all in random order where there are fewer. */
export function sampleImages(set: ImageSet, count: number, rng: Rng): ImageSet {
  return takeImages(set, rng.permutation(set.count).subarray(0, count));
}

/** The same number of every class, at random. @throws OptionError where a class has too few. */
export function balancedImages(set: ImageSet, perClass: number, rng: Rng): ImageSet {
  const left = set.classes.map(() => perClass);
  const chosen: number[] = [];
  for (const i of rng.permutation(set.count)) {
    const label = set.labels[i]!;
    if (left[label]! > 0) {
      left[label]!--;
      chosen.push(i);
    }
  }
  const short = left.findIndex((missing) => missing > 0);
  if (short < 0) return takeImages(set, chosen);
  throw new OptionError(
    `images: class "${set.classes[short]}" has ${perClass - left[short]!} pictures, ${perClass} are needed.`,
  );
}

/** Two parts at random: the first with `count` pictures. */
export function splitImages(set: ImageSet, count: number, rng: Rng): [ImageSet, ImageSet] {
  const order = rng.permutation(set.count);
  return [takeImages(set, order.subarray(0, count)), takeImages(set, order.subarray(count))];
}

/** One set after the other; sizes and classes must agree. */
export function joinImages(sets: readonly ImageSet[]): ImageSet {
  const [first] = sets;
  if (!first) throw new OptionError("images: there is no set to join.");
  for (const set of sets) {
    if (sizeOfImage(set) === sizeOfImage(first) && set.width === first.width) continue;
    throw new OptionError("images: sets of different sizes cannot be joined.");
  }
  const count = sets.reduce((sum, set) => sum + set.count, 0);
  const pixels = new Float32Array(count * sizeOfImage(first));
  const labels = new Int32Array(count);
  let at = 0;
  for (const set of sets) {
    pixels.set(set.pixels, at * sizeOfImage(first));
    labels.set(set.labels, at);
    at += set.count;
  }
  return { ...first, pixels, labels, count };
}

/** Other labels for the same pictures. */
export function relabel(
  set: ImageSet,
  classes: readonly string[],
  labelOf: (label: number, index: number) => number,
): ImageSet {
  const labels = set.labels.map((label, i) => labelOf(label, i));
  return imageSet({ ...set, labels, classes });
}

/** Every plane (one channel of one picture) changed by itself. */
export function mapPlanes(
  set: ImageSet,
  change: (plane: Float32Array, into: Float32Array, image: number) => void,
): ImageSet {
  const size = set.height * set.width;
  const pixels = new Float32Array(set.pixels.length);
  for (let at = 0, plane = 0; at < pixels.length; at += size, plane++) {
    change(
      set.pixels.subarray(at, at + size),
      pixels.subarray(at, at + size),
      Math.floor(plane / set.channels),
    );
  }
  return { ...set, pixels };
}

/** 1 - x. */
export function inverted(set: ImageSet): ImageSet {
  return { ...set, pixels: set.pixels.map((x) => 1 - x) };
}

/** Left becomes right. */
export function mirrored(set: ImageSet): ImageSet {
  const { width } = set;
  return mapPlanes(set, (plane, into) => {
    for (let i = 0; i < plane.length; i++) {
      const x = i % width;
      into[i] = plane[i - x + (width - 1 - x)]!;
    }
  });
}

/** Bilinear reading of a plane; 0 outside. */
function readAt(plane: Float32Array, width: number, height: number, x: number, y: number): number {
  const [x0, y0] = [Math.floor(x), Math.floor(y)];
  const [fx, fy] = [x - x0, y - y0];
  const at = (i: number, j: number): number =>
    i < 0 || j < 0 || i >= width || j >= height ? 0 : plane[j * width + i]!;
  const top = at(x0, y0) * (1 - fx) + at(x0 + 1, y0) * fx;
  const bottom = at(x0, y0 + 1) * (1 - fx) + at(x0 + 1, y0 + 1) * fx;
  return top * (1 - fy) + bottom * fy;
}

/**
 * Turned about the middle; what comes from outside is 0. Quarter turns are exact.
 * @param degrees counter-clockwise, one for all or one for each picture
 */
export function rotated(set: ImageSet, degrees: number | ((image: number) => number)): ImageSet {
  const { width, height } = set;
  const [cx, cy] = [(width - 1) / 2, (height - 1) / 2];
  return mapPlanes(set, (plane, into, image) => {
    const angle = ((typeof degrees === "number" ? degrees : degrees(image)) * Math.PI) / 180;
    // Quarter turns land on whole pixels, and rounding must not smear them.
    const exact = (v: number): number => (Math.abs(v - Math.round(v)) < 1e-9 ? Math.round(v) : v);
    const [cos, sin] = [exact(Math.cos(angle)), exact(Math.sin(angle))];
    for (let i = 0; i < plane.length; i++) {
      const [x, y] = [(i % width) - cx, Math.floor(i / width) - cy];
      into[i] = readAt(plane, width, height, cos * x - sin * y + cx, sin * x + cos * y + cy);
    }
  });
}

/** Resized by bilinear reading of pixel middles. */
export function resized(set: ImageSet, height: number, width: number): ImageSet {
  const planes = set.count * set.channels;
  const pixels = new Float32Array(planes * height * width);
  const from = set.height * set.width;
  const clamp = (v: number, most: number): number => Math.min(most, Math.max(0, v));
  for (let plane = 0; plane < planes; plane++) {
    const source = set.pixels.subarray(plane * from, (plane + 1) * from);
    for (let y = 0; y < height; y++) {
      const sy = clamp(((y + 0.5) * set.height) / height - 0.5, set.height - 1);
      for (let x = 0; x < width; x++) {
        const sx = clamp(((x + 0.5) * set.width) / width - 0.5, set.width - 1);
        pixels[(plane * height + y) * width + x] = readAt(source, set.width, set.height, sx, sy);
      }
    }
  }
  return { ...set, pixels, height, width };
}

/** Every grey picture as three equal channels. */
export function asColour(set: ImageSet): ImageSet {
  if (set.channels === 3) return set;
  const size = set.height * set.width;
  const pixels = new Float32Array(set.count * 3 * size);
  for (let i = 0; i < set.count; i++) {
    const plane = set.pixels.subarray(i * size, (i + 1) * size);
    for (let c = 0; c < 3; c++) pixels.set(plane, (3 * i + c) * size);
  }
  return { ...set, pixels, channels: 3 };
}
