import { type ReduceOp, reduceOps } from "../../../src/ir/attrs.ts";
import { emit } from "../../../src/ir/emit.ts";
import { argMax, argMin, cumSum, sort, topK } from "../../../src/ir/reduce.ts";
import type { StaticShape } from "../../../src/tensor/shape.ts";
import { Tensor } from "../../../src/tensor/tensor.ts";
import { type Cases, type ComputeType, numbers, type OperatorCase, once } from "./case.ts";

function casesOf(op: ReduceOp): OperatorCase[] {
  const isExtreme = op === "reduceMax" || op === "reduceMin";
  const types: ComputeType[] =
    op === "mean" ? ["float32", "float64"] : ["float32", "float64", "int32"];
  const axes: readonly [StaticShape, number[]][] = [
    [[3, 4], [0]],
    [[3, 4], [1]],
    [
      [3, 4],
      [0, 1],
    ],
    [
      [2, 3, 4],
      [0, 2],
    ],
    [[2, 3, 4], [1]],
    [
      [1, 5, 1],
      [0, 2],
    ],
    [[2, 0, 3], [0]],
    [[7], [0]],
  ];
  const cases = types.map((dtype) =>
    once(
      dtype,
      (...inputs) =>
        inputs.flatMap((x, i) =>
          [true, false].map((keepDims) => emit(op, [x], { axes: axes[i]![1], keepDims })),
        ),
      ...axes.map(([shape]) => numbers(shape, dtype, 1, 3)),
    ),
  );
  const over = { axes: [1], keepDims: false };
  if (op === "sum" || op === "prod" || op === "mean") {
    // Of nothing: 0, 1, and 0/0.
    cases.push(once("an empty axis", (x) => emit(op, [x!], over), numbers([3, 0])));
  }
  if (isExtreme) {
    const infinite = Tensor.from([Infinity, 1, -Infinity, -5], [2, 2]);
    cases.push(once("infinities", (x) => emit(op, [x!], over), infinite));
    cases.push(once("an empty axis", (x) => emit(op, [x!], over), numbers([3, 0])));
  }
  return cases;
}

const ties = Tensor.from([1, 3, 3, 2, 3, 1, 0, 0, 0, 5, 5, 5], [2, 6]);

export const reduceCases: Cases<ReduceOp | "cumSum" | "argMax" | "argMin" | "topK"> = {
  ...(Object.fromEntries(reduceOps.map((op) => [op, casesOf(op)])) as Record<
    ReduceOp,
    OperatorCase[]
  >),
  cumSum: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        dtype,
        (x, row, empty) => [
          ...[0, 1, 2].map((axis) => cumSum(x!, axis)),
          cumSum(x!, 1, { exclusive: true }),
          cumSum(x!, 1, { reverse: true }),
          cumSum(x!, 1, { exclusive: true, reverse: true }),
          cumSum(row!),
          cumSum(empty!, 1),
        ],
        numbers([2, 3, 4], dtype),
        numbers([1], dtype),
        numbers([2, 0], dtype),
      ),
    ),
  ],
  argMax: (["float32", "float64", "int32"] as const).map((dtype) =>
    once(
      `${dtype}, the first among equals`,
      (x, y) => [argMax(x!, 0), argMax(x!, 1), argMax(y!)],
      ties.to(dtype),
      numbers([1], dtype),
    ),
  ),
  argMin: (["float32", "float64", "int32"] as const).map((dtype) =>
    once(
      `${dtype}, the first among equals`,
      (x, y) => [argMin(x!, 0), argMin(x!, 1), argMin(y!)],
      ties.to(dtype),
      numbers([1], dtype),
    ),
  ),
  topK: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        `${dtype}, the first among equals`,
        (x) => {
          const parts = [
            topK(x!, 3),
            topK(x!, 4, 1, { largest: false }),
            topK(x!, 1, 0),
            sort(x!),
            sort(x!, 1, { descending: true }),
          ];
          return parts.flatMap(({ values, indices: at }) => [values, at]);
        },
        ties.to(dtype),
      ),
    ),
    once("none", (x) => [topK(x!, 0).values, topK(x!, 0).indices], ties),
    once(
      "many ties in a long row",
      (x) => topK(x!, 40).indices,
      numbers([3, 200], "float32", -1, 1),
    ),
  ],
};
