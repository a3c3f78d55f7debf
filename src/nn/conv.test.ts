import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { expectCall, parityBackend, recordedCalls } from "../../test/support/fixture.ts";
import { checkGradient, randomTensor } from "../../test/support/gradient.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import type { Value } from "../ir/graph.ts";
import { slice } from "../ir/layout.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d, causalDepthwise } from "./conv.ts";
import type { Context, Module, ValueRecord } from "./module.ts";

type Layer = Module & { forward(context: Context, x: Value): Value };

async function run(layer: Layer, params: Record<string, Tensor>, x: Tensor): Promise<Tensor> {
  return evaluate<Tensor>(
    await parityBackend(),
    (p: ValueRecord, v: Value) => layer.forward(layer.context(p), v),
    params,
    x,
  );
}

/** The options of a recorded call in our words. */
function optionsOf(options: Readonly<Record<string, unknown>>, bias: boolean): object {
  const { output_padding: outputPadding, ...rest } = options;
  return { ...rest, bias, ...(outputPadding !== undefined && { outputPadding }) };
}

describe("convolutions equal PyTorch's, with their gradients", () => {
  test.each([
    ["conv1d", Conv1d],
    ["conv2d", Conv2d],
    ["conv_transpose1d", ConvTranspose1d],
  ] as const)("%s", async (op, Kind) => {
    for (const call of recordedCalls(op)) {
      const [first, second, ...kernel] = call.inputs["weight"]!.shape;
      const groups = (call.options["groups"] as number | undefined) ?? 1;
      const isTransposed = op === "conv_transpose1d";
      const [inputs, outputs] = isTransposed
        ? [first!, second! * groups]
        : [second! * groups, first!];
      const bias = call.inputs["bias"] !== undefined;
      const layer = new Kind(inputs, outputs, kernel, optionsOf(call.options, bias));
      await expectCall(call, ({ input, ...params }) =>
        layer.forward(layer.context(params), input!),
      );
    }
  });
});

describe("Conv1d", () => {
  test("slides its weight without turning it", async () => {
    // 1·1 + 2·10 + 3·100, 2·1 + 3·10 + 4·100, plus bias 0.5
    const layer = new Conv1d(1, 1, 3);
    const params = {
      weight: Tensor.from([1, 10, 100], [1, 1, 3]),
      bias: Tensor.from([0.5]),
    };
    const y = await run(layer, params, Tensor.from([1, 2, 3, 4], [1, 1, 4]));
    allclose(y, Tensor.from([321.5, 432.5], [1, 1, 2]), tolerance.float32);
  });

  test("starts with PyTorch's bounds: 1 / √fan in, for the bias too", () => {
    const { params } = new Conv1d(8, 4, 2).init(new Rng(1));
    for (const tensor of Object.values(params)) {
      const largest = Math.max(...(tensor.data as Float32Array).map(Math.abs));
      expect(largest).toBeLessThanOrEqual(1 / 4);
      expect(largest).toBeGreaterThan(0.1);
    }
  });

  test("refuses groups, options and inputs that do not fit", () => {
    expect(() => new Conv1d(4, 6, 3, { groups: 4 })).toThrow(
      "conv: groups must divide 4 input and 6 output channels, got 4.",
    );
    expect(() => new Conv2d(1, 1, 3, { stride: [1, 0] })).toThrow(
      "conv: stride must be 2 whole numbers from 1, got [1, 0].",
    );
    const layer = new Conv2d(3, 4, 3, { bias: false });
    const wrong = Tensor.zeros([1, 4, 5, 5], "float32");
    const weight = Tensor.zeros([4, 3, 3, 3], "float32");
    return expect(run(layer, { weight }, wrong)).rejects.toThrow(
      "conv: needs (N, 3, H, W), got (1, 4, 5, 5).",
    );
  });
});

describe("ConvTranspose2d", () => {
  test("is the transpose of Conv2d: ⟨conv x, y⟩ = ⟨x, convTranspose y⟩", async () => {
    const rng = new Rng(3);
    const draw = (shape: number[]): Tensor<"float32"> =>
      new Tensor("float32", shape, rng.normals(shape.reduce((a, b) => a * b)));
    const options = { stride: 2, padding: 1, bias: false } as const;
    const weight = draw([3, 2, 4, 4]);
    const [x, y] = [draw([1, 2, 8, 6]), draw([1, 3, 4, 3])];
    const there = await run(new Conv2d(2, 3, 4, options), { weight }, x);
    const back = await run(new ConvTranspose2d(3, 2, 4, options), { weight }, y);
    const inner = (a: Tensor, b: Tensor): number =>
      (a.data as Float32Array).reduce((total, v, i) => total + v * (b.data[i] as number), 0);
    expect(back.shape).toEqual(x.shape);
    expect(inner(there, y)).toBeCloseTo(inner(x, back), 3);
  });

  test("has the gradient of its formula, with groups", async () => {
    const rng = new Rng(4);
    const layer = new ConvTranspose2d(2, 4, [3, 2], { stride: 2, groups: 2, outputPadding: 1 });
    await checkGradient(
      (x, weight, bias) => layer.forward(layer.context({ weight: weight!, bias: bias! }), x!),
      [randomTensor(rng, [1, 2, 3, 2]), randomTensor(rng, [2, 2, 3, 2]), randomTensor(rng, [4])],
    );
  });
});

test("a depthwise convolution has the gradient of its formula", async () => {
  const rng = new Rng(5);
  const layer = new Conv2d(3, 6, 3, { groups: 3, padding: 1, stride: 2, bias: false });
  await checkGradient(
    (x, weight) => layer.forward(layer.context({ weight: weight! }), x!),
    [randomTensor(rng, [2, 3, 4, 5]), randomTensor(rng, [6, 1, 3, 3])],
  );
});

describe("causalDepthwise", () => {
  test("sees only the past", async () => {
    // Channel 0: y_t = x_{t-1} + 10 x_t; channel 1: y_t = 2 x_{t-1}, and its bias 1
    const y = await evaluate<Tensor>(
      await parityBackend(),
      (x: Value, w: Value, b: Value) => causalDepthwise(x, w, b),
      Tensor.from([1, 2, 3, 4, 5, 6], [1, 2, 3]),
      Tensor.from([1, 10, 2, 0], [2, 1, 2]),
      Tensor.from([0, 1]),
    );
    allclose(y, Tensor.from([10, 21, 32, 1, 9, 11], [1, 2, 3]), tolerance.float32);
  });

  test("goes on from the inputs before", async () => {
    const rng = new Rng(6);
    const x = new Tensor("float32", [2, 3, 7], rng.normals(42));
    const w = new Tensor("float32", [3, 1, 4], rng.normals(12));
    const [whole, rest] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (v: Value, k: Value) => [
        slice(causalDepthwise(v, k), 2, 4),
        causalDepthwise(slice(v, 2, 4), k, undefined, slice(v, 2, 1, 4)),
      ],
      x,
      w,
    );
    allclose(rest, whole, tolerance.float32);
  });
});
