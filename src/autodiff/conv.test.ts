import { describe, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import { reference } from "../backend/reference/reference.ts";
import { mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { type ConvOptions, conv } from "../ir/linear.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import type { StaticShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { grad, gradientOf } from "./grad.ts";

/** Few channels, many channels, one tap, many taps: each is written in its own way. */
const cases: [string, StaticShape, StaticShape, ConvOptions][] = [
  ["few channels, strided, padded", [2, 3, 7, 6], [4, 3, 3, 3], { stride: 2, padding: 1 }],
  ["many channels", [2, 16, 5, 4], [3, 16, 3, 3], { padding: 1 }],
  ["many channels, strides leave an edge over", [2, 17, 6, 8], [3, 17, 2, 3], { stride: [3, 2] }],
  [
    "many channels, dilated, wide padding",
    [2, 16, 4, 5],
    [2, 16, 2, 2],
    { dilation: 2, padding: 3 },
  ],
  ["many channels, one axis", [2, 16, 9], [5, 16, 4], { stride: 2, padding: 2 }],
  ["one tap, few outputs", [2, 16, 3, 4], [3, 16, 1, 1], {}],
  ["one tap, many outputs", [2, 16, 2, 2], [9, 16, 1, 1], {}],
  ["one tap, strided", [2, 16, 4, 5], [24, 16, 1, 1], { stride: 2 }],
  ["more taps than a product is worth", [1, 16, 7, 6], [2, 16, 6, 5], { padding: 2 }],
  ["groups of many channels", [2, 32, 4, 4], [4, 16, 3, 3], { groups: 2, padding: 1 }],
];

/** Σ_i ct_i ∂y_i/∂w by definition, in plain loops over two spatial axes. */
function byHand(x: Tensor, ct: Tensor, shape: StaticShape, options: ConvOptions): Float64Array {
  const pair = (v: number | readonly number[] | undefined, missing: number): readonly number[] =>
    typeof v === "object" ? v : [v ?? missing, v ?? missing];
  const wide = ({ shape: s }: { shape: StaticShape }): number[] =>
    s.length === 3 ? [s[0]!, s[1]!, 1, s[2]!] : [...s];
  const isLine = shape.length === 3;
  const [strides, pads, steps] = [
    pair(options.stride, 1),
    pair(options.padding, 0),
    pair(options.dilation, 1),
  ] as const;
  const top = isLine ? 0 : pads[0]!;
  const [n, c, h, w] = wide(x) as [number, number, number, number];
  const [, o, oh, ow] = wide(ct) as [number, number, number, number];
  const [, cg, kh, kw] = wide({ shape }) as [number, number, number, number];
  const perGroup = o / (options.groups ?? 1);
  const [xs, cts] = [x.numbers(), ct.numbers()];
  const result = new Float64Array(o * cg * kh * kw);
  for (let b = 0; b < n; b++)
    for (let q = 0; q < o; q++)
      for (let p = 0; p < cg; p++)
        for (let u = 0; u < kh; u++)
          for (let v = 0; v < kw; v++)
            for (let i = 0; i < oh; i++)
              for (let j = 0; j < ow; j++) {
                const [y, z] = [
                  i * strides[0]! + u * steps[0]! - top,
                  j * strides[1]! + v * steps[1]! - pads[1]!,
                ];
                if (y < 0 || z < 0 || y >= h || z >= w) continue;
                const channel = Math.floor(q / perGroup) * cg + p;
                const from = xs[((b * c + channel) * h + y) * w + z]!;
                result[((q * cg + p) * kh + u) * kw + v]! +=
                  from * cts[((b * o + q) * oh + i) * ow + j]!;
              }
  return result;
}

const random = (shape: StaticShape, seed: number): Tensor =>
  new Tensor("float32", shape, new Rng(seed).normals(shape.reduce((a, b) => a * b, 1)));

/** ⟨y, ct⟩ as a function of the weight has the tested gradient. */
const weightGradient =
  (options: ConvOptions) =>
  (x: Value, weight: Value, ct: Value): Value =>
    grad((w: Value) => sum(mul(ct, conv(x, w, options))))(weight);

async function argumentsOf(
  from: StaticShape,
  shape: StaticShape,
  options: ConvOptions,
): Promise<[x: Tensor, weight: Tensor, ct: Tensor]> {
  const [x, weight] = [random(from, 1), random(shape, 2)];
  const forward = (a: Value, b: Value): Value => conv(a, b, options);
  const y = await evaluate<Tensor>(reference(), forward, x, weight);
  return [x, weight, random(y.shape, 3)];
}

describe("the weight gradient of a convolution", () => {
  test.each(cases)("is the sum over examples and places: %s", async (_, from, shape, options) => {
    const inputs = await argumentsOf(from, shape, options);
    const expected = Tensor.from([...byHand(inputs[0], inputs[2], shape, options)], shape);
    for (const backend of [reference(), await nodeOrt({ threads: 2 })]) {
      allclose(
        await evaluate<Tensor>(backend, weightGradient(options), ...inputs),
        expected,
        tolerance.float32,
      );
    }
  });

  test.each(cases)("is bilinear, with its derivatives: %s", async (_, from, shape, options) => {
    const inputs = await argumentsOf(from, shape, options);
    // ⟨G(x, ct), v⟩ = ⟨ct, conv(x, v)⟩ for any v of the weight's shape.
    const along = random(shape, 4);
    const left = (x: Value, weight: Value, ct: Value, v: Value): Value[] => {
      const product = sum(mul(v, weightGradient(options)(x, weight, ct)));
      return [product, ...gradientOf(product, [x, ct])];
    };
    const right = (x: Value, _weight: Value, ct: Value, v: Value): Value[] => {
      const product = sum(mul(ct, conv(x, v, options)));
      return [product, ...gradientOf(product, [x, ct])];
    };
    for (const backend of [reference(), await nodeOrt({ threads: 2 })]) {
      const [found, wanted] = [
        await evaluate<Tensor[]>(backend, left, ...inputs, along),
        await evaluate<Tensor[]>(backend, right, ...inputs, along),
      ];
      found.forEach((tensor, i) => {
        allclose(tensor, wanted[i]!, tolerance.float32);
      });
    }
  });
});
