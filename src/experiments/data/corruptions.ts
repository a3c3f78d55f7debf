/**
 * Ways to spoil pictures, in five severities, after Hendrycks & Dietterich, "Benchmarking Neural Network
 * Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261; strengths are our own, for
 * pictures of 28 to 32 pixels.
 */
import { OptionError } from "../../errors.ts";
import type { Rng } from "../../tensor/rng.ts";
import { type ImageSet, mapPlanes, resized } from "./image-set.ts";

export const corruptions = [
  "gaussian-noise",
  "impulse-noise",
  "blur",
  "contrast",
  "brightness",
  "pixelate",
  "occlusion",
] as const;

export type Corruption = (typeof corruptions)[number];

const inUnit = (x: number): number => Math.min(1, Math.max(0, x));

/** A box blur of radius r, edges repeated. */
function blurred(set: ImageSet, radius: number): ImageSet {
  const { width, height } = set;
  const pass = (from: Float32Array, to: Float32Array, isRow: boolean): void => {
    for (let i = 0; i < from.length; i++) {
      const [x, y] = [i % width, Math.floor(i / width)];
      let sum = 0;
      for (let d = -radius; d <= radius; d++) {
        const [u, v] = isRow ? [x + d, y] : [x, y + d];
        const cu = Math.min(width - 1, Math.max(0, u));
        sum += from[Math.min(height - 1, Math.max(0, v)) * width + cu]!;
      }
      to[i] = sum / (2 * radius + 1);
    }
  };
  return mapPlanes(set, (plane, into) => {
    const half = new Float32Array(plane.length);
    pass(plane, half, true);
    pass(half, into, false);
  });
}

/**
 * The set with one corruption on every picture, values kept in 0 … 1.
 * @param severity 1 to 5
 */
export function corrupted(set: ImageSet, kind: Corruption, severity: number, rng: Rng): ImageSet {
  if (!(Number.isInteger(severity) && severity >= 1 && severity <= 5)) {
    throw new OptionError(
      `corruption: severity must be a whole number from 1 to 5, got ${severity}.`,
    );
  }
  const each = (change: (x: number) => number): ImageSet => ({
    ...set,
    pixels: set.pixels.map((x) => inUnit(change(x))),
  });
  switch (kind) {
    case "gaussian-noise":
      return each((x) => x + 0.08 * severity * rng.normal());
    case "impulse-noise":
      return each((x) => {
        const u = rng.uniform();
        return u < 0.03 * severity ? (u < 0.015 * severity ? 0 : 1) : x;
      });
    case "blur": {
      // Radii of whole pixels are coarse: several passes of the smallest one make the steps.
      let out = set;
      for (let i = 0; i < severity; i++) out = blurred(out, 1);
      return out;
    }
    case "contrast":
      return each((x) => 0.5 + (x - 0.5) * (1 - 0.16 * severity));
    case "brightness":
      return each((x) => x + 0.12 * severity);
    case "pixelate": {
      const share = 1 - 0.14 * severity;
      const side = (full: number): number => Math.max(2, Math.round(full * share));
      return resized(resized(set, side(set.height), side(set.width)), set.height, set.width);
    }
    case "occlusion": {
      const side = Math.round(Math.min(set.height, set.width) * 0.1 * (1 + severity));
      const places = Array.from({ length: set.count }, () => [
        rng.integer(set.width - side + 1),
        rng.integer(set.height - side + 1),
      ]);
      return mapPlanes(set, (plane, into, image) => {
        const [x0, y0] = places[image]! as [number, number];
        into.set(plane);
        for (let y = y0; y < y0 + side; y++)
          into.fill(0, y * set.width + x0, y * set.width + x0 + side);
      });
    }
  }
}
