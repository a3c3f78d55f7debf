/** Layers that are one node of the instruction set, in the graph that a trace gives. */
import { expect, test } from "vitest";
import { grad } from "../autodiff/grad.ts";
import { spec, trace } from "../backend/compile.ts";
import type { OpName } from "../ir/attrs.ts";
import { square } from "../ir/elementwise.ts";
import type { Spec, Value } from "../ir/graph.ts";
import { sum } from "../ir/reduce.ts";
import { reachable } from "../ir/rewrite.ts";
import type { Module } from "./module.ts";
import { BatchNorm2d, GroupNorm } from "./norm.ts";
import { Gru, Lstm } from "./recurrent.ts";
import { gridSample, resize } from "./resize.ts";
import { selectiveScan, ssd } from "./ssm.ts";

type Fn = (...inputs: Value[]) => Value;
type Shapes = readonly (readonly number[])[];

function opsOf(fn: Fn, shapes: Shapes): OpName[] {
  const { graph, outputs } = trace(
    fn,
    shapes.map((shape) => spec(shape)),
  ).program;
  return reachable(graph, outputs)
    .map((node) => node.op)
    .filter((op) => op !== "input" && op !== "constant");
}

/** A layer on its own parameters and state, as constants. */
const layer = <M extends Module>(
  module: M,
  forward: (module: M, context: ReturnType<Module["context"]>, x: Value) => Value,
  training = false,
): Fn => {
  return (x) => {
    const { params, state } = module.specs();
    const made = (specs: Readonly<Record<string, Spec>>): Record<string, Value> =>
      Object.fromEntries(
        Object.entries(specs).map(([name, one]) => [name, x!.graph.input(name, one)]),
      );
    return forward(module, module.context(made(params), made(state), { training }), x!);
  };
};

const cases: readonly (readonly [OpName, Fn, Shapes])[] = [
  ["groupNorm", layer(new GroupNorm(2, 4), (m, c, x) => m.forward(c, x)), [[2, 4, 3, 3]]],
  ["batchNorm", layer(new BatchNorm2d(4), (m, c, x) => m.forward(c, x)), [[2, 4, 3, 3]]],
  ["batchNorm", layer(new BatchNorm2d(4), (m, c, x) => m.forward(c, x), true), [[2, 4, 3, 3]]],
  ["resize", (x) => resize(x!, { scale: 2, mode: "cubic" }), [[1, 2, 3, 3]]],
  [
    "gridSample",
    (x, grid) => gridSample(x!, grid!),
    [
      [1, 2, 3, 3],
      [1, 2, 2, 2],
    ],
  ],
];

test.each(cases)("%s is one node and nothing beside", (op, fn, shapes) => {
  expect(opsOf(fn, shapes)).toEqual([op]);
});

const sequences: readonly (readonly [OpName, Fn, Shapes])[] = [
  ["lstm", layer(new Lstm(3, 2), (m, c, x) => m.forward(c, x).output), [[2, 5, 3]]],
  ["gru", layer(new Gru(3, 2), (m, c, x) => m.forward(c, x).output), [[2, 5, 3]]],
  [
    "selectiveScan",
    (x, delta, a, b, c) => selectiveScan({ x: x!, delta: delta!, a: a!, b: b!, c: c! }).y,
    [
      [2, 5, 3],
      [2, 5, 3],
      [3, 2],
      [2, 5, 2],
      [2, 5, 2],
    ],
  ],
  [
    "ssd",
    (x, delta, a, b, c) => ssd({ x: x!, delta: delta!, a: a!, b: b!, c: c! }).y,
    [[2, 5, 4, 3], [2, 5, 4], [4], [2, 5, 1, 2], [2, 5, 1, 2]],
  ],
];

test.each(sequences)("%s is one node without a loop beside it", (op, fn, shapes) => {
  const ops = opsOf(fn, shapes);
  expect(ops.filter((one) => one === op)).toHaveLength(1);
  expect(ops).not.toContain("scan");
  expect(ops).not.toContain("call");
});

test("the derivative of a selective scan is one node too", () => {
  const [, fn, shapes] = sequences[2]!;
  const loss = (inputs: Value[]): Value => sum(square(fn(...inputs)));
  const ops = trace(
    (...inputs: Value[]) => grad(loss)(inputs),
    shapes.map((shape) => spec(shape)),
  ).program.graph.nodes.map((node) => node.op);
  expect(ops.filter((op) => op === "selectiveScanGradient")).toHaveLength(1);
  expect(ops).not.toContain("scan");
});
