/** Pictures as examples: decoded when a batch asks for them, changed at random in training. */
import { FormatError, MissingError, OptionError, UnsupportedError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { Images } from "../host/images.ts";
import type { Rng } from "../tensor/rng.ts";
import { type Augmentation, augmented, checkAugmentation } from "./augment.ts";
import { DataHash } from "./data-hash.ts";
import { fitted, type Preprocessing } from "./images.ts";
import type { LabelledPicture, PictureFile } from "./picture-files.ts";
import type { Picture } from "./resample.ts";
import { checkIndex, type ExampleSet } from "./set.ts";

/** A picture in the size of the model, and its class. */
export interface PictureExample {
  readonly picture: Picture;
  readonly label: number;
}

export interface OpenPictureOptions {
  /** Most bytes of a file; default 64 MiB. */
  readonly maxBytes?: number;
  /** Most pixels of a picture; default 50 million. */
  readonly maxPixels?: number;
}

/**
 * Reads and decodes one picture.
 * @throws FormatError naming the file for what is no picture, damaged, or too large.
 */
export async function openPicture(
  files: Files,
  images: Images,
  path: string,
  { maxBytes = 2 ** 26, maxPixels }: OpenPictureOptions = {},
): Promise<{ readonly picture: Picture; readonly bytes: Uint8Array }> {
  const bytes = await files.readBytes(path, maxBytes);
  const picture = await images.decode(bytes, {
    name: path,
    ...(maxPixels !== undefined && { maxPixels }),
  });
  return { picture, bytes };
}

export interface PictureSetOptions extends OpenPictureOptions {
  /** Random changes in training; `false`: none. Default: parts and mirroring as `Augmentation` says. */
  readonly augmentation?: Augmentation | false;
  /** Bytes of decoded pictures kept in memory, in the size they have in their files; default 512 MiB. */
  readonly keepBytes?: number;
  /** Of pictures that cannot be read: leave them out, or fail. Default "skip". */
  readonly broken?: "skip" | "fail";
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, all: number) => void;
}

export interface PreparedPictures {
  readonly set: ExampleSet<PictureExample>;
  /** Pictures that are in the set, by number. */
  readonly files: readonly LabelledPicture[];
  /** Those that were left out, and why. */
  readonly skipped: readonly { readonly path: string; readonly reason: string }[];
}

/** Errors that say that a file is no picture, as opposed to those of this program. */
export function isBrokenPicture(error: unknown): error is Error {
  return (
    error instanceof FormatError ||
    error instanceof UnsupportedError ||
    (error instanceof MissingError && !error.message.startsWith("pictures:"))
  );
}

/**
 * Decodes every picture once, so that a broken one is found before training, and keeps as many as there is
 * room for; the others are decoded again when a batch asks. The set's hash is that of the files' bytes.
 * @param labels classes in the order of the model's outputs
 * @throws OptionError for a label outside `labels`, or when no picture is left.
 */
export async function preparePictures(
  files: Files,
  images: Images,
  pictures: readonly LabelledPicture[],
  labels: readonly string[],
  preprocessing: Preprocessing,
  options: PictureSetOptions = {},
): Promise<PreparedPictures> {
  const { augmentation = {}, keepBytes = 2 ** 29, broken = "skip", signal } = options;
  if (augmentation) checkAugmentation(augmentation);
  const numbers = new Map(labels.map((label, i) => [label, i]));
  const hash = new DataHash();
  const kept: (Picture | undefined)[] = [];
  const found: LabelledPicture[] = [];
  const skipped: { path: string; reason: string }[] = [];
  const classes: number[] = [];
  let room = keepBytes;
  for (const [i, file] of pictures.entries()) {
    signal?.throwIfAborted();
    const label = numbers.get(file.label);
    if (label === undefined) {
      throw new OptionError(
        `${file.path}: class ${JSON.stringify(file.label)} is not among ${labels.slice(0, 8).join(", ")}.`,
      );
    }
    try {
      const { picture, bytes } = await openPicture(files, images, file.path, options);
      // Its size is checked here too, before a step depends on it.
      fitted(picture, preprocessing);
      hash.bytes(bytes);
      hash.word(label);
      room -= picture.data.length;
      kept.push(room >= 0 ? picture : undefined);
      found.push(file);
      classes.push(label);
    } catch (error) {
      if (broken === "fail" || !(isBrokenPicture(error) || error instanceof OptionError))
        throw error;
      skipped.push({ path: file.path, reason: error.message });
    }
    options.onProgress?.(i + 1, pictures.length);
  }
  if (found.length === 0) {
    const [first] = skipped;
    throw new OptionError(
      `pictures: none of ${pictures.length} can be read${first ? ` — the first: ${first.reason}` : "."}`,
    );
  }
  const pictureAt = async (i: number): Promise<Picture> =>
    kept[i] ?? (await openPicture(files, images, found[i]!.path, options)).picture;
  const size = await pictureAt(0).then((picture) => fitted(picture, preprocessing));
  const set: ExampleSet<PictureExample> = {
    count: found.length,
    lengths: new Int32Array(found.length).fill(1),
    tokens: found.length,
    lossTokens: found.length,
    dataHash: hash.digest(),
    get: async (indices: ArrayLike<number>, rng?: Rng) =>
      Promise.all(
        Array.from(indices, async (index) => {
          checkIndex(index, found.length);
          const picture = await pictureAt(index);
          const changes = rng && augmentation;
          return {
            label: classes[index]!,
            picture: changes
              ? augmented(
                  picture,
                  [size.width, size.height],
                  preprocessing.resample,
                  rng.fold(index),
                  augmentation,
                )
              : fitted(picture, preprocessing),
          };
        }),
      ),
    close: async () => {},
  };
  return { set, files: found, skipped };
}

/** Pictures one batch after another, in the size of the model; broken ones come as a reason. */
export async function* pictureBatches(
  files: Files,
  images: Images,
  pictures: readonly PictureFile[],
  preprocessing: Preprocessing,
  batchSize: number,
  options: OpenPictureOptions = {},
): AsyncGenerator<readonly (Picture | { readonly reason: string })[]> {
  for (let start = 0; start < pictures.length; start += batchSize) {
    yield await Promise.all(
      pictures.slice(start, start + batchSize).map(async ({ path }) => {
        try {
          const { picture } = await openPicture(files, images, path, options);
          return fitted(picture, preprocessing);
        } catch (error) {
          if (isBrokenPicture(error) || error instanceof OptionError)
            return { reason: error.message };
          throw error;
        }
      }),
    );
  }
}
