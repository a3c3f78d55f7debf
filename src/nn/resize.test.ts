import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { expectCall, parityBackend, recordedCalls } from "../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import type { Value } from "../ir/graph.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { gridSample, resize } from "./resize.ts";

async function run(fn: (...x: Value[]) => Value, ...args: Tensor[]): Promise<Tensor> {
  return evaluate<Tensor>(await parityBackend(), fn, ...args);
}

describe("resize", () => {
  test("equals PyTorch's interpolate, with its gradient", async () => {
    for (const call of recordedCalls("interpolate")) {
      const { size, scale_factor: scale, mode } = call.options;
      await expectCall(call, ({ input }) =>
        resize(input!, {
          ...(size ? { size } : { scale }),
          mode: mode === "bilinear" ? "linear" : "nearest",
        }),
      );
    }
  });

  test("linear lies on the line between pixels, and holds at the edges", async () => {
    // 2 → 4: centres at -0.25, 0.25, 0.75, 1.25
    const x = Tensor.from([0, 4], [1, 1, 2]);
    const y = await run((v) => resize(v!, { size: 4, mode: "linear" }), x);
    allclose(y, Tensor.from([0, 1, 3, 4], [1, 1, 4]), tolerance.float32);
  });

  test("cubic weighs four pixels, the edge repeated", async () => {
    // Half way: -0.09375, 0.59375, 0.59375, -0.09375 (Keys 1981, a = -0.75)
    const x = Tensor.from([1, 2, 4, 8], [1, 1, 4]);
    const y = await run((v) => resize(v!, { size: 2, mode: "cubic" }), x);
    // (1 + 2) 0.59375 - (1 + 4) 0.09375 and (4 + 8) 0.59375 - (2 + 8) 0.09375
    allclose(y, Tensor.from([1.3125, 6.1875], [1, 1, 2]), tolerance.float32);
  });

  test("cubic equals PyTorch's bicubic", async () => {
    // interpolate(arange(6.0).reshape(1, 1, 2, 3) ** 2, size=(3, 2), mode="bicubic")
    const x = Tensor.from([0, 1, 4, 9, 16, 25], [1, 1, 2, 3]);
    const y = await run((v) => resize(v!, { size: [3, 2], mode: "cubic" }), x);
    allclose(
      y,
      Tensor.from([-0.759847, 1.6322428, 5.1953125, 13.28125, 11.150472, 24.9302572], [1, 1, 3, 2]),
      tolerance.float32,
    );
  });

  test("nearest repeats pixels, and drops them", async () => {
    const x = Tensor.from([1, 2, 3], [1, 1, 3]);
    const twice = await run((v) => resize(v!, { scale: 2, mode: "nearest" }), x);
    expect([...(twice.data as Float32Array)]).toEqual([1, 1, 2, 2, 3, 3]);
    const fewer = await run((v) => resize(v!, { size: 2, mode: "nearest" }), x);
    expect([...(fewer.data as Float32Array)]).toEqual([1, 2]);
  });

  test("keeps constants constant", async () => {
    const x = Tensor.from(new Float32Array(60).fill(2.5), [1, 3, 4, 5]);
    for (const mode of ["nearest", "linear"] as const) {
      const y = await run((v) => resize(v!, { size: [7, 3], mode }), x);
      allclose(y, Tensor.from(new Float32Array(63).fill(2.5), [1, 3, 7, 3]), tolerance.float32);
    }
  });

  test("refuses both a size and a scale, and neither", async () => {
    const x = Tensor.zeros([1, 1, 4, 4], "float32");
    await expect(run((v) => resize(v!, { mode: "nearest" }), x)).rejects.toThrow(
      "resize: needs one of size and scale, 2 positive numbers, got [].",
    );
    await expect(run((v) => resize(v!, { mode: "nearest", size: 2, scale: 2 }), x)).rejects.toThrow(
      "resize: needs one of size and scale",
    );
  });
});

describe("gridSample", () => {
  test("equals PyTorch's grid_sample, with its gradients", async () => {
    for (const call of recordedCalls("grid_sample")) {
      const alignCorners = call.options["align_corners"] as boolean;
      await expectCall(call, ({ input, grid }) => gridSample(input!, grid!, { alignCorners }));
    }
  });

  test("reads pixels at their centres, and zeros outside", async () => {
    // Two pixels: centres at x = -0.5 and 0.5; half way is their mean; x = -1 is half outside.
    const x = Tensor.from([2, 6], [1, 1, 1, 2]);
    const grid = Tensor.from([-0.5, 0, 0.5, 0, 0, 0, -1, 0, 3, 0], [1, 1, 5, 2]);
    const y = await run((v, g) => gridSample(v!, g!), x, grid);
    allclose(y, Tensor.from([2, 6, 4, 1, 0], [1, 1, 1, 5]), tolerance.float32);
  });

  test("has the gradient of its formula", async () => {
    const rng = new Rng(3);
    // Away from pixel centres, where the slope jumps.
    const grid = randomTensor(rng, [2, 2, 2, 2], [-0.72, -0.68]);
    await checkGradient((x, g) => gridSample(x!, g!), [randomTensor(rng, [2, 2, 3, 4]), grid]);
  });

  test("refuses a grid of another batch", async () => {
    const [x, grid] = [
      Tensor.zeros([2, 1, 3, 3], "float32"),
      Tensor.zeros([1, 2, 2, 2], "float32"),
    ];
    await expect(run((v, g) => gridSample(v!, g!), x, grid)).rejects.toThrow(
      "gridSample: needs x (N, C, H, W) and grid (N, H', W', 2), got (2, 1, 3, 3) and (1, 2, 2, 2).",
    );
  });
});
