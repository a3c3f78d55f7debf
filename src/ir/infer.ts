/**
 * The executable specification of the operators: for each, which inputs it takes and what it gives.
 * `emit` uses it when a node is made and `verify` again over a whole graph.
 */
import { DtypeError, ShapeError } from "../errors.ts";
import type { Dtype } from "../tensor/dtype.ts";
import {
  addDims,
  broadcastShapes,
  type Dim,
  isStatic,
  type Shape,
  sameShape,
  showShape,
  sizeOf,
} from "../tensor/shape.ts";
import {
  type AttrsOf,
  binaryOps,
  bitwiseOps,
  compareOps,
  logicalOps,
  type OpName,
  reduceOps,
  unaryOps,
} from "./attrs.ts";
import {
  type Infer,
  needDtype,
  needRank,
  needSameDtype,
  needSameShape,
  type Spec,
  type Value,
} from "./graph.ts";
import { fusedTable } from "./infer-fused.ts";

const computeTypes: readonly Dtype[] = ["float32", "float64", "int32"];

function needFloat(where: string, value: Spec): void {
  if (value.dtype !== "float32" && value.dtype !== "float64") {
    throw new DtypeError(`${where}: needs float32 or float64, got ${value.dtype} — cast it.`);
  }
}

function needNumber(where: string, value: Spec): void {
  if (!computeTypes.includes(value.dtype)) {
    throw new DtypeError(`${where}: needs numbers to compute with, got ${value.dtype} — cast it.`);
  }
}

/** A size that must be known, for operators that work inside an axis. */
function known(where: string, dim: Dim): number {
  if (typeof dim === "number") return dim;
  throw new ShapeError(`${where}: size "${dim}" must be known here — compile for one size.`);
}

function same(where: string, check: (where: string, value: Spec) => void): Infer<OpName> {
  return ([x]) => {
    check(where, x!);
    return [{ shape: x!.shape, dtype: x!.dtype }];
  };
}

function elementwise(
  where: string,
  check: (where: string, value: Spec) => void,
  result?: Dtype,
): Infer<OpName> {
  return ([a, b]) => {
    needSameDtype(where, a!, b!);
    check(where, a!);
    return [{ shape: broadcastShapes(where, a!.shape, b!.shape), dtype: result ?? a!.dtype }];
  };
}

function reduce(where: string): Infer<OpName> {
  return ([x], attrs) => {
    const { axes, keepDims } = attrs as AttrsOf["sum"];
    if (where === "mean") needFloat(where, x!);
    else needNumber(where, x!);
    const shape = x!.shape.flatMap((dim, i) => (axes.includes(i) ? (keepDims ? [1] : []) : [dim]));
    return [{ shape, dtype: x!.dtype }];
  };
}

const arg: (where: string) => Infer<"argMax" | "argMin"> =
  (where) =>
  ([x], { axis }) => {
    needNumber(where, x!);
    return [{ shape: x!.shape.filter((_, i) => i !== axis), dtype: "int32" }];
  };

/** Output size of one spatial axis of a convolution or pool. */
export function convSize(
  size: number,
  kernel: number,
  stride: number,
  padding: number,
  dilation: number,
): number {
  return Math.floor((size + padding - dilation * (kernel - 1) - 1) / stride) + 1;
}

function checkSpatial(where: string, x: Spec, lists: readonly (readonly number[])[]): number {
  const spatial = x.shape.length - 2;
  if (spatial < 1) {
    throw new ShapeError(
      `${where}: needs (N, C, spatial...), got shape ${showShape(x.shape)} — add the batch dimension.`,
    );
  }
  for (const list of lists) {
    if (list.length !== spatial) {
      throw new ShapeError(
        `${where}: needs ${spatial} values per spatial attribute, got [${list.join(", ")}].`,
      );
    }
  }
  return spatial;
}

function windows(
  where: string,
  x: Spec,
  kernel: readonly number[],
  strides: readonly number[],
  pads: readonly number[],
  dilations: readonly number[],
): number[] {
  const spatial = kernel.length;
  return kernel.map((size, i) => {
    const input = known(where, x.shape[2 + i]!);
    const out = convSize(input, size, strides[i]!, pads[i]! + pads[spatial + i]!, dilations[i]!);
    if (out < 1) {
      throw new ShapeError(
        `${where}: a kernel of ${size} does not fit an input of ${input} with padding ${pads[i]! + pads[spatial + i]!} — pad more.`,
      );
    }
    return out;
  });
}

const table: { readonly [O in OpName]?: Infer<O> } = {
  input: () => {
    throw new DtypeError("input: has no inputs to infer from.");
  },
  constant: (_, { tensor }) => [tensor],
  iota: (_, { length }) => [{ shape: [length], dtype: "int32" }],
  not: ([x]) => {
    needDtype("not", x!, "bool");
    return [x!];
  },
  isNan: ([x]) => {
    needFloat("isNan", x!);
    return [{ shape: x!.shape, dtype: "bool" }];
  },
  where: ([condition, a, b]) => {
    needDtype("where", condition!, "bool");
    needSameDtype("where", a!, b!);
    return [
      {
        shape: broadcastShapes("where", condition!.shape, a!.shape, b!.shape),
        dtype: a!.dtype,
      },
    ];
  },
  cast: ([x], { to }) => [{ shape: x!.shape, dtype: to }],
  stopGradient: ([x]) => [x!],
  cumSum: ([x]) => {
    needNumber("cumSum", x!);
    return [x!];
  },
  argMax: arg("argMax") as Infer<"argMax">,
  argMin: arg("argMin") as Infer<"argMin">,
  topK: ([x], { k, axis }) => {
    needNumber("topK", x!);
    const size = known("topK", x!.shape[axis]!);
    if (!Number.isInteger(k) || k < 0 || k > size) {
      throw new ShapeError(`topK: k must be in [0, ${size}] on axis ${axis}, got ${k}.`);
    }
    const shape = x!.shape.map((dim, i) => (i === axis ? k : dim));
    return [
      { shape, dtype: x!.dtype },
      { shape, dtype: "int32" },
    ];
  },
  reshape: ([x], { shape }) => {
    if (isStatic(x!.shape) && isStatic(shape) && sizeOf(x!.shape) !== sizeOf(shape)) {
      throw new ShapeError(
        `reshape: ${showShape(x!.shape)} has ${sizeOf(x!.shape)} elements, ${showShape(shape)} has ${sizeOf(shape)}.`,
      );
    }
    return [{ shape, dtype: x!.dtype }];
  },
  transpose: ([x], { perm }) => {
    const sorted = [...perm].sort((a, b) => a - b);
    if (perm.length !== x!.rank || sorted.some((axis, i) => axis !== i)) {
      throw new ShapeError(
        `transpose: [${perm.join(", ")}] is not an order of the axes of ${showShape(x!.shape)}.`,
      );
    }
    return [{ shape: perm.map((axis) => x!.shape[axis]!), dtype: x!.dtype }];
  },
  expand: ([x], { shape }) => {
    if (!sameShape(broadcastShapes("expand", x!.shape, shape), shape)) {
      throw new ShapeError(
        `expand: ${showShape(x!.shape)} does not broadcast to ${showShape(shape)}.`,
      );
    }
    return [{ shape, dtype: x!.dtype }];
  },
  slice: ([x], { starts, ends, steps }) => {
    if (starts.length !== x!.rank || ends.length !== x!.rank || steps.length !== x!.rank) {
      throw new ShapeError(
        `slice: needs a start, end and step for each axis of ${showShape(x!.shape)}.`,
      );
    }
    const shape = x!.shape.map((dim, i) => {
      const [start, end, step] = [starts[i]!, ends[i]!, steps[i]!];
      if (start === 0 && end === dim && step === 1) return dim;
      const size = known("slice", dim);
      const stop = known("slice", end);
      const fits =
        step > 0
          ? start >= 0 && start <= stop && stop <= size
          : step < 0 && start < size && start >= stop && stop >= -1;
      if (!fits) {
        throw new ShapeError(
          `slice: [${start}:${stop}:${step}] does not fit axis ${i} of ${showShape(x!.shape)}.`,
        );
      }
      // Not Math.ceil alone, which gives -0.
      return Math.max(0, Math.ceil((stop - start) / step));
    });
    return [{ shape, dtype: x!.dtype }];
  },
  concat: (inputs, { axis }) => {
    const first = inputs[0];
    if (!first) throw new ShapeError("concat: needs at least one input.");
    for (const input of inputs) {
      needSameDtype("concat", first, input);
      const others = (shape: Shape): Shape => shape.filter((_, i) => i !== axis);
      if (input.rank !== first.rank || !sameShape(others(first.shape), others(input.shape))) {
        throw new ShapeError(
          `concat: shapes differ outside axis ${axis}, ${showShape(first.shape)} and ${showShape(input.shape)}.`,
        );
      }
    }
    const total = addDims(...inputs.map((input) => input.shape[axis]!));
    return [{ shape: first.shape.map((dim, i) => (i === axis ? total : dim)), dtype: first.dtype }];
  },
  split: ([x], { axis, sizes }) => {
    const size = known("split", x!.shape[axis]!);
    if (sizes.reduce((a, b) => a + b, 0) !== size) {
      throw new ShapeError(`split: sizes [${sizes.join(", ")}] do not add up to ${size}.`);
    }
    return sizes.map((part) => ({
      shape: x!.shape.map((dim, i) => (i === axis ? part : dim)),
      dtype: x!.dtype,
    }));
  },
  pad: ([x], { before, after }) => [
    {
      shape: x!.shape.map((dim, i) => {
        if (before[i]! < 0 || after[i]! < 0) {
          throw new ShapeError(`pad: sizes must be at least 0, got ${before[i]} and ${after[i]}.`);
        }
        return addDims(dim, before[i]! + after[i]!);
      }),
      dtype: x!.dtype,
    },
  ],
  gather: ([x, indices], { axis }) => {
    needDtype("gather", indices!, "int32");
    return [
      {
        shape: [...x!.shape.slice(0, axis), ...indices!.shape, ...x!.shape.slice(axis + 1)],
        dtype: x!.dtype,
      },
    ];
  },
  gatherElements: ([x, indices], { axis }) => {
    needDtype("gatherElements", indices!, "int32");
    checkElements("gatherElements", x!, indices!, axis);
    return [{ shape: indices!.shape, dtype: x!.dtype }];
  },
  scatterNd: ([x, indices, updates]) => {
    needDtype("scatterNd", indices!, "int32");
    needSameDtype("scatterNd", x!, updates!);
    const depth = known("scatterNd", indices!.shape.at(-1) ?? 0);
    const expected = [...indices!.shape.slice(0, -1), ...x!.shape.slice(depth)];
    if (depth > x!.rank || !sameShape(updates!.shape, expected)) {
      throw new ShapeError(
        `scatterNd: updates must have shape ${showShape(expected)}, got ${showShape(updates!.shape)}.`,
      );
    }
    return [x!];
  },
  scatterElements: ([x, indices, updates], { axis }) => {
    needDtype("scatterElements", indices!, "int32");
    needSameDtype("scatterElements", x!, updates!);
    needSameShape("scatterElements", indices!, updates!);
    checkElements("scatterElements", x!, indices!, axis);
    return [x!];
  },
  dot: ([a, b], { transA, transB }) => {
    needSameDtype("dot", a!, b!);
    needFloat("dot", a!);
    const rank = a!.rank;
    if (rank < 2 || b!.rank !== rank || !sameShape(a!.shape.slice(0, -2), b!.shape.slice(0, -2))) {
      throw new ShapeError(
        `dot: needs two matrices, or stacks of equal size, got ${showShape(a!.shape)} and ${showShape(b!.shape)} — reshape or expand one.`,
      );
    }
    const [m, k] = transA
      ? [a!.shape[rank - 1]!, a!.shape[rank - 2]!]
      : [a!.shape[rank - 2]!, a!.shape[rank - 1]!];
    const [k2, n] = transB
      ? [b!.shape[rank - 1]!, b!.shape[rank - 2]!]
      : [b!.shape[rank - 2]!, b!.shape[rank - 1]!];
    if (k !== k2) {
      throw new ShapeError(
        `dot: inner sizes differ, ${showShape(a!.shape)}${transA ? "ᵀ" : ""} × ${showShape(b!.shape)}${transB ? "ᵀ" : ""} — transpose one side?`,
      );
    }
    return [{ shape: [...a!.shape.slice(0, -2), m, n], dtype: a!.dtype }];
  },
  conv: ([x, weight], { strides, pads, dilations, groups }) => {
    needFloat("conv", x!);
    needSameDtype("conv", x!, weight!);
    checkSpatial("conv", x!, [strides, dilations]);
    needRank("conv", weight!, x!.rank);
    const channels = known("conv", weight!.shape[1]!) * groups;
    if (x!.shape[1] !== channels || known("conv", weight!.shape[0]!) % groups !== 0) {
      throw new ShapeError(
        `conv: ${groups} groups of weight ${showShape(weight!.shape)} need ${channels} channels, got input ${showShape(x!.shape)}.`,
      );
    }
    const kernel = weight!.shape.slice(2).map((dim) => known("conv", dim));
    const spatial = windows("conv", x!, kernel, strides, pads, dilations);
    return [{ shape: [x!.shape[0]!, weight!.shape[0]!, ...spatial], dtype: x!.dtype }];
  },
  convTranspose: ([x, weight], { strides, pads, dilations, groups, outputPadding }) => {
    needFloat("convTranspose", x!);
    needSameDtype("convTranspose", x!, weight!);
    const spatial = checkSpatial("convTranspose", x!, [strides, dilations, outputPadding]);
    needRank("convTranspose", weight!, x!.rank);
    if (x!.shape[1] !== weight!.shape[0] || known("convTranspose", x!.shape[1]!) % groups !== 0) {
      throw new ShapeError(
        `convTranspose: weight ${showShape(weight!.shape)} needs ${weight!.shape[0]} channels in ${groups} groups, got input ${showShape(x!.shape)}.`,
      );
    }
    const sizes = strides.map(
      (stride, i) =>
        stride * (known("convTranspose", x!.shape[2 + i]!) - 1) +
        outputPadding[i]! +
        (known("convTranspose", weight!.shape[2 + i]!) - 1) * dilations[i]! +
        1 -
        pads[i]! -
        pads[spatial + i]!,
    );
    const outChannels = known("convTranspose", weight!.shape[1]!) * groups;
    return [{ shape: [x!.shape[0]!, outChannels, ...sizes], dtype: x!.dtype }];
  },
  maxPool: ([x], { kernel, strides, pads }) => {
    needFloat("maxPool", x!);
    const axes = checkSpatial("maxPool", x!, [kernel, strides]);
    if (pads.some((pad, i) => pad >= kernel[i % axes]!)) {
      throw new ShapeError(
        `maxPool: padding [${pads.join(", ")}] must be smaller than the kernel [${kernel.join(", ")}] — a window of padding alone has no largest element.`,
      );
    }
    const spatial = windows(
      "maxPool",
      x!,
      kernel,
      strides,
      pads,
      kernel.map(() => 1),
    );
    const shape = [x!.shape[0]!, x!.shape[1]!, ...spatial];
    return [
      { shape, dtype: x!.dtype },
      { shape, dtype: "int32" },
    ];
  },
  scan: (inputs, { body, outputs, nCarry, nXs, length }) => {
    body.inputs.forEach((input, i) => {
      const outer = inputs[i]!;
      const isX = i >= nCarry && i < nCarry + nXs;
      if (isX && outer.shape[0] !== length) {
        throw new ShapeError(
          `scan: xs must have ${length} steps first, got ${showShape(outer.shape)}.`,
        );
      }
      needSameShape("scan", input, {
        shape: isX ? outer.shape.slice(1) : outer.shape,
        dtype: outer.dtype,
      });
      needSameDtype("scan", input, outer);
    });
    for (let i = 0; i < nCarry; i++) {
      needSameShape("scan: carry", body.inputs[i]!, outputs[i]!);
      needSameDtype("scan: carry", body.inputs[i]!, outputs[i]!);
    }
    const stacked = (value: Value): Spec => ({
      shape: [length, ...value.shape],
      dtype: value.dtype,
    });
    return [
      ...outputs.slice(0, nCarry),
      ...outputs.slice(nCarry).map(stacked),
      ...body.inputs.slice(0, nCarry).map(stacked),
    ];
  },
  call: (_, { outputs }) => [...outputs],
  avgPool: ([x], { kernel, strides, pads }) => {
    needFloat("avgPool", x!);
    checkSpatial("avgPool", x!, [kernel, strides]);
    const spatial = windows(
      "avgPool",
      x!,
      kernel,
      strides,
      pads,
      kernel.map(() => 1),
    );
    return [{ shape: [x!.shape[0]!, x!.shape[1]!, ...spatial], dtype: x!.dtype }];
  },
  ...fusedTable,
};

function checkElements(where: string, x: Spec, indices: Spec, axis: number): void {
  const fits =
    indices.shape.length === x.shape.length &&
    indices.shape.every((dim, i) => i === axis || dim === x.shape[i]);
  if (!fits) {
    throw new ShapeError(
      `${where}: indices ${showShape(indices.shape)} must equal ${showShape(x.shape)} outside axis ${axis}.`,
    );
  }
}

const families: Record<string, Infer<OpName>> = {};
for (const op of unaryOps) {
  families[op] = same(op, ["neg", "abs", "sign", "relu"].includes(op) ? needNumber : needFloat);
}
for (const op of binaryOps) families[op] = elementwise(op, needNumber);
for (const op of compareOps) {
  families[op] = elementwise(op, op === "equal" ? () => {} : needNumber, "bool");
}
for (const op of logicalOps) families[op] = elementwise(op, (w, v) => needDtype(w, v, "bool"));
for (const op of bitwiseOps) families[op] = elementwise(op, (w, v) => needDtype(w, v, "int32"));
for (const op of reduceOps) families[op] = reduce(op);

/** Types of the outputs of an operator. */
export function infer<O extends OpName>(
  op: O,
  inputs: readonly Value[],
  attrs: AttrsOf[O],
): readonly Spec[] {
  const rule = (table[op] ?? families[op]) as Infer<O>;
  return rule(inputs, attrs);
}
