/**
 * Resizing pictures exactly as Pillow does (ImagingResample of libImaging): a filter over all pixels that
 * an output pixel covers, in fixed point, along one axis and then the other, with rounding to bytes
 * between. Preprocessing in `transformers` goes through it, so results do not depend on a decoder's own.
 */
import { OptionError } from "../errors.ts";

/** Pixels in rows, red green blue of each: `data[3 (y width + x) + channel]`, 0 to 255. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

/** Filters by Pillow's numbers, as `resample` of a preprocessor_config.json has them. */
export const resamples = ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] as const;
export type Resample = (typeof resamples)[number];

interface Filter {
  readonly support: number;
  readonly weight: (x: number) => number;
}

const sinc = (x: number): number => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** Keys 1981 with a = -0.5. */
function cubic(x: number): number {
  const a = -0.5;
  const t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
}

const filters: Readonly<Record<Exclude<Resample, "nearest">, Filter>> = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: {
    support: 1,
    weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI))),
  },
  bicubic: { support: 2, weight: cubic },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

const precisionBits = 22;

/** For each output pixel where its inputs begin, and their weights in fixed point. */
interface Weights {
  readonly starts: Int32Array;
  readonly counts: Int32Array;
  readonly weights: Int32Array;
  readonly stride: number;
}

function weightsOf(from: number, to: number, { support, weight }: Filter): Weights {
  const scale = from / to;
  const filterScale = Math.max(scale, 1);
  const reach = support * filterScale;
  const stride = Math.ceil(reach) * 2 + 1;
  const starts = new Int32Array(to);
  const counts = new Int32Array(to);
  const weights = new Int32Array(to * stride);
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5));
    const count = Math.min(from, Math.trunc(center + reach + 0.5)) - start;
    const row = Array.from({ length: count }, (_, k) =>
      weight((k + start - center + 0.5) * (1 / filterScale)),
    );
    const total = row.reduce((a, b) => a + b, 0);
    row.forEach((w, k) => {
      const share = (total === 0 ? w : w / total) * 2 ** precisionBits;
      weights[i * stride + k] = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
    [starts[i], counts[i]] = [start, count];
  }
  return { starts, counts, weights, stride };
}

/** A picture with another size along one axis. */
function resampleAxis(
  { data, width, height }: Picture,
  axis: "x" | "y",
  size: number,
  filter: Filter,
): Picture {
  const isRow = axis === "x";
  const { starts, counts, weights, stride } = weightsOf(isRow ? width : height, size, filter);
  const [outWidth, outHeight] = isRow ? [size, height] : [width, size];
  const out = new Uint8ClampedArray(outWidth * outHeight * 3);
  const half = 2 ** (precisionBits - 1);
  const step = isRow ? 3 : width * 3;
  for (let y = 0; y < outHeight; y++) {
    for (let x = 0; x < outWidth; x++) {
      const i = isRow ? x : y;
      const [count, first] = [counts[i]!, i * stride];
      let at = isRow ? (y * width + starts[i]!) * 3 : (starts[i]! * width + x) * 3;
      let [red, green, blue] = [half, half, half];
      for (let k = 0; k < count; k++, at += step) {
        const w = weights[first + k]!;
        red += data[at]! * w;
        green += data[at + 1]! * w;
        blue += data[at + 2]! * w;
      }
      const to = (y * outWidth + x) * 3;
      out[to] = red >> precisionBits;
      out[to + 1] = green >> precisionBits;
      out[to + 2] = blue >> precisionBits;
    }
  }
  return { width: outWidth, height: outHeight, data: new Uint8Array(out.buffer) };
}

function nearest({ data, width, height }: Picture, toWidth: number, toHeight: number): Picture {
  const out = new Uint8Array(toWidth * toHeight * 3);
  for (let y = 0; y < toHeight; y++) {
    const row = Math.floor((y + 0.5) * (height / toHeight)) * width;
    for (let x = 0; x < toWidth; x++) {
      const at = (row + Math.floor((x + 0.5) * (width / toWidth))) * 3;
      out.set(data.subarray(at, at + 3), (y * toWidth + x) * 3);
    }
  }
  return { width: toWidth, height: toHeight, data: out };
}

const maxSide = 16384;

/**
 * A picture in another size.
 * @throws OptionError when a side is no whole number from 1 to 16384.
 */
export function resize(
  picture: Picture,
  width: number,
  height: number,
  resample: Resample = "bicubic",
): Picture {
  for (const side of [width, height]) {
    if (Number.isInteger(side) && side >= 1 && side <= maxSide) continue;
    throw new OptionError(
      `resize: sides must be whole numbers from 1 to ${maxSide}, got ${width} × ${height}.`,
    );
  }
  if (width === picture.width && height === picture.height) return picture;
  if (resample === "nearest") return nearest(picture, width, height);
  const filter = filters[resample];
  // Pillow 13 goes along columns first where that saves more; older versions never did.
  const saved = picture.height - height;
  const columnsFirst = saved > Math.max(0, 2 * (picture.width - width));
  const along = (made: Picture, axis: "x" | "y"): Picture => {
    const size = axis === "x" ? width : height;
    const has = axis === "x" ? made.width : made.height;
    return size === has ? made : resampleAxis(made, axis, size, filter);
  };
  return columnsFirst ? along(along(picture, "y"), "x") : along(along(picture, "x"), "y");
}

/**
 * A part of a picture; what lies outside is black.
 * @param left may be below 0, as may `top`
 */
export function crop(
  { data, width, height }: Picture,
  left: number,
  top: number,
  toWidth: number,
  toHeight: number,
): Picture {
  const out = new Uint8Array(toWidth * toHeight * 3);
  const [from, to] = [Math.max(0, left), Math.min(width, left + toWidth)];
  for (let y = Math.max(0, top); y < Math.min(height, top + toHeight) && from < to; y++) {
    const row = data.subarray((y * width + from) * 3, (y * width + to) * 3);
    out.set(row, ((y - top) * toWidth + from - left) * 3);
  }
  return { width: toWidth, height: toHeight, data: out };
}

/** The middle of a picture, as `transformers` crops; a smaller picture is set into black. */
export function centerCrop(picture: Picture, width: number, height: number): Picture {
  const left = Math.floor((picture.width - width) / 2);
  return crop(picture, left, Math.floor((picture.height - height) / 2), width, height);
}
