import { describe, expect, it } from "vitest";
import { allclose } from "../../test/support/allclose.ts";
import { grad, valueAndGrad } from "../autodiff/grad.ts";
import { compile, evaluate } from "../backend/compile.ts";
import { reference } from "../backend/reference/reference.ts";
import { complexAbs, complexDiv, complexMul } from "../ir/complex.ts";
import { scan } from "../ir/control.ts";
import { cumProd } from "../ir/cumulative.ts";
import { add, mul, square, tanh } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape, slice } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { sum } from "../ir/reduce.ts";
import { Tensor } from "../tensor/tensor.ts";
import { compileVjp } from "./vjp.ts";

const backend = reference();
const f64 = (values: readonly number[], shape: readonly number[]): Tensor<"float64"> =>
  Tensor.from(values, shape, "float64");

describe("compileVjp", () => {
  const w = f64([0.3, -0.2, 0.5, 0.1], [2, 2]);
  const x0 = f64([1, -0.5], [1, 2]);
  const euler = (x: Value, weight: Value): Value => add(x, mul(tanh(dot(x, weight)), 0.25));

  it("differentiates a solver that steps from the host as the unrolled function is", async () => {
    const steps = 6;
    const step = await compileVjp<Tensor>(euler as never, [x0, w], { backend });
    let x: Tensor = x0;
    const kept = [];
    for (let i = 0; i < steps; i++) {
      const { result, residuals } = await step.forward(x, w);
      kept.push(residuals);
      x = result;
    }
    // d Σ x² = 2 x, pulled back through the steps.
    let ct: Tensor = f64(
      [...(x.data as Float64Array)].map((v) => 2 * v),
      [1, 2],
    );
    const total = new Float64Array(4);
    for (const residuals of kept.reverse()) {
      const [toX, toW] = (await step.pullback(residuals, ct)) as [Tensor, Tensor];
      (toW.data as Float64Array).forEach((g, i) => {
        total[i]! += g;
      });
      ct = toX;
    }
    const unrolled = valueAndGrad((weight: Value, start: Value) => {
      let state = start;
      for (let i = 0; i < steps; i++) state = euler(state, weight);
      return sum(square(state));
    });
    const [, expected] = await evaluate<[Tensor, Tensor]>(backend, unrolled as never, w, x0);
    allclose(f64([...total], [2, 2]), expected, 1e-12);
    await step.release();
    await expect(step.forward(x0, w)).rejects.toThrow("vjp: the function was released");
  });

  it("keeps only what the pullback reads", async () => {
    const twice = await compileVjp<Tensor>(((x: Value) => mul(x, 2)) as never, [x0], { backend });
    const { residuals } = await twice.forward(x0);
    expect(residuals.tensors).toEqual([]);
    const [back] = (await twice.pullback(residuals, f64([1, 1], [1, 2]))) as [Tensor];
    expect([...(back.data as Float64Array)]).toEqual([2, 2]);
    await twice.release();
  });
});

describe("gradients per example", () => {
  it("come from a scan over the examples with the derivative in its body", async () => {
    const w = f64([0.5, -1], [2, 1]);
    const xs = f64([1, 2, 3, 4, 5, 6], [3, 2]);
    const perExample = (weight: Value, examples: Value): Value =>
      scan(
        (carry: Value, x: Value): [Value, Value] => {
          const loss = (p: Value): Value => sum(square(dot(reshape(x, [1, 2]), p)));
          return [carry, grad(loss)(weight)];
        },
        sum(weight),
        examples,
      )[1];
    const compiled = await compile<Tensor>(perExample as never, [w, xs], { backend });
    const result = await compiled.run(w, xs);
    // d (x·w)² = 2 (x·w) x: x·w is -1.5, -2.5, -3.5
    expect(result.shape).toEqual([3, 2, 1]);
    allclose(result, f64([-3, -6, -15, -20, -35, -42], [3, 2, 1]), 1e-12);
    await compiled.release();
  });
});

describe("cumProd", () => {
  it("multiplies along an axis, forwards, backwards and without the element itself", async () => {
    const x = f64([1, 2, 3, 4, 0, 5], [2, 3]);
    const run = async (options: object, axis = -1): Promise<number[]> => {
      const fn = (v: Value): Value => cumProd(v, axis, options);
      const result = await evaluate<Tensor>(backend, fn as never, x);
      return [...(result.data as Float64Array)];
    };
    expect(await run({})).toEqual([1, 2, 6, 4, 0, 0]);
    expect(await run({ exclusive: true })).toEqual([1, 1, 2, 1, 4, 0]);
    expect(await run({ reverse: true })).toEqual([6, 6, 3, 0, 0, 5]);
    expect(await run({}, 0)).toEqual([1, 2, 3, 4, 0, 15]);
  });

  it("has the right derivative at a zero", async () => {
    const x = f64([2, 0, 5], [3]);
    const slope = await evaluate<Tensor>(backend, grad((v: Value) => sum(cumProd(v))) as never, x);
    // Σ = a + ab + abc: d/da = 1 + b + bc, d/db = a + ac, d/dc = ab
    expect([...(slope.data as Float64Array)]).toEqual([1, 12, 0]);
  });
});

describe("complex numbers", () => {
  it("multiply and divide as pairs", async () => {
    // (1 + 2i)(3 - i) = 5 + 5i; (5 + 5i) / (3 - i) = 1 + 2i; |3 + 4i| = 5
    const one = f64([1, 2, 3, -1, 3, 4], [6]);
    const fn = (v: Value): Value[] => {
      const at = (i: number): Value => sum(slice(v, 0, i, i + 1));
      const [a, b] = [
        { re: at(0), im: at(1) },
        { re: at(2), im: at(3) },
      ];
      const product = complexMul(a, b);
      const back = complexDiv(product, b);
      return [product.re, product.im, back.re, back.im, complexAbs({ re: at(4), im: at(5) })];
    };
    const results = await evaluate<Tensor[]>(backend, fn as never, one);
    expect(results.map((t) => t.item())).toEqual([5, 5, 1, 2, 5]);
  });
});
