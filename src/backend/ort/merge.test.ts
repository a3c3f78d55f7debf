import { describe, expect, test } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import { add, mul, relu } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape } from "../../ir/layout.ts";
import { conv } from "../../ir/linear.ts";
import { Rng } from "../../tensor/rng.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { trace } from "../compile.ts";
import { reference } from "../reference/reference.ts";
import { lower } from "./lower.ts";
import { nodeOrt } from "./node.ts";
import type { OrtTarget } from "./target.ts";
import { webOrt } from "./web.ts";

const normal = (shape: readonly number[], seed: number): Tensor =>
  new Tensor("float32", shape, new Rng(seed).normals(shape.reduce((a, b) => a * b, 1)));
const inputs = [normal([2, 3, 4, 5], 1), normal([4, 3, 3, 3], 2), normal([4], 3)];

type Layer = (x: Value, w: Value, b: Value) => Value | Value[];

const perChannel = (b: Value): Value => reshape(b, [1, 4, 1, 1]);
const biased = (x: Value, w: Value, b: Value): Value => add(conv(x, w), perChannel(b));

/** A layer, and how many nodes it is where relu can be part of the convolution, and where not. */
const layers: [string, Layer, fused: number, plain: number][] = [
  ["bias and relu", (x, w, b) => relu(biased(x, w, b)), 1, 2],
  ["bias in front", (x, w, b) => add(perChannel(b), conv(x, w)), 1, 1],
  ["relu alone", (x, w) => relu(conv(x, w)), 1, 2],
  [
    "what comes before relu is wanted too",
    (x, w, b) => {
      const y = biased(x, w, b);
      return mul(relu(y), y);
    },
    3,
    3,
  ],
  ["the bias shaped is an output too", (x, w, b) => [biased(x, w, b), perChannel(b)], 2, 2],
  [
    "the convolution itself is wanted too",
    (x, w, b) => {
      const y = conv(x, w);
      return [add(y, perChannel(b)), y];
    },
    3,
    3,
  ],
  [
    "one number per row is no bias",
    (x, w, b) => add(conv(x, w, { padding: [1, 0] }), reshape(mul(b, b), [1, 1, 4, 1])),
    4,
    4,
  ],
];

describe("a convolution is one node with what follows it", () => {
  test.each(layers)("%s", async (_, layer, fused, plain) => {
    const { program } = trace(layer as never, inputs as never);
    const counts = (["cpu", "wasm", "webgpu"] as OrtTarget[]).map(
      (target) => lower(program, target).nodeCount,
    );
    expect(counts).toEqual([fused, fused, plain]);
    const wanted = await (await reference().load(program)).run(inputs);
    for (const backend of [await nodeOrt({ threads: 1 }), await webOrt()]) {
      const executable = await backend.load(program);
      const results = await executable.run(inputs);
      results.forEach((result, i) => {
        allclose(result, wanted[i]!, tolerance.float32);
      });
      await executable.release();
    }
  });
});
