import { ShapeError } from "../../errors.ts";
import { showShape, sizeOf, stridesOf } from "../../tensor/shape.ts";
import { eachIndex, type Kernels, make, type Nd, offsetOf } from "./nd.ts";

/** An index from the front; negative ones count from the end. */
function wrap(where: string, index: number, x: Nd, axis: number): number {
  const size = x.shape[axis]!;
  const at = index < 0 ? index + size : index;
  if (at < 0 || at >= size) {
    throw new ShapeError(
      `${where}: index ${index} is outside axis ${axis} of ${showShape(x.shape)} — it must be in [${-size}, ${size}).`,
    );
  }
  return at;
}

function copyOf(x: Nd): Nd {
  return { ...x, data: x.data.slice() };
}

function write(y: Nd, at: number, value: number, reduction: "none" | "add"): void {
  y.data[at] = reduction === "add" ? y.data[at]! + value : value;
}

export const indexing: Kernels = {
  iota: (_, __, [spec]) => {
    const y = make(spec!);
    for (let i = 0; i < y.data.length; i++) y.data[i] = i;
    return [y];
  },
  gather: ([x, indices], { axis }, [spec]) => {
    const y = make(spec!);
    const from = stridesOf(x!.shape);
    const rank = indices!.shape.length;
    const among = stridesOf(indices!.shape);
    eachIndex(y.shape, (index, flat) => {
      const picked = indices!.data[offsetOf(index.slice(axis, axis + rank), among)]!;
      const at = wrap("gather", picked, x!, axis);
      y.data[flat] =
        x!.data[offsetOf([...index.slice(0, axis), at, ...index.slice(axis + rank)], from)]!;
    });
    return [y];
  },
  gatherElements: ([x, indices], { axis }, [spec]) => {
    const y = make(spec!);
    const strides = stridesOf(x!.shape);
    eachIndex(y.shape, (index, flat) => {
      const at = wrap("gatherElements", indices!.data[flat]!, x!, axis);
      y.data[flat] = x!.data[offsetOf(index.with(axis, at), strides)]!;
    });
    return [y];
  },
  scatterNd: ([x, indices, updates], { reduction }) => {
    const y = copyOf(x!);
    const depth = indices!.shape.at(-1)!;
    const strides = stridesOf(x!.shape);
    const block = sizeOf(x!.shape.slice(depth));
    const rows = sizeOf(indices!.shape.slice(0, -1));
    for (let row = 0; row < rows; row++) {
      let base = 0;
      for (let axis = 0; axis < depth; axis++) {
        base += wrap("scatterNd", indices!.data[row * depth + axis]!, x!, axis) * strides[axis]!;
      }
      for (let i = 0; i < block; i++) {
        write(y, base + i, updates!.data[row * block + i]!, reduction);
      }
    }
    return [y];
  },
  scatterElements: ([x, indices, updates], { axis, reduction }) => {
    const y = copyOf(x!);
    const strides = stridesOf(x!.shape);
    eachIndex(indices!.shape, (index, flat) => {
      const at = wrap("scatterElements", indices!.data[flat]!, x!, axis);
      write(y, offsetOf(index.with(axis, at), strides), updates!.data[flat]!, reduction);
    });
    return [y];
  },
};
