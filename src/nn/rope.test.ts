import { describe, expect, test } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import {
  expectCall,
  fixture,
  parityBackend,
  type RawTensor,
  type RawTensors,
  tensorOf,
} from "../../test/support/fixture.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { mul } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { slice } from "../ir/layout.ts";
import { sum } from "../ir/reduce.ts";
import { Rng } from "../tensor/rng.ts";
import { Tensor } from "../tensor/tensor.ts";
import { inverseFrequencies, ropeAttentionFactor, ropeTable, rotate, rotationAt } from "./rope.ts";

const { rope } = fixture<{
  rope: {
    headDim: number;
    theta: number;
    positionIds: RawTensor;
    inputs: RawTensors;
    gradOutput: RawTensors;
    output: RawTensors;
    gradients: RawTensors;
  };
}>("attention");

const options = { headDim: 8, theta: 10000, maxPositions: 128 };

describe("rotate", () => {
  test("equals transformers', with its gradient", async () => {
    const table = ropeTable(options, 128);
    const positions = tensorOf(rope.positionIds);
    for (const name of ["q", "k"]) {
      const call = {
        op: `rope ${name}`,
        options: {},
        inputs: { x: rope.inputs[name]! },
        gradOutput: rope.gradOutput[name]!,
        output: rope.output[name]!,
        gradients: { x: rope.gradients[name]! },
      };
      await expectCall(call, ({ x }) => rotate(x!, rotationAt(table, x!.graph.lift(positions))));
    }
  });

  test("makes products depend on the distance of positions alone", async () => {
    const rng = new Rng(1);
    const table = ropeTable(options, 128);
    const one = (): Tensor => new Tensor("float32", [1, 1, 1, 8], rng.normals(8));
    const [near, far] = await evaluate<[Tensor, Tensor]>(
      await parityBackend(),
      (q: Value, k: Value) => {
        const at = (x: Value, position: number): Value =>
          rotate(x, rotationAt(table, x.graph.lift(Tensor.from([position], [1, 1], "int32"))));
        return [sum(mul(at(q, 5), at(k, 3))), sum(mul(at(q, 92), at(k, 90)))];
      },
      one(),
      one(),
    );
    allclose(far, near, 10 * tolerance.float32);
  });

  test("leaves position 0 as it is", async () => {
    const x = new Tensor("float32", [1, 2, 3, 8], new Rng(2).normals(48));
    const y = await evaluate<Tensor>(
      await parityBackend(),
      (v: Value) => slice(rotate(v, ropeTable(options, 3)), 2, 0, 1),
      x,
    );
    const first = [...x.data.subarray(0, 8), ...x.data.subarray(24, 32)];
    allclose(y, Tensor.from(first, [1, 2, 1, 8]), tolerance.float32);
  });
});

describe("inverseFrequencies", () => {
  test("fall from 1 towards 1 / theta", () => {
    expect(inverseFrequencies(options)).toEqual([1, 0.1, 0.01, 0.001].map(Math.fround));
  });

  test("linear scaling divides all of them", () => {
    const scaled = inverseFrequencies({ ...options, scaling: { type: "linear", factor: 4 } });
    expect(scaled).toEqual(inverseFrequencies(options).map((f) => f / 4));
  });

  test("grow with the sequence under dynamic scaling, from the model's positions on", () => {
    const scaling = { type: "dynamic", factor: 2 } as const;
    const short = inverseFrequencies({ ...options, scaling }, 128);
    expect(short).toEqual(inverseFrequencies(options));
    // 2 · 256 / 128 - 1 = 3, to the power of 8 / 6.
    const long = inverseFrequencies({ ...options, scaling }, 256);
    expect(long[1]).toBeCloseTo((10000 * 3 ** (4 / 3)) ** -0.25, 7);
  });

  test("of yarn keep what turns often and divide what turns rarely", () => {
    const scaling = { type: "yarn", factor: 4, originalMaxPositions: 64 } as const;
    const wide = { ...options, headDim: 32, scaling };
    const plain = inverseFrequencies({ ...options, headDim: 32 });
    const scaled = inverseFrequencies(wide);
    expect(scaled[0]).toBe(plain[0]);
    expect(scaled[15]).toBeCloseTo(plain[15]! / 4, 15);
    // 0.1 ln 4 + 1
    expect(ropeAttentionFactor(wide)).toBeCloseTo(1.1386294, 6);
    expect(ropeTable(wide, 2).cos.data[0]).toBeCloseTo(1.1386294, 6);
  });

  test("of LongRoPE have a list up to the original context and another beyond", () => {
    const scaling = {
      type: "longrope",
      shortFactor: [1, 2, 3, 4],
      longFactor: [5, 6, 7, 8],
      originalMaxPositions: 32,
    } as const;
    const plain = inverseFrequencies(options);
    const at = (length: number): number[] => inverseFrequencies({ ...options, scaling }, length);
    expect(at(32)).toEqual(plain.map((f, i) => f / (i + 1)));
    expect(at(33)).toEqual(plain.map((f, i) => f / (i + 5)));
    // √(1 + ln(128 / 32) / ln 32)
    expect(ropeAttentionFactor({ ...options, scaling })).toBeCloseTo(Math.sqrt(1.4), 12);
    const broken = { ...options, scaling: { ...scaling, longFactor: [1] } };
    expect(() => inverseFrequencies(broken, 33)).toThrow(
      "rope: longFactor must have 4 numbers, half of the dimensions that are turned, got 1.",
    );
  });

  test("refuse an odd head", () => {
    expect(() => inverseFrequencies({ ...options, headDim: 7 })).toThrow(
      "rope: headDim must be even, got 7.",
    );
  });
});
