import { describe, expect, it } from "vitest";
import { judge, tensor } from "../../../test/support/reference.ts";
import { emit } from "../../ir/emit.ts";
import type { Value } from "../../ir/graph.ts";
import {
  concat,
  expand,
  flip,
  pad,
  reshape,
  slice,
  split,
  stack,
  transpose,
} from "../../ir/layout.ts";

const x = tensor([
  [1, 2, 3],
  [4, 5, 6],
]);

describe("layout", () => {
  it("reshapes in row-major order", async () => {
    expect(await judge((v: Value) => reshape(v, [3, -1]), x)).toEqual([
      [1, 2],
      [3, 4],
      [5, 6],
    ]);
    expect(await judge((v: Value) => reshape(v, []), tensor([[7]]))).toBe(7);
  });

  it("transposes", async () => {
    expect(await judge((v: Value) => transpose(v), x)).toEqual([
      [1, 4],
      [2, 5],
      [3, 6],
    ]);
    // Result axes (2, 0, 1) of shape (1, 2, 3): element (k, i, j) is x[i][j][k].
    const moved = (v: Value): Value => transpose(reshape(v, [1, 2, 3]), [2, 0, 1]);
    expect(await judge(moved, x)).toEqual([[[1, 4]], [[2, 5]], [[3, 6]]]);
  });

  it("expands axes of size 1 and new ones", async () => {
    expect(await judge((v: Value) => expand(v, [2, 2, 3]), tensor([[1, 2, 3]]))).toEqual([
      [
        [1, 2, 3],
        [1, 2, 3],
      ],
      [
        [1, 2, 3],
        [1, 2, 3],
      ],
    ]);
    expect(await judge((v: Value) => expand(v, [2]), tensor(4))).toEqual([4, 4]);
    expect(await judge((v: Value) => expand(v, [0]), tensor(4))).toEqual([]);
  });

  it("slices with steps, backwards too", async () => {
    const line = tensor([0, 1, 2, 3, 4, 5, 6]);
    const fn = (v: Value): Value[] => [
      slice(v, 0, 1, 6, 2),
      slice(v, 0, -3),
      slice(v, 0, 0, -5),
      slice(v, 0, 5, 0, -2),
      slice(v, 0, 6, undefined, -3),
      slice(v, 0, -1, undefined, -2),
      slice(v, 0, 3, 3),
      flip(v, 0),
    ];
    expect(await judge(fn, line)).toEqual([
      [1, 3, 5],
      [4, 5, 6],
      [0, 1],
      [5, 3, 1],
      [6, 3, 0],
      [6, 4, 2, 0],
      [],
      [6, 5, 4, 3, 2, 1, 0],
    ]);
    const both = (v: Value): Value =>
      emit("slice", [v], { starts: [1, 0], ends: [-1, 3], steps: [-1, 2] });
    expect(await judge(both, x)).toEqual([
      [4, 6],
      [1, 3],
    ]);
  });

  it("joins and splits", async () => {
    expect(await judge((v: Value) => concat([v, slice(v, 1, 0, 1)], 1), x)).toEqual([
      [1, 2, 3, 1],
      [4, 5, 6, 4],
    ]);
    expect(await judge((v: Value) => split(v, [1, 0, 2]), x)).toEqual([
      [[1], [4]],
      [[], []],
      [
        [2, 3],
        [5, 6],
      ],
    ]);
    expect(await judge((a: Value) => stack([a, a], 1), tensor([1, 2]))).toEqual([
      [1, 1],
      [2, 2],
    ]);
  });

  it("pads with a value", async () => {
    expect(await judge((v: Value) => pad(v, [0, 1], [1, 2], -1), x)).toEqual([
      [-1, 1, 2, 3, -1, -1],
      [-1, 4, 5, 6, -1, -1],
      [-1, -1, -1, -1, -1, -1],
    ]);
    expect(await judge((v: Value) => pad(v, [1], [1], 9), tensor([]))).toEqual([9, 9]);
  });
});
