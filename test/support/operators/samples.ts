/**
 * Samples of fused operators: one function with inputs in any float type, from which both tables are
 * made, the one of backends (with all derivatives) and the one of derivatives.
 */
import { grad } from "../../../src/autodiff/grad.ts";
import { add, mul, tanh } from "../../../src/ir/elementwise.ts";
import type { Value } from "../../../src/ir/graph.ts";
import { sum } from "../../../src/ir/reduce.ts";
import { Rng } from "../../../src/tensor/rng.ts";
import { type StaticShape, sizeOf } from "../../../src/tensor/shape.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";
import { type Fn, type OperatorCase, once } from "./case.ts";

type FloatType = "float32" | "float64";

/** One input: floats of a range (normal without one), or the same numbers in all types. */
export type Draw = (rng: Rng, dtype: FloatType) => Tensor;

export interface Sample {
  readonly at: string;
  readonly fn: Fn;
  readonly draws: readonly Draw[];
}

export const sample = (at: string, fn: Fn, ...draws: readonly Draw[]): Sample => ({
  at,
  fn,
  draws,
});

function made(shape: StaticShape, number: (rng: Rng, i: number) => number): Draw {
  return (rng, dtype) =>
    Tensor.from(
      Float64Array.from({ length: sizeOf(shape) }, (_, i) => number(rng, i)),
      shape,
      dtype,
    );
}

export const normal = (...shape: number[]): Draw => made(shape, (rng) => rng.normal());

export const between = (low: number, high: number, ...shape: number[]): Draw =>
  made(shape, (rng) => low + (high - low) * rng.uniform());

/** Numbers in their order, as floats. */
export const given = (values: readonly number[], shape: StaticShape): Draw =>
  made(shape, (_, i) => values[i]!);

/** Marks, bool. */
export const marks =
  (values: readonly number[], shape: StaticShape): Draw =>
  () =>
    Tensor.from([...values], shape, "bool");

export function inputsOf({ draws }: Sample, dtype: FloatType): Tensor[] {
  const rng = new Rng(23);
  return draws.map((draw) => draw(rng, dtype));
}

/** The results of a function and the derivatives of a sum over them, in all float inputs. */
export function withDerivatives(fn: Fn): Fn {
  return (...inputs) => {
    const floats = inputs.filter(({ dtype }) => dtype.startsWith("float"));
    const results = (p: readonly Value[]): Value[] => {
      const next = p[Symbol.iterator]();
      const all = inputs.map((x) => (x.dtype.startsWith("float") ? next.next().value! : x));
      return [fn(...all)].flat() as Value[];
    };
    const loss = (p: Value[]): Value =>
      results(p)
        .map((y) => sum(mul(y, tanh(y))))
        .reduce((a, b) => add(a, b));
    return [...results(floats), ...(grad(loss)(floats) as Value[])];
  };
}

/** What a sample asks of backends. */
export function caseOf(one: Sample): OperatorCase {
  return once(one.at, withDerivatives(one.fn), ...inputsOf(one, "float32"));
}
