/** Every operator on every ONNX Runtime target, against the reference backend. */
import { afterAll, describe, expect, test } from "vitest";
import { allclose } from "../../../test/support/allclose.ts";
import type { OperatorCase } from "../../../test/support/operators/case.ts";
import { operatorCases } from "../../../test/support/operators.ts";
import { tolerance } from "../../../test/support/tolerance.ts";
import { UnsupportedError } from "../../errors.ts";
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import { type Graph, Value } from "../../ir/graph.ts";
import { isFloat } from "../../tensor/dtype.ts";
import { Tensor } from "../../tensor/tensor.ts";
import type { Backend, Program } from "../backend.ts";
import { spec, trace } from "../compile.ts";
import { reference } from "../reference/reference.ts";
import { nodeOrt } from "./node.ts";
import { webOrt } from "./web.ts";

const targets: readonly (readonly [string, () => Promise<Backend>])[] = [
  ["cpu", () => nodeOrt({ threads: 1 })],
  ["wasm", () => webOrt()],
];
const judge = reference();

function programOf({ fn, runs, shapes }: OperatorCase): Program {
  const specs = runs[0]!.map(({ shape, dtype }, i) => spec(shapes?.[i] ?? shape, dtype));
  return trace((...inputs: Value[]) => {
    const made = fn(...inputs);
    return made instanceof Value ? [made] : [...made];
  }, specs).program;
}

type Runs = readonly (readonly Tensor[])[];

async function resultsOf(
  backend: Backend,
  program: Program,
  { runs, frozen = [] }: OperatorCase,
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
function dirty({ shape, dtype, size }: Tensor): Tensor {
  return Tensor.from(new Array<number>(size).fill(77), shape, dtype);
}

function compare(actual: readonly Tensor[], expected: readonly Tensor[], allowed?: number): void {
  expect(actual).toHaveLength(expected.length);
  expected.forEach((should, i) => {
    const is = actual[i]!;
    expect(is.dtype).toBe(should.dtype);
    const within = isFloat(is.dtype) ? tolerance[is.dtype as keyof typeof tolerance] : 0;
    allclose(is, should, Math.max(allowed ?? within, Number.MIN_VALUE), `output ${i}`);
  });
}

function opsIn(graph: Graph): Set<OpName> {
  const found = new Set<OpName>();
  for (const node of graph.nodes) {
    found.add(node.op);
    if (node.op !== "scan" && node.op !== "call") continue;
    for (const op of opsIn((node.attrs as AttrsOf["scan"]).body)) found.add(op);
  }
  return found;
}

test("every operator has cases, and they use it", () => {
  for (const [op, cases] of Object.entries(operatorCases)) {
    expect(cases.length, op).toBeGreaterThan(0);
    const used = cases.some((one) => opsIn(programOf(one).graph).has(op as OpName));
    expect(used, `the cases of ${op} use it`).toBe(true);
  }
});

describe.each(targets)("%s", (_, make) => {
  let backend: Promise<Backend> | undefined;
  afterAll(() => {
    backend = undefined;
  });

  for (const [op, cases] of Object.entries(operatorCases)) {
    for (const one of cases) {
      test(`${op}: ${one.name}`, async () => {
        backend ??= make();
        const program = programOf(one);
        if (one.unsupported) {
          const loading = (await backend).load(program);
          await expect(loading).rejects.toThrow(one.unsupported);
          await expect(loading).rejects.toThrow(UnsupportedError);
          return;
        }
        const expected = await resultsOf(judge, program, one);
        const into = expected.map((results) => results.map(dirty));
        const actual = await resultsOf(await backend, program, one, into);
        actual.forEach((results, run) => {
          compare(results, expected[run]!, one.tolerance);
        });
      });
    }
  }
});
