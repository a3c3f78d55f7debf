/** Pictures in Node: sharp (libvips), which is installed beside this package where pictures are wanted. */
import { createRequire } from "node:module";
import { FormatError, MissingError } from "../errors.ts";
import {
  checkFormat,
  checkPixels,
  type DecodedImage,
  type DecodeOptions,
  defaultMaxPixels,
  type Images,
} from "./images.ts";

/** What of sharp is used; its types come with the package, which may be absent. */
interface Pipeline {
  metadata(): Promise<{ width?: number; height?: number }>;
  autoOrient(): Pipeline;
  removeAlpha(): Pipeline;
  toColourspace(space: "srgb"): Pipeline;
  raw(options: { depth: "uchar" }): Pipeline;
  toBuffer(options: { resolveWithObject: true }): Promise<{
    data: Uint8Array;
    info: { width: number; height: number; channels: number };
  }>;
}

type Sharp = (
  bytes: Uint8Array,
  options: {
    failOn: "error";
    limitInputPixels: number | false;
    ignoreIcc: boolean;
    pages: number;
    sequentialRead: boolean;
  },
) => Pipeline;

const formats = ["jpeg", "png", "webp", "gif", "tiff", "avif"] as const;

async function loadSharp(): Promise<Sharp> {
  // By a variable, so that a bundler and the type checker do without the package.
  const name = "sharp";
  try {
    return ((await import(name)) as { default: Sharp }).default;
  } catch (error) {
    const isThere = isResolvable(name);
    throw new MissingError(
      isThere
        ? `pictures: the package sharp is installed and does not load here — ${String((error as Error).message).split("\n")[0]}`
        : "pictures: decoding needs the package sharp — npm install sharp",
      {},
      { cause: error },
    );
  }
}

function isResolvable(name: string): boolean {
  try {
    createRequire(import.meta.url).resolve(name);
    return true;
  } catch {
    return false;
  }
}

/**
 * The decoder of a Node process. Colour profiles are not applied, as in Pillow; CMYK and 16-bit pictures
 * become 8-bit RGB.
 * @throws MissingError, with the line that installs it, when sharp is absent.
 */
export async function nodeImages(): Promise<Images> {
  const sharp = await loadSharp();
  return {
    formats,
    async decode(bytes: Uint8Array, options: DecodeOptions = {}): Promise<DecodedImage> {
      const { name = "picture", maxPixels = defaultMaxPixels } = options;
      checkFormat(bytes, name, formats);
      const open = (limit: number | false): Pipeline =>
        sharp(bytes, {
          failOn: "error",
          limitInputPixels: limit,
          ignoreIcc: true,
          pages: 1,
          sequentialRead: true,
        });
      try {
        // Of the header alone.
        const { width = 0, height = 0 } = await open(false).metadata();
        checkPixels(name, width, height, maxPixels);
        const { data, info } = await open(maxPixels)
          .autoOrient()
          .removeAlpha()
          .toColourspace("srgb")
          .raw({ depth: "uchar" })
          .toBuffer({ resolveWithObject: true });
        return { width: info.width, height: info.height, data: rgb(data, info.channels) };
      } catch (error) {
        if (error instanceof FormatError) throw error;
        const why = String((error as Error).message)
          .split("\n")[0]!
          .trim();
        throw new FormatError(
          `${name}: is damaged or cut short and cannot be decoded (${why}).`,
          { name },
          { cause: error },
        );
      }
    },
  };
}

/** Grey pictures have one channel. */
function rgb(data: Uint8Array, channels: number): Uint8Array {
  if (channels === 3) return data;
  const out = new Uint8Array((data.length / channels) * 3);
  for (let i = 0; i < out.length; i++) {
    const pixel = Math.floor(i / 3) * channels;
    out[i] = data[channels === 1 || channels === 2 ? pixel : pixel + (i % 3)]!;
  }
  return out;
}
