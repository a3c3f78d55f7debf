import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { expectCall, parityBackend, recordedCalls } from "../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import type { Value } from "../ir/graph.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { adaptiveAvgPool, avgPool, globalAvgPool, globalMaxPool, maxPool } from "./pool.ts";

async function run(fn: (x: Value) => Value, x: Tensor): Promise<Tensor> {
  return evaluate<Tensor>(await parityBackend(), fn, x);
}

test("maxPool and avgPool equal PyTorch's, with their gradients", async () => {
  for (const call of recordedCalls("max_pool2d")) {
    const { kernel_size: kernel, stride, padding } = call.options;
    await expectCall(call, ({ input }) => maxPool(input!, { kernel, stride, padding }));
  }
  for (const call of recordedCalls("avg_pool2d")) {
    const { kernel_size: kernel, stride, padding, count_include_pad: count } = call.options;
    const options = {
      kernel,
      stride,
      padding,
      ...(count !== undefined && { countIncludePad: count }),
    };
    await expectCall(call, ({ input }) => avgPool(input!, options));
  }
});

describe("global pools", () => {
  test("reduce all positions of a channel", async () => {
    const x = Tensor.from([1, 2, 3, 6, -1, -2, -3, -6], [1, 2, 2, 2]);
    allclose(await run(globalAvgPool, x), Tensor.from([3, -3], [1, 2]), tolerance.float32);
    allclose(await run(globalMaxPool, x), Tensor.from([6, -1], [1, 2]), tolerance.float32);
  });

  test("refuse a tensor without positions", async () => {
    await expect(run(globalAvgPool, Tensor.zeros([2, 3], "float32"))).rejects.toThrow(
      "globalAvgPool: needs (N, C, spatial…), got (2, 3).",
    );
  });
});

describe("adaptiveAvgPool", () => {
  test("averages windows that overlap where sizes do not divide", async () => {
    // 5 → 3: windows 0-1, 1-3, 3-4
    const x = Tensor.from([1, 3, 5, 7, 11], [1, 1, 5]);
    const y = await run((v) => adaptiveAvgPool(v, 3), x);
    allclose(y, Tensor.from([2, 5, 9], [1, 1, 3]), tolerance.float32);
  });

  test("to size 1 is the global mean, and to its own size the identity", async () => {
    const x = new Tensor("float32", [2, 3, 5, 4], new Rng(1).normals(120));
    const [one, whole] = [await run((v) => adaptiveAvgPool(v, 1), x), await run(globalAvgPool, x)];
    allclose(one.reshape([2, 3]), whole, tolerance.float32);
    allclose(await run((v) => adaptiveAvgPool(v, [5, 4]), x), x, tolerance.float32);
  });

  test("has the gradient of its formula", async () => {
    await checkGradient(
      (x) => adaptiveAvgPool(x!, [3, 2]),
      [randomTensor(new Rng(2), [1, 2, 5, 3])],
    );
  });

  test("refuses sizes below 1", async () => {
    const x = Tensor.zeros([1, 1, 4, 4], "float32");
    await expect(run((v) => adaptiveAvgPool(v, [2, 0]), x)).rejects.toThrow(
      "adaptiveAvgPool: size must be 2 whole numbers from 1, got [2, 0].",
    );
  });
});
