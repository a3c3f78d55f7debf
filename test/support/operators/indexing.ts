import { grad } from "../../../src/autodiff/grad.ts";
import { add, square } from "../../../src/ir/elementwise.ts";
import type { Value } from "../../../src/ir/graph.ts";
import { gather, gatherElements, scatterElements, scatterNd } from "../../../src/ir/indexing.ts";
import { expand } from "../../../src/ir/layout.ts";
import { sum } from "../../../src/ir/reduce.ts";
import { bools, type Cases, ints, numbers, once } from "./case.ts";

const table = numbers([5, 3]);

export const indexingCases: Cases<"gather" | "gatherElements" | "scatterNd" | "scatterElements"> = {
  gather: [
    ...(["float32", "float64", "int32", "bool"] as const).map((dtype) =>
      once(
        `${dtype}, indices from the end too`,
        (x, at, none, scalar) => [
          gather(x!, at!),
          gather(x!, at!, 1),
          gather(x!, none!),
          gather(x!, scalar!, 1),
        ],
        numbers([3, 3, 2], dtype),
        ints([0, -1, 2, -3], [2, 2]),
        ints([]),
        ints([-2], []),
      ),
    ),
    once(
      "its derivative",
      (x, at) => grad((p: Value) => sum(square(gather(p, at!))))(x!),
      table,
      ints([1, 1, 0, 4]),
    ),
  ],
  gatherElements: (["float32", "float64", "int32", "bool"] as const).map((dtype) =>
    once(
      `${dtype}, indices from the end too`,
      (x, rows, columns, none) => [
        gatherElements(x!, rows!, 0),
        gatherElements(x!, columns!, 1),
        gatherElements(x!, none!, 1),
      ],
      numbers([3, 4], dtype),
      ints([0, -1, 2, 1], [1, 4]),
      ints([0, 3, -1, 2, 2, 2], [3, 2]),
      ints([], [3, 0]),
    ),
  ),
  scatterNd: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        dtype,
        (x, at, rows, deep, elements, none, nothing) => [
          scatterNd(x!, at!, rows!),
          scatterNd(x!, at!, rows!, "add"),
          scatterNd(x!, deep!, elements!),
          scatterNd(x!, deep!, elements!, "add"),
          scatterNd(x!, none!, nothing!, "add"),
        ],
        numbers([4, 3], dtype),
        ints([2, 0], [2, 1]),
        numbers([2, 3], dtype),
        ints([0, 1, 3, 2, -1, 0], [3, 2]),
        numbers([3], dtype),
        ints([], [0, 1]),
        numbers([0, 3], dtype),
      ),
    ),
    once(
      "the same place several times",
      (x, at, rows) => scatterNd(x!, at!, rows!, "add"),
      numbers([3, 2]),
      ints([1, 1, 0, 1], [4, 1]),
      numbers([4, 2]),
    ),
    once(
      "added to a value that something else reads",
      (x, at, rows) => {
        const zeros = expand(x!.graph.lift(0), [3, 2]);
        const scattered = scatterNd(zeros, at!, rows!, "add");
        return [add(x!, scattered), add(scattered, x!), scatterNd(zeros, at!, rows!)];
      },
      numbers([3, 2]),
      ints([1, 1], [2, 1]),
      numbers([2, 2]),
    ),
    once(
      "bool",
      (x, at, rows) => scatterNd(x!, at!, rows!),
      bools([0, 0, 0]),
      ints([1], [1, 1]),
      bools([1]),
    ),
  ],
  scatterElements: [
    ...(["float32", "float64", "int32"] as const).map((dtype) =>
      once(
        dtype,
        (x, rows, updates, columns, more, none, nothing) => [
          scatterElements(x!, rows!, updates!, 0),
          scatterElements(x!, columns!, more!, 1),
          scatterElements(x!, columns!, more!, 1, "add"),
          scatterElements(x!, none!, nothing!, 1, "add"),
        ],
        numbers([3, 4], dtype),
        ints([0, -1, 2, 1], [1, 4]),
        numbers([1, 4], dtype),
        ints([0, 3, -1, 2, 2, 0], [3, 2]),
        numbers([3, 2], dtype),
        ints([], [3, 0]),
        numbers([3, 0], dtype),
      ),
    ),
    once(
      "the same place several times",
      (x, at, updates) => scatterElements(x!, at!, updates!, 1, "add"),
      numbers([2, 3]),
      ints([1, 1, 1, 0, 2, 2], [2, 3]),
      numbers([2, 3]),
    ),
  ],
};
