/** Small synthetic pictures: each class has stripes of its own direction, in colours and places at random. */
import type { PictureExample } from "../../src/data/picture-set.ts";
import type { Picture } from "../../src/data/resample.ts";
import type { ExampleSet } from "../../src/data/set.ts";
import { Rng } from "../../src/tensor/rng.ts";

export const toyClasses = ["across", "down", "plain"] as const;

/** Stripes of width two across or down, or one colour, with noise. */
export function toyPicture(label: number, seed: number, size = 16): Picture {
  const rng = new Rng(seed).fold("toy", label);
  const [dark, light, shift] = [rng.integer(90), 140 + rng.integer(100), rng.integer(4)];
  const data = Uint8Array.from({ length: size * size * 3 }, (_, i) => {
    const pixel = Math.floor(i / 3);
    const place = label === 0 ? Math.floor(pixel / size) : pixel % size;
    const isLight = label === 2 || Math.floor((place + shift) / 2) % 2 === 0;
    return (isLight ? light : dark) + rng.integer(16);
  });
  return { width: size, height: size, data };
}

/** A set in memory, `count` pictures of each class. */
export function toySet(count: number, seed: number): ExampleSet<PictureExample> {
  const examples = Array.from({ length: count * 3 }, (_, i) => ({
    label: i % 3,
    picture: toyPicture(i % 3, seed + i),
  }));
  return {
    count: examples.length,
    lengths: new Int32Array(examples.length).fill(1),
    tokens: examples.length,
    lossTokens: examples.length,
    dataHash: `toy ${count} ${seed}`,
    get: async (indices) => Array.from(indices, (i) => examples[i]!),
    close: async () => {},
  };
}
