/** Recurrences in both of their forms: the loop, and the blocks that WebGPU runs. */
import { describe, expect, test } from "vitest";
import { runScript } from "../../../test/support/child.ts";
import { once } from "../../../test/support/operators/case.ts";
import { formSamples } from "../../../test/support/operators/recurrence.ts";
import {
  between,
  inputsOf,
  marks,
  normal,
  type Sample,
  sample,
  withDerivatives,
} from "../../../test/support/operators/samples.ts";
import { compare, programOf, resultsOf } from "../../../test/support/run-case.ts";
import { swiftShader } from "../../../test/support/swiftshader.ts";
import { linearRecurrence, type RecurrenceForm } from "../../ir/recurrence.ts";
import { legalize } from "../../ir/rewrite.ts";
import { selectiveScan } from "../../ir/selective-scan.ts";
import type { Backend, Program } from "../backend.ts";
import { reference } from "../reference/reference.ts";
import { nodeOrt } from "./node.ts";
import { legalizeFor, type OrtTarget } from "./target.ts";

const recurrences = new Set(Object.keys(formSamples));

/** The program with its recurrences written out in one form; all else stays. */
function inForm({ graph, outputs, ...names }: Program, recurrence: RecurrenceForm): Program {
  const isKept = ({ op }: { readonly op: string }): boolean => !recurrences.has(op);
  return { ...names, ...legalize(graph, outputs, isKept, { recurrence }) };
}

const loops = ({ graph }: Pick<Program, "graph">): number =>
  graph.nodes.filter((node) => node.op === "scan").length;

const long: readonly Sample[] = [
  sample(
    "100 steps, resets",
    (x, delta, a, b, c, initial, resets) => {
      const inputs = { x: x!, delta: delta!, a: a!, b: b!, c: c!, initial: initial! };
      const { y, state } = selectiveScan({ ...inputs, resets: resets! }, 8);
      return [y, state];
    },
    normal(2, 100, 3),
    between(0.01, 0.4, 2, 100, 3),
    between(-2, -0.1, 3, 4),
    normal(2, 100, 4),
    normal(2, 100, 4),
    normal(2, 3, 4),
    marks(
      Array.from({ length: 200 }, (_, i) => Number(i % 37 === 11)),
      [2, 100],
    ),
  ),
  sample(
    "1024 steps in 32 chunks of 32",
    (x, delta, a, b, c, initial) => {
      const inputs = { x: x!, delta: delta!, a: a!, b: b!, c: c!, initial: initial! };
      const { y, state } = selectiveScan(inputs, 32);
      return [y, state];
    },
    normal(1, 1024, 2),
    between(0.001, 0.1, 1, 1024, 2),
    between(-4, -0.5, 2, 2),
    normal(1, 1024, 2),
    normal(1, 1024, 2),
    normal(1, 2, 2),
  ),
  sample(
    "90 linear steps",
    (a, b, initial) => linearRecurrence(a!, b!, { initial: initial! }),
    between(0.2, 0.99, 90, 3),
    normal(90, 3),
    normal(3),
  ),
];

async function results(backend: Backend, program: Program, one: Sample, dtype: Float) {
  const [run] = await resultsOf(backend, program, { runs: [inputsOf(one, dtype)] });
  return run!;
}

type Float = "float32" | "float64";

const withDerivative = (one: Sample, dtype: Float): Program =>
  programOf(once(one.at, withDerivatives(one.fn), ...inputsOf(one, dtype)));

describe("the blocked form gives what the loop gives, with its derivatives", () => {
  const all = Object.entries({ ...formSamples, long }).flatMap(([op, list]) =>
    // Sequences of no steps have no blocks.
    list.filter(({ at }) => at !== "no steps").map((one) => [`${op}: ${one.at}`, op, one] as const),
  );
  test.each(all)("%s", async (_, op, one) => {
    const exact = withDerivative(one, "float64");
    const expected = await results(reference(), inForm(exact, "scan"), one, "float64");
    const blocked = inForm(exact, "blocked");
    // The derivative of a derivative is a loop in both forms.
    const isLoopFree = op !== "selectiveScanGradient" && !/before chunks/.test(one.at);
    if (isLoopFree) expect(loops(blocked)).toBe(0);
    compare(await results(reference(), blocked, one, "float64"), expected);
    const single = withDerivative(one, "float32");
    compare(
      await results(await nodeOrt({ threads: 1 }), inForm(single, "blocked"), one, "float32"),
      await results(reference(), inForm(single, "scan"), one, "float32"),
    );
  });
});

test("targets declare the form: WebGPU's programs have no loop over time", () => {
  const [one] = long;
  const { graph, outputs } = withDerivative(one!, "float32");
  const loopsOn = (target: OrtTarget): number => loops(legalizeFor(target, graph, outputs));
  expect(loopsOn("webgpu")).toBe(0);
  expect(loopsOn("cpu")).toBeGreaterThan(0);
  expect(loopsOn("wasm")).toBe(loopsOn("cpu"));
});

const env = swiftShader();

test.skipIf(!env)(
  env ? "on WebGPU no node of a selective scan runs on the CPU" : "on WebGPU (skipped: no driver)",
  async () => {
    const { stdout } = await runScript("operators/webgpu-recurrence.ts", { env: env! });
    const { placement, worst } = JSON.parse(stdout) as {
      placement: Record<string, Record<string, number>>;
      worst: number;
    };
    expect(placement["CPUExecutionProvider"] ?? {}).toEqual({});
    expect(placement["WebGpuExecutionProvider"]!["Mul"]).toBeGreaterThan(100);
    expect(worst).toBeLessThan(1e-5);
  },
);
