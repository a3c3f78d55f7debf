/** Runs the cases of every operator on Node's WebGPU provider; prints those that fail, as JSON. */

import { nodeOrt } from "../../src/backend/ort/node.ts";
import { reference } from "../../src/backend/reference/reference.ts";
import { operatorCases } from "./operators.ts";
import { compare, programOf, resultsOf } from "./run-case.ts";

const backend = await nodeOrt({ provider: "webgpu" });
const judge = reference();
const failures: Record<string, string> = {};
let passed = 0;
for (const [op, cases] of Object.entries(operatorCases)) {
  for (const one of cases) {
    const types = one.runs[0]!.map(({ dtype }) => dtype);
    if (one.unsupported || types.includes("float64")) continue;
    // A product of stacks over no elements ends the process.
    const runs = one.shapes
      ? one.runs.filter((inputs) => inputs.every(({ size }) => size > 0))
      : one.runs;
    const program = programOf(one);
    try {
      const expected = await resultsOf(judge, program, { ...one, runs });
      const actual = await resultsOf(backend, program, { ...one, runs });
      for (const [run, results] of actual.entries()) compare(results, expected[run]!);
      passed++;
    } catch (error) {
      failures[`${op}: ${one.name}`] = (error as Error).message.slice(0, 200);
    }
  }
}
console.log(JSON.stringify({ passed, failures }));
