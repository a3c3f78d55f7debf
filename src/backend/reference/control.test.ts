import { describe, expect, it } from "vitest";
import { judge, tensor } from "../../../test/support/reference.ts";
import { customVjp, scan } from "../../ir/control.ts";
import { add, mul } from "../../ir/elementwise.ts";
import { outputsOf, type Value } from "../../ir/graph.ts";
import { sum } from "../../ir/reduce.ts";

const body = (total: Value, x: Value): readonly [Value, Value] => {
  const next = add(mul(total, 10), x);
  return [next, mul(next, 2)];
};

describe("scan", () => {
  it("carries from step to step and keeps the carry before each", async () => {
    const fn = (c: Value, xs: Value): Value[] => outputsOf(scan(body, c, xs)[0]);
    // 10·1 + 2 = 12, 10·12 + 3 = 123
    expect(await judge(fn, tensor(1), tensor([2, 3]))).toEqual([123, [24, 246], [1, 12]]);
  });

  it("runs from the last to the first with results in the order of xs", async () => {
    const fn = (c: Value, xs: Value): Value[] => outputsOf(scan(body, c, xs, { reverse: true })[0]);
    // 10·1 + 3 = 13, 10·13 + 2 = 132
    expect(await judge(fn, tensor(1), tensor([2, 3]))).toEqual([132, [264, 26], [13, 1]]);
  });

  it("takes several carries and slices, and values from outside two levels deep", async () => {
    const fn = (a: Value, xs: Value, k: Value): Value[] => {
      const [carry, ys] = scan(
        (c: Value, row: Value) => {
          const [total] = scan((t: Value, x: Value) => [add(t, mul(x, k)), []] as const, c, row);
          return [total, sum(row)];
        },
        a,
        xs,
      );
      return [carry, ys];
    };
    const xs = tensor([
      [1, 2],
      [3, 4],
    ]);
    expect(await judge(fn, tensor(0), xs, tensor(100))).toEqual([1000, [3, 7]]);
  });

  it("returns the carry as it is after no step", async () => {
    const fn = (c: Value, xs: Value): Value[] => outputsOf(scan(body, c, xs)[0]);
    expect(await judge(fn, tensor(1), tensor([]))).toEqual([1, [], []]);
  });
});

describe("call", () => {
  it("runs what it stands for, in a scan too", async () => {
    const double = customVjp(
      (x) => mul(x, 2),
      () => [],
    );
    const fn = (c: Value, xs: Value): Value =>
      scan((t: Value, x: Value) => [add(t, double(x)[0]!), []] as const, c, xs)[0];
    expect(await judge(fn, tensor(0), tensor([1, 2, 3]))).toBe(12);
  });
});
