import { describe, expect, it } from "vitest";
import { evaluate } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Updater } from "../train/updater.ts";
import { adamW } from "./adamw.ts";
import { clipByNorm, clipByValue, clipFactor, withClip } from "./clip.ts";
import { muon } from "./muon.ts";
import { sgd } from "./sgd.ts";

const run = async (fn: (x: Value) => Value, values: readonly number[]): Promise<number[]> => [
  ...(await evaluate<Tensor<"float32">>(reference(), fn, Tensor.from(values))).data,
];

describe("bounds on gradients", () => {
  it("give the factor for a common norm", () => {
    expect(clipFactor(5, 10)).toBe(1);
    expect(clipFactor(0, 1)).toBe(1);
    expect(clipFactor(5, 2)).toBe(2 / (5 + 1e-6));
  });

  it("by value cut elements", async () => {
    expect(await run((x) => clipByValue(x, 2), [-3, -2, 0.5, 7])).toEqual([-2, -2, 0.5, 2]);
  });

  it("by norm keep the direction, and what is short enough", async () => {
    const [a, b] = (await run((x) => clipByNorm(x, 1), [3, 4])) as [number, number];
    expect(Math.hypot(a, b)).toBeCloseTo(1, 6);
    expect(b / a).toBeCloseTo(4 / 3, 6);
    expect(await run((x) => clipByNorm(x, 6), [3, 4])).toEqual([3, 4]);
    expect(await run((x) => clipByNorm(x, 6), [0, 0])).toEqual([0, 0]);
  });

  it("become part of an optimiser, per parameter", async () => {
    const params = { a: Tensor.from([0, 0]), b: Tensor.from([0, 0]) };
    const step = async (optimizer: ReturnType<typeof sgd>): Promise<number[][]> => {
      const updater = new Updater(params, [{ paths: ["a", "b"], optimizer }], reference());
      updater.gradients["a"]!.data.set([30, 40]);
      updater.gradients["b"]!.data.set([0.25, -0.5]);
      await updater.step(1);
      return Object.values(updater.params).map(({ data }) => [...data]);
    };
    expect(await step(withClip(sgd(), { value: 0.5 }))).toEqual([
      [-0.5, -0.5],
      [-0.25, 0.5],
    ]);
    const [a, b] = await step(withClip(sgd(), { norm: 5 }));
    expect(a!.map((x) => Math.round(x * 1e5) / 1e5)).toEqual([-3, -4]);
    expect(b).toEqual([-0.25, 0.5]);
  });

  it("keep a pass elementwise by value only", () => {
    expect(withClip(adamW(), { value: 1 }).elementwise).toBe(true);
    expect(withClip(adamW(), { norm: 1 }).elementwise).toBe(false);
    expect(withClip(muon(), { value: 1 }).elementwise).toBe(false);
    expect(withClip(muon(), { value: 1 }).refusal?.([3])).toMatch("matrices only");
  });

  it("refuse none, both, or nothing above 0", () => {
    expect(() => withClip(sgd(), {})).toThrow(
      new OptionError("withClip: needs value or norm, got 0 of them."),
    );
    expect(() => withClip(sgd(), { value: 1, norm: 1 })).toThrow("got 2 of them.");
    expect(() => withClip(sgd(), { norm: 0 })).toThrow("withClip: norm must be above 0, got 0.");
  });
});
