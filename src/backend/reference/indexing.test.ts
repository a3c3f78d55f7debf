import { describe, expect, it } from "vitest";
import { judge, tensor } from "../../../test/support/reference.ts";
import type { Value } from "../../ir/graph.ts";
import { gather, gatherElements, iota, scatterElements, scatterNd } from "../../ir/indexing.ts";

const x = tensor([
  [1, 2, 3],
  [4, 5, 6],
]);
const ints = (values: Parameters<typeof tensor>[0]) => tensor(values, "int32");

describe("reading", () => {
  it("gathers slices along an axis", async () => {
    expect(await judge((v: Value, i: Value) => gather(v, i), x, ints([1, -2, -1]))).toEqual([
      [4, 5, 6],
      [1, 2, 3],
      [4, 5, 6],
    ]);
    // (2, 3) at axis 1 with indices (1, 2) → (2, 1, 2)
    expect(await judge((v: Value, i: Value) => gather(v, i, 1), x, ints([[2, 0]]))).toEqual([
      [[3, 1]],
      [[6, 4]],
    ]);
    expect(await judge((v: Value, i: Value) => gather(v, i, 1), x, ints(1))).toEqual([2, 5]);
    expect(await judge((v: Value, i: Value) => gather(v, i, 1), x, ints([]))).toEqual([[], []]);
  });

  it("gathers one element per index", async () => {
    const picked = (v: Value, i: Value): Value => gatherElements(v, i, 0);
    // Element (r, c) is x[index][c].
    expect(await judge(picked, x, ints([[1, 0, -1]]))).toEqual([[4, 2, 6]]);
  });

  it("refuses an index outside the axis", async () => {
    await expect(judge((v: Value, i: Value) => gather(v, i, 1), x, ints([3]))).rejects.toThrow(
      "gather: index 3 is outside axis 1 of (2, 3) — it must be in [-3, 3).",
    );
    await expect(judge((v: Value, i: Value) => gather(v, i), x, ints([-3]))).rejects.toThrow(
      "gather: index -3 is outside axis 0 of (2, 3) — it must be in [-2, 2).",
    );
  });

  it("counts", async () => {
    expect(await judge(() => [iota(3), iota(0)])).toEqual([[0, 1, 2], []]);
  });
});

describe("writing", () => {
  it("scatters rows and elements", async () => {
    const rows = (v: Value, i: Value, u: Value): Value => scatterNd(v, i, u);
    expect(await judge(rows, x, ints([[-1]]), tensor([[7, 8, 9]]))).toEqual([
      [1, 2, 3],
      [7, 8, 9],
    ]);
    const elements = ints([
      [0, 2],
      [1, -3],
    ]);
    expect(await judge(rows, x, elements, tensor([10, 20]))).toEqual([
      [1, 2, 10],
      [20, 5, 6],
    ]);
  });

  it("adds what is written to one place more than once", async () => {
    const rows = (v: Value, i: Value, u: Value): Value => scatterNd(v, i, u, "add");
    const updates = tensor([
      [1, 1, 1],
      [2, 2, 2],
    ]);
    expect(await judge(rows, x, ints([[0], [-2]]), updates)).toEqual([
      [4, 5, 6],
      [4, 5, 6],
    ]);
  });

  it("scatters one element per index along an axis", async () => {
    const across = (v: Value, i: Value, u: Value): Value => scatterElements(v, i, u);
    const [line, updates] = [tensor([[1, 2, 3]]), tensor([[10, 20, 30]])];
    // 20 over 10 at (0, 1), 30 at (0, 0)
    expect(await judge(across, line, ints([[1, 1, 0]]), updates)).toEqual([[30, 20, 3]]);
    const down = (v: Value, i: Value, u: Value): Value => scatterElements(v, i, u, 0, "add");
    // Column c of the row that the index names
    expect(await judge(down, x, ints([[1, -1, 0]]), updates)).toEqual([
      [1, 2, 33],
      [14, 25, 6],
    ]);
  });

  it("leaves the input as it was", async () => {
    const fn = (v: Value, i: Value, u: Value): Value[] => [scatterNd(v, i, u), v];
    expect(await judge(fn, tensor([1, 2]), ints([[0]]), tensor([9]))).toEqual([
      [9, 2],
      [1, 2],
    ]);
  });
});
