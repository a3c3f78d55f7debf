/**
 * From the bytes of a picture to what a model reads, as `transformers`' image processors do by the
 * folder's preprocessor_config.json: resize, crop, rescale, normalise.
 */
import { FormatError, OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { Tensor } from "../tensor/tensor.ts";
import { centerCrop, type Picture, type Resample, resamples, resize } from "./resample.ts";

/** How a picture is brought to its size. */
export type ResizeRule =
  /** The shorter side to `shortest`, the other in proportion, of at most `longest`. */
  | { readonly shortest: number; readonly longest?: number }
  /** To that size whatever its form. */
  | { readonly width: number; readonly height: number }
  /** ConvNeXT's and ResNet's: below 384 the shorter side to side / cropShare and a middle square, else a square. */
  | { readonly side: number; readonly cropShare: number };

export interface Preprocessing {
  /** None: pictures keep their size. */
  readonly resize: ResizeRule | undefined;
  readonly resample: Resample;
  readonly crop: { readonly width: number; readonly height: number } | undefined;
  /** Factor on bytes; none keeps 0 to 255. */
  readonly rescale: number | undefined;
  /** Of the rescaled values, for red, green and blue; none leaves them. */
  readonly normalize:
    | { readonly mean: readonly number[]; readonly deviation: readonly number[] }
    | undefined;
}

interface Defaults {
  readonly size: JsonValue;
  readonly cropSize?: number;
  readonly resample: number;
  readonly mean: readonly number[];
  readonly deviation: readonly number[];
  readonly isSquare: boolean;
  readonly crops?: true;
}

const half = [0.5, 0.5, 0.5];
const clip = {
  mean: [0.48145466, 0.4578275, 0.40821073],
  deviation: [0.26862954, 0.26130258, 0.27577711],
};
const imagenet = { mean: [0.485, 0.456, 0.406], deviation: [0.229, 0.224, 0.225] };

/** What each processor of `transformers` does where its file is silent. */
const processors: Readonly<Record<string, Defaults>> = {
  ViT: { size: 224, resample: 2, mean: half, deviation: half, isSquare: true },
  DeiT: {
    size: 256,
    cropSize: 224,
    resample: 3,
    mean: half,
    deviation: half,
    isSquare: true,
    crops: true,
  },
  CLIP: { size: 224, cropSize: 224, resample: 3, ...clip, isSquare: false, crops: true },
  Bit: { size: 224, cropSize: 224, resample: 3, ...clip, isSquare: false, crops: true },
  ConvNext: { size: 384, resample: 3, mean: half, deviation: half, isSquare: false },
};

/** What a family's folder without a preprocessor_config.json is read with, by the size of its pictures. */
export function defaultPreprocessing(
  family: string,
  [height, width]: readonly [height: number, width: number],
): Preprocessing {
  const to = { width, height };
  if (family.startsWith("clip")) {
    return {
      resize: { shortest: Math.min(width, height) },
      resample: "bicubic",
      crop: to,
      rescale: 1 / 255,
      normalize: clip,
    };
  }
  if (family === "resnet") {
    return {
      resize: { side: Math.min(width, height), cropShare: 0.875 },
      resample: "bicubic",
      crop: undefined,
      rescale: 1 / 255,
      normalize: imagenet,
    };
  }
  return {
    resize: to,
    resample: "bilinear",
    crop: undefined,
    rescale: 1 / 255,
    normalize: { mean: half, deviation: half },
  };
}

const maxSide = 16384;
const isSide = (value: unknown): value is number =>
  Number.isInteger(value) && (value as number) >= 1 && (value as number) <= maxSide;

const show = (value: unknown): string => JSON.stringify(value ?? null).slice(0, 80);

function sizeOf(where: string, value: JsonValue, isSquare: boolean): ResizeRule {
  if (isSide(value)) return isSquare ? { width: value, height: value } : { shortest: value };
  if (isJsonObject(value)) {
    const { shortest_edge: shortest, longest_edge: longest, height, width } = value;
    if (isSide(shortest) && longest === undefined) return { shortest };
    if (isSide(shortest) && isSide(longest)) return { shortest, longest };
    if (isSide(height) && isSide(width)) return { height, width };
  }
  throw new FormatError(
    `${where}: a size must be a whole number from 1 to ${maxSide}, {height, width} or {shortest_edge}, got ${show(value)}.`,
  );
}

function channels(where: string, key: string, value: JsonValue | undefined): readonly number[] {
  const list = typeof value === "number" ? [value, value, value] : value;
  const isFine =
    Array.isArray(list) &&
    list.length === 3 &&
    list.every((x) => typeof x === "number" && Number.isFinite(x));
  if (isFine && (key !== "image_std" || !(list as number[]).includes(0))) return list as number[];
  throw new FormatError(
    `${where}: "${key}" must be three numbers${key === "image_std" ? " other than 0" : ""}, for red, green and blue, got ${show(value)}.`,
  );
}

/**
 * What a preprocessor_config.json says; what it does not say is the default of the processor it names.
 * @throws FormatError for values that are none.
 * @throws UnsupportedError for another processor, or padding.
 */
export function preprocessingOf(where: string, json: JsonObject): Preprocessing {
  const name =
    json["image_processor_type"] ?? json["feature_extractor_type"] ?? "ViTImageProcessor";
  const type =
    typeof name === "string"
      ? name.replace(/(ImageProcessor|FeatureExtractor)(Fast|Pil)?$/, "")
      : "";
  const defaults = Object.hasOwn(processors, type) ? processors[type] : undefined;
  if (!defaults) {
    throw new UnsupportedError(
      `${where}: the image processor ${show(name)} is not supported — those of ${Object.keys(processors).join(", ")} are.`,
    );
  }
  const flag = (key: string, missing: boolean): boolean => {
    const value = json[key] ?? missing;
    if (typeof value === "boolean") return value;
    throw new FormatError(`${where}: "${key}" must be true or false, got ${show(value)}.`);
  };
  if (flag("do_pad", false)) throw new UnsupportedError(`${where}: "do_pad" is not supported.`);
  const code = json["resample"] ?? defaults.resample;
  const resample = typeof code === "number" ? resamples[code] : undefined;
  if (!resample) {
    throw new FormatError(
      `${where}: "resample" must be a number from 0 to ${resamples.length - 1}, got ${show(code)}.`,
    );
  }
  const factor = json["rescale_factor"] ?? 1 / 255;
  if (typeof factor !== "number" || !Number.isFinite(factor)) {
    throw new FormatError(`${where}: "rescale_factor" must be a number, got ${show(factor)}.`);
  }
  const size = sizeOf(where, json["size"] ?? defaults.size, defaults.isSquare);
  const cropRule = sizeOf(where, json["crop_size"] ?? defaults.cropSize ?? 224, true);
  if (!("width" in cropRule)) {
    throw new FormatError(`${where}: "crop_size" must have height and width.`);
  }
  return {
    resize: flag("do_resize", true)
      ? type === "ConvNext"
        ? convNext(where, json, size)
        : size
      : undefined,
    resample,
    crop: flag("do_center_crop", defaults.crops ?? false) ? cropRule : undefined,
    rescale: flag("do_rescale", true) ? factor : undefined,
    normalize: flag("do_normalize", true)
      ? {
          mean: channels(where, "image_mean", json["image_mean"] ?? [...defaults.mean]),
          deviation: channels(where, "image_std", json["image_std"] ?? [...defaults.deviation]),
        }
      : undefined,
  };
}

function convNext(where: string, json: JsonObject, size: ResizeRule): ResizeRule {
  if (!("shortest" in size)) {
    throw new FormatError(`${where}: "size" must have shortest_edge for a ConvNextImageProcessor.`);
  }
  const share = json["crop_pct"] ?? 224 / 256;
  if (typeof share === "number" && share > 0.01 && share <= 1) {
    return { side: size.shortest, cropShare: share };
  }
  throw new FormatError(
    `${where}: "crop_pct" must be a share above 0.01 up to 1, got ${show(share)}.`,
  );
}

const configLimit = 2 ** 20;

/**
 * How a model folder wants its pictures: by preprocessor_config.json, or processor_config.json as newer
 * versions write it.
 * @returns undefined where the folder has neither.
 * @throws as `preprocessingOf`.
 */
export async function readPreprocessing(
  files: Files,
  folder: string,
): Promise<Preprocessing | undefined> {
  for (const name of ["preprocessor_config.json", "processor_config.json"]) {
    const path = files.join(folder, name);
    if (!(await files.info(path))) continue;
    const json = parseJson(await files.readBytes(path, configLimit), path);
    const own = isJsonObject(json) ? (json["image_processor"] ?? json) : json;
    if (!isJsonObject(own)) throw new FormatError(`${path}: must be an object.`);
    if (name === "processor_config.json" && own === json) continue;
    return preprocessingOf(path, own);
  }
  return undefined;
}

/** The preprocessor_config.json that says the same, which `transformers` reads. */
export function preprocessingJson(preprocessing: Preprocessing): Record<string, unknown> {
  const { resize: rule, resample, crop, rescale, normalize } = preprocessing;
  const size = !rule
    ? {}
    : "side" in rule
      ? { size: { shortest_edge: rule.side }, crop_pct: rule.cropShare }
      : "shortest" in rule
        ? {
            size: {
              shortest_edge: rule.shortest,
              ...(rule.longest !== undefined && { longest_edge: rule.longest }),
            },
          }
        : { size: { height: rule.height, width: rule.width } };
  const type = rule && "side" in rule ? "ConvNext" : crop ? "CLIP" : "ViT";
  return {
    image_processor_type: `${type}ImageProcessor`,
    do_resize: rule !== undefined,
    ...size,
    resample: resamples.indexOf(resample),
    do_center_crop: crop !== undefined,
    ...(crop && { crop_size: { height: crop.height, width: crop.width } }),
    do_rescale: rescale !== undefined,
    ...(rescale !== undefined && { rescale_factor: rescale }),
    do_normalize: normalize !== undefined,
    ...(normalize && { image_mean: normalize.mean, image_std: normalize.deviation }),
    do_convert_rgb: true,
  };
}

/** The size of a picture whose shorter side becomes `shortest`. */
function inProportion(
  { width, height }: Picture,
  shortest: number,
  longest: number | undefined,
): readonly [width: number, height: number] {
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  let [side, exact] = [shortest, shortest];
  if (longest !== undefined && (long / short) * shortest > longest) {
    exact = (longest * short) / long;
    side = Math.round(exact);
  }
  const other = Math.trunc((exact * long) / short);
  if (other > maxSide || side < 1) {
    throw new OptionError(
      `resize: a picture of ${width} × ${height} with its shorter side at ${side} is ${other} long, the most is ${maxSide} — leave it out, or cut it.`,
    );
  }
  return width <= height ? [side, other] : [other, side];
}

/** A picture in the size of the model, as bytes. */
export function fitted(picture: Picture, { resize: rule, resample, crop }: Preprocessing): Picture {
  let made = picture;
  if (rule && "shortest" in rule) {
    made = resize(made, ...inProportion(made, rule.shortest, rule.longest), resample);
  } else if (rule && "width" in rule) {
    made = resize(made, rule.width, rule.height, resample);
  } else if (rule) {
    const { side, cropShare } = rule;
    made =
      side < 384
        ? centerCrop(
            resize(made, ...inProportion(made, Math.trunc(side / cropShare), undefined), resample),
            side,
            side,
          )
        : resize(made, side, side, resample);
  }
  return crop ? centerCrop(made, crop.width, crop.height) : made;
}

/** Bytes as the model's numbers, written into `into` from `offset`: all red, all green, all blue. */
export function writePixels(
  { data, width, height }: Picture,
  { rescale, normalize }: Preprocessing,
  into: Float32Array,
  offset: number,
): void {
  const plane = width * height;
  for (let channel = 0; channel < 3; channel++) {
    const mean = normalize?.mean[channel] ?? 0;
    const deviation = normalize?.deviation[channel] ?? 1;
    // A byte has 256 values.
    const table = Float32Array.from(
      { length: 256 },
      (_, byte) => (byte * (rescale ?? 1) - mean) / deviation,
    );
    const start = offset + channel * plane;
    for (let i = 0; i < plane; i++) into[start + i] = table[data[3 * i + channel]!]!;
  }
}

/**
 * Pictures of one size as a model reads them: (B, 3, H, W).
 * @throws OptionError when sizes differ, or there is none.
 */
export function pixelsOf(
  pictures: readonly Picture[],
  preprocessing: Preprocessing,
): Tensor<"float32"> {
  const [first] = pictures;
  if (!first) throw new OptionError("pixelsOf: there is no picture.");
  const { width, height } = first;
  const size = 3 * width * height;
  const data = new Float32Array(pictures.length * size);
  pictures.forEach((picture, i) => {
    if (picture.width !== width || picture.height !== height) {
      throw new OptionError(
        `pixelsOf: picture ${i} is ${picture.width} × ${picture.height}, the first is ${width} × ${height} — fit them to one size.`,
      );
    }
    writePixels(picture, preprocessing, data, i * size);
  });
  return new Tensor("float32", [pictures.length, 3, height, width], data);
}
