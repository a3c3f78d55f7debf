import { describe, expect, it } from "vitest";
import type { Shape } from "../tensor/shape.ts";
import { Graph, type Value } from "./graph.ts";
import { repeatInterleave } from "./indexing.ts";
import {
  chunk,
  concat,
  expand,
  flip,
  pad,
  reshape,
  slice,
  squeeze,
  stack,
  swapAxes,
  transpose,
  unsqueeze,
} from "./layout.ts";
import { asRows, dot, matmul } from "./linear.ts";
import { sum } from "./reduce.ts";

const of = (...shape: Shape): Value => new Graph().input("x", { shape, dtype: "float32" });

describe("layout", () => {
  it("adds no node where nothing moves", () => {
    const x = of(2, 3);
    const same = [
      reshape(x, [2, -1]),
      transpose(x, [0, 1]),
      expand(x, [2, 3]),
      slice(x, 1, 0),
      slice(x, 1, -3, 3),
      pad(x, [0, 0], [0, 0]),
      concat([x]),
    ];
    for (const value of same) expect(value).toBe(x);
  });

  it("counts axes from the end", () => {
    const x = of(2, 3, 4);
    const shapes = [
      transpose(x, [-1, 0, 1]),
      swapAxes(x),
      unsqueeze(x, -1),
      squeeze(of(2, 1), -1),
      stack([of(2)], -1),
      repeatInterleave(x, 2, -2),
      flip(x, -1),
      chunk(x, 2)[1]!,
    ].map((v) => v.shape);
    expect(shapes).toEqual([
      [4, 2, 3],
      [2, 4, 3],
      [2, 3, 4, 1],
      [2],
      [2, 1],
      [2, 6, 4],
      [2, 3, 4],
      [2, 3, 2],
    ]);
  });
});

describe("symbols", () => {
  it("are worked out where reshape is not told", () => {
    expect(reshape(of("rows", 4, 2), [-1, 8]).shape).toEqual(["rows", 8]);
    expect(reshape(of("rows", 8), [-1, 4]).shape).toEqual(["2*rows", 4]);
    expect(reshape(of("rows", 8), ["rows", -1, 2]).shape).toEqual(["rows", 4, 2]);
    expect(reshape(of("2*rows", 4), ["rows", -1]).shape).toEqual(["rows", 8]);
    expect(reshape(of("batch", "rows", 4), [-1, 4]).shape).toEqual(["batch*rows", 4]);
    expect(reshape(of("batch*rows", 4), ["rows", -1, 2]).shape).toEqual(["rows", "2*batch", 2]);
  });

  it("come out as they went in when they are sums", () => {
    const longer = pad(of("past", 4), [0, 0], [1, 0]);
    expect(longer.shape).toEqual(["past+1", 4]);
    expect(reshape(longer, [-1, 4]).shape).toEqual(["past+1", 4]);
    expect(reshape(longer, [-1, 2]).shape).toEqual(["2*(past+1)", 2]);
  });

  it("add up in a concat", () => {
    const graph = new Graph();
    const [past, now] = [
      graph.input("past", { shape: ["past", 2], dtype: "float32" }),
      graph.input("now", { shape: ["rows", 2], dtype: "float32" }),
    ];
    expect(concat([past, now]).shape).toEqual(["past+rows", 2]);
  });

  it("pass through products, reductions and broadcasts", () => {
    const graph = new Graph();
    const x = graph.input("x", { shape: ["rows", 3, 4], dtype: "float32" });
    const w = graph.input("w", { shape: [4, 5], dtype: "float32" });
    expect(asRows(x).shape).toEqual(["3*rows", 4]);
    expect(matmul(x, w).shape).toEqual(["rows", 3, 5]);
    expect(dot(x, x, { transB: true }).shape).toEqual(["rows", 3, 3]);
    expect(sum(x, 1).shape).toEqual(["rows", 4]);
  });

  it("are refused where a size is needed", () => {
    expect(() => slice(of("rows", 4), 0, 0, 2)).toThrow(
      'slice: size "rows" must be known here — compile for one size.',
    );
    expect(() => reshape(of("rows", 3), [-1, 2])).toThrow(
      "reshape: (rows, 3) cannot become (-1, 2) — the other sizes must divide it.",
    );
    expect(() => reshape(of("rows", 3), ["past", -1])).toThrow("cannot become (past, -1)");
  });
});
