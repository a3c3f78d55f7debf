import { describe, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { tensor } from "../../test/support/reference.ts";
import { tolerance } from "../../test/support/tolerance.ts";
import { evaluate } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { Tensor } from "../tensor/tensor.ts";
import { crossEntropyRows, gelu, layerNorm, logSoftmax, rmsNorm, silu, softmax } from "./fused.ts";
import type { Value } from "./graph.ts";
import { avgPool } from "./linear.ts";

/** Asserts what a function gives for float64 inputs. */
async function gives(
  fn: (...args: never[]) => Value,
  inputs: readonly Tensor[],
  expected: Parameters<typeof tensor>[0],
): Promise<void> {
  const found = await evaluate<Tensor>(reference(), fn, ...inputs);
  allclose(found, tensor(expected), tolerance.float64);
}

describe("fused operators", () => {
  it("softmax: shares of e^x along an axis", async () => {
    const x = tensor([[Math.log(1), Math.log(3)]]);
    await gives((v: Value) => softmax(v), [x], [[0.25, 0.75]]);
    await gives((v: Value) => softmax(v, 0), [x], [[1, 1]]);
    await gives((v: Value) => logSoftmax(v), [x], [[Math.log(0.25), Math.log(0.75)]]);
  });

  it("softmax: without overflow, and 0 where the input is -∞", async () => {
    await gives((v: Value) => softmax(v), [tensor([1e4, 1e4, -Infinity])], [0.5, 0.5, 0]);
  });

  it("gelu: x Φ(x), and its tanh form", async () => {
    // Φ(1) = 0.8413447460685429
    await gives(
      (v: Value) => gelu(v),
      [tensor([0, 1, -1])],
      [0, 0.8413447460685429, -0.1586552539314571],
    );
    const form = (x: number): number =>
      0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
    await gives((v: Value) => gelu(v, "tanh"), [tensor([0.5, -2])], [form(0.5), form(-2)]);
    await gives((v: Value) => silu(v), [tensor([2])], [2 / (1 + Math.exp(-2))]);
  });

  it("layerNorm and rmsNorm: over the last axis", async () => {
    // 1 and 3: mean 2, variance 1, so -1 and 1; with ε = 3 half of that.
    const [x, w, b] = [tensor([[1, 3]]), tensor([2, 4]), tensor([10, 20])];
    await gives((v: Value, p: Value, q: Value) => layerNorm(v, p, q, 0), [x, w, b], [[8, 24]]);
    await gives((v: Value, p: Value, q: Value) => layerNorm(v, p, q, 3), [x, w, b], [[9, 22]]);
    // 1 and 7: mean square 25
    await gives((v: Value, p: Value) => rmsNorm(v, p, 0), [tensor([[1, 7]]), w], [[0.4, 5.6]]);
  });

  it("crossEntropy: -log of the target's share, 0 where ignored", async () => {
    const logits = tensor([
      [0, Math.log(3)],
      [0, 0],
      [0, 0],
    ]);
    const targets = Tensor.from([1, -100, 0], [3], "int32");
    await gives(
      (x: Value, t: Value) => crossEntropyRows(x, t),
      [logits, targets],
      [-Math.log(0.75), 0, Math.LN2],
    );
  });

  it("avgPool: padding counts as elements, or not", async () => {
    const x = tensor([[[3, 6, 9]]]);
    const options = { kernel: 3, stride: 2, padding: 1 };
    // (0 + 3 + 6) / 3 and (6 + 9 + 0) / 3, or over 2
    await gives((v: Value) => avgPool(v, options), [x], [[[3, 5]]]);
    await gives(
      (v: Value) => avgPool(v, { ...options, countIncludePad: false }),
      [x],
      [[[4.5, 7.5]]],
    );
  });
});
