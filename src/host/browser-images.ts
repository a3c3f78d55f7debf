/** Pictures in a page or a worker, by the browser's own decoders. */
import { FormatError, UnsupportedError } from "../errors.ts";
import {
  checkFormat,
  checkPixels,
  type DecodedImage,
  type DecodeOptions,
  type Images,
  imageSize,
} from "./images.ts";

const formats = ["jpeg", "png", "webp", "gif", "avif", "bmp"] as const;

/**
 * The decoder of this page or worker. The browser applies colour profiles, and the canvas makes pixels
 * that are wholly transparent black.
 * @throws UnsupportedError where the browser has no canvas outside the page.
 */
export function browserImages(): Images {
  if (typeof createImageBitmap !== "function" || typeof OffscreenCanvas !== "function") {
    throw new UnsupportedError(
      "browserImages: there is no OffscreenCanvas here — use a browser of 2023 or newer.",
    );
  }
  return {
    formats,
    async decode(bytes: Uint8Array, options: DecodeOptions = {}): Promise<DecodedImage> {
      const { name = "picture" } = options;
      checkFormat(bytes, name, formats);
      const size = imageSize(bytes);
      if (size) checkPixels(name, ...size, options.maxPixels);
      let bitmap: ImageBitmap;
      try {
        bitmap = await createImageBitmap(new Blob([bytes as Uint8Array<ArrayBuffer>]), {
          premultiplyAlpha: "none",
          imageOrientation: "from-image",
        });
      } catch (error) {
        throw new FormatError(
          `${name}: is damaged or cut short and cannot be decoded (${(error as Error).message}).`,
          { name },
          { cause: error },
        );
      }
      try {
        const { width, height } = bitmap;
        checkPixels(name, width, height, options.maxPixels);
        const context = new OffscreenCanvas(width, height).getContext("2d", {
          willReadFrequently: true,
        });
        if (!context) throw new UnsupportedError("browserImages: the browser gives no 2d canvas.");
        context.drawImage(bitmap, 0, 0);
        const { data } = context.getImageData(0, 0, width, height);
        const out = new Uint8Array(width * height * 3);
        for (let from = 0, to = 0; from < data.length; from += 4, to += 3) {
          out[to] = data[from]!;
          out[to + 1] = data[from + 1]!;
          out[to + 2] = data[from + 2]!;
        }
        return { width, height, data: out };
      } finally {
        bitmap.close();
      }
    },
  };
}
