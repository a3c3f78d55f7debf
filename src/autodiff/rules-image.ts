/** Derivatives of the norms over channels and of resampling. */
import { add, mul, rsqrt, sub } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather, scatterNd } from "../ir/indexing.ts";
import { alongAxis } from "../ir/interpolate.ts";
import { expand, reshape, stack, swapAxes, transpose, unsqueeze } from "../ir/layout.ts";
import { groupRows, otherAxes, perChannel } from "../ir/norm.ts";
import { mean, sum } from "../ir/reduce.ts";
import { axisPlan, cornersOf, cornerWeight, gridScale, pixelRows } from "../ir/resample.ts";
import { type Rule, throughExpansion, zerosLike } from "./rule.ts";

const keep = { keepDims: true } as const;

export const groupNormRule: Rule<"groupNorm"> = (context) => {
  const { attrs, cotangents, inputs, outputs, needs } = context;
  if (cotangents[1] || cotangents[2]) return throughExpansion(context);
  const [x, weight] = inputs as [Value, Value | undefined];
  const [, center, inverse] = outputs as [Value, Value, Value];
  const ct = cotangents[0]!;
  const scaled = weight ? mul(ct, perChannel(weight, x.rank)) : ct;
  const g = groupRows(scaled, attrs.groups);
  const z = mul(sub(groupRows(x, attrs.groups), center), inverse);
  // (g - z mean(g z) - mean(g)) / √(variance + ε)
  const inner = sub(sub(g, mul(z, mean(mul(g, z), 1, keep))), mean(g, 1, keep));
  return [
    needs(0) ? reshape(mul(inverse, inner), x.shape) : undefined,
    weight && needs(1) ? sum(mul(ct, reshape(z, x.shape)), otherAxes(x)) : undefined,
    weight && needs(2) ? sum(ct, otherAxes(x)) : undefined,
  ];
};

export const batchNormRule: Rule<"batchNorm"> = (context) => {
  const { attrs, cotangents, inputs, outputs, needs } = context;
  const x = inputs[0]!;
  const axes = otherAxes(x);
  const wide = (numbers: Value): Value => perChannel(numbers, x.rank);
  const [center, spread] = attrs.training ? outputs.slice(1) : inputs.slice(1);
  const [first, second] = attrs.training ? [1, 2] : [3, 4];
  const weight = inputs[first];
  const inverse = rsqrt(add(spread!, attrs.epsilon));
  const scale = weight ? mul(inverse, weight) : inverse;
  const moved = sub(x, wide(center!));
  const ct = cotangents[0] ?? zerosLike(x);
  const [total, along] = [sum(ct, axes), sum(mul(ct, moved), axes)];
  const affine = [
    weight && needs(first) ? mul(along, inverse) : undefined,
    weight && needs(second) ? total : undefined,
  ];
  if (!attrs.training) {
    return [
      mul(ct, wide(scale)),
      needs(1) ? mul(mul(total, scale), -1) : undefined,
      needs(2) ? mul(mul(mul(along, scale), mul(inverse, inverse)), -0.5) : undefined,
      ...affine,
    ];
  }
  const count =
    x.shape.reduce<number>((n, dim) => n * (dim as number), 1) / (center!.shape[0] as number);
  // scale (ct - mean(ct) - moved mean(ct moved) / (variance + ε)), and what mean and variance send.
  let slope = mul(mul(mul(along, scale), mul(inverse, inverse)), -1 / count);
  if (cotangents[2]) slope = add(slope, mul(cotangents[2], 2 / count));
  let level = mul(mul(total, scale), -1 / count);
  if (cotangents[1]) level = add(level, mul(cotangents[1], 1 / count));
  const toX = add(add(mul(ct, wide(scale)), mul(moved, wide(slope))), wide(level));
  return [needs(0) ? toX : undefined, ...affine];
};

/** Linear in x: each axis is read backwards. */
export const resizeRule: Rule<"resize"> = ({ attrs, cotangents, inputs: [x] }) => {
  return [
    attrs.sizes.reduceRight((ct, to, i) => {
      const plan = axisPlan(x!, attrs, i);
      const axis = i + 2;
      const from = x!.shape[axis] as number;
      if (plan.kind === "repeat") {
        const parts = [...ct.shape.slice(0, axis), from, to / from, ...ct.shape.slice(axis + 1)];
        return sum(reshape(ct, parts), axis + 1);
      }
      if (plan.kind === "pick") {
        const front = swapAxes(ct, 0, axis);
        const zeros = expand(ct.graph.lift(0, ct.dtype), [from, ...front.shape.slice(1)]);
        const places = reshape(ct.graph.lift(plan.sources), [to, 1]);
        return swapAxes(scatterNd(zeros, places, front, "add"), 0, axis);
      }
      return plan.kind === "mix" ? alongAxis(ct, axis, plan.matrix(true)) : ct;
    }, cotangents[0]!),
  ];
};

export const gridSampleRule: Rule<"gridSample"> = ({ attrs, cotangents, inputs, needs }) => {
  const [x, grid] = inputs as [Value, Value];
  const [n, , height, width] = x.shape as [number, number, number, number];
  const ct = transpose(cotangents[0]!, [0, 2, 3, 1]); // (N, H', W', C)
  const corners = cornersOf(x, grid, attrs);
  const sumOf = (values: readonly Value[]): Value => values.reduce((a, b) => add(a, b));
  const pixels = pixelRows(x);
  const toX = (): Value => {
    const added = corners.reduce(
      (total, corner) =>
        scatterNd(total, unsqueeze(corner.index, -1), mul(ct, cornerWeight(corner)), "add"),
      zerosLike(pixels),
    );
    return transpose(reshape(added, [n, height, width, -1]), [0, 3, 1, 2]);
  };
  const toGrid = (): Value => {
    // What the pixel at each corner would add if it were read whole.
    const worth = corners.map((corner) =>
      mul(sum(mul(gather(pixels, corner.index), ct), 3), corner.inside),
    );
    const signed = (part: Value, isPlus: boolean): Value => (isPlus ? part : mul(part, -1));
    const alongX = corners.map((c, i) => signed(mul(worth[i]!, c.shareY), c.right));
    const alongY = corners.map((c, i) => signed(mul(worth[i]!, c.shareX), c.lower));
    return stack(
      [mul(sumOf(alongX), gridScale(width, attrs)), mul(sumOf(alongY), gridScale(height, attrs))],
      3,
    );
  };
  return [needs(0) ? toX() : undefined, needs(1) ? toGrid() : undefined];
};
