/** A tiny network that is trained by gradient descent, the same on every backend. */
import { valueAndGrad } from "../../src/autodiff/grad.ts";
import type { Backend } from "../../src/backend/backend.ts";
import { compile } from "../../src/backend/compile.ts";
import { add, mul, square, sub, tanh } from "../../src/ir/elementwise.ts";
import type { Value } from "../../src/ir/graph.ts";
import { dot } from "../../src/ir/linear.ts";
import { mean } from "../../src/ir/reduce.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { Tensor } from "../../src/tensor/tensor.ts";

interface Layers<T> {
  readonly w1: T;
  readonly b1: T;
  readonly w2: T;
}

function random(rng: Rng, shape: readonly [number, number], scale: number): Tensor {
  const values = Float32Array.from({ length: shape[0] * shape[1] }, () => scale * rng.normal());
  return new Tensor("float32", shape, values);
}

/** Losses of the first steps; with an odd number of rows, so that vector code meets its remainders. */
export async function trainMlp(backend: Backend, steps: number): Promise<number[]> {
  const rng = new Rng(5);
  let params: Layers<Tensor> = {
    w1: random(rng, [5, 13], 0.4),
    b1: Tensor.zeros([13], "float32"),
    w2: random(rng, [13, 3], 0.3),
  };
  const [x, y] = [random(rng, [17, 5], 1), random(rng, [17, 3], 1)];
  const loss = ({ w1, b1, w2 }: Layers<Value>, input: Value, target: Value): Value =>
    mean(square(sub(dot(tanh(add(dot(input, w1), b1)), w2), target)));
  const step = (p: Layers<Value>, input: Value, target: Value): [Value, Layers<Value>] => {
    const [value, slope] = valueAndGrad(loss as never)(p as never, input as never, target as never);
    const s = slope as unknown as Layers<Value>;
    const down = (k: keyof Layers<Value>): Value => sub(p[k], mul(s[k], 0.2));
    return [value, { w1: down("w1"), b1: down("b1"), w2: down("w2") }];
  };
  const compiled = await compile<[Tensor, { w1: Tensor; b1: Tensor; w2: Tensor }]>(
    step as never,
    [{ ...params }, x, y],
    { backend },
  );
  const losses: number[] = [];
  for (let i = 0; i < steps; i++) {
    const [value, next] = await compiled.run({ ...params }, x, y);
    losses.push(value.item());
    params = next;
  }
  await compiled.release();
  return losses;
}
