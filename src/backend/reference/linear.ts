import { sizeOf, stridesOf } from "../../tensor/shape.ts";
import { eachIndex, type Kernel, type Kernels, make, offsetOf } from "./nd.ts";

const dot: Kernel<"dot"> = ([a, b], { transA, transB, alpha }, [spec]) => {
  const y = make(spec!);
  const [m, n] = spec!.shape.slice(-2) as [number, number];
  const k = a!.shape.at(transA ? -2 : -1)!;
  const stack = sizeOf(spec!.shape.slice(0, -2));
  for (let s = 0; s < stack; s++) {
    for (let row = 0; row < m; row++) {
      for (let column = 0; column < n; column++) {
        let total = 0;
        for (let i = 0; i < k; i++) {
          const left = a!.data[s * m * k + (transA ? i * m + row : row * k + i)]!;
          const right = b!.data[s * k * n + (transB ? column * k + i : i * n + column)]!;
          total += left * right;
        }
        y.data[(s * m + row) * n + column] = alpha * total;
      }
    }
  }
  return [y];
};

interface Windows {
  readonly strides: readonly number[];
  readonly pads: readonly number[];
  readonly dilations?: readonly number[];
}

/** The place in the input that position `tap` of the window `at` covers; it may lie in the padding. */
function cover(at: readonly number[], tap: readonly number[], attrs: Windows): number[] {
  return at.map(
    (i, axis) =>
      i * attrs.strides[axis]! + tap[axis]! * (attrs.dilations?.[axis] ?? 1) - attrs.pads[axis]!,
  );
}

function isInside(place: readonly number[], sizes: readonly number[]): boolean {
  return place.every((i, axis) => i >= 0 && i < sizes[axis]!);
}

/** Taps (o, c, k…) of a weight join input channel and output channel of one group. */
const conv: Kernel<"conv"> = ([x, weight], attrs, [spec]) => {
  const y = make(spec!);
  const [, , ...sizes] = x!.shape;
  const [outChannels, channels, ...kernel] = weight!.shape as [number, number, ...number[]];
  const [xStrides, wStrides] = [stridesOf(x!.shape), stridesOf(weight!.shape)];
  eachIndex(y.shape, ([n, o, ...at], flat) => {
    const group = Math.floor(o! / (outChannels / attrs.groups));
    let total = 0;
    eachIndex([channels, ...kernel], ([c, ...tap]) => {
      const place = cover(at, tap, attrs);
      if (!isInside(place, sizes)) return;
      total +=
        x!.data[offsetOf([n!, group * channels + c!, ...place], xStrides)]! *
        weight!.data[offsetOf([o!, c!, ...tap], wStrides)]!;
    });
    y.data[flat] = total;
  });
  return [y];
};

/** Every input element spreads the kernel over the window it would be the result of. */
const convTranspose: Kernel<"convTranspose"> = ([x, weight], attrs, [spec]) => {
  const y = make(spec!);
  const [, , ...sizes] = spec!.shape;
  const [inChannels, channels, ...kernel] = weight!.shape as [number, number, ...number[]];
  const [yStrides, wStrides] = [stridesOf(y.shape), stridesOf(weight!.shape)];
  eachIndex(x!.shape, ([n, i, ...at], flat) => {
    const group = Math.floor(i! / (inChannels / attrs.groups));
    eachIndex([channels, ...kernel], ([c, ...tap]) => {
      const place = cover(at, tap, attrs);
      if (!isInside(place, sizes)) return;
      y.data[offsetOf([n!, group * channels + c!, ...place], yStrides)]! +=
        x!.data[flat]! * weight!.data[offsetOf([i!, c!, ...tap], wStrides)]!;
    });
  });
  return [y];
};

/** Padding is -∞; indices count over the whole input, (N, C, spatial…) flat. */
const maxPool: Kernel<"maxPool"> = ([x], attrs, specs) => {
  const [y, indices] = [make(specs[0]!), make(specs[1]!)];
  const [, , ...sizes] = x!.shape;
  const strides = stridesOf(x!.shape);
  eachIndex(y.shape, ([n, c, ...at], flat) => {
    let top = -Infinity;
    let topAt = -1;
    eachIndex(attrs.kernel, (tap) => {
      const place = cover(at, tap, attrs);
      if (!isInside(place, sizes)) return;
      const offset = offsetOf([n!, c!, ...place], strides);
      if (topAt >= 0 && !(x!.data[offset]! > top)) return;
      top = x!.data[offset]!;
      topAt = offset;
    });
    y.data[flat] = top;
    indices.data[flat] = topAt;
  });
  return [y, indices];
};

export const linear: Kernels = { dot, conv, convTranspose, maxPool };
