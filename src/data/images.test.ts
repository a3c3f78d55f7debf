/** Resizing against Pillow, preprocessing against transformers' image processors. */
import { describe, expect, test } from "vitest";
import { uniforms } from "../../test/support/by-rule.ts";
import { fixture, type RawTensor, tensorOf } from "../../test/support/fixture.ts";
import type { JsonObject } from "../io/json.ts";
import {
  defaultPreprocessing,
  fitted,
  type Preprocessing,
  pixelsOf,
  preprocessingJson,
  preprocessingOf,
} from "./images.ts";
import { centerCrop, crop, type Picture, type Resample, resize } from "./resample.ts";

interface Fixture {
  readonly resizes: readonly {
    readonly from: readonly [number, number];
    readonly to: readonly [number, number];
    readonly resample: Resample;
    readonly bytes: RawTensor;
  }[];
  readonly processors: Readonly<
    Record<
      string,
      {
        readonly config: JsonObject;
        readonly pictures: readonly (readonly [number, number])[];
        readonly pixels: readonly RawTensor[];
      }
    >
  >;
}

const { resizes, processors } = fixture<Fixture>("images");

/** The picture of that size that the fixture has. */
function byRule(width: number, height: number): Picture {
  const u = uniforms(`${width}x${height}`, width * height * 3);
  return { width, height, data: Uint8Array.from(u, (x) => Math.floor(256 * x)) };
}

const grey = (width: number, height: number, bytes: readonly number[]): Picture => ({
  width,
  height,
  data: Uint8Array.from(bytes.flatMap((x) => [x, x, x])),
});
const reds = ({ data }: Picture): number[] => [...data].filter((_, i) => i % 3 === 0);

describe("resize", () => {
  test.each(resizes)("$resample from $from to $to gives Pillow's bytes", (record) => {
    const { width, height, data } = resize(byRule(...record.from), ...record.to, record.resample);
    expect([height, width, 3]).toEqual(record.bytes.shape);
    expect([...data]).toEqual(record.bytes.data);
  });

  test("averages what an output pixel covers: 0, 255, 255, 0 halved by boxes is 128, 128", () => {
    expect(reds(resize(grey(4, 1, [0, 255, 255, 0]), 2, 1, "box"))).toEqual([128, 128]);
  });

  test("refuses sides that are none", () => {
    expect(() => resize(byRule(4, 4), 0, 4)).toThrow(
      "resize: sides must be whole numbers from 1 to 16384, got 0 × 4.",
    );
  });
});

describe("crop", () => {
  test("takes the middle; of an odd rest the larger half is left out behind", () => {
    expect(reds(centerCrop(grey(5, 1, [1, 2, 3, 4, 5]), 2, 1))).toEqual([2, 3]);
  });

  test("is black outside the picture", () => {
    expect(reds(crop(grey(2, 1, [1, 2]), -1, 0, 4, 1))).toEqual([0, 1, 2, 0]);
    expect(reds(crop(grey(2, 1, [1, 2]), 5, 0, 2, 1))).toEqual([0, 0]);
  });
});

describe("preprocessing", () => {
  const cases = Object.entries(processors);

  test.each(cases)("%s gives transformers' pixels", (_, { config, pictures, pixels }) => {
    const rule = preprocessingOf("preprocessor_config.json", config);
    pictures.forEach((size, i) => {
      const made = pixelsOf([fitted(byRule(...size), rule)], rule);
      const expected = tensorOf(pixels[i]!);
      expect(made.shape).toEqual([1, ...expected.shape]);
      const worst = Math.max(
        ...Array.from(made.data, (x, k) => Math.abs(x - expected.numbers()[k]!)),
      );
      expect(worst).toBeLessThan(1e-5);
    });
  });

  test.each(cases)("%s comes back from the file that is written for it", (_, { config }) => {
    const rule = preprocessingOf("preprocessor_config.json", config);
    const again = JSON.parse(JSON.stringify(preprocessingJson(rule))) as JsonObject;
    expect(preprocessingOf("preprocessor_config.json", again)).toEqual(rule);
  });

  test("of a folder without a file is that of its family, for the model's size", () => {
    const rules: readonly Preprocessing[] = [
      defaultPreprocessing("vit", [8, 12]),
      defaultPreprocessing("clip_vision_model", [8, 8]),
      defaultPreprocessing("resnet", [8, 8]),
    ];
    expect(
      rules.map((rule) => fitted(byRule(40, 23), rule)).map((p) => [p.width, p.height]),
    ).toEqual([
      [12, 8],
      [8, 8],
      [8, 8],
    ]);
  });

  test.each([
    [
      { image_processor_type: "SegformerImageProcessor" },
      'the image processor "SegformerImageProcessor" is not supported — those of ViT, DeiT, CLIP, Bit, ConvNext are.',
    ],
    [{ size: 0 }, "a size must be a whole number from 1 to 16384"],
    [{ size: { height: 4 } }, 'got {"height":4}'],
    [{ size: 1e9 }, "got 1000000000"],
    [{ resample: 9 }, '"resample" must be a number from 0 to 5, got 9.'],
    [{ image_std: [1, 0, 1] }, '"image_std" must be three numbers other than 0'],
    [{ image_mean: [1, 2] }, '"image_mean" must be three numbers'],
    [{ do_resize: "yes" }, '"do_resize" must be true or false, got "yes".'],
    [{ do_pad: true }, '"do_pad" is not supported.'],
    [
      { feature_extractor_type: "ConvNextFeatureExtractor", crop_pct: 0 },
      '"crop_pct" must be a share',
    ],
  ])("refuses %j", (json, sentence) => {
    expect(() => preprocessingOf("p.json", json as JsonObject)).toThrow(`p.json: `);
    expect(() => preprocessingOf("p.json", json as JsonObject)).toThrow(sentence);
  });

  test("refuses a picture so long that its proportion bursts the limit", () => {
    const rule = preprocessingOf("p.json", { image_processor_type: "CLIPImageProcessor" });
    expect(() => fitted(byRule(400, 1), rule)).toThrow(
      "resize: a picture of 400 × 1 with its shorter side at 224 is 89600 long, the most is 16384",
    );
  });

  test("takes pictures of one size together", () => {
    const rule = defaultPreprocessing("vit", [4, 4]);
    expect(() => pixelsOf([byRule(4, 4), byRule(4, 5)], rule)).toThrow(
      "pixelsOf: picture 1 is 4 × 5, the first is 4 × 4 — fit them to one size.",
    );
  });
});
