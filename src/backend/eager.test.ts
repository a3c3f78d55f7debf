import { describe, expect, it } from "vitest";
import { nested, tensor } from "../../test/support/reference.ts";
import { Tensor } from "../tensor/tensor.ts";
import { eager } from "./eager.ts";
import { reference } from "./reference/reference.ts";

const ops = eager(reference());

describe("eager", () => {
  const x = tensor([
    [1, 2],
    [3, 4],
  ]);

  it("applies operators to tensors and numbers", async () => {
    expect(nested(await ops.add(x, 10))).toEqual([
      [11, 12],
      [13, 14],
    ]);
    expect(nested(await ops.matmul(x, tensor([1, 10])))).toEqual([21, 43]);
    expect(nested(await ops.where(await ops.less(x, 3), x, 0))).toEqual([
      [1, 2],
      [0, 0],
    ]);
  });

  it("passes options and plain lists as they are", async () => {
    expect(nested(await ops.sum(x, [0], { keepDims: true }))).toEqual([[4, 6]]);
    expect(nested(await ops.slice(x, 1, 1, undefined))).toEqual([[2], [4]]);
    expect(nested(await ops.softmax(tensor([0, 0])))).toEqual([0.5, 0.5]);
    expect(nested(await ops.iota(3))).toEqual([0, 1, 2]);
  });

  it("takes lists of tensors and gives several", async () => {
    expect(nested(await ops.concat([x, x], 1))).toEqual([
      [1, 2, 1, 2],
      [3, 4, 3, 4],
    ]);
    const parts = await ops.split(x, [1, 1]);
    expect(parts.map(nested)).toEqual([
      [[1], [3]],
      [[2], [4]],
    ]);
    const { values, indices } = await ops.topK(x, 1);
    expect([nested(values), nested(indices), indices.dtype]).toEqual([
      [[2], [4]],
      [[1], [1]],
      "int32",
    ]);
  });

  it("works on numbers alone, and where nothing is to be done", async () => {
    const two = await ops.sqrt(4);
    expect([two.dtype, two.item()]).toEqual(["float32", 2]);
    const same = await ops.reshape(x, [2, 2]);
    expect(nested(same)).toEqual(nested(x));
    expect(same.data).not.toBe(x.data);
  });

  it("refuses what the operator refuses", async () => {
    await expect(ops.dot(x, Tensor.zeros([3, 1], "float64"))).rejects.toThrow(
      "dot: inner sizes differ, (2, 2) × (3, 1) — transpose one side?",
    );
  });

  it("is not a promise itself", async () => {
    expect(await ops).toBe(ops);
  });
});
