/** Drawing by distance: strokes and filled shapes on small planes, with soft edges. */
import type { Rng } from "../../tensor/rng.ts";

/** Points x, y in turn; a stroke joins them. */
export type Stroke = readonly number[];

function distanceToSegment(
  px: number,
  py: number,
  ax: number,
  ay: number,
  bx: number,
  by: number,
): number {
  const [dx, dy] = [bx - ax, by - ay];
  const length = dx * dx + dy * dy;
  const along = length === 0 ? 0 : ((px - ax) * dx + (py - ay) * dy) / length;
  const t = Math.min(1, Math.max(0, along));
  return Math.hypot(px - ax - t * dx, py - ay - t * dy);
}

/**
 * Ink of strokes on a plane: 1 inside half the width, falling to 0 over one pixel.
 * @param strokes in pixels, the middle of the first pixel at 0.5
 */
export function drawStrokes(
  strokes: readonly Stroke[],
  height: number,
  width: number,
  thickness: number,
): Float32Array<ArrayBuffer> {
  const plane = new Float32Array(height * width);
  for (const stroke of strokes) {
    for (let k = 0; k + 3 < stroke.length; k += 2) {
      const [ax, ay, bx, by] = [stroke[k]!, stroke[k + 1]!, stroke[k + 2]!, stroke[k + 3]!];
      const reach = thickness / 2 + 1;
      const x0 = Math.max(0, Math.floor(Math.min(ax, bx) - reach));
      const x1 = Math.min(width - 1, Math.ceil(Math.max(ax, bx) + reach));
      const y0 = Math.max(0, Math.floor(Math.min(ay, by) - reach));
      const y1 = Math.min(height - 1, Math.ceil(Math.max(ay, by) + reach));
      for (let y = y0; y <= y1; y++) {
        for (let x = x0; x <= x1; x++) {
          const far = distanceToSegment(x + 0.5, y + 0.5, ax, ay, bx, by);
          const ink = Math.min(1, Math.max(0, thickness / 2 + 0.5 - far));
          if (ink > plane[y * width + x]!) plane[y * width + x] = ink;
        }
      }
    }
  }
  return plane;
}

export interface Jitter {
  /** Degrees to each side; default 12. */
  readonly rotate?: number;
  /** Shares of the size; default 0.85 to 1.1. */
  readonly scale?: readonly [number, number];
  /** Pixels to each side; default 2. */
  readonly shift?: number;
  /** Default 0.15. */
  readonly shear?: number;
}

/** Strokes in the unit square, placed on a plane of some size with a random affine change. */
export function jittered(
  strokes: readonly Stroke[],
  size: number,
  rng: Rng,
  { rotate = 12, scale = [0.85, 1.1], shift = 2, shear = 0.15 }: Jitter = {},
): Stroke[] {
  const both = (most: number): number => (2 * rng.uniform() - 1) * most;
  const angle = (both(rotate) * Math.PI) / 180;
  const grow = scale[0] + (scale[1] - scale[0]) * rng.uniform();
  const slant = both(shear);
  const [mx, my] = [both(shift), both(shift)];
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const span = size * 0.72 * grow;
  return strokes.map((stroke) => {
    const out: number[] = [];
    for (let k = 0; k + 1 < stroke.length; k += 2) {
      const [u, v] = [stroke[k]! - 0.5, stroke[k + 1]! - 0.5];
      const w = u + slant * v;
      out.push(
        size / 2 + mx + span * (cos * w - sin * v),
        size / 2 + my + span * (sin * w + cos * v),
      );
    }
    return out;
  });
}
