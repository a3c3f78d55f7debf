import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { parityBackend, relativeDifference } from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { valueAndGrad } from "../autodiff/grad.ts";
import { evaluate } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { square } from "../ir/elementwise.ts";
import { dequantize } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { dot } from "../ir/linear.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Linear } from "./linear.ts";
import type { ValueRecord } from "./module.ts";
import { dequantizeWeight, quantizedLayers, quantizeLinear, quantizeWeight } from "./quantize.ts";

describe("quantizeWeight", () => {
  test("keeps the furthest element exactly and rounds the others", () => {
    // -8 sets the scale 1: q - 8 of 3.4, -2.6, 0 is 3, -3, 0
    const weight = new Float32Array(16);
    weight.set([-8, 3.4, -2.6]);
    const quantised = quantizeWeight(weight, [1, 16], { blockSize: 16 });
    expect(quantised.scales.data[0]).toBe(1);
    expect(quantised.packed.shape).toEqual([1, 1, 8]);
    // Low half first: 0 and 11, then 5 and 8
    expect([...quantised.packed.data.subarray(0, 2)]).toEqual([0 | (11 << 4), 5 | (8 << 4)]);
    expect([...dequantizeWeight(quantised).subarray(0, 4)]).toEqual([-8, 3, -3, 0]);
  });

  test("is off by half a step, or one where the range ends", () => {
    fc.assert(
      fc.property(
        fc.array(fc.float({ min: -100, max: 100, noNaN: true }), { minLength: 64, maxLength: 64 }),
        fc.constantFrom(4 as const, 8 as const),
        (numbers, bits) => {
          const weight = Float32Array.from(numbers);
          const quantised = quantizeWeight(weight, [2, 32], { bits, blockSize: 16 });
          const back = dequantizeWeight(quantised);
          const half = 2 ** (bits - 1);
          back.forEach((value, i) => {
            const scale = quantised.scales.data[i >> 4]!;
            const isEnd = weight[i]! / scale > half - 1;
            const bound = Math.abs(scale) * (isEnd ? 1 : 0.5) * (1 + 1e-5);
            expect(Math.abs(value - weight[i]!)).toBeLessThanOrEqual(bound);
          });
        },
      ),
      { seed: 1, numRuns: 50 },
    );
  });

  test("keeps a block of zeros", () => {
    const back = dequantizeWeight(quantizeWeight(new Float32Array(32), [1, 32]));
    expect(back.every((value) => value === 0)).toBe(true);
  });

  test("refuses block sizes that do not divide, and numbers without a scale", () => {
    const weight = new Float32Array(48);
    expect(() => quantizeWeight(weight, [1, 48])).toThrow(
      "quantizeWeight: blockSize must be a power of two from 16 that divides 48, got 32.",
    );
    expect(() => quantizeWeight(weight, [2, 48])).toThrow(
      "quantizeWeight: (2, 48) holds 96 numbers, got 48.",
    );
    weight[5] = Infinity;
    expect(() => quantizeWeight(weight, [1, 48], { blockSize: 16 })).toThrow(
      "quantizeWeight: element 5 is Infinity — only finite weights have a scale.",
    );
  });
});

describe.each([4, 8] as const)("a weight of %s bits in the graph", (bits) => {
  const rng = new Rng(2);
  const [outputs, inputs] = [24, 64];
  const weight = new Tensor("float32", [outputs, inputs], rng.normals(outputs * inputs));
  const x = new Tensor("float32", [5, inputs], rng.normals(5 * inputs));
  const quantised = quantizeWeight(weight.data, [outputs, inputs], { bits, blockSize: 32 });
  const exact = new Tensor("float32", weight.shape, dequantizeWeight(quantised));

  test("dequantises to the numbers it stands for, on both backends", async () => {
    for (const backend of [await parityBackend(), reference()]) {
      const found = await evaluate<Tensor>(
        backend,
        (packed: Value, scales: Value) => dequantize(packed, scales, quantised.attrs),
        quantised.packed,
        quantised.scales,
      );
      allclose(found, exact, tolerance.float32);
    }
  });

  test("a layer computes with it, with the gradient of its input", async () => {
    const layer = new Linear(inputs, outputs);
    const { params } = layer.init(new Rng(3));
    const [[loss, dx], [expected, dxExpected]] = await evaluate<
      [[Tensor, Tensor], [Tensor, Tensor]]
    >(
      await parityBackend(),
      (bias: Value, packed: Value, scales: Value, w: Value, v: Value) => {
        const linear = quantizedLayers([[layer, { packed, scales, attrs: quantised.attrs }]]);
        const context = layer.context({ bias }, {}, { linear });
        const plain = layer.context({ bias, weight: w });
        return [
          valueAndGrad((y: Value) => sum(square(layer.forward(context, y))))(v),
          valueAndGrad((y: Value) => sum(square(layer.forward(plain, y))))(v),
        ];
      },
      params["bias"]!,
      quantised.packed,
      quantised.scales,
      exact,
      x,
    );
    expect(relativeDifference(loss, expected)).toBeLessThan(1e-5);
    expect(relativeDifference(dx, dxExpected)).toBeLessThan(1e-5);
  });

  test("is near the weight it was made from", async () => {
    const [y, plain] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (a: Value, b: Value, v: Value) => [dot(v, a, { transB: true }), dot(v, b, { transB: true })],
      exact,
      weight,
      x,
    );
    expect(relativeDifference(y, plain)).toBeLessThan(bits === 4 ? 0.1 : 0.01);
  });
});

test("quantizeLinear turns weights that are stored inputs first", () => {
  const layer = new Linear(16, 2, { inputsFirst: true, bias: false });
  const rows = Array.from({ length: 32 }, (_, i) => (i % 16) - 8 + (i < 16 ? 0 : 100));
  const turned = Array.from({ length: 32 }, (_, i) => rows[(i % 2) * 16 + (i >> 1)]!);
  const options = { bits: 8, blockSize: 16 } as const;
  expect(quantizeLinear(layer, Tensor.from(turned, [16, 2]), options)).toEqual(
    quantizeWeight(Float32Array.from(rows), [2, 16], options),
  );
});

test("quantizedLayers refuses a weight of another layer", () => {
  const quantised = quantizeWeight(new Float32Array(32), [1, 32]);
  expect(() => quantizedLayers([[new Linear(32, 2), quantised]])).toThrow(
    "quantizedLayers: a weight (1, 32) does not fit a layer (2, 32).",
  );
});

test("a layer whose weight is quantised needs no weight among its parameters", async () => {
  const layer = new Linear(32, 1, { bias: false });
  const quantised = quantizeWeight(new Float32Array(32).fill(1), [1, 32]);
  const y = await evaluate<Tensor>(
    reference(),
    (p: ValueRecord, v: Value) =>
      layer.forward(layer.context(p, {}, { linear: quantizedLayers([[layer, quantised]]) }), v),
    {},
    Tensor.from(new Float32Array(64).fill(0.5), [2, 32]),
  );
  allclose(y, Tensor.from([16, 16], [2, 1]), tolerance.float32);
});
