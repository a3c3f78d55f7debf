/** Coloured digits: MNIST's, in a random colour on another, so that colour tells nothing about the class. */
import { Rng } from "../../tensor/rng.ts";
import type { ExperimentContext } from "../experiment.ts";
import type { ImageData } from "./glyphs.ts";
import { type ImageSet, imageSet, resized, sampleImages } from "./image-set.ts";
import { loadMnist } from "./mnist.ts";
import { randomColour } from "./shapes.ts";

/** Every picture in two colours of its own: ink and ground. (N, 1, H, W) → (N, 3, H, W). */
export function coloured(set: ImageSet, rng: Rng): ImageSet {
  const size = set.height * set.width;
  const pixels = new Float32Array(set.count * 3 * size);
  for (let i = 0; i < set.count; i++) {
    const own = rng.fold(i);
    const ground = randomColour(own);
    const ink = randomColour(own, ground);
    for (let c = 0; c < 3; c++) {
      for (let k = 0; k < size; k++) {
        const share = set.pixels[i * size + k]!;
        pixels[(3 * i + c) * size + k] = ground[c]! * (1 - share) + ink[c]! * share;
      }
    }
  }
  return imageSet({ ...set, pixels, channels: 3 });
}

/** The digit set. @param size pixels a side; default 32 */
export async function digitSet(
  context: ExperimentContext,
  options: {
    readonly size?: number;
    readonly train?: number;
    readonly test?: number;
    readonly seed?: number;
  } = {},
): Promise<ImageData> {
  const { size = 32, train = 4000, test = 1000, seed = 0 } = options;
  const digits = await loadMnist(context);
  const rng = new Rng(seed).fold("coloured digits");
  const make = (set: ImageSet, count: number, name: string): ImageSet =>
    coloured(
      resized(sampleImages(set, count, rng.fold(name, "choice")), size, size),
      rng.fold(name, "colour"),
    );
  return {
    train: make(digits.train, train, "train"),
    test: make(digits.test, test, "test"),
    record: digits.record,
  };
}
