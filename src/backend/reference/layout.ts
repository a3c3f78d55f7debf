import { stridesOf } from "../../tensor/shape.ts";
import {
  broadcastStrides,
  eachIndex,
  type Kernels,
  make,
  type Nd,
  offsetOf,
  type StaticSpec,
} from "./nd.ts";

/** An output whose element at each index is read from `x` at the offset that `where` gives. */
function read(x: Nd, spec: StaticSpec, where: (index: readonly number[]) => number): Nd {
  const y = make(spec);
  eachIndex(y.shape, (index, flat) => {
    y.data[flat] = x.data[where(index)]!;
  });
  return y;
}

/** Writes `x` into `y` with its first element at `origin`. */
function place(y: Nd, x: Nd, origin: readonly number[]): void {
  const strides = stridesOf(y.shape);
  const base = offsetOf(origin, strides);
  eachIndex(x.shape, (index, flat) => {
    y.data[base + offsetOf(index, strides)] = x.data[flat]!;
  });
}

export const layout: Kernels = {
  reshape: ([x], _, [spec]) => [{ ...spec!, data: x!.data }],
  transpose: ([x], { perm }, [spec]) => {
    const strides = stridesOf(x!.shape);
    const moved = perm.map((axis) => strides[axis]!);
    return [read(x!, spec!, (index) => offsetOf(index, moved))];
  },
  expand: ([x], _, [spec]) => {
    const strides = broadcastStrides(x!.shape, spec!.shape.length);
    return [read(x!, spec!, (index) => offsetOf(index, strides))];
  },
  slice: ([x], { starts, steps }, [spec]) => {
    const strides = stridesOf(x!.shape);
    const base = offsetOf(starts, strides);
    const steep = strides.map((stride, axis) => stride * steps[axis]!);
    return [read(x!, spec!, (index) => base + offsetOf(index, steep))];
  },
  concat: (inputs, { axis }, [spec]) => {
    const y = make(spec!);
    const origin = y.shape.map(() => 0);
    for (const x of inputs) {
      place(y, x, origin);
      origin[axis]! += x.shape[axis]!;
    }
    return [y];
  },
  split: ([x], { axis }, specs) => {
    const strides = stridesOf(x!.shape);
    let start = 0;
    return specs.map((spec) => {
      const base = start * strides[axis]!;
      start += spec.shape[axis]!;
      return read(x!, spec, (index) => base + offsetOf(index, strides));
    });
  },
  pad: ([x], { before, value }, [spec]) => {
    const y = make(spec!);
    y.data.fill(value);
    place(y, x!, before);
    return [y];
  },
};
