/** Random changes: what each does, and that they follow from the stream alone. */
import { describe, expect, test } from "vitest";
import { uniforms } from "../../test/support/by-rule.ts";
import { Rng } from "../tensor/rng.ts";
import { type Augmentation, augmented, checkAugmentation, mirrored } from "./augment.ts";
import type { Picture } from "./resample.ts";

function noise(width: number, height: number): Picture {
  const u = uniforms("noise", width * height * 3);
  return { width, height, data: Uint8Array.from(u, (x) => Math.floor(256 * x)) };
}
const pixel = (...colour: number[]): Picture => ({
  width: 1,
  height: 1,
  data: Uint8Array.from(colour),
});
const change = (picture: Picture, options: Augmentation, seed: number): number[] => [
  ...augmented(picture, [picture.width, picture.height], "bilinear", new Rng(seed), {
    area: false,
    flip: 0,
    ...options,
  }).data,
];

describe("augmented", () => {
  test("has the size asked for, the same bytes for the same stream and others for another", () => {
    const options = { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 };
    const make = (seed: number): Picture =>
      augmented(noise(23, 17), [8, 6], "bicubic", new Rng(seed), options);
    expect([make(1).width, make(1).height]).toEqual([8, 6]);
    expect(make(1)).toEqual(make(1));
    expect(make(1).data).not.toEqual(make(2).data);
  });

  test("mirrors half of the pictures", () => {
    const picture = noise(5, 4);
    const flips = Array.from({ length: 400 }, (_, seed) => {
      const made = change(picture, { flip: 0.5 }, seed);
      const isFlipped = made.join() === [...mirrored(picture).data].join();
      expect(isFlipped || made.join() === [...picture.data].join()).toBe(true);
      return isFlipped;
    }).filter((x) => x).length;
    // 400 throws: 200 ± 4 · 10.
    expect(Math.abs(flips - 200)).toBeLessThan(40);
  });

  test("mirroring exchanges left and right, and twice is nothing", () => {
    const picture = { width: 2, height: 1, data: Uint8Array.from([1, 2, 3, 4, 5, 6]) };
    expect([...mirrored(picture).data]).toEqual([4, 5, 6, 1, 2, 3]);
    expect(mirrored(mirrored(noise(7, 3)))).toEqual(noise(7, 3));
  });

  test("takes parts whose area is in the range, from all over the picture", () => {
    // A ramp along x: the mean byte of a part says where it lies.
    const ramp = {
      width: 64,
      height: 64,
      data: Uint8Array.from({ length: 64 * 64 * 3 }, (_, i) => (Math.floor(i / 3) % 64) * 4),
    };
    const places = Array.from({ length: 200 }, (_, seed) => {
      const { data } = augmented(ramp, [8, 8], "box", new Rng(seed), { area: [0.1, 0.2], flip: 0 });
      const row = [...data.subarray(0, 24)].filter((_, i) => i % 3 === 0);
      // Of 64 columns √(0.1 · 3/4) to √(0.2 · 4/3), a ramp over 4 bytes each.
      expect((row.at(-1)! - row[0]!) / (4 * 64 * (7 / 8))).toBeGreaterThan(0.24);
      expect((row.at(-1)! - row[0]!) / (4 * 64 * (7 / 8))).toBeLessThan(0.56);
      return row[0]!;
    });
    expect(Math.max(...places) - Math.min(...places)).toBeGreaterThan(100);
  });

  test("falls back to the middle where no part of the form fits", () => {
    const long = {
      width: 100,
      height: 1,
      data: new Uint8Array(300).map((_, i) => Math.floor(i / 3)),
    };
    const { data } = augmented(long, [1, 1], "nearest", new Rng(1), {
      area: [1, 1],
      ratio: [1, 1],
      flip: 0,
    });
    expect(data[0]).toBe(49);
  });

  test("brightness is a factor on all bytes", () => {
    const factors = Array.from({ length: 50 }, (_, seed) =>
      change(pixel(100, 50, 0), { brightness: 0.5 }, seed),
    );
    for (const [red, green, blue] of factors) {
      expect(red).toBeGreaterThanOrEqual(50);
      expect(red).toBeLessThanOrEqual(150);
      expect(Math.abs(green! - red! / 2)).toBeLessThanOrEqual(1);
      expect(blue).toBe(0);
    }
    expect(new Set(factors.map(([red]) => red)).size).toBeGreaterThan(20);
  });

  test("contrast leaves one colour's grey, saturation leaves grey pixels", () => {
    for (let seed = 0; seed < 20; seed++) {
      expect(change(pixel(90, 90, 90), { contrast: 0.9 }, seed)).toEqual([90, 90, 90]);
      expect(change(pixel(90, 90, 90), { saturation: 0.9 }, seed)).toEqual([90, 90, 90]);
    }
  });

  test("hue turns colours round the circle and keeps their value and span", () => {
    const seen = Array.from({ length: 60 }, (_, seed) =>
      change(pixel(200, 20, 20), { hue: 0.5 }, seed),
    );
    for (const colour of seen) {
      expect(Math.max(...colour)).toBe(200);
      expect(Math.min(...colour)).toBe(20);
    }
    const most = seen.map((colour) => colour.indexOf(Math.max(...colour)));
    expect(new Set(most).size).toBe(3);
    expect(change(pixel(7, 7, 7), { hue: 0.5 }, 3)).toEqual([7, 7, 7]);
  });

  test.each([
    [{ area: [0, 1] }, "augmentation: area must be a range inside (0, 1], got 0,1."],
    [{ ratio: [2, 1] }, "augmentation: ratio must be a range inside (0, 100], got 2,1."],
    [{ flip: 2 }, "augmentation: flip must be from 0 to 1, got 2."],
    [{ hue: 0.7 }, "augmentation: hue must be from 0 to 0.5, got 0.7."],
    [{ contrast: Number.NaN }, "augmentation: contrast must be from 0 to 10, got NaN."],
  ])("refuses %j", (options, sentence) => {
    expect(() => checkAugmentation(options as Augmentation)).toThrow(sentence);
  });
});
