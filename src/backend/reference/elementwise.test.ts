import { describe, expect, it } from "vitest";
import { judge, tensor } from "../../../test/support/reference.ts";
import * as ops from "../../ir/elementwise.ts";
import type { Operand, Value } from "../../ir/graph.ts";

const unary = async (op: (x: Operand) => Value, ...values: number[]): Promise<unknown> =>
  judge((x: Value) => op(x), tensor(values));

type Pair = (a: Operand, b: Operand) => Value;
const float = async (op: Pair, a: number[], b: number[]): Promise<unknown> =>
  judge((x: Value, y: Value) => op(x, y), tensor(a), tensor(b));
const int = async (op: Pair, a: number[], b: number[]): Promise<unknown> =>
  judge((x: Value, y: Value) => op(x, y), tensor(a, "int32"), tensor(b, "int32"));

describe("functions of one number", () => {
  it("round half to even", async () => {
    expect(await unary(ops.round, 0.5, 1.5, 2.5, -0.5, -1.5, 2.4999, -2.6)).toEqual([
      0, 2, 2, -0, -2, 2, -3,
    ]);
  });

  it("do not overflow where the result is finite", async () => {
    expect(await unary(ops.sigmoid, -1000, 0, 1000)).toEqual([0, 0.5, 1]);
    // log(1 + e^1000) = 1000 + log(1 + e^-1000)
    expect(await unary(ops.softplus, -1000, 0, 1000)).toEqual([0, Math.LN2, 1000]);
    expect(await unary(ops.tanh, -1000, 1000)).toEqual([-1, 1]);
  });

  it("follow IEEE 754 at the edges", async () => {
    expect(await unary(ops.log, 0, -1)).toEqual([-Infinity, Number.NaN]);
    expect(await unary(ops.reciprocal, 0, -0)).toEqual([Infinity, -Infinity]);
    expect(await unary(ops.sqrt, 4, -1)).toEqual([2, Number.NaN]);
    expect(await unary(ops.sign, -3, 0, 5)).toEqual([-1, 0, 1]);
    expect(await unary(ops.floor, -0.5, 1.5)).toEqual([-1, 1]);
    expect(await unary(ops.ceil, -1.5, 1.5)).toEqual([-1, 2]);
    expect(await unary(ops.relu, -1, 0, 2)).toEqual([0, 0, 2]);
    expect(await unary(ops.isNan, Number.NaN, Infinity)).toEqual([1, 0]);
  });

  it("take a scalar and nothing", async () => {
    expect(await judge((x: Value) => ops.exp(x), tensor(0))).toBe(1);
    expect(await judge((x: Value) => ops.exp(x), tensor([]))).toEqual([]);
  });

  it("wrap around in 32 bits", async () => {
    const low = tensor([-(2 ** 31), 7], "int32");
    expect(await judge((x: Value) => [ops.neg(x), ops.abs(x)], low)).toEqual([
      [-(2 ** 31), -7],
      [-(2 ** 31), 7],
    ]);
  });
});

describe("functions of two numbers", () => {
  it("broadcast both sides, to nothing too", async () => {
    const column = tensor([[1], [2]]);
    const line = tensor([[10, 20, 30]]);
    expect(await judge((a: Value, b: Value) => ops.sub(b, a), column, line)).toEqual([
      [9, 19, 29],
      [8, 18, 28],
    ]);
    const none = tensor([[], []]);
    expect(await judge((a: Value, b: Value) => ops.add(a, b), column, none)).toEqual([[], []]);
  });

  it("divide and take the remainder of floats as C does", async () => {
    expect(await float(ops.div, [7, -7, 1, 0], [2, 2, 0, 0])).toEqual([
      3.5,
      -3.5,
      Infinity,
      Number.NaN,
    ]);
    // fmod: 7 = 2·3 + 1, and the sign of the dividend
    expect(await float(ops.mod, [7, -7, 7, -7.5], [3, 3, -3, 2])).toEqual([1, -1, 1, -1.5]);
  });

  it("divide whole numbers towards zero, with a remainder of the divisor's sign", async () => {
    expect(await int(ops.div, [7, -7, 7, -7], [2, 2, -2, -2])).toEqual([3, -3, -3, 3]);
    // -7 = 3·(-3) + 2; 7 = -3·(-3) - 2
    expect(await int(ops.mod, [7, -7, 7, -7, 6], [3, 3, -3, -3, -3])).toEqual([1, 2, -2, -1, 0]);
    expect(await int(ops.div, [-(2 ** 31)], [-1])).toEqual([-(2 ** 31)]);
    await expect(int(ops.div, [5], [0])).rejects.toThrow("div: int32 division by zero, 5 by 0.");
  });

  it("wrap around in 32 bits", async () => {
    // 65537² = 2^32 + 2·65536 + 1
    expect(await int(ops.mul, [65537, 2 ** 30], [65537, 4])).toEqual([131073, 0]);
    expect(await int(ops.add, [2 ** 31 - 1], [1])).toEqual([-(2 ** 31)]);
    expect(await int(ops.sub, [-(2 ** 31)], [1])).toEqual([2 ** 31 - 1]);
    expect(await int(ops.pow, [3, 2, 2, -1], [4, 31, -1, -1])).toEqual([81, -(2 ** 31), 0, -1]);
  });

  it("raise to powers as C does", async () => {
    expect(await float(ops.pow, [0, 2, -2, 1, 1], [0, -1, 3, Infinity, Number.NaN])).toEqual([
      1, 0.5, -8, 1, 1,
    ]);
  });

  it("pass NaN through min and max", async () => {
    expect(await float(ops.minimum, [1, Number.NaN], [2, 0])).toEqual([1, Number.NaN]);
    expect(await float(ops.maximum, [1, Number.NaN], [2, 0])).toEqual([2, Number.NaN]);
  });

  it("compare; NaN is equal to nothing", async () => {
    const [a, b] = [
      [1, 2, Number.NaN],
      [1, 1, Number.NaN],
    ] as const;
    expect(await float(ops.equal, [...a], [...b])).toEqual([1, 0, 0]);
    expect(await float(ops.less, [...a], [...b])).toEqual([0, 0, 0]);
    expect(await float(ops.greaterOrEqual, [...a], [...b])).toEqual([1, 1, 0]);
  });

  it("join bits and truths", async () => {
    // 12 = 1100, 10 = 1010
    expect(await int(ops.bitAnd, [12, -1], [10, 7])).toEqual([8, 7]);
    expect(await int(ops.bitOr, [12], [10])).toEqual([14]);
    expect(await int(ops.bitXor, [12], [10])).toEqual([6]);
    const [p, q] = [tensor([0, 0, 1, 1], "bool"), tensor([0, 1, 0, 1], "bool")];
    const all = (a: Value, b: Value): Value[] => [
      ops.and(a, b),
      ops.or(a, b),
      ops.xor(a, b),
      ops.not(a),
    ];
    expect(await judge(all, p, q)).toEqual([
      [0, 0, 0, 1],
      [0, 1, 1, 1],
      [0, 1, 1, 0],
      [1, 1, 0, 0],
    ]);
  });
});

describe("where", () => {
  it("takes from either side, all three broadcast", async () => {
    const condition = tensor([[1], [0]], "bool");
    expect(
      await judge((c: Value, a: Value) => ops.where(c, a, -1), condition, tensor([5, 6])),
    ).toEqual([
      [5, 6],
      [-1, -1],
    ]);
  });
});

describe("cast", () => {
  const to = async (
    dtype: "int32" | "uint8" | "bool" | "float16" | "bfloat16" | "int64",
    ...x: number[]
  ) => judge((v: Value) => ops.cast(v, dtype), tensor(x));

  it("truncates towards zero", async () => {
    expect(await to("int32", -1.9, 1.9, 3)).toEqual([-1, 1, 3]);
    expect(await to("int64", -1.9, 2 ** 40 + 0.5)).toEqual([-1, 2 ** 40]);
    expect(await to("uint8", 255.9, 256)).toEqual([255, 0]);
  });

  it("takes every number but zero for true", async () => {
    expect(await to("bool", 0, -0, 0.1, Number.NaN)).toEqual([0, 0, 1, 1]);
  });

  it("rounds to the types that are only kept", async () => {
    // Above 1 float16 has steps of 2^-10, bfloat16 of 2^-7.
    expect(await to("float16", 1 + 2 ** -11 + 2 ** -20)).toEqual([1 + 2 ** -10]);
    expect(await to("bfloat16", 1 + 2 ** -8)).toEqual([1]);
    expect(await to("float16", 1e6)).toEqual([Infinity]);
  });
});
