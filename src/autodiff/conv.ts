/** Derivatives of y = conv(x, w): each is a convolution or its transpose again, or products. */
import type { ConvAttrs } from "../ir/attrs.ts";
import { customVjp } from "../ir/control.ts";
import { emit } from "../ir/emit.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { concat, expand, pad, reshape, slice, transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { sum } from "../ir/reduce.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";

/** ct (N, O, out…), weight (O, C/groups, kernel…) → the cotangent of x (N, C, in…). */
export function convInputGradient(ct: Value, weight: Value, x: Value, attrs: ConvAttrs): Value {
  const spatial = attrs.strides.length;
  const outputPadding = attrs.strides.map((stride, i) => {
    const kernel = weight.shape[2 + i] as number;
    const covered =
      stride * ((ct.shape[2 + i] as number) - 1) +
      (kernel - 1) * attrs.dilations[i]! +
      1 -
      attrs.pads[i]! -
      attrs.pads[spatial + i]!;
    return (x.shape[2 + i] as number) - covered;
  });
  return emit("convTranspose", [ct, weight], { ...attrs, outputPadding });
}

/** With more taps the form as a convolution has products wide enough. */
const mostTaps = 25;

/** From this many channels on, a pixel's channels are worth a copy of their own. */
const manyChannels = 16;

/**
 * x (N, C, in…), ct (N, O, out…) → the cotangent of the weight (O, C/groups, kernel…). It is bilinear, and
 * differentiated as such, whichever way it is computed.
 */
export function convWeightGradient(x: Value, ct: Value, weight: Value, attrs: ConvAttrs): Value {
  const shape = weight.shape as number[];
  const window: Window = { ...attrs, shape };
  const taps = sizeOf(shape.slice(2));
  const isProduct = attrs.groups === 1 && taps <= mostTaps && [x, ct].every(isFilled);
  if (!isProduct) return asConvolution(x, ct, window);
  const [, o, ...outSizes] = ct.shape as number[];
  // One product per example is summed after; with as many outputs as pixels that is more than it saves.
  const isSmall = shape[1]! < manyChannels || (taps === 1 && o! <= sizeOf(outSizes));
  return customVjp(
    (data, g) => (isSmall ? perExample(data, g, window) : perKernelRow(data, g, window)),
    ([data, g], _, [wanted]) => [
      convInputGradient(g!, wanted!, data!, attrs),
      convWindows(data!, wanted!, g!, attrs),
    ],
    "convWeightGradient",
  )(x, ct)[0]!;
}

/** conv(x, weight) as far as `like` goes: x may have more at its end than its windows reach. */
export function convWindows(x: Value, weight: Value, like: Value, attrs: ConvAttrs): Value {
  return like.shape.reduce<Value>(
    (y, size, axis) => (axis < 2 ? y : slice(y, axis, 0, size as number)),
    emit("conv", [x, weight], attrs),
  );
}

/** Attributes of a convolution with the shape of its weight. */
interface Window extends ConvAttrs {
  readonly shape: readonly number[];
}

const isFilled = ({ shape }: Value): boolean =>
  shape.every((dim) => typeof dim === "number" && dim > 0);

/** All positions below the sizes, the last axis fastest. */
function positions(sizes: readonly number[]): number[][] {
  return sizes.reduce<number[][]>(
    (lead, size) => lead.flatMap((at) => Array.from({ length: size }, (_, i) => [...at, i])),
    [[]],
  );
}

/** (O, taps, C) → (O, C, kernel…) */
function asWeight(gradient: Value, { shape }: Window): Value {
  const [o, c, ...kernel] = shape as [number, number, ...number[]];
  return reshape(transpose(reshape(gradient, [o, sizeOf(kernel), c]), [0, 2, 1]), shape);
}

/** Channels first: one slice per tap, (N, O, P) × (N, taps·C, P)ᵀ, and the sum over examples. */
function perExample(x: Value, ct: Value, window: Window): Value {
  const { strides, dilations, pads, shape } = window;
  const [n, c, ...sizes] = x.shape as number[];
  const [, o, ...outSizes] = ct.shape as number[];
  const pixels = sizeOf(outSizes);
  const kernel = shape.slice(2);
  const reach = kernel.map(
    (k, i) => (outSizes[i]! - 1) * strides[i]! + (k - 1) * dilations[i]! + 1,
  );
  const after = reach.map((end, i) => Math.max(0, end - sizes[i]! - pads[i]!));
  const padded = pad(x, [0, 0, ...pads.slice(0, kernel.length)], [0, 0, ...after]);
  const patches = positions(kernel).map((tap) => {
    const seen = tap.reduce((value, k, i) => {
      const start = k * dilations[i]!;
      const end = start + (outSizes[i]! - 1) * strides[i]! + 1;
      return slice(value, 2 + i, start, end, strides[i]!);
    }, padded);
    return reshape(seen, [n!, c!, pixels]);
  });
  const product = dot(reshape(ct, [n!, o!, pixels]), concat(patches, 1), { transB: true });
  return asWeight(sum(product, 0), window);
}

/**
 * Channels last: the pixels that one row of the kernel sees are gathered, (N·P, K·C), and one product over
 * all examples gives that row's gradient. A pixel of zeros stands for the padding.
 */
function perKernelRow(x: Value, ct: Value, window: Window): Value {
  const { strides, dilations, pads, shape } = window;
  const [n, c, ...sizes] = x.shape as number[];
  const [, o, ...outSizes] = ct.shape as number[];
  const [pixels, kernel] = [sizeOf(outSizes), shape.slice(2)];
  const width = kernel.at(-1)!;
  const outside = sizeOf(sizes);
  const places = positions(outSizes);
  const rows = positions(kernel.slice(0, -1)).map((row) =>
    places.flatMap((place) =>
      Array.from({ length: width }, (_, k) =>
        [...row, k].reduce((flat, tap, i) => {
          const at = place[i]! * strides[i]! + tap * dilations[i]! - pads[i]!;
          const isInside = flat !== outside && at >= 0 && at < sizes[i]!;
          return isInside ? flat * sizes[i]! + at : outside;
        }, 0),
      ),
    ),
  );
  const order = [0, ...sizes.map((_, i) => 2 + i), 1];
  const data = reshape(transpose(x, order), [n!, outside, c!]);
  const zeros = expand(x.graph.lift(0, x.dtype), [n!, 1, c!]);
  const source = rows.some((row) => row.includes(outside)) ? concat([data, zeros], 1) : data;
  const outputsFirst = [1, 0, ...sizes.map((_, i) => 2 + i)];
  const g = reshape(transpose(ct, outputsFirst), [o!, n! * pixels]);
  const parts = rows.map((row) => {
    const isWhole = row.length === outside && row.every((place, i) => place === i);
    const seen = isWhole ? source : gather(source, Tensor.from(row, [row.length], "int32"), 1);
    const product = dot(g, reshape(seen, [n! * pixels, width * c!]));
    return reshape(product, [o!, 1, width * c!]);
  });
  return asWeight(parts.length === 1 ? parts[0]! : concat(parts, 1), window);
}

/**
 * A convolution of x with ct in which batch and channels change places and strides change with
 * dilations; groups move into the batch of channels.
 */
function asConvolution(x: Value, ct: Value, window: Window): Value {
  const [n, c, ...sizes] = x.shape as number[];
  const [, o, ...outSizes] = ct.shape as number[];
  const { groups } = window;
  const spatialAxes = sizes.map((_, i) => i + 3);
  // (N, G, C/G, …) → (C/G, G·N, …)
  const grouped = reshape(x, [n!, groups, c! / groups, ...sizes]);
  const moved = transpose(grouped, [2, 1, 0, ...spatialAxes]);
  const data = reshape(moved, [c! / groups, groups * n!, ...sizes]);
  const kernel = transpose(ct, [1, 0, ...outSizes.map((_, i) => i + 2)]);
  const spatial = sizes.length;
  const kernelSizes = window.shape.slice(2);
  // Rows at the far edge that no window reaches would make the result larger than the kernel.
  const excess = sizes.map((size, i) => {
    const full = size + window.pads[i]! + window.pads[spatial + i]!;
    const reach =
      (outSizes[i]! - 1) * window.strides[i]! + (kernelSizes[i]! - 1) * window.dilations[i]! + 1;
    return full - reach;
  });
  let trimmed = data;
  const pads = [...window.pads];
  excess.forEach((extra, i) => {
    const fromPad = Math.min(extra, pads[spatial + i]!);
    pads[spatial + i]! -= fromPad;
    if (extra > fromPad) trimmed = slice(trimmed, 2 + i, 0, sizes[i]! - (extra - fromPad));
  });
  const gradient = emit("conv", [trimmed, kernel], {
    strides: window.dilations,
    dilations: window.strides,
    pads,
    groups,
  });
  // (C/G, O, …) → (O, C/G, …)
  return reshape(transpose(gradient, [1, 0, ...sizes.map((_, i) => i + 2)]), [
    o!,
    c! / groups,
    ...kernelSizes,
  ]);
}
