import { describe, expect, it } from "vitest";
import { DtypeError, ShapeError } from "../errors.ts";
import type { Dtype } from "../tensor/dtype.ts";
import type { Shape } from "../tensor/shape.ts";
import { customVjp, scan } from "./control.ts";
import { add, and, bitAnd, cast, exp, isNan, neg, not, where } from "./elementwise.ts";
import { emit } from "./emit.ts";
import { crossEntropyRows, dequantize, layerNorm, quantizedLinear, rmsNorm } from "./fused.ts";
import { Graph, type Value } from "./graph.ts";
import { gather, gatherElements, scatterElements, scatterNd } from "./indexing.ts";
import { chunk, concat, expand, pad, reshape, slice, split, squeeze, transpose } from "./layout.ts";
import { asRows, avgPool, conv, convTranspose, dot, matmul, maxPool } from "./linear.ts";
import { batchNorm, groupNorm } from "./norm.ts";
import { linearRecurrence } from "./recurrence.ts";
import { gru, lstm } from "./recurrent.ts";
import { argMax, cumSum, mean, sum, topK } from "./reduce.ts";
import { gridSample } from "./resample.ts";
import { selectiveScan } from "./selective-scan.ts";

const graph = new Graph();
let count = 0;
const of = (shape: Shape, dtype: Dtype = "float32"): Value =>
  graph.input(`v${count++}`, { shape, dtype });
const int = (...shape: number[]): Value => of(shape, "int32");
const x = (...shape: number[]): Value => of(shape);

type Case = [fn: () => unknown, sentence: string];

const refused = (kind: typeof ShapeError | typeof DtypeError, cases: readonly Case[]): void => {
  for (const [fn, sentence] of cases) {
    expect(fn, sentence).toThrow(kind);
    expect(fn).toThrow(new kind(sentence));
  }
};

describe("types", () => {
  it("are checked where an operator takes some alone", () => {
    refused(DtypeError, [
      [() => exp(int(2)), "exp: needs float32 or float64, got int32 — cast it."],
      [() => neg(of([2], "bool")), "neg: needs numbers to compute with, got bool — cast it."],
      [() => add(x(2), int(2)), "add: types differ, float32 and int32 — cast one."],
      [() => and(int(2), int(2)), "and: needs bool, got int32 — cast it."],
      [() => bitAnd(x(2), x(2)), "bitAnd: needs int32, got float32 — cast it."],
      [() => not(x(2)), "not: needs bool, got float32 — cast it."],
      [() => isNan(int(2)), "isNan: needs float32 or float64, got int32 — cast it."],
      [() => where(x(2), 1, 0), "where: needs bool, got float32 — cast it."],
      [() => mean(int(2)), "mean: needs float32 or float64, got int32 — cast it."],
      [() => sum(of([2], "bool")), "sum: needs numbers to compute with, got bool — cast it."],
      [() => gather(x(2), x(2)), "gather: needs int32, got float32 — cast it."],
      [() => dot(int(2, 2), int(2, 2)), "dot: needs float32 or float64, got int32 — cast it."],
      [() => crossEntropyRows(x(2, 3), x(2)), "crossEntropy: needs int32, got float32 — cast it."],
      [() => exp(of([2], "float16")), "exp: needs float32 or float64, got float16 — cast it."],
    ]);
  });

  it("follow from the inputs", () => {
    expect(topK(x(4), 2).indices.dtype).toBe("int32");
    expect(argMax(x(2, 3), 0)).toMatchObject({ shape: [3], dtype: "int32" });
    expect(isNan(of([2], "float64")).dtype).toBe("bool");
  });
});

describe("shapes", () => {
  it("are checked: elementwise, reductions, layout", () => {
    refused(ShapeError, [
      [
        () => add(x(2, 3), x(2)),
        "add: shapes do not broadcast, (2, 3) and (2,) — sizes must be equal or 1, counted from the right.",
      ],
      [() => sum(x(2), 1), "sum: axis 1 is outside a tensor of 1 dimensions."],
      [() => sum(x(2, 2), [0, -2]), "sum: axes repeat, got [0, -2]."],
      [() => cumSum(x(2), 1), "cumSum: axis 1 is outside a tensor of 1 dimensions."],
      [() => topK(x(2, 3), 4), "topK: k must be in [0, 3] on axis 1, got 4."],
      [() => reshape(x(2, 3), [4]), "reshape: (2, 3) has 6 elements, (4,) has 4."],
      [
        () => reshape(x(2, 3), [4, -1]),
        "reshape: (2, 3) cannot become (4, -1) — the other sizes must divide it.",
      ],
      [
        () => transpose(x(2, 3), [0, 0]),
        "transpose: [0, 0] is not an order of the axes of (2, 3).",
      ],
      [
        () => expand(x(2), [3]),
        "expand: shapes do not broadcast, (2,) and (3,) — sizes must be equal or 1, counted from the right.",
      ],
      [() => expand(x(2), [1]), "expand: (2,) does not broadcast to (1,)."],
      [() => slice(x(4), 0, 1, 5), "slice: [1:5:1] does not fit axis 0 of (4,)."],
      [() => slice(x(4), 0, 0, 3, 0), "slice: [0:3:0] does not fit axis 0 of (4,)."],
      [() => slice(x(4), 0, 1, 3, -1), "slice: [1:3:-1] does not fit axis 0 of (4,)."],
      [
        () => concat([x(2, 3), x(3, 2)]),
        "concat: shapes differ outside axis 0, (2, 3) and (3, 2).",
      ],
      [() => split(x(4), [1, 2]), "split: sizes [1, 2] do not add up to 4."],
      [() => chunk(x(4), 3), "chunk: axis -1 of (4,) does not divide into 3."],
      [() => squeeze(x(2, 3), 0), "squeeze: axis 0 of (2, 3) is not of size 1."],
      [() => pad(x(2), [-1], [0]), "pad: sizes must be at least 0, got -1 and 0."],
      [() => pad(x(2), [1, 1], [0]), "pad: needs sizes for 1 axes, got [1, 1] and [0]."],
    ]);
  });

  it("are checked: indexing and products", () => {
    refused(ShapeError, [
      [
        () => gatherElements(x(2, 3), int(3, 3)),
        "gatherElements: indices (3, 3) must equal (2, 3) outside axis 1.",
      ],
      [
        () => scatterNd(x(4, 3), int(2, 1), x(2, 2)),
        "scatterNd: updates must have shape (2, 3), got (2, 2).",
      ],
      [
        () => scatterElements(x(2, 3), int(2, 2), x(2, 3)),
        "scatterElements: shapes differ, (2, 2) and (2, 3).",
      ],
      [
        () => dot(x(4, 8), x(6, 2)),
        "dot: inner sizes differ, (4, 8) × (6, 2) — transpose one side?",
      ],
      [
        () => dot(x(4, 8), x(8, 2), { transA: true }),
        "dot: inner sizes differ, (4, 8)ᵀ × (8, 2) — transpose one side?",
      ],
      [
        () => dot(x(2, 4, 8), x(8, 2)),
        "dot: needs two matrices, or stacks of equal size, got (2, 4, 8) and (8, 2) — reshape or expand one.",
      ],
      [() => matmul(x(), x(2)), "matmul: needs at least one dimension each — use mul for scalars."],
      [() => asRows(x()), "asRows: needs a dimension, got ()."],
    ]);
  });

  it("are checked: convolutions and pools", () => {
    refused(ShapeError, [
      [
        () => conv(x(3, 4), x(2, 3, 1)),
        "conv: needs (N, C, spatial...), got shape (3, 4) — add the batch dimension.",
      ],
      [
        () => conv(x(1, 3, 4), x(2, 2, 1)),
        "conv: 1 groups of weight (2, 2, 1) need 2 channels, got input (1, 3, 4).",
      ],
      [
        () => conv(x(1, 2, 4), x(2, 2, 3), { stride: [1, 1] }),
        "conv: needs 1 values per spatial attribute, got [1, 1].",
      ],
      [
        () => conv(x(1, 2, 2), x(2, 2, 5), { padding: 1 }),
        "conv: a kernel of 5 does not fit an input of 2 with padding 2 — pad more.",
      ],
      [() => conv(x(1, 2, 4), x(2, 2)), "conv: needs 3 dimensions, got shape (2, 2)."],
      [
        () => convTranspose(x(1, 3, 4), x(2, 1, 2)),
        "convTranspose: weight (2, 1, 2) needs 2 channels in 1 groups, got input (1, 3, 4).",
      ],
      [
        () => maxPool(x(1, 1, 4), { kernel: 2, padding: 2 }),
        "maxPool: padding [2, 2] must be smaller than the kernel [2] — a window of padding alone has no largest element.",
      ],
      [
        () => avgPool(x(1, 1, 2), { kernel: 3 }),
        "avgPool: a kernel of 3 does not fit an input of 2 with padding 0 — pad more.",
      ],
    ]);
  });

  it("are checked: fused operators", () => {
    const attrs = { bits: 4, blockSize: 2, inFeatures: 4, outFeatures: 3 } as const;
    const packed = of([3, 2, 1], "uint8");
    refused(ShapeError, [
      [() => layerNorm(x(2, 3), x(2), x(2)), "layerNorm: weight: shapes differ, (2,) and (3,)."],
      [() => layerNorm(x(2, 3), x(3), x(2)), "layerNorm: bias: shapes differ, (2,) and (3,)."],
      [() => rmsNorm(x(2, 3), x(2)), "rmsNorm: weight: shapes differ, (2,) and (3,)."],
      [
        () => crossEntropyRows(x(2, 2, 3), int(2)),
        "crossEntropy: logits: needs 2 dimensions, got shape (2, 2, 3).",
      ],
      [
        () => crossEntropyRows(x(2, 3), int(3)),
        "crossEntropy: targets: shapes differ, (3,) and (2,).",
      ],
      [
        () => dequantize(packed, x(3, 2), { ...attrs, inFeatures: 5 }),
        "dequantize: 5 input features are not a multiple of the block size 2.",
      ],
      [
        () => quantizedLinear(x(2, 3), packed, x(3, 2), attrs),
        "quantizedLinear: input (2, 3) must have 4 features.",
      ],
      [
        () => quantizedLinear(x(2, 4), packed, x(3, 3), attrs),
        "quantizedLinear: shapes differ, (3, 3) and (3, 2).",
      ],
    ]);
  });

  it("are checked: loops", () => {
    const start = x(2);
    refused(ShapeError, [
      [
        () => scan((c: Value) => [concat([c, c]), []] as const, start, [], { length: 2 }),
        "scan: carry: shapes differ, (2,) and (4,).",
      ],
      [
        () => scan((c: Value, _: Value[]) => [c, []] as const, start, [x(3), x(2)]),
        "scan: xs must have 3 steps first, got (2,).",
      ],
      [
        () => scan((c: Value) => [c, []] as const, start, []),
        "scan: the number of steps is not known — give xs or `length`.",
      ],
      [
        () => scan((_: Value[]): [Value[], []] => [[], []], [start], [], { length: 1 }),
        "scan: the body returns 0 carries, it was given 1.",
      ],
    ]);
    const counted = (c: Value): readonly [Value, Value[]] => [cast(c, "int32"), []];
    refused(DtypeError, [
      [
        () => scan(counted, start, [], { length: 1 }),
        "scan: carry: types differ, float32 and int32 — cast one.",
      ],
    ]);
  });

  it("may be empty in a slice, without a negative zero", () => {
    const empty = emit("slice", [x(3)], { starts: [1], ends: [1], steps: [-1] });
    expect(Object.is(empty.shape[0], 0)).toBe(true);
  });

  it("are those of the body in a call", () => {
    const both = customVjp(
      (a) => [sum(a), neg(a)],
      () => [],
    );
    expect(both(x(2, 3)).map((v) => v.shape)).toEqual([[], [2, 3]]);
  });

  it("must fit in norms over channels, and in resampling", () => {
    refused(ShapeError, [
      [() => groupNorm(x(2, 6, 3), 4), "groupNorm: groups must divide 6 channels, got 4."],
      [
        () => groupNorm(of(["rows", 6, 3]), 2),
        'groupNorm: size "rows" must be known here — compile for one size.',
      ],
      [
        () => batchNorm(x(2, 3), { weight: x(2), bias: x(3) }),
        "batchNorm: per channel: shapes differ, (2,) and (3,).",
      ],
      [() => batchNorm(x(3)), "batchNorm: needs x (N, C, spatial…), got (3,)."],
      [
        () => emit("resize", [x(1, 2, 3)], { mode: "linear", sizes: [2, 2], steps: [1, 1] }),
        "resize: needs x (N, C, 2 spatial axes), got (1, 2, 3).",
      ],
    ]);
    refused(DtypeError, [
      [
        () => gridSample(x(1, 1, 2, 2), of([1, 2, 2, 2], "float64")),
        "gridSample: types differ, float32 and float64 — cast one.",
      ],
    ]);
  });

  it("must fit in recurrences", () => {
    const sequence = { x: x(2, 7, 3), delta: x(2, 7, 3), a: x(3, 2), b: x(2, 7, 2), c: x(2, 7, 2) };
    const initial = x(2, 3, 2);
    refused(ShapeError, [
      [
        () => lstm(x(5, 2, 8), x(8, 3), x(2, 2), x(2, 2)),
        "lstm: needs z (T, B, 4H), weight (4H, H) and h0 (B, H), got (5, 2, 8), (8, 3), (2, 2).",
      ],
      [() => gru(x(5, 2, 6), x(6, 2), x(2, 2), x(2)), "gru: bias: shapes differ, (2,) and (6,)."],
      [
        () => linearRecurrence(x(3, 2), x(3, 2), { initial: x(3) }),
        "linearRecurrence: initial: shapes differ, (3,) and (2,).",
      ],
      [
        () => selectiveScan({ ...sequence, initial: x(2, 2, 3) }, 4),
        "selectiveScan: initial: shapes differ, (2, 2, 3) and (2, 3, 2).",
      ],
      [
        () => selectiveScan({ ...sequence, initial }, 0),
        "selectiveScan: chunk must be a whole number from 1, got 0.",
      ],
    ]);
    refused(DtypeError, [
      [
        () => selectiveScan({ ...sequence, initial, resets: int(2, 7) }, 4),
        "selectiveScan: resets: needs bool, got int32 — cast it.",
      ],
    ]);
  });
});
