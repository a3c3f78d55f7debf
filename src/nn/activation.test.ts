import { describe, expect, test } from "vitest";
import { expectCall, parityBackend, recordedCalls } from "../../test/support/fixture.ts";
import { checkGradient } from "../../test/support/gradient.ts";
import { evaluate } from "../backend/compile.ts";
import { softplus } from "../ir/elementwise.ts";
import { gelu, logSoftmax, silu, softmax } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { Tensor } from "../tensor/tensor.ts";
import {
  activationNamed,
  elu,
  glu,
  hardShrink,
  hardSigmoid,
  hardSwish,
  hardTanh,
  leakyRelu,
  mish,
  quickGelu,
  relu6,
  selu,
  squaredRelu,
  swiglu,
} from "./activation.ts";

const points = [-4, -1, -0.25, 0, 0.5, 2, 7];

const sigma = (x: number): number => 1 / (1 + Math.exp(-x));

const cases: readonly [string, (x: Value) => Value, (x: number) => number][] = [
  ["leakyRelu", (x) => leakyRelu(x), (x) => (x > 0 ? x : 0.01 * x)],
  ["elu", (x) => elu(x, 1.5), (x) => (x > 0 ? x : 1.5 * Math.expm1(x))],
  ["selu", selu, (x) => 1.0507009873554805 * (x > 0 ? x : 1.6732632423543772 * Math.expm1(x))],
  ["mish", mish, (x) => x * Math.tanh(Math.log1p(Math.exp(x)))],
  ["quickGelu", quickGelu, (x) => x * sigma(1.702 * x)],
  ["relu6", relu6, (x) => Math.min(Math.max(x, 0), 6)],
  ["squaredRelu", squaredRelu, (x) => Math.max(x, 0) ** 2],
  ["hardSigmoid", hardSigmoid, (x) => Math.min(Math.max(x + 3, 0), 6) / 6],
  ["hardSwish", hardSwish, (x) => (x * Math.min(Math.max(x + 3, 0), 6)) / 6],
  ["hardTanh", (x) => hardTanh(x), (x) => Math.min(Math.max(x, -1), 1)],
  ["hardShrink", (x) => hardShrink(x), (x) => (Math.abs(x) > 0.5 ? x : 0)],
];

describe("activations", () => {
  test.each(cases)("%s is its formula", async (_, fn, formula) => {
    const found = await evaluate<Tensor>(await parityBackend(), fn, Tensor.from(points));
    points.forEach((x, i) => {
      expect(found.data[i]).toBeCloseTo(formula(x), 5);
    });
  });

  test.each(cases)("%s has the slope of its formula", async (_, fn) => {
    const between = points.map((x) => x + 0.3);
    await checkGradient((x) => fn(x!), [Tensor.from(between, [between.length], "float64")]);
  });

  test("elu stays finite far from 0", async () => {
    const found = await evaluate<Tensor>(
      await parityBackend(),
      (x: Value) => elu(x),
      Tensor.from([-1000, 1000]),
    );
    expect([...(found.numbers() as Float32Array)]).toEqual([-1, 1000]);
  });

  test("glu and swiglu gate halves of the last axis", async () => {
    const x = Tensor.from([1, 2, 0, 3], [1, 4]);
    const [a, b] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (v: Value) => [glu(v), swiglu(v)],
      x,
    );
    expect(a.data[0]).toBeCloseTo(1 * 0.5, 6);
    expect(a.data[1]).toBeCloseTo(2 * sigma(3), 6);
    expect(b.data[0]).toBeCloseTo(0, 6);
    expect(b.data[1]).toBeCloseTo(2 * sigma(2) * 3, 5);
  });

  test("an activation is found by the name of a config", () => {
    expect(activationNamed("mish")).toBe(mish);
    expect(() => activationNamed("toString")).toThrow(
      'activation "toString" is not known — one of',
    );
  });
});

describe("activations of the graph equal PyTorch's, with their gradients", () => {
  test("gelu, silu, softplus", async () => {
    for (const call of recordedCalls("gelu")) {
      await expectCall(call, ({ input }) => gelu(input!, call.options["approximate"]));
    }
    for (const call of recordedCalls("silu")) await expectCall(call, ({ input }) => silu(input!));
    for (const call of recordedCalls("softplus")) {
      await expectCall(call, ({ input }) => softplus(input!));
    }
  });

  test("softmax and logSoftmax", async () => {
    for (const call of recordedCalls("softmax")) {
      await expectCall(call, ({ input }) => softmax(input!, call.options["dim"]));
    }
    for (const call of recordedCalls("log_softmax")) {
      await expectCall(call, ({ input }) => logSoftmax(input!, call.options["dim"]));
    }
  });
});
