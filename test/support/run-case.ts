/** Runs the cases of operators and compares their results. */
import type { Backend, Program } from "../../src/backend/backend.ts";
import { spec, trace } from "../../src/backend/compile.ts";
import { Value } from "../../src/ir/graph.ts";
import { isFloat } from "../../src/tensor/dtype.ts";
import { Tensor } from "../../src/tensor/tensor.ts";
import { allclose } from "./allclose.ts";
import type { OperatorCase } from "./operators/case.ts";
import { tolerance } from "./tolerance.ts";

export function programOf({ fn, runs, shapes }: OperatorCase): Program {
  const specs = runs[0]!.map(({ shape, dtype }, i) => spec(shapes?.[i] ?? shape, dtype));
  return trace((...inputs: Value[]) => {
    const made = fn(...inputs);
    return made instanceof Value ? [made] : [...made];
  }, specs).program;
}

type Runs = readonly (readonly Tensor[])[];

/** Results of each run, written to `into` where given. */
export async function resultsOf(
  backend: Backend,
  program: Program,
  { runs, frozen = [] }: Pick<OperatorCase, "runs" | "frozen">,
  into: Runs = [],
): Promise<Tensor[][]> {
  const stored = new Map(frozen.map((i) => [program.inputs[i]!, runs[0]![i]!]));
  const executable = await backend.load(program, { frozen: stored });
  try {
    const results: Tensor[][] = [];
    for (const [run, all] of runs.entries()) {
      const inputs = all.filter((_, i) => !frozen.includes(i));
      results.push(await executable.run(inputs, into[run]));
    }
    return results;
  } finally {
    await executable.release();
  }
}

/** Memory in which a number that was not written shows. */
export function dirty({ shape, dtype, size }: Tensor): Tensor {
  return Tensor.from(new Array<number>(size).fill(77), shape, dtype);
}

/** @throws Error where a type, a shape or a number differs: floats by tolerance, others exactly. */
export function compare(actual: readonly Tensor[], expected: readonly Tensor[]): void {
  expected.forEach((should, i) => {
    const is = actual[i]!;
    if (is.dtype !== should.dtype) {
      throw new Error(`output ${i}: type ${is.dtype}, expected ${should.dtype}.`);
    }
    const within = isFloat(is.dtype) ? tolerance[is.dtype as keyof typeof tolerance] : 0;
    allclose(is, should, Math.max(within, Number.MIN_VALUE), `output ${i}`);
  });
}
