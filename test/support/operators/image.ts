/** Norms over channels and resampling. */
import type { Value } from "../../../src/ir/graph.ts";
import { outputsOf } from "../../../src/ir/graph.ts";
import { batchNorm, batchNormWith, groupNorm } from "../../../src/ir/norm.ts";
import { gridSample, resize } from "../../../src/ir/resample.ts";
import type { Cases } from "./case.ts";
import { between, caseOf, type Draw, given, normal, type Sample, sample } from "./samples.ts";

/** Places between pixel centres, inside and outside of an image, as numbers of a grid. */
function places(height: number, width: number, alignCorners: boolean, count: number): Draw {
  const toGrid = (pixel: number, size: number): number =>
    alignCorners ? (2 * pixel) / (size - 1) - 1 : (2 * pixel + 1) / size - 1;
  const numbers = Array.from({ length: count }, (_, i) => [
    toGrid(((i * 5) % (width + 2)) - 1.7 + (i % 3) * 0.2, width),
    toGrid(((i * 3) % (height + 2)) - 1.4 + (i % 2) * 0.3, height),
  ]);
  return given(numbers.flat(), [1, 1, count, 2]);
}

const affine = (w: Value | undefined, b: Value | undefined) => w && b && { weight: w, bias: b };

export const imageSamples: Readonly<
  Record<"groupNorm" | "batchNorm" | "resize" | "gridSample", readonly Sample[]>
> = {
  groupNorm: [
    sample(
      "two groups of three channels",
      (x, w, b) => groupNorm(x!, 2, affine(w, b)),
      normal(2, 6, 2, 3),
      normal(6),
      normal(6),
    ),
    sample("one group, no scale", (x) => groupNorm(x!, 1), normal(2, 3, 4)),
    sample(
      "one number in a group",
      (x, w, b) => groupNorm(x!, 3, affine(w, b), 0.1),
      normal(2, 3),
      normal(3),
      normal(3),
    ),
    sample("mean and scale used too", (x) => outputsOf(groupNorm(x!, 2)), normal(2, 4, 3)),
    sample(
      "weight and bias the same",
      (x, w) => groupNorm(x!, 2, affine(w, w), 0.1),
      normal(1, 2, 3),
      normal(2),
    ),
    sample("no examples", (x) => groupNorm(x!, 2), normal(0, 4, 3)),
  ],
  batchNorm: [
    sample(
      "training",
      (x, w, b) => batchNorm(x!, affine(w, b)).y,
      normal(3, 2, 4),
      normal(2),
      normal(2),
    ),
    sample("training, rows, no scale", (x) => batchNorm(x!, undefined, 0.1).y, normal(4, 3)),
    sample(
      "training, mean and variance used too",
      (x, w, b) => {
        const { y, mean, variance } = batchNorm(x!, affine(w, b));
        return [y, mean, variance];
      },
      normal(2, 3, 2, 2),
      normal(3),
      normal(3),
    ),
    sample(
      "training, mean and variance alone",
      (x) => {
        const { mean, variance } = batchNorm(x!);
        return [mean, variance];
      },
      normal(3, 2),
    ),
    sample(
      "with given statistics",
      (x, mean, variance, w, b) =>
        batchNormWith(x!, { mean: mean!, variance: variance! }, affine(w, b)),
      normal(2, 3, 2),
      normal(3),
      between(0.5, 2, 3),
      normal(3),
      normal(3),
    ),
    sample(
      "with given statistics, no scale",
      (x, mean, variance) =>
        batchNormWith(x!, { mean: mean!, variance: variance! }, undefined, 0.1),
      normal(2, 2),
      normal(2),
      between(0.5, 2, 2),
    ),
  ],
  resize: [
    ...(["nearest", "linear", "cubic"] as const).flatMap((mode) => [
      sample(
        `${mode}, larger and smaller`,
        (x) => resize(x!, { size: [5, 2], mode }),
        normal(2, 1, 3, 4),
      ),
      sample(`${mode}, twice`, (x) => resize(x!, { scale: 2, mode }), normal(1, 2, 3)),
      sample(`${mode}, by 1.7`, (x) => resize(x!, { scale: 1.7, mode }), normal(1, 1, 4)),
      sample(`${mode}, one pixel`, (x) => resize(x!, { size: 3, mode }), normal(1, 2, 1)),
    ]),
    sample(
      "three axes, one as it is",
      (x) => resize(x!, { size: [2, 3, 4], mode: "linear" }),
      normal(1, 1, 2, 2, 2),
    ),
    sample("the same size", (x) => resize(x!, { size: 3, mode: "linear" }), normal(1, 1, 3)),
  ],
  gridSample: [
    ...[false, true].map((alignCorners) =>
      sample(
        alignCorners ? "centres at the edges" : "pixels as areas",
        (x, grid) => gridSample(x!, grid!, { alignCorners }),
        normal(1, 2, 3, 4),
        places(3, 4, alignCorners, 12),
      ),
    ),
    sample(
      "two images of one pixel",
      (x, grid) => gridSample(x!, grid!),
      normal(2, 1, 1, 1),
      given([0.2, -0.3, 0.4, 0.1, -0.2, 0.3, 1.4, 0.1], [2, 2, 1, 2]),
    ),
  ],
};

export const imageCases: Cases<keyof typeof imageSamples> = {
  groupNorm: imageSamples.groupNorm.map(caseOf),
  batchNorm: imageSamples.batchNorm.map(caseOf),
  resize: imageSamples.resize.map(caseOf),
  gridSample: imageSamples.gridSample.map(caseOf),
};
