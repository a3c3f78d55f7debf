/**
 * Random changes to pictures in training: a part of random size and form, mirrored or not, with other
 * colours. What is drawn follows from the stream alone.
 *
 * The part: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, with torchvision's ranges. Colours:
 * brightness, contrast and saturation as factors, hue as a turn, in random order, as torchvision's ColorJitter.
 */
import { OptionError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";
import { crop, type Picture, type Resample, resize } from "./resample.ts";

export interface Augmentation {
  /** Share of the picture's area that a part has, in (0, 1]; default 0.08 to 1. `false`: no random part. */
  readonly area?: readonly [least: number, most: number] | false;
  /** Width over height of the part; default 3/4 to 4/3. */
  readonly ratio?: readonly [least: number, most: number];
  /** How often a picture is mirrored, from 0 to 1; default 0.5. */
  readonly flip?: number;
  /** Factors from 1 - x to 1 + x; default 0. */
  readonly brightness?: number;
  readonly contrast?: number;
  readonly saturation?: number;
  /** Turn of the hue from -x to x, 0.5 is half a circle; default 0. */
  readonly hue?: number;
}

/** @throws OptionError for a setting outside its range. */
export function checkAugmentation(options: Augmentation): void {
  const { area = [0.08, 1], ratio = [3 / 4, 4 / 3], flip = 0.5, hue = 0 } = options;
  const fail = (name: string, rule: string, value: unknown): never => {
    throw new OptionError(`augmentation: ${name} must be ${rule}, got ${String(value)}.`);
  };
  if (area && !(area[0] > 0 && area[0] <= area[1] && area[1] <= 1)) {
    fail("area", "a range inside (0, 1]", area);
  }
  if (!(ratio[0] > 0 && ratio[0] <= ratio[1] && ratio[1] <= 100)) {
    fail("ratio", "a range inside (0, 100]", ratio);
  }
  if (!(flip >= 0 && flip <= 1)) fail("flip", "from 0 to 1", flip);
  if (!(hue >= 0 && hue <= 0.5)) fail("hue", "from 0 to 0.5", hue);
  for (const name of ["brightness", "contrast", "saturation"] as const) {
    const value = options[name] ?? 0;
    if (!(value >= 0 && value <= 10)) fail(name, "from 0 to 10", value);
  }
}

/** A part of the picture, brought to the size. Ten tries for one that fits, then the middle. */
function randomPart(
  picture: Picture,
  [width, height]: readonly [number, number],
  resample: Resample,
  rng: Rng,
  options: Augmentation,
): Picture {
  const { area, ratio = [3 / 4, 4 / 3] } = options;
  if (area === false) return resize(picture, width, height, resample);
  const [least, most] = area ?? [0.08, 1];
  const { width: w, height: h } = picture;
  for (let attempt = 0; attempt < 10; attempt++) {
    const size = w * h * (least + (most - least) * rng.uniform());
    const [low, high] = [Math.log(ratio[0]), Math.log(ratio[1])];
    const form = Math.exp(low + (high - low) * rng.uniform());
    const [partWidth, partHeight] = [
      Math.round(Math.sqrt(size * form)),
      Math.round(Math.sqrt(size / form)),
    ];
    if (partWidth < 1 || partHeight < 1 || partWidth > w || partHeight > h) continue;
    const left = rng.integer(w - partWidth + 1);
    const top = rng.integer(h - partHeight + 1);
    const part = crop(picture, left, top, partWidth, partHeight);
    return resize(part, width, height, resample);
  }
  const own = w / h;
  const [partWidth, partHeight] =
    own < ratio[0]
      ? [w, Math.min(h, Math.max(1, Math.round(w / ratio[0])))]
      : own > ratio[1]
        ? [Math.min(w, Math.max(1, Math.round(h * ratio[1]))), h]
        : [w, h];
  const [left, top] = [Math.floor((w - partWidth) / 2), Math.floor((h - partHeight) / 2)];
  return resize(crop(picture, left, top, partWidth, partHeight), width, height, resample);
}

/** Left and right exchanged. */
export function mirrored({ data, width, height }: Picture): Picture {
  const out = new Uint8Array(data.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const from = (y * width + x) * 3;
      out.set(data.subarray(from, from + 3), (y * width + width - 1 - x) * 3);
    }
  }
  return { width, height, data: out };
}

/** Luma by ITU-R 601-2, as Pillow and torchvision take grey. */
const luma = (red: number, green: number, blue: number): number =>
  0.299 * red + 0.587 * green + 0.114 * blue;

/** Each pixel drawn towards a grey, or away from it: factor · pixel + (1 - factor) · grey. */
function blended(
  picture: Picture,
  factor: number,
  greyOf: (red: number, green: number, blue: number) => number,
): Picture {
  const { data } = picture;
  const out = new Uint8ClampedArray(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const grey = greyOf(data[i]!, data[i + 1]!, data[i + 2]!) * (1 - factor);
    for (let k = i; k < i + 3; k++) out[k] = data[k]! * factor + grey;
  }
  return { ...picture, data: new Uint8Array(out.buffer) };
}

function meanLuma({ data }: Picture): number {
  let total = 0;
  for (let i = 0; i < data.length; i += 3) total += luma(data[i]!, data[i + 1]!, data[i + 2]!);
  return total / (data.length / 3);
}

/** Hue turned by a share of the circle, in hue, saturation and value. */
function turned(picture: Picture, turn: number): Picture {
  const { data } = picture;
  const out = new Uint8ClampedArray(data.length);
  for (let i = 0; i < data.length; i += 3) {
    const [red, green, blue] = [data[i]!, data[i + 1]!, data[i + 2]!];
    const value = Math.max(red, green, blue);
    const span = value - Math.min(red, green, blue);
    let sector = 0;
    if (span > 0) {
      if (value === red) sector = (green - blue) / span + 6;
      else if (value === green) sector = (blue - red) / span + 2;
      else sector = (red - green) / span + 4;
    }
    const hue = sector + 6 * turn + 6;
    // Each channel is the value less the span, where the hue is on the other side of the circle.
    [5, 3, 1].forEach((offset, channel) => {
      const k = (hue + offset) % 6;
      out[i + channel] = value - span * Math.max(0, Math.min(k, 4 - k, 1));
    });
  }
  return { ...picture, data: new Uint8Array(out.buffer) };
}

function recoloured(picture: Picture, rng: Rng, options: Augmentation): Picture {
  const { brightness = 0, contrast = 0, saturation = 0, hue = 0 } = options;
  if (brightness === 0 && contrast === 0 && saturation === 0 && hue === 0) return picture;
  const between = (spread: number): number => 1 + spread * (2 * rng.uniform() - 1);
  const changes: ((x: Picture) => Picture)[] = [
    (x) => blended(x, Math.max(0, between(brightness)), () => 0),
    (x) => {
      const grey = meanLuma(x);
      return blended(x, Math.max(0, between(contrast)), () => grey);
    },
    (x) => blended(x, Math.max(0, between(saturation)), luma),
    (x) => turned(x, hue * (2 * rng.uniform() - 1)),
  ];
  const spreads = [brightness, contrast, saturation, hue];
  return [...rng.permutation(4)].reduce(
    (made, i) => (spreads[i]! > 0 ? changes[i]!(made) : made),
    picture,
  );
}

/** A picture changed at random and brought to the size that a model takes. */
export function augmented(
  picture: Picture,
  size: readonly [width: number, height: number],
  resample: Resample,
  rng: Rng,
  options: Augmentation = {},
): Picture {
  const part = randomPart(picture, size, resample, rng, options);
  const turnedRound = rng.uniform() < (options.flip ?? 0.5) ? mirrored(part) : part;
  return recoloured(turnedRound, rng, options);
}
