import { ShapeError } from "../../errors.ts";
import type { ReduceOp } from "../../ir/attrs.ts";
import { showShape, stridesOf } from "../../tensor/shape.ts";
import {
  eachIndex,
  eachLine,
  type Kernel,
  type Kernels,
  make,
  type Nd,
  offsetOf,
  type StaticSpec,
} from "./nd.ts";

/** Strides of the result for each axis of the input: 0 along the reduced ones. */
function resultStrides(x: Nd, axes: readonly number[]): number[] {
  const kept = x.shape.map((dim, axis) => (axes.includes(axis) ? 1 : dim));
  return stridesOf(kept).map((stride, axis) => (axes.includes(axis) ? 0 : stride));
}

function reduce(
  start: number,
  combine: (total: number, x: number) => number,
  finish: (total: number, count: number) => number = (total) => total,
): Kernel<ReduceOp> {
  return ([x], { axes }, [spec]) => {
    const y = make(spec!);
    y.data.fill(start);
    const strides = resultStrides(x!, axes);
    eachIndex(x!.shape, (index, flat) => {
      const at = offsetOf(index, strides);
      y.data[at] = combine(y.data[at]!, x!.data[flat]!);
    });
    const count = axes.reduce((n, axis) => n * x!.shape[axis]!, 1);
    for (let i = 0; i < y.data.length; i++) y.data[i] = finish(y.data[i]!, count);
    return [y];
  };
}

const add = (a: number, b: number): number => a + b;
const multiply = (a: number, b: number): number => a * b;

/** The kernel for int32, where numbers differ: no infinities, products wrap. */
function forType(float: Kernel<ReduceOp>, int: Kernel<ReduceOp>): Kernel<ReduceOp> {
  return (inputs, attrs, outputs) =>
    (inputs[0]!.dtype === "int32" ? int : float)(inputs, attrs, outputs);
}

/** Positions along each line, the best first; equal ones in their order. */
function ranked(x: Nd, axis: number, largest: boolean, visit: RankVisit): void {
  const size = x.shape[axis]!;
  eachLine(x.shape, axis, (start, stride, line) => {
    const at = (i: number): number => x.data[start + i * stride]!;
    const order = Array.from({ length: size }, (_, i) => i);
    order.sort((i, j) => (largest ? at(j) - at(i) : at(i) - at(j)) || i - j);
    visit(order, at, line);
  });
}

type RankVisit = (order: readonly number[], at: (i: number) => number, line: number) => void;

function best(where: string, largest: boolean): Kernel<"argMax" | "argMin"> {
  return ([x], { axis }, [spec]) => {
    if (x!.shape[axis] === 0) {
      throw new ShapeError(`${where}: axis ${axis} of ${showShape(x!.shape)} is empty.`);
    }
    const y = make(spec!);
    ranked(x!, axis, largest, (order, _, line) => {
      y.data[line] = order[0]!;
    });
    return [y];
  };
}

const topK: Kernel<"topK"> = ([x], { k, axis, largest }, specs) => {
  const [values, indices] = specs.map((spec: StaticSpec) => make(spec));
  const starts: [start: number, stride: number][] = [];
  eachLine(values!.shape, axis, (start, stride) => starts.push([start, stride]));
  ranked(x!, axis, largest, (order, at, line) => {
    for (let i = 0; i < k; i++) {
      const [start, stride] = starts[line]!;
      values!.data[start + i * stride] = at(order[i]!);
      indices!.data[start + i * stride] = order[i]!;
    }
  });
  return [values!, indices!];
};

const cumSum: Kernel<"cumSum"> = ([x], { axis, exclusive, reverse }, [spec]) => {
  const y = make(spec!);
  const size = x!.shape[axis]!;
  eachLine(x!.shape, axis, (start, stride) => {
    let total = 0;
    for (let step = 0; step < size; step++) {
      const at = start + (reverse ? size - 1 - step : step) * stride;
      if (exclusive) y.data[at] = total;
      total += x!.data[at]!;
      if (!exclusive) y.data[at] = total;
    }
  });
  return [y];
};

export const reductions: Kernels = {
  sum: reduce(0, add),
  mean: reduce(0, add, (total, count) => total / count),
  prod: forType(reduce(1, multiply), reduce(1, Math.imul)),
  reduceMax: forType(reduce(-Infinity, Math.max), reduce(-(2 ** 31), Math.max)),
  reduceMin: forType(reduce(Infinity, Math.min), reduce(2 ** 31 - 1, Math.min)),
  cumSum,
  argMax: best("argMax", true),
  argMin: best("argMin", false),
  topK,
};
