import { describe, expect, it } from "vitest";
import { Rng } from "../../tensor/rng.ts";
import { corrupted, corruptions } from "./corruptions.ts";
import { drawGlyphs, glyphStrokes } from "./glyphs.ts";
import {
  asColour,
  balancedImages,
  type ImageSet,
  imageSet,
  inverted,
  joinImages,
  mirrored,
  relabel,
  resized,
  rotated,
  sampleImages,
  splitImages,
  takeImages,
} from "./image-set.ts";

/** Two pictures of 3 × 3. */
const set: ImageSet = imageSet({
  pixels: Float32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 8, 7, 6, 5, 4, 3, 2, 1).map((x) => x / 16),
  labels: Int32Array.of(0, 1),
  channels: 1,
  height: 3,
  width: 3,
  classes: ["a", "b"],
});
const first = ({ pixels }: ImageSet): number[] => [...pixels.subarray(0, 9)].map((x) => x * 16);

describe("pictures", () => {
  it("are turned by quarters exactly, counter-clockwise, and four make none", () => {
    expect(first(rotated(set, 90))).toEqual([3, 6, 9, 2, 5, 8, 1, 4, 7]);
    expect(first(rotated(set, 180))).toEqual([9, 8, 7, 6, 5, 4, 3, 2, 1]);
    let turned = set;
    for (let i = 0; i < 4; i++) turned = rotated(turned, 90);
    expect(turned.pixels).toEqual(set.pixels);
    const each = rotated(set, (image) => 180 * image);
    expect(first(each)).toEqual(first(set));
    expect([...each.pixels.subarray(9)]).toEqual([...set.pixels.subarray(0, 9)]);
  });

  it("are mirrored, inverted, made grey or coloured", () => {
    expect(first(mirrored(set))).toEqual([3, 2, 1, 6, 5, 4, 9, 8, 7]);
    expect(first(inverted(set)).slice(0, 2)).toEqual([15, 14]);
    const colour = asColour(set);
    expect([colour.channels, colour.pixels.length]).toEqual([3, 54]);
    expect([...colour.pixels.subarray(9, 18)]).toEqual([...set.pixels.subarray(0, 9)]);
  });

  it("are resized: to their own size nothing changes, a plain one stays plain", () => {
    expect(first(resized(set, 3, 3))).toEqual(first(set));
    const plain = { ...set, pixels: set.pixels.map(() => 0.5) };
    expect(new Set(resized(plain, 7, 5).pixels)).toEqual(new Set([0.5]));
    expect(resized(plain, 7, 5)).toMatchObject({ height: 7, width: 5 });
  });

  it("are chosen, split, joined and labelled anew", () => {
    expect([...takeImages(set, [1, 0]).labels]).toEqual([1, 0]);
    expect(() => takeImages(set, [2])).toThrow("images: there is no picture 2 among 2.");
    const many = joinImages([set, set, set]);
    const [a, b] = splitImages(many, 4, new Rng(1));
    expect([a.count, b.count]).toEqual([4, 2]);
    expect(sampleImages(many, 3, new Rng(1)).count).toBe(3);
    const balanced = balancedImages(many, 2, new Rng(1));
    expect([...balanced.labels].sort()).toEqual([0, 0, 1, 1]);
    expect(() => balancedImages(many, 4, new Rng(1))).toThrow(
      'images: class "a" has 3 pictures, 4 are needed.',
    );
    expect([...relabel(set, ["x"], () => 0).labels]).toEqual([0, 0]);
    expect(() => relabel(set, ["x"], (label) => label)).toThrow("label 1 is none of 1 classes");
  });
});

describe("corruptions", () => {
  const grey = drawGlyphs(glyphStrokes(1), 10, 28, new Rng(2), { noise: 0 });
  const distance = (a: ImageSet, b: ImageSet): number =>
    Math.sqrt(a.pixels.reduce((sum, x, i) => sum + (x - b.pixels[i]!) ** 2, 0));

  it.each(corruptions)("%s changes more with its severity and stays within 0 … 1", (kind) => {
    const weak = corrupted(grey, kind, 1, new Rng(1));
    const strong = corrupted(grey, kind, 5, new Rng(1));
    expect(strong.pixels.every((x) => x >= 0 && x <= 1)).toBe(true);
    expect(distance(weak, grey)).toBeGreaterThan(0);
    expect(distance(strong, grey)).toBeGreaterThan(1.3 * distance(weak, grey));
    expect(distance(corrupted(grey, kind, 5, new Rng(1)), strong)).toBe(0);
  });

  it("know five severities", () => {
    expect(() => corrupted(grey, "blur", 0, new Rng(1))).toThrow(
      "corruption: severity must be a whole number from 1 to 5, got 0.",
    );
  });
});
