import { describe, expect, it } from "vitest";
import { judge, tensor } from "../../../test/support/reference.ts";
import { emit, emitAll } from "../../ir/emit.ts";
import type { Value } from "../../ir/graph.ts";
import { transpose } from "../../ir/layout.ts";
import { conv, convTranspose, dot, matmul, maxPool } from "../../ir/linear.ts";

describe("dot", () => {
  const a = tensor([
    [1, 2, 3],
    [4, 5, 6],
  ]);
  const b = tensor([
    [1, 0],
    [0, 1],
    [2, 2],
  ]);

  it("multiplies matrices, read transposed where told, and scales", async () => {
    // Row 0: 1·1 + 2·0 + 3·2 = 7, 1·0 + 2·1 + 3·2 = 8; row 1: 4 + 12 = 16, 5 + 12 = 17
    const product = [
      [7, 8],
      [16, 17],
    ];
    const fn = (x: Value, y: Value): Value[] => [
      dot(x, y),
      dot(transpose(x), y, { transA: true }),
      dot(x, transpose(y), { transB: true }),
      dot(transpose(x), transpose(y), { transA: true, transB: true, alpha: 2 }),
    ];
    expect(await judge(fn, a, b)).toEqual([
      product,
      product,
      product,
      product.map((row) => row.map((value) => 2 * value)),
    ]);
  });

  it("multiplies stacks one by one", async () => {
    const stacks = (x: Value, y: Value): Value => dot(x, y);
    expect(
      await judge(
        stacks,
        tensor([[[1, 2]], [[3, 4]]]),
        tensor([
          [[1], [1]],
          [[2], [0]],
        ]),
      ),
    ).toEqual([[[3]], [[6]]]);
  });

  it("sums nothing to zero", async () => {
    const fn = (x: Value, y: Value): Value => dot(x, y, { transB: true });
    expect(await judge(fn, tensor([[], []]), tensor([[]]))).toEqual([[0], [0]]);
  });

  it("serves vectors by matmul", async () => {
    expect(await judge((x: Value, y: Value) => matmul(x, y), tensor([1, 2]), tensor([3, 4]))).toBe(
      11,
    );
  });
});

describe("conv", () => {
  it("correlates, padded and strided", async () => {
    const x = tensor([[[1, 2, 3, 4]]]);
    const weight = tensor([[[1, 10]]]);
    const fn = (v: Value, w: Value): Value[] => [
      conv(v, w),
      conv(v, w, { stride: 2 }),
      conv(v, w, { dilation: 3 }),
      conv(v, w, { padding: 1, stride: 2 }),
      emit("conv", [v, w], { strides: [1], pads: [2, 0], dilations: [1], groups: 1 }),
    ];
    expect(await judge(fn, x, weight)).toEqual([
      [[[21, 32, 43]]],
      [[[21, 43]]],
      // 1 + 10·4
      [[[41]]],
      // 0 1 | 2 3 | 4 0
      [[[10, 32, 4]]],
      // 0 0 | 0 1 | 1 2 | 2 3 | 3 4
      [[[0, 10, 21, 32, 43]]],
    ]);
  });

  it("sums over input channels, and over those of its group alone", async () => {
    const x = tensor([
      [
        [1, 2],
        [3, 4],
      ],
    ]);
    const all = tensor([[[1], [10]]]);
    expect(await judge((v: Value, w: Value) => conv(v, w), x, all)).toEqual([[[31, 42]]]);
    const own = tensor([[[2]], [[5]]]);
    expect(await judge((v: Value, w: Value) => conv(v, w, { groups: 2 }), x, own)).toEqual([
      [
        [2, 4],
        [15, 20],
      ],
    ]);
  });

  it("runs over two axes", async () => {
    const x = tensor([
      [
        [
          [1, 2, 3],
          [4, 5, 6],
          [7, 8, 9],
        ],
      ],
    ]);
    const weight = tensor([
      [
        [
          [1, 0],
          [0, 10],
        ],
      ],
    ]);
    // 1 + 10·5, 2 + 10·6, 4 + 10·8, 5 + 10·9
    expect(await judge((v: Value, w: Value) => conv(v, w), x, weight)).toEqual([
      [
        [
          [51, 62],
          [84, 95],
        ],
      ],
    ]);
  });
});

describe("convTranspose", () => {
  it("spreads the kernel over strides", async () => {
    const x = tensor([[[1, 2]]]);
    const weight = tensor([[[1, 10, 100]]]);
    const fn = (v: Value, w: Value): Value[] => [
      convTranspose(v, w),
      convTranspose(v, w, { stride: 2 }),
      convTranspose(v, w, { stride: 2, padding: 1, outputPadding: 1 }),
      convTranspose(v, w, { dilation: 2 }),
    ];
    expect(await judge(fn, x, weight)).toEqual([
      // 1·(1 10 100 0) + 2·(0 1 10 100)
      [[[1, 12, 120, 200]]],
      // 1·(1 10 100 0 0) + 2·(0 0 1 10 100)
      [[[1, 10, 102, 20, 200]]],
      // The same with the first taken off, and the last kept: size 2·1 + 3 - 2 + 1 = 4
      [[[10, 102, 20, 200]]],
      // 1·(1 0 10 0 100 0) + 2·(0 1 0 10 0 100)
      [[[1, 2, 10, 20, 100, 200]]],
    ]);
  });

  it("fills with zeros where only output padding reaches", async () => {
    const fn = (v: Value, w: Value): Value => convTranspose(v, w, { stride: 3, outputPadding: 2 });
    expect(await judge(fn, tensor([[[1, 2]]]), tensor([[[5]]]))).toEqual([[[5, 0, 0, 10, 0, 0]]]);
  });

  it("keeps groups apart", async () => {
    const x = tensor([[[1], [2]]]);
    const weight = tensor([[[1, 10]], [[1, 10]]]);
    expect(
      await judge((v: Value, w: Value) => convTranspose(v, w, { groups: 2 }), x, weight),
    ).toEqual([
      [
        [1, 10],
        [2, 20],
      ],
    ]);
  });
});

describe("maxPool", () => {
  it("finds the largest of each window and where it lies in the whole input", async () => {
    const x = tensor([
      [
        [1, 3, 2, 5],
        [4, 4, 0, -1],
      ],
    ]);
    const fn = (v: Value): Value[] =>
      emitAll("maxPool", [v], { kernel: [2], strides: [2], pads: [0, 0] });
    // Channel 1 begins at 4; the first of the two fours counts.
    expect(await judge(fn, x)).toEqual([
      [
        [
          [3, 5],
          [4, 0],
        ],
      ],
      [
        [
          [1, 3],
          [4, 6],
        ],
      ],
    ]);
  });

  it("pads with less than any number", async () => {
    const fn = (v: Value): Value => maxPool(v, { kernel: 3, stride: 2, padding: 1 });
    expect(await judge(fn, tensor([[[-5, -6, -7]]]))).toEqual([[[-5, -6]]]);
  });
});
