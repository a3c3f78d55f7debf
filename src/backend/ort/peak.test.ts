import { describe, expect, test } from "vitest";
import { runScript } from "../../../test/support/child.ts";
import { ShapeError } from "../../errors.ts";
import { scan } from "../../ir/control.ts";
import { add, mul, tanh } from "../../ir/elementwise.ts";
import type { Value } from "../../ir/graph.ts";
import { reshape, transpose } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import { sum } from "../../ir/reduce.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { spec, trace } from "../compile.ts";
import { peakBytes } from "./peak.ts";

describe("peakBytes", () => {
  test("counts neither inputs nor outputs, and writes over what is no longer needed", () => {
    // Three values of 400 bytes follow one another in one place, and the last is the output. The
    // constant 1 has 4 bytes.
    const chain = (x: Value): Value => tanh(add(tanh(tanh(x)), 1));
    const { program } = trace(chain, [spec([10, 10])]);
    expect(peakBytes(program)).toBe(404);
  });

  test("holds both where an operator cannot write over its input", () => {
    // xᵀ and xᵀ x live together, 24 + 16 bytes.
    const { program } = trace(
      (x: Value) => sum(dot(dot(transpose(x), x), dot(transpose(x), x))),
      [spec([3, 2])],
    );
    // Equal nodes are one: the product of 16 bytes is read twice and lives until its square is there.
    expect(peakBytes(program)).toBe(40);
  });

  test("counts a view once", () => {
    const { program } = trace(
      (x: Value) => sum(transpose(reshape(tanh(x), [4, 25]))),
      [spec([10, 10])],
    );
    expect(peakBytes(program)).toBe(800);
  });

  test("counts the body of a scan beside what surrounds it", () => {
    const { program } = trace(
      (h: Value, xs: Value) => {
        const [last] = scan(
          (carry: Value, x: Value) => [add(dot(carry, x), carry), []] as const,
          h,
          xs,
        );
        return last;
      },
      [spec([2, 2]), spec([5, 2, 2])],
    );
    // The product within the body; carries are its inputs and outputs.
    expect(peakBytes(program)).toBe(5 * 16 + 16);
  });

  test("adds stored weights, and needs the sizes of symbols", () => {
    const { program } = trace(
      (x: Value, w: Value) => sum(mul(dot(x, w), 2)),
      [spec(["rows", 3]), spec([3, 5])],
    );
    const frozen = new Map([["1", Tensor.zeros([3, 5], "float32")]]);
    expect(peakBytes(program, { frozen, sizes: new Map([["rows", 7]]) })).toBe(60 + 7 * 5 * 4 + 4);
    expect(() => peakBytes(program)).toThrow(ShapeError);
  });

  test.each(["plain", "checkpoint"])(
    "is within a factor of 1.6 of what a %s training step takes",
    async (kind) => {
      const { stdout } = await runScript("peak-memory.ts", {
        args: [kind],
        env: { MALLOC_MMAP_THRESHOLD_: "131072", MALLOC_ARENA_MAX: "1" },
      });
      const { estimate, measured } = JSON.parse(stdout) as { estimate: number; measured: number };
      expect(measured).toBeGreaterThan(30e6);
      expect(measured / estimate).toBeGreaterThan(1 / 1.6);
      expect(measured / estimate).toBeLessThan(1.6);
    },
  );
});
