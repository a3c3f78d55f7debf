/** Decoding pictures: the interface, and what is checked before a decoder sees the bytes. */
import { FormatError, UnsupportedError } from "../errors.ts";

/** Pixels in rows, red green blue of each, 0 to 255. */
export interface DecodedImage {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array;
}

export interface DecodeOptions {
  /** Begins errors: the file's name. Default "picture". */
  readonly name?: string;
  /** Most pixels of a picture; default 50 million. A larger one is refused before it is decoded. */
  readonly maxPixels?: number;
}

/** Decodes pictures: turned as their EXIF says, transparency dropped, of animations the first frame. */
export interface Images {
  /** Formats that are decoded. */
  readonly formats: readonly string[];
  /**
   * @throws FormatError for bytes that are no picture, are damaged or cut short, or hold too many pixels.
   * @throws UnsupportedError for a format that is not decoded here.
   */
  decode(bytes: Uint8Array, options?: DecodeOptions): Promise<DecodedImage>;
}

export const defaultMaxPixels = 50_000_000;

const ascii = (bytes: Uint8Array, from: number, to: number): string =>
  String.fromCharCode(...bytes.subarray(from, to));

/** The format of a picture by its first bytes; undefined where they are of none that is known. */
export function imageFormat(bytes: Uint8Array): string | undefined {
  const [a, b, c] = bytes;
  if (a === 0xff && b === 0xd8 && c === 0xff) return "jpeg";
  const start = ascii(bytes, 0, 4);
  if (start === "\x89PNG") return "png";
  if (start === "GIF8") return "gif";
  if (start === "RIFF" && ascii(bytes, 8, 12) === "WEBP") return "webp";
  if (start === "II*\0" || start === "MM\0*") return "tiff";
  if (ascii(bytes, 4, 8) === "ftyp") {
    return /^(avif|avis)$/.test(ascii(bytes, 8, 12)) ? "avif" : "heif";
  }
  return start.startsWith("BM") && bytes.length > 26 ? "bmp" : undefined;
}

/**
 * @throws FormatError for bytes of no picture.
 * @throws UnsupportedError for a format that is not among `formats`.
 */
export function checkFormat(bytes: Uint8Array, name: string, formats: readonly string[]): void {
  if (bytes.length === 0) throw new FormatError(`${name}: is empty, a picture is needed.`);
  const format = imageFormat(bytes);
  if (format === undefined) {
    const start = [...bytes.subarray(0, 4)].map((x) => x.toString(16).padStart(2, "0")).join(" ");
    throw new FormatError(
      `${name}: is no picture, it begins with ${start} — pictures are ${formats.join(", ")}.`,
    );
  }
  if (formats.includes(format)) return;
  throw new UnsupportedError(
    `${name}: is a ${format}, which is not decoded here — save it as one of ${formats.join(", ")}.`,
  );
}

/** Width and height by a picture's header, without decoding; undefined for other formats and damage. */
export function imageSize(bytes: Uint8Array): readonly [width: number, height: number] | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    switch (imageFormat(bytes)) {
      case "png":
        return [view.getUint32(16), view.getUint32(20)];
      case "gif":
        return [view.getUint16(6, true), view.getUint16(8, true)];
      case "bmp":
        return [Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))];
      case "webp":
        return webpSize(bytes, view);
      case "jpeg":
        return jpegSize(view);
      default:
        return undefined;
    }
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

function webpSize(bytes: Uint8Array, view: DataView): readonly [number, number] | undefined {
  const form = ascii(bytes, 12, 16);
  const three = (at: number): number => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  if (form === "VP8X") return [three(24) + 1, three(27) + 1];
  if (form === "VP8 ")
    return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
  if (form !== "VP8L") return undefined;
  const bits = view.getUint32(21, true);
  return [(bits & 0x3fff) + 1, ((bits >>> 14) & 0x3fff) + 1];
}

/** By the frame's header, which stands behind segments of other kinds. */
function jpegSize(view: DataView): readonly [number, number] | undefined {
  for (let at = 2; view.getUint8(at) === 0xff; ) {
    const marker = view.getUint8(at + 1);
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    // Bytes of filling before a marker.
    at += marker === 0xff ? 1 : 2 + view.getUint16(at + 2);
  }
  return undefined;
}

/** @throws FormatError when a picture has more pixels than are allowed, or none. */
export function checkPixels(
  name: string,
  width: number,
  height: number,
  maxPixels: number = defaultMaxPixels,
): void {
  if (width >= 1 && height >= 1 && width * height <= maxPixels) return;
  throw new FormatError(
    `${name}: has ${width} × ${height} pixels, ${maxPixels} are the most — scale it down before.`,
    { width, height },
  );
}
