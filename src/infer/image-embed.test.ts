/** Vectors of pictures and texts in one space, against the model run directly. */
import { describe, expect, test } from "vitest";
import { parityBackend } from "../../test/support/fixture.ts";
import {
  tinyClip as clip,
  clipParams as params,
  clipRule as rule,
  clipTokenizer as tokenizer,
} from "../../test/support/tiny-clip.ts";
import { toyPicture } from "../../test/support/toy-pictures.ts";
import { evaluate } from "../backend/compile.ts";
import { defaultPreprocessing, pixelsOf } from "../data/images.ts";
import type { Value } from "../ir/graph.ts";
import { clipLogits } from "../models/clip.ts";
import { families } from "../models/families.ts";
import type { VisionModel, VisionTextModel } from "../models/model.ts";
import type { ValueRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { embedClipTexts, ImageEmbedder, labelTexts, zeroShot } from "./image-embed.ts";

const backend = await parityBackend();
const tower = {
  hidden_size: 12,
  num_hidden_layers: 1,
  num_attention_heads: 2,
  intermediate_size: 16,
};
const pictures = Array.from({ length: 5 }, (_, i) => toyPicture(i % 3, i, 8));
const lengthsOf = ({ data, shape }: Tensor<"float32">): number[] =>
  Array.from({ length: shape[0]! }, (_, i) => {
    const width = shape[1]!;
    return Math.hypot(...data.subarray(i * width, (i + 1) * width));
  });

describe("ImageEmbedder", () => {
  test("gives each picture the same vector whatever stands beside it, of length 1", async () => {
    const [one, three] = [1, 3].map(
      (batchSize) =>
        new ImageEmbedder(clip as VisionTextModel, params, rule, backend, { batchSize }),
    ) as [ImageEmbedder, ImageEmbedder];
    const [a, b] = [await one.embed(pictures), await three.embed(pictures)];
    expect(a.shape).toEqual([5, 6]);
    a.data.forEach((x, i) => {
      expect(x).toBeCloseTo(b.data[i]!, 6);
    });
    for (const length of lengthsOf(a)) expect(length).toBeCloseTo(1, 5);
    expect((await one.embed([])).shape).toEqual([0, 6]);
    await Promise.all([one.release(), three.release()]);
    await expect(one.embed(pictures)).rejects.toThrow("embed: the embedder was released.");
  });

  test("takes ViT's pooled vector as it is when asked for raw ones", async () => {
    const vit = families["vit"]!({ ...tower, image_size: 8, patch_size: 4 }) as VisionModel;
    const own = vit.init(new Rng(8)).params;
    const square = defaultPreprocessing("vit", [8, 8]);
    const embedder = new ImageEmbedder(vit, own, square, backend, { normalize: false });
    const made = await embedder.embed(pictures);
    const direct = await evaluate<Tensor>(
      backend,
      (p: ValueRecord, x: Value) => vit.forward(vit.context(p), x).pooled,
      own,
      pixelsOf(pictures, square),
    );
    direct.numbers();
    made.data.forEach((x, i) => {
      expect(x).toBeCloseTo(direct.numbers()[i]!, 5);
    });
    await embedder.release();
  });
});

describe("zero-shot classification", () => {
  test("gives softmax of the model's own logits", async () => {
    const texts = labelTexts(["cat", "dog"], "a photo of a {}");
    expect(texts).toEqual(["a photo of a cat", "a photo of a dog"]);
    const embedder = new ImageEmbedder(clip as VisionTextModel, params, rule, backend);
    const images = await embedder.embed(pictures);
    const made = await embedClipTexts(clip, params, tokenizer, texts, backend);
    const scale = params["logit_scale"]!.item();
    const probabilities = zeroShot(images, made, scale);
    // <s> a photo of a cat </s>
    const ids = Tensor.from([6, 1, 2, 3, 1, 4, 7, 6, 1, 2, 3, 1, 5, 7], [2, 7], "int32");
    const logits = await evaluate<Tensor>(
      backend,
      (p: ValueRecord, x: Value, t: Value) => {
        const context = clip.context(p);
        return clipLogits(clip, context, clip.embedImages(context, x), clip.embedTexts(context, t));
      },
      params,
      pixelsOf(pictures, rule),
      ids,
    );
    for (let i = 0; i < pictures.length; i++) {
      const [cat, dog] = [logits.numbers()[2 * i]!, logits.numbers()[2 * i + 1]!];
      expect(probabilities.data[2 * i]).toBeCloseTo(1 / (1 + Math.exp(dog - cat)), 4);
      expect(probabilities.data[2 * i]! + probabilities.data[2 * i + 1]!).toBeCloseTo(1, 5);
    }
    await embedder.release();
  });

  test("cuts texts to the model's positions and keeps their end", async () => {
    const long = `${"cat ".repeat(30)}dog`;
    const made = await embedClipTexts(clip, params, tokenizer, [long, "cat"], backend);
    const cut = await embedClipTexts(clip, params, tokenizer, ["cat ".repeat(8)], backend);
    for (let k = 0; k < 6; k++) expect(made.data[k]).toBeCloseTo(cut.data[k]!, 5);
    await expect(embedClipTexts(clip, params, tokenizer, [], backend)).rejects.toThrow(
      "embed: there are no texts.",
    );
  });

  test("refuses a template without a place for the label, and vectors of two spaces", () => {
    expect(() => labelTexts(["a"], "photo")).toThrow(
      'zero-shot: the template must hold {} for the label, got "photo".',
    );
    const [a, b] = [Tensor.zeros([1, 3], "float32"), Tensor.zeros([2, 4], "float32")];
    expect(() => zeroShot(a, b, 1)).toThrow("zero-shot: pictures have 3 numbers and texts 4.");
  });
});
