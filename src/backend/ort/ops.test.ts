/** Every operator on every ONNX Runtime target, against the reference backend. */
import { afterAll, describe, expect, test } from "vitest";
import { operatorCases } from "../../../test/support/operators.ts";
import { compare, dirty, programOf, resultsOf } from "../../../test/support/run-case.ts";
import { UnsupportedError } from "../../errors.ts";
import type { AttrsOf, OpName } from "../../ir/attrs.ts";
import type { Graph } from "../../ir/graph.ts";
import type { Backend } from "../backend.ts";
import { reference } from "../reference/reference.ts";
import { nodeOrt } from "./node.ts";
import { webOrt } from "./web.ts";

const targets: readonly (readonly [string, () => Promise<Backend>])[] = [
  ["cpu", () => nodeOrt({ threads: 1 })],
  ["wasm", () => webOrt()],
];
const judge = reference();

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
          compare(results, expected[run]!);
        });
      });
    }
  }
});
