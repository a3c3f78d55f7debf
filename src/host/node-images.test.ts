/** Decoding: formats, forms of pixels, and files that lie. */
import sharp from "sharp";
import { describe, expect, test } from "vitest";
import { type Images, imageFormat, imageSize } from "./images.ts";
import { nodeImages } from "./node-images.ts";

const images: Images = await nodeImages();

/** Two pixels beside each other: red and blue. */
const two = sharp(Buffer.from([255, 0, 0, 0, 0, 255]), {
  raw: { width: 2, height: 1, channels: 3 },
});
const png = await two.clone().png().toBuffer();
const noise = Buffer.from(Uint8Array.from({ length: 64 * 64 * 3 }, (_, i) => (i * 7919) % 251));
const large = sharp(noise, { raw: { width: 64, height: 64, channels: 3 } });

/** A PNG that says it is of another size; its checksum is not right any more. */
function claiming(width: number, height: number): Buffer {
  const bytes = Buffer.from(png);
  bytes.writeUInt32BE(width, 16);
  bytes.writeUInt32BE(height, 20);
  return bytes;
}

describe("nodeImages", () => {
  test.each(["png", "webp", "tiff", "avif", "gif"] as const)(
    "decodes %s to the same pixels",
    async (format) => {
      const bytes = await two
        .clone()
        .toFormat(format, format === "tiff" ? { compression: "lzw" } : { lossless: true })
        .toBuffer();
      expect(imageFormat(bytes)).toBe(format);
      const { width, height, data } = await images.decode(bytes);
      expect([width, height, ...data]).toEqual([2, 1, 255, 0, 0, 0, 0, 255]);
    },
  );

  test("decodes JPEG", async () => {
    const { width, height, data } = await images.decode(
      await large.clone().jpeg({ quality: 100, chromaSubsampling: "4:4:4" }).toBuffer(),
    );
    expect([width, height]).toEqual([64, 64]);
    expect(Math.max(...data.map((x, i) => Math.abs(x - noise[i]!)))).toBeLessThan(12);
  });

  test("drops transparency and keeps what is beneath it", async () => {
    const bytes = await sharp(Buffer.from([9, 8, 7, 0]), {
      raw: { width: 1, height: 1, channels: 4 },
    })
      .png()
      .toBuffer();
    expect([...(await images.decode(bytes)).data]).toEqual([9, 8, 7]);
  });

  test("makes grey, grey with alpha, 16 bits and CMYK to three bytes a pixel", async () => {
    const grey = await sharp(Buffer.from([50]), { raw: { width: 1, height: 1, channels: 1 } })
      .toColourspace("b-w")
      .png()
      .toBuffer();
    expect([...(await images.decode(grey)).data]).toEqual([50, 50, 50]);
    const greyAlpha = await sharp(Buffer.from([50, 128]), {
      raw: { width: 1, height: 1, channels: 2 },
    })
      .toColourspace("b-w")
      .png()
      .toBuffer();
    expect([...(await images.decode(greyAlpha)).data]).toEqual([50, 50, 50]);
    const deep = await two.clone().toColourspace("rgb16").png().toBuffer();
    expect([...(await images.decode(deep)).data]).toEqual([255, 0, 0, 0, 0, 255]);
    const inks = await large.clone().toColourspace("cmyk").jpeg().toBuffer();
    const { data } = await images.decode(inks);
    expect(data.length).toBe(64 * 64 * 3);
  });

  test("turns a picture as its EXIF says", async () => {
    const bytes = await two.clone().withMetadata({ orientation: 6 }).png().toBuffer();
    const { width, height, data } = await images.decode(bytes);
    expect([width, height, ...data]).toEqual([1, 2, 255, 0, 0, 0, 0, 255]);
  });

  test("takes the first frame of an animation", async () => {
    const frames = Buffer.from([1, 2, 3, 200, 201, 202]);
    const gif = await sharp(frames, { raw: { width: 1, height: 2, channels: 3, pageHeight: 1 } })
      .gif()
      .toBuffer();
    const { width, height, data } = await images.decode(gif);
    expect([width, height, ...data]).toEqual([1, 1, 1, 2, 3]);
  });

  test.each([
    ["an empty file", Buffer.alloc(0), "a.png: is empty, a picture is needed."],
    [
      "a text",
      Buffer.from("hello there"),
      "a.png: is no picture, it begins with 68 65 6c 6c — pictures are jpeg, png, webp, gif, tiff, avif.",
    ],
    ["a drawing", Buffer.from('<svg xmlns="http://www.w3.org/2000/svg"/>'), "a.png: is no picture"],
    [
      "a bitmap",
      Buffer.concat([Buffer.from("BM"), Buffer.alloc(60)]),
      "a.png: is a bmp, which is not decoded here",
    ],
    [
      "a magic number alone",
      png.subarray(0, 8),
      "a.png: is damaged or cut short and cannot be decoded (",
    ],
  ])("refuses %s by name", async (_, bytes, sentence) => {
    await expect(images.decode(bytes, { name: "a.png" })).rejects.toThrow(sentence);
  });

  test.each(["png", "jpeg", "webp"] as const)("refuses a %s that is cut short", async (format) => {
    const bytes = await large.clone().toFormat(format).toBuffer();
    const half = bytes.subarray(0, Math.floor(bytes.length / 2));
    await expect(images.decode(half, { name: "b" })).rejects.toThrow(
      "b: is damaged or cut short and cannot be decoded",
    );
  });

  test("refuses more pixels than are allowed before it decodes them", async () => {
    await expect(
      images.decode(await large.clone().png().toBuffer(), { name: "c", maxPixels: 1000 }),
    ).rejects.toThrow("c: has 64 × 64 pixels, 1000 are the most — scale it down before.");
    await expect(images.decode(claiming(60000, 60000), { name: "bomb" })).rejects.toThrow(
      /^bomb: /,
    );
  });
});

describe("imageSize", () => {
  test.each(["png", "jpeg", "webp", "gif"] as const)(
    "reads it off the header of a %s",
    async (format) => {
      const bytes = await large
        .clone()
        .extract({ left: 0, top: 0, width: 40, height: 24 })
        .toFormat(format)
        .toBuffer();
      expect(imageSize(bytes)).toEqual([40, 24]);
      expect(imageSize(bytes.subarray(0, 10)) ?? [40, 24]).toEqual([40, 24]);
    },
  );

  test("reads it off a lossless and an extended WebP", async () => {
    const lossless = await two.clone().webp({ lossless: true }).toBuffer();
    expect(imageSize(lossless)).toEqual([2, 1]);
    const extended = await two.clone().withMetadata({ orientation: 1 }).webp().toBuffer();
    expect(imageSize(extended)).toEqual([2, 1]);
  });
});
