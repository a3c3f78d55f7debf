import { describe, expect, it } from "vitest";
import { judge, nested, tensor } from "../../../test/support/reference.ts";
import { add, exp, mul } from "../../ir/elementwise.ts";
import { dequantize, quantizedLinear, softmax } from "../../ir/fused.ts";
import type { Value } from "../../ir/graph.ts";
import { concat, reshape, slice } from "../../ir/layout.ts";
import { dot } from "../../ir/linear.ts";
import { sum } from "../../ir/reduce.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { compile, evaluate, spec, trace } from "../compile.ts";
import { reference } from "./reference.ts";

const backend = reference();

describe("reference", () => {
  it("rounds float32 only where it leaves the program", async () => {
    // 1 + 2^-30 is 1 in float32; times 2^30 less 2^30 it is 1 again if kept.
    const fn = (x: Value): Value => add(mul(add(x, 1), 2 ** 30), -(2 ** 30));
    const result = await evaluate<Tensor>(backend, fn, Tensor.scalar(2 ** -30));
    expect([result.dtype, result.item()]).toEqual(["float32", 1]);
    const third = await evaluate<Tensor>(
      backend,
      (x: Value) => mul(x, 1 / 3),
      Tensor.scalar(1, "float64"),
    );
    expect([third.dtype, third.item()]).toEqual(["float64", 1 / 3]);
  });

  it("expands fused operators", async () => {
    const e = Math.exp(-2);
    const found = await judge((x: Value) => softmax(x), tensor([[1000, 998]]));
    expect((found as number[][])[0]![0]).toBeCloseTo(1 / (1 + e), 14);
  });

  it("unpacks quantised weights, low half first", async () => {
    // 0x91: 1 - 8 = -7, 9 - 8 = 1; 0x2f: 15 - 8 = 7, 2 - 8 = -6; scales 0.5 and 10
    const attrs = { bits: 4, blockSize: 2, inFeatures: 4, outFeatures: 1 } as const;
    const packed = Tensor.from([0x91, 0x2f], [1, 2, 1], "uint8");
    const scales = Tensor.from([0.5, 10], [1, 2]);
    const fn = (p: Value, s: Value, x: Value): Value[] => [
      dequantize(p, s, attrs),
      quantizedLinear(x, p, s, attrs),
    ];
    expect(await judge(fn, packed, scales, Tensor.from([1, 1, 1, 0], [1, 4]))).toEqual([
      [[-3.5, 0.5, 70, -60]],
      [[67]],
    ]);
    const bytes = Tensor.from([0, 255, 128, 129], [1, 2, 2], "uint8");
    const eight = { ...attrs, bits: 8 } as const;
    expect(await judge((p: Value, s: Value) => dequantize(p, s, eight), bytes, scales)).toEqual([
      [-64, 63.5, 0, 10],
    ]);
  });

  it("binds symbols by the inputs, their sums and products with them", async () => {
    const fn = (past: Value, now: Value, w: Value): Value => {
      const all = concat([past, now], 0);
      return dot(reshape(all, [-1, 2]), w);
    };
    const specs = [spec(["past", 2]), spec(["rows", 2]), spec([2, 1])];
    const compiled = await compile<Tensor>(fn, specs, { backend });
    expect(compiled.executable.outputs[0]!.shape).toEqual(["past+rows", 1]);
    const w = Tensor.from([1, 10], [2, 1]);
    const run = (past: number[], now: number[]): unknown =>
      nested(
        compiled.runSync(
          Tensor.from(past, [past.length / 2, 2]),
          Tensor.from(now, [now.length / 2, 2]),
          w,
        ),
      );
    expect(run([], [1, 2])).toEqual([[21]]);
    expect(run([3, 4, 5, 6], [1, 2])).toEqual([[43], [65], [21]]);
    await compiled.release();
  });

  it("refuses inputs that do not fit, by name", async () => {
    const compiled = await compile((p: { w: Value }) => exp(p.w), [{ w: spec([2, "rows"]) }], {
      backend,
    });
    expect(() => compiled.runSync({ w: Tensor.zeros([3, 3], "float32") })).toThrow(
      'reference: input "0.w" must have shape (2, rows), got (3, 3).',
    );
    expect(() => compiled.runSync({ w: Tensor.zeros([2, 3], "float64") })).toThrow(
      'reference: input "0.w" must be float32, got float64.',
    );
    expect(() => compiled.executable.runSync!([])).toThrow("reference: needs 1 inputs, got 0.");
  });

  it("keeps frozen inputs and asks for the others alone", async () => {
    const { program } = trace((w: Value, x: Value) => mul(w, x), [spec([2]), spec([2])]);
    const frozen = new Map([["0", Tensor.from([3, 4])]]);
    const executable = await backend.load(program, { frozen });
    expect(executable.inputs.map(({ name }) => name)).toEqual(["1"]);
    expect([...(await executable.run([Tensor.from([10, 100])]))[0]!.data]).toEqual([30, 400]);
    await expect(
      backend.load(program, { frozen: new Map([["x", Tensor.scalar(1)]]) }),
    ).rejects.toThrow('reference: frozen "x" is not an input — inputs are 0, 1.');
  });

  it("writes into the tensors that it is given, and into no other memory", async () => {
    const { program } = trace((x: Value) => [x, mul(x, 2)], [spec([2])]);
    const executable = await backend.load(program);
    const [x, into] = [Tensor.from([1, 2]), Tensor.zeros([2], "float32")];
    const [same, twice] = executable.runSync!([x], [undefined, into]);
    expect(twice).toBe(into);
    expect([...into.data]).toEqual([2, 4]);
    expect(same!.data).not.toBe(x.data);
    expect(() => executable.runSync!([x], [Tensor.zeros([3], "float32")])).toThrow(
      'reference: output "0" has shape (2,), the tensor to write to (3,).',
    );
    expect(() => executable.runSync!([x], [Tensor.zeros([2], "int32")])).toThrow(
      'reference: output "0" is float32, the tensor to write to int32.',
    );
  });

  it("does not run after it was released", async () => {
    const { program } = trace((x: Value) => sum(x), [spec([2])]);
    const executable = await backend.load(program);
    await executable.release();
    await expect(executable.run([Tensor.from([1, 2])])).rejects.toThrow(
      "reference: the program was released — load it again.",
    );
  });

  it("gives back float16 and whole numbers as their own types", async () => {
    const half = Tensor.from([1, 2, 3], [3], "float16");
    const part = await evaluate<Tensor>(backend, (x: Value) => slice(x, 0, 1), half);
    expect([part.dtype, ...Array.from(part.numbers())]).toEqual(["float16", 2, 3]);
    const long = Tensor.from([5, -(2 ** 40)], [2], "int64");
    const same = await evaluate<Tensor>(backend, (x: Value) => slice(x, 0, 1), long);
    expect([same.dtype, same.item()]).toEqual(["int64", -(2 ** 40)]);
  });
});
