import { describe, expect, it } from "vitest";
import { ShapeError } from "../errors.ts";
import {
  addDims,
  broadcastShapes,
  isStatic,
  mulDims,
  normalizeAxes,
  normalizeAxis,
  sameShape,
  showShape,
  sizeOf,
  stridesOf,
  toStatic,
} from "./shape.ts";

describe("shapes", () => {
  it("count their elements; a scalar has one", () => {
    expect(sizeOf([2, 3, 4])).toBe(24);
    expect(sizeOf([])).toBe(1);
    expect(sizeOf([5, 0])).toBe(0);
  });

  it("are shown as Python shows them", () => {
    expect([[], [2], [2, "rows"]].map(showShape)).toEqual(["()", "(2,)", "(2, rows)"]);
  });

  it("have row-major strides", () => {
    expect(stridesOf([2, 3, 4])).toEqual([12, 4, 1]);
    expect(stridesOf([])).toEqual([]);
  });

  it("are equal by rank and every dimension", () => {
    expect(sameShape([1, "n"], [1, "n"])).toBe(true);
    expect(sameShape([1], [1, 1])).toBe(false);
    expect(sameShape(["n"], ["m"])).toBe(false);
  });

  it("say which symbol stands where sizes are needed", () => {
    expect(isStatic([2, 3])).toBe(true);
    expect(toStatic([2, 3], "reshape")).toEqual([2, 3]);
    expect(() => toStatic([2, "past"], "reshape")).toThrow(
      new ShapeError(
        "reshape: needs known sizes, got (2, past) — bind the symbols, or compile for one shape.",
      ),
    );
  });
});

describe("symbols", () => {
  it("multiply to one text whatever the order", () => {
    expect(mulDims(2, 3)).toBe(6);
    expect(mulDims(2, "rows", 2)).toBe("4*rows");
    expect(mulDims("rows", "heads")).toBe(mulDims("heads", "rows"));
    expect(mulDims(mulDims(2, "rows"), mulDims(3, "heads"))).toBe("6*heads*rows");
    expect(mulDims(1, "rows")).toBe("rows");
    expect(mulDims(0, "rows")).toBe(0);
    expect(mulDims("past+1", 4)).toBe("4*(past+1)");
  });

  it("add to one text whatever the order", () => {
    expect(addDims(2, 3)).toBe(5);
    expect(addDims(1, "past")).toBe("past+1");
    expect(addDims("rows", "past")).toBe(addDims("past", "rows"));
    expect(addDims("past", 0)).toBe("past");
  });
});

describe("broadcasting", () => {
  it("lines shapes up from the right", () => {
    expect(broadcastShapes("add", [2, 3], [3])).toEqual([2, 3]);
    expect(broadcastShapes("add", [2, 1], [1, 3], [])).toEqual([2, 3]);
    expect(broadcastShapes("add", [0], [1])).toEqual([0]);
    expect(broadcastShapes("add", ["rows", 4], [4])).toEqual(["rows", 4]);
    expect(broadcastShapes("add")).toEqual([]);
  });

  it("names the shapes that do not fit", () => {
    expect(() => broadcastShapes("add", [2, 3], [2])).toThrow(
      "add: shapes do not broadcast, (2, 3) and (2,) — sizes must be equal or 1, counted from the right.",
    );
    expect(() => broadcastShapes("add", ["rows"], ["past"])).toThrow("(rows,) and (past,)");
    expect(() => broadcastShapes("add", [0], [2])).toThrow("(0,) and (2,)");
  });
});

describe("axes", () => {
  it("count from the front or the back", () => {
    expect(normalizeAxis("sum", -1, 3)).toBe(2);
    expect(normalizeAxes("sum", [-1, 0], 3)).toEqual([0, 2]);
    expect(normalizeAxes("sum", 1, 3)).toEqual([1]);
    expect(normalizeAxes("sum", undefined, 2)).toEqual([0, 1]);
  });

  it("are refused outside the rank and when they repeat", () => {
    for (const axis of [3, -4, 0.5]) {
      expect(() => normalizeAxis("sum", axis, 3)).toThrow(
        `sum: axis ${axis} is outside a tensor of 3 dimensions.`,
      );
    }
    expect(() => normalizeAxes("sum", [0, -3], 3)).toThrow("sum: axes repeat, got [0, -3].");
  });
});
