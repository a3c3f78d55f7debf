import { expect, it } from "vitest";
import { Graph } from "../ir/graph.ts";
import { pad, reshape } from "../ir/layout.ts";
import { addDims, mulDims } from "../tensor/shape.ts";
import { bindDim } from "./backend.ts";

it("reads and writes sums and products of symbols", () => {
  expect(bindDim("4*(past+1)", new Map([["past", 5]]))).toBe(24);
  expect(
    bindDim(
      "(a+b)*2*c",
      new Map([
        ["a", 1],
        ["b", 2],
        ["c", 3],
      ]),
    ),
  ).toBe(18);
  expect(mulDims(1, "past+1")).toBe("past+1");
  expect(mulDims("4*(past+1)", 2)).toBe("8*(past+1)");
  expect(addDims("past+1", 1)).toBe("past+2");
  expect(addDims(addDims("a", "b"), "a+3")).toBe("a+a+b+3");
  const x = new Graph().input("x", { shape: ["past", 4], dtype: "float32" });
  const longer = pad(x, [0, 0], [1, 0]);
  expect(reshape(longer, [-1, 2]).shape).toEqual(["2*(past+1)", 2]);
  expect(reshape(reshape(longer, [-1, 2]), ["past+1", -1]).shape).toEqual(["past+1", 4]);
  expect(reshape(reshape(longer, [-1, 2]), [-1, 4]).shape).toEqual(["past+1", 4]);
});
