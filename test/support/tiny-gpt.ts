/** Training steps of a tiny GPT-2 by gradient descent in the graph, the same on every backend. */
import { valueAndGrad } from "../../src/autodiff/grad.ts";
import type { Executable, LoadOptions, Program } from "../../src/backend/backend.ts";
import { trace } from "../../src/backend/compile.ts";
import { mul, sub } from "../../src/ir/elementwise.ts";
import type { Value } from "../../src/ir/graph.ts";
import { Gpt2 } from "../../src/models/gpt2.ts";
import { crossEntropy } from "../../src/nn/losses.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import { flatten, mapTree, unflatten } from "../../src/tensor/tree.ts";

export interface TinyGpt {
  readonly program: Program;
  /** Parameters, then token ids and targets. */
  readonly inputs: readonly Tensor[];
}

const [batch, length, vocabSize] = [2, 12, 61];

/** One step: (parameters, ids, targets) → [loss, parameters after it]. */
export function tinyGpt(): TinyGpt {
  const model = new Gpt2({ vocabSize, dModel: 32, nLayers: 2, nHeads: 2, maxPositions: length });
  const { params } = model.init(new Rng(1));
  const rng = new Rng(3);
  const tokens = (): number[] =>
    Array.from({ length: batch * length }, () => rng.integer(vocabSize));
  const ids = Tensor.from(tokens(), [batch, length], "int32");
  const targets = Tensor.from(tokens(), [batch * length], "int32");
  type Params = Readonly<Record<string, Value>>;
  const loss = (p: Params, x: Value, t: Value): Value =>
    crossEntropy(model.apply(p, {}, (context) => model.forward(context, x))[0].logits, t);
  const step = (p: Params, x: Value, t: Value): readonly [Value, Params] => {
    const [value, slope] = valueAndGrad(loss)(p, x, t);
    const slopes = flatten<Value>(slope).leaves;
    const next = flatten<Value>(p).leaves.map((leaf, i) => sub(leaf, mul(slopes[i]!, 0.5)));
    return [value, unflatten(p, next) as Params];
  };
  const specs = mapTree(params, (tensor) => tensor) as Readonly<Record<string, Tensor>>;
  const { program } = trace(step, [specs, ids, targets]);
  return { program, inputs: [...flatten<Tensor>(params).leaves, ids, targets] };
}

export interface Loader {
  load(program: Program, options?: LoadOptions & { profile?: string }): Promise<Executable>;
}

/** Losses of the first steps. */
export async function trainTinyGpt(
  backend: Loader,
  steps: number,
  options: LoadOptions & { profile?: string } = {},
): Promise<number[]> {
  const { program, inputs } = tinyGpt();
  const executable = await backend.load(program, options);
  let now = inputs;
  const losses: number[] = [];
  for (let i = 0; i < steps; i++) {
    const [loss, ...next] = await executable.run(now);
    losses.push(loss!.item());
    now = [...next, ...now.slice(next.length)];
  }
  await executable.release();
  return losses;
}
