/**
 * Pictures of shapes in colour, drawn by code: 8 shapes in 4 textures at random places, sizes, angles and
 * colours. What a picture shows is known exactly, so that any question about it can be a task.
 */
import { Rng } from "../../tensor/rng.ts";
import type { ExperimentContext } from "../experiment.ts";
import type { DataSetInfo } from "./data-set.ts";
import type { ImageData } from "./glyphs.ts";
import { madeUp } from "./glyphs.ts";
import { type ImageSet, imageSet } from "./image-set.ts";

export const shapesInfo: DataSetInfo = {
  name: "shapes",
  about: "textured shapes in colour, 32 × 32, drawn by code",
  licence: "made by this package (Apache-2.0)",
};

export const shapeNames = [
  "circle",
  "square",
  "triangle",
  "cross",
  "ring",
  "star",
  "bar",
  "crescent",
] as const;
export const textureNames = ["plain", "stripes", "dots", "checks"] as const;

export type Shape = (typeof shapeNames)[number];
export type Texture = (typeof textureNames)[number];
export type Colour = readonly [red: number, green: number, blue: number];

/** One thing in a picture. */
export interface Drawn {
  readonly shape: Shape;
  readonly texture: Texture;
  /** Middle, in pixels. */
  readonly x: number;
  readonly y: number;
  /** Pixels. */
  readonly radius: number;
  /** Radians. */
  readonly angle: number;
  readonly colour: Colour;
}

/** Below 0 inside, in units of the radius; (u, v) from the middle. */
function inside(shape: Shape, u: number, v: number): number {
  const r = Math.hypot(u, v);
  const box = (w: number, h: number): number => Math.max(Math.abs(u) - w, Math.abs(v) - h);
  switch (shape) {
    case "circle":
      return r - 0.95;
    case "square":
      return box(0.8, 0.8);
    case "triangle":
      return Math.max(v - 0.6, -0.5 * v + 0.866 * Math.abs(u) - 0.5);
    case "cross":
      return Math.min(box(0.95, 0.3), box(0.3, 0.95));
    case "ring":
      return Math.abs(r - 0.7) - 0.25;
    case "star": {
      const spike = Math.abs((((Math.atan2(v, u) * 5) / (2 * Math.PI) + 10) % 1) - 0.5) * 2;
      return r - (0.45 + 0.55 * spike);
    }
    case "bar":
      return box(1, 0.28);
    case "crescent":
      return Math.max(r - 0.95, 0.75 - Math.hypot(u - 0.45, v));
  }
}

/** How bright the texture is at a place of the shape. */
function shade(texture: Texture, u: number, v: number): number {
  const half = (x: number): boolean => ((x % 2) + 2) % 2 < 1;
  switch (texture) {
    case "plain":
      return 1;
    case "stripes":
      return half(u * 4) ? 1 : 0.35;
    case "dots":
      return Math.hypot(((u * 2.5 + 50) % 1) - 0.5, ((v * 2.5 + 50) % 1) - 0.5) < 0.3 ? 0.3 : 1;
    case "checks":
      return half(u * 3) === half(v * 3) ? 1 : 0.35;
  }
}

/** Draws onto a picture of three planes, with soft edges. */
export function drawShape(pixels: Float32Array, size: number, drawn: Drawn): void {
  const { shape, texture, x: cx, y: cy, radius, angle, colour } = drawn;
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  const reach = Math.ceil(radius * 1.3) + 1;
  const from = (c: number): number => Math.max(0, Math.floor(c - reach));
  const to = (c: number): number => Math.min(size - 1, Math.ceil(c + reach));
  for (let y = from(cy); y <= to(cy); y++) {
    for (let x = from(cx); x <= to(cx); x++) {
      const [dx, dy] = [(x + 0.5 - cx) / radius, (y + 0.5 - cy) / radius];
      const [u, v] = [cos * dx + sin * dy, cos * dy - sin * dx];
      const cover = Math.min(1, Math.max(0, 0.5 - inside(shape, u, v) * radius));
      if (cover === 0) continue;
      const light = shade(texture, u, v);
      for (let c = 0; c < 3; c++) {
        const at = (c * size + y) * size + x;
        pixels[at] = pixels[at]! * (1 - cover) + cover * light * colour[c]!;
      }
    }
  }
}

/** A colour that stands out from another by its brightness or hue. */
export function randomColour(rng: Rng, against?: Colour): Colour {
  for (;;) {
    const colour: Colour = [rng.uniform(), rng.uniform(), rng.uniform()];
    const far = against
      ? Math.hypot(...colour.map((value, i) => value - against[i]!))
      : Math.max(...colour);
    if (far > 0.6) return colour;
  }
}

/** A background: one dark or bright colour with a slope and some noise. */
export function background(pixels: Float32Array, size: number, colour: Colour, rng: Rng): void {
  const [gx, gy] = [0.3 * (rng.uniform() - 0.5), 0.3 * (rng.uniform() - 0.5)];
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < size; y++) {
      for (let x = 0; x < size; x++) {
        const slope = (gx * x + gy * y) / size;
        const value = colour[c]! + slope + 0.03 * rng.normal();
        pixels[(c * size + y) * size + x] = Math.min(1, Math.max(0, value));
      }
    }
  }
}

/**
 * Pictures from a rule: what is drawn in each, and its label.
 * @param scene called with the picture's number, a stream of its own and the background's colour
 */
export function drawScenes(
  count: number,
  classes: readonly string[],
  rng: Rng,
  scene: (
    image: number,
    rng: Rng,
    backdrop: Colour,
  ) => { readonly label: number; readonly things: readonly Drawn[] },
  size = 32,
): ImageSet {
  const pixels = new Float32Array(count * 3 * size * size);
  const labels = new Int32Array(count);
  for (let i = 0; i < count; i++) {
    const own = rng.fold(i);
    const picture = pixels.subarray(i * 3 * size * size, (i + 1) * 3 * size * size);
    const backdrop: Colour = [own.uniform(), own.uniform(), own.uniform()];
    background(picture, size, backdrop, own);
    const { label, things } = scene(i, own, backdrop);
    for (const thing of things) drawShape(picture, size, thing);
    labels[i] = label;
  }
  return imageSet({ pixels, labels, channels: 3, height: size, width: size, classes });
}

/** One thing at a random place. */
export function randomThing(
  shape: Shape,
  texture: Texture,
  rng: Rng,
  backdrop: Colour,
  size = 32,
): Drawn {
  const radius = size * (0.2 + 0.16 * rng.uniform());
  const room = size - 2 * radius;
  return {
    shape,
    texture,
    radius,
    x: radius + room * rng.uniform(),
    y: radius + room * rng.uniform(),
    angle: 2 * Math.PI * rng.uniform(),
    colour: randomColour(rng, backdrop),
  };
}

/** 32 classes, shape by texture. Drawn by code under every budget; fewer under the quick one. */
export async function loadShapes(
  context: ExperimentContext,
  options: { readonly train?: number; readonly test?: number; readonly seed?: number } = {},
): Promise<ImageData> {
  const isQuick = context.budget === "quick";
  const { train = isQuick ? 640 : 6000, test = isQuick ? 320 : 1000, seed = 0 } = options;
  const classes = shapeNames.flatMap((shape) =>
    textureNames.map((texture) => `${texture} ${shape}`),
  );
  const rng = new Rng(seed).fold("shapes");
  const draw = (count: number, name: string): ImageSet =>
    drawScenes(count, classes, rng.fold(name), (i, own, backdrop) => {
      const label = i % classes.length;
      const shape = shapeNames[Math.floor(label / 4)]!;
      return { label, things: [randomThing(shape, textureNames[label % 4]!, own, backdrop)] };
    });
  const record = madeUp("shapes", { train, test, seed, version: 1 });
  context.recordData(record);
  return { train: draw(train, "train"), test: draw(test, "test"), record };
}
