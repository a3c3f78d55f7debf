/**
 * Derivatives against central differences on the float64 reference backend.
 *
 * A function of tensors is made a function to one number by weighing every element of its results
 * with a fixed random number, so that all of its Jacobian counts. What is compared: the gradient with
 * respect to each float input, element by element; and for smooth functions the Hessian times a
 * random vector against differences of the gradient along that vector.
 */
import { grad, hvp } from "../../src/autodiff/grad.ts";
import { compile } from "../../src/backend/compile.ts";
import { reference } from "../../src/backend/reference/reference.ts";
import { add, mul } from "../../src/ir/elementwise.ts";
import type { Value } from "../../src/ir/graph.ts";
import { sum } from "../../src/ir/reduce.ts";
import { isFloat } from "../../src/tensor/dtype.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { type StaticShape, sizeOf, toStatic } from "../../src/tensor/shape.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import { allclose } from "./allclose.ts";
import { tolerance } from "./tolerance.ts";

export type Tested = (...inputs: Value[]) => Value | readonly Value[];

/** Half the distance between the points of a central difference. */
const step = 1e-5;

/** float64 numbers, normal unless a range is given. */
export function randomTensor(
  rng: Rng,
  shape: StaticShape,
  range?: readonly [low: number, high: number],
): Tensor<"float64"> {
  const values = Float64Array.from({ length: sizeOf(shape) }, () =>
    range ? range[0] + (range[1] - range[0]) * rng.uniform() : rng.normal(),
  );
  return new Tensor("float64", shape, values);
}

/** Σ over the float results of Σ result · random weights. */
function weighed(fn: Tested): (...inputs: Value[]) => Value {
  return (...inputs) => {
    const rng = new Rng(7);
    const results = fn(...inputs);
    const terms = ([results].flat() as Value[])
      .filter((result) => result.dtype === "float64")
      .map((result) => {
        const weights = randomTensor(rng, toStatic(result.shape, "gradient check"));
        return sum(mul(result, weights));
      });
    return terms.reduce((a, b) => add(a, b));
  };
}

function moved(x: Tensor, by: (i: number) => number): Tensor {
  return new Tensor(
    "float64",
    x.shape,
    Float64Array.from(x.data as Float64Array, (value, i) => value + by(i)),
  );
}

/** Splits float inputs, which are moved, from the others, which are not. */
function split(inputs: readonly Tensor[]): {
  floats: Tensor[];
  join: <T>(floats: readonly T[], others: readonly T[]) => T[];
  others: Tensor[];
} {
  const isMoved = inputs.map((input) => isFloat(input.dtype));
  return {
    floats: inputs.filter((_, i) => isMoved[i]),
    others: inputs.filter((_, i) => !isMoved[i]),
    join: (floats, others) => {
      const [a, b] = [floats[Symbol.iterator](), others[Symbol.iterator]()];
      return isMoved.map((m) => (m ? a : b).next().value!);
    },
  };
}

/** Asserts the gradient of `fn` with respect to every float64 input. */
export async function checkGradient(fn: Tested, inputs: readonly Tensor[]): Promise<void> {
  const { floats, others, join } = split(inputs);
  const loss = (p: Value[], rest: Value[]): Value => weighed(fn)(...join(p, rest));
  const specs = [floats, others];
  const value = await compile<Tensor>(loss, specs, { backend: reference() });
  const slope = await compile<Tensor[]>(grad(loss), specs, { backend: reference() });
  const found = slope.runSync(floats, others);
  floats.forEach((x, k) => {
    const expected = Float64Array.from({ length: x.size }, (_, i) => {
      const at = (h: number): number =>
        value
          .runSync(
            floats.with(
              k,
              moved(x, (j) => (j === i ? h : 0)),
            ),
            others,
          )
          .item();
      return (at(step) - at(-step)) / (2 * step);
    });
    const numeric = new Tensor("float64", x.shape, expected);
    allclose(found[k]!, numeric, tolerance.gradient, `gradient of input ${k}`);
  });
}

/** Asserts the Hessian of `fn` times a random vector. */
export async function checkSecond(fn: Tested, inputs: readonly Tensor[]): Promise<void> {
  const { floats, others, join } = split(inputs);
  const rng = new Rng(8);
  const along = floats.map((x) => randomTensor(rng, x.shape));
  const loss = (p: Value[], rest: Value[]): Value => weighed(fn)(...join(p, rest));
  const specs = [floats, others];
  const slope = await compile<Tensor[]>(grad(loss), specs, { backend: reference() });
  const curved = await compile<Tensor[]>(
    (p: Value[], v: Value[], rest: Value[]) => hvp((q: Value[]) => loss(q, rest))(p, v),
    [floats, along, others],
    { backend: reference() },
  );
  const found = curved.runSync(floats, along, others);
  const at = (h: number): Tensor[] =>
    slope.runSync(
      floats.map((x, k) => moved(x, (i) => h * along[k]!.data[i]!)),
      others,
    );
  const [after, before] = [at(step), at(-step)];
  floats.forEach((x, k) => {
    const numeric = Float64Array.from(
      { length: x.size },
      (_, i) => ((after[k]!.data[i] as number) - (before[k]!.data[i] as number)) / (2 * step),
    );
    allclose(
      found[k]!,
      new Tensor("float64", x.shape, numeric),
      tolerance.gradient,
      `Hessian times vector, input ${k}`,
    );
  });
}
