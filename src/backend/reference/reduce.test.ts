import { describe, expect, it } from "vitest";
import { judge, tensor } from "../../../test/support/reference.ts";
import type { Value } from "../../ir/graph.ts";
import { argMax, argMin, cumSum, max, mean, min, prod, sort, sum, topK } from "../../ir/reduce.ts";

const x = tensor([
  [1, 2, 3],
  [4, 5, 6],
]);

describe("reductions", () => {
  it("run over all axes or some", async () => {
    const fn = (v: Value): Value[] => [sum(v), sum(v, 0), sum(v, -1, { keepDims: true })];
    // 1+2+3 = 6, 4+5+6 = 15
    expect(await judge(fn, x)).toEqual([21, [5, 7, 9], [[6], [15]]]);
    const others = (v: Value): Value[] => [mean(v, 0), max(v, 1), min(v, [0, 1]), prod(v, 1)];
    expect(await judge(others, x)).toEqual([[2.5, 3.5, 4.5], [3, 6], 1, [6, 120]]);
  });

  it("have a value over nothing", async () => {
    const fn = (v: Value): Value[] => [sum(v, 1), prod(v, 1), mean(v, 1), max(v, 1), min(v, 1)];
    expect(await judge(fn, tensor([[], []]))).toEqual([
      [0, 0],
      [1, 1],
      [Number.NaN, Number.NaN],
      [-Infinity, -Infinity],
      [Infinity, Infinity],
    ]);
    const low = await judge((v: Value) => [max(v, 0), min(v, 0)], tensor([], "int32"));
    expect(low).toEqual([-(2 ** 31), 2 ** 31 - 1]);
  });

  it("leave nothing of nothing", async () => {
    expect(await judge((v: Value) => sum(v, 0), tensor([[], []]))).toEqual([]);
  });

  it("wrap around in 32 bits", async () => {
    const big = tensor([2 ** 31 - 1, 2, 3], "int32");
    // 2^31 + 4 - 2^32; (2^31 - 1) · 6 = 3 · 2^32 - 6
    expect(await judge((v: Value) => [sum(v), prod(v)], big)).toEqual([-(2 ** 31) + 4, -6]);
  });
});

describe("cumSum", () => {
  it("sums up to each element, with it or without, from either end", async () => {
    const fn = (v: Value): Value[] => [
      cumSum(v),
      cumSum(v, 0),
      cumSum(v, 1, { exclusive: true }),
      cumSum(v, 1, { reverse: true }),
      cumSum(v, 1, { exclusive: true, reverse: true }),
    ];
    expect(await judge(fn, x)).toEqual([
      [
        [1, 3, 6],
        [4, 9, 15],
      ],
      [
        [1, 2, 3],
        [5, 7, 9],
      ],
      [
        [0, 1, 3],
        [0, 4, 9],
      ],
      [
        [6, 5, 3],
        [15, 11, 6],
      ],
      [
        [5, 3, 0],
        [11, 6, 0],
      ],
    ]);
  });
});

describe("order", () => {
  const ties = tensor([
    [2, 7, 7, 1],
    [1, 1, 0, 1],
  ]);

  it("takes the first among equals", async () => {
    expect(await judge((v: Value) => [argMax(v), argMin(v)], ties)).toEqual([
      [1, 0],
      [3, 2],
    ]);
    expect(await judge((v: Value) => argMax(v, 0), ties)).toEqual([0, 0, 0, 0]);
  });

  it("lists the k best, equals by their index", async () => {
    const fn = (v: Value): Value[] => {
      const [large, small] = [topK(v, 3), topK(v, 2, -1, { largest: false })];
      return [large.values, large.indices, small.values, small.indices];
    };
    expect(await judge(fn, ties)).toEqual([
      [
        [7, 7, 2],
        [1, 1, 1],
      ],
      [
        [1, 2, 0],
        [0, 1, 3],
      ],
      [
        [1, 2],
        [0, 1],
      ],
      [
        [3, 0],
        [2, 0],
      ],
    ]);
  });

  it("runs along other axes and through infinities", async () => {
    const fn = (v: Value): Value[] => {
      const { values, indices } = sort(v, 0, { descending: true });
      return [values, indices];
    };
    const masked = tensor([[-Infinity], [3], [-Infinity], [Infinity]]);
    expect(await judge(fn, masked)).toEqual([
      [[Infinity], [3], [-Infinity], [-Infinity]],
      [[3], [1], [0], [2]],
    ]);
  });

  it("has no best of nothing", async () => {
    await expect(judge((v: Value) => argMax(v), tensor([[], []]))).rejects.toThrow(
      "argMax: axis 1 of (2, 0) is empty.",
    );
    expect(await judge((v: Value) => topK(v, 0).values, ties)).toEqual([[], []]);
  });
});
