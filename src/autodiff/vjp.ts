/**
 * One rule per operator: from the cotangents of a node's outputs to those of its inputs, written in
 * graph operators, so that derivatives of derivatives exist.
 */
import { UnsupportedError } from "../errors.ts";
import type { AttrsOf, OpName } from "../ir/attrs.ts";
import { scan } from "../ir/control.ts";
import {
  add,
  and,
  cast,
  cos,
  div,
  equal,
  exp,
  less,
  log,
  mod,
  mul,
  neg,
  pow,
  sigmoid,
  sign,
  sin,
  square,
  sub,
  where,
} from "../ir/elementwise.ts";
import { emit } from "../ir/emit.ts";
import { isFused } from "../ir/expand.ts";
import type { Value } from "../ir/graph.ts";
import { gather, gatherElements, scatterElements, scatterNd } from "../ir/indexing.ts";
import { concat, expand, flip, pad, reshape, slice, transpose, unsqueeze } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { cumSum, sum } from "../ir/reduce.ts";
import { type Shape, sizeOf, toStatic } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { convInputGradient, convWeightGradient, convWindows } from "./conv.ts";
import {
  type Cotangents,
  type Rule,
  throughExpansion,
  type VjpContext,
  zerosLike,
} from "./rule.ts";
import { fusedRules } from "./rules-fused.ts";
import { batchNormRule, gridSampleRule, groupNormRule, resizeRule } from "./rules-image.ts";
import { gruRule, lstmRule } from "./rules-recurrent.ts";
import { scanRule } from "./rules-scan.ts";
import { recurrenceRule, selectiveScanRule, ssdRule } from "./rules-state-space.ts";

/** Sums a cotangent over the axes along which an operand of this shape was repeated. */
function unbroadcast(ct: Value, shape: Shape): Value {
  const extra = ct.rank - shape.length;
  const axes = ct.shape.flatMap((dim, i) =>
    dim !== 1 && (i < extra || shape[i - extra] === 1) ? [i] : [],
  );
  return reshape(axes.length > 0 ? sum(ct, axes, { keepDims: true }) : ct, shape);
}

/** The exponent, but 1 at base 0 with exponent 0, so that the slope there is 0 and not 0 · ∞. */
function exponentFor(base: Value, exponent: Value): Value {
  const { node } = exponent;
  if (node.op === "constant" && exponent.rank === 0) {
    const { tensor } = node.attrs as AttrsOf["constant"];
    if (tensor.item() !== 0) return exponent;
  }
  return where(and(equal(base, 0), equal(exponent, 0)), 1, exponent);
}

/**
 * For each element the product of the others along the axes: the product of those before it times
 * that of those after it. Nothing is divided, so zeros are no exception, in derivatives of it too.
 */
function otherFactors(x: Value, axes: readonly number[]): Value {
  const kept = x.shape.flatMap((_, i) => (axes.includes(i) ? [] : [i]));
  const order = [...axes, ...kept];
  const moved = transpose(x, order);
  const rest = kept.map((i) => x.shape[i]!);
  const factors = reshape(moved, [
    sizeOf(toStatic(moved.shape.slice(0, axes.length), "prod")),
    ...rest,
  ]);
  const one = expand(x.graph.lift(1, x.dtype), rest);
  const step = (product: Value, factor: Value): readonly [Value, Value] => [
    mul(product, factor),
    product,
  ];
  const [, before] = scan(step, one, factors);
  const [, after] = scan(step, one, factors, { reverse: true });
  return transpose(
    reshape(mul(before, after), moved.shape),
    order.map((_, i) => order.indexOf(i)),
  );
}

/** Brings a reduced value back to the rank it was reduced from. */
function unreduce(value: Value, axes: readonly number[], rank: number): Value {
  const shape: (number | string)[] = [];
  let next = 0;
  for (let i = 0; i < rank; i++) shape.push(axes.includes(i) ? 1 : value.shape[next++]!);
  return reshape(value, shape);
}

const unary =
  (rule: (ct: Value, x: Value, y: Value) => Value): Rule<OpName> =>
  ({ cotangents, inputs, outputs }) => [rule(cotangents[0]!, inputs[0]!, outputs[0]!)];

const binary =
  (
    forA: (ct: Value, a: Value, b: Value, y: Value) => Value,
    forB: (ct: Value, a: Value, b: Value, y: Value) => Value,
  ): Rule<OpName> =>
  ({ cotangents, inputs: [a, b], outputs: [y], needs }) => [
    needs(0) ? unbroadcast(forA(cotangents[0]!, a!, b!, y!), a!.shape) : undefined,
    needs(1) ? unbroadcast(forB(cotangents[0]!, a!, b!, y!), b!.shape) : undefined,
  ];

/** The cotangent of the winner of a comparison; ties share it equally. */
const winner =
  (isFirst: (a: Value, b: Value) => Value): ((ct: Value, a: Value, b: Value) => Value) =>
  (ct, a, b) =>
    mul(ct, add(cast(isFirst(a, b), ct.dtype), mul(cast(equal(a, b), ct.dtype), 0.5)));

const extreme: Rule<"reduceMax"> = ({ cotangents, inputs: [x], outputs: [y], attrs }) => {
  const [top, ct] = [y!, cotangents[0]!].map((v) =>
    attrs.keepDims ? v : unreduce(v, attrs.axes, x!.rank),
  );
  const hits = cast(equal(x!, top!), x!.dtype);
  return [mul(hits, div(ct!, sum(hits, attrs.axes, { keepDims: true })))];
};

const reduced =
  (rule: (ct: Value, x: Value, count: number) => Value): Rule<"sum"> =>
  ({ cotangents, inputs: [x], attrs }) => {
    const ct = attrs.keepDims ? cotangents[0]! : unreduce(cotangents[0]!, attrs.axes, x!.rank);
    const count = attrs.axes.reduce((n, axis) => n * (x!.shape[axis] as number), 1);
    return [expand(rule(ct, x!, count), x!.shape)];
  };

/** Elements spread `step` apart along an axis, zeros between; the last has none after it. */
function dilate(x: Value, axis: number, step: number): Value {
  if (step === 1) return x;
  const size = x.shape[axis] as number;
  const apart = unsqueeze(x, axis + 1);
  const after = apart.shape.map((_, i) => (i === axis + 1 ? step - 1 : 0));
  const padded = pad(
    apart,
    apart.shape.map(() => 0),
    after,
  );
  const joined = reshape(
    padded,
    x.shape.map((dim, i) => (i === axis ? size * step : dim)),
  );
  return slice(joined, axis, 0, Math.max(0, (size - 1) * step + 1));
}

const sliceRule: Rule<"slice"> = ({ cotangents, inputs: [x], attrs }) => {
  let ct = cotangents[0]!;
  const before: number[] = [];
  const after: number[] = [];
  for (let axis = 0; axis < x!.rank; axis++) {
    const dim = x!.shape[axis]!;
    if (attrs.starts[axis] === 0 && attrs.ends[axis] === dim && attrs.steps[axis] === 1) {
      before.push(0);
      after.push(0);
      continue;
    }
    const step = Math.abs(attrs.steps[axis]!);
    const count = ct.shape[axis] as number;
    let start = attrs.starts[axis]!;
    if (attrs.steps[axis]! < 0) {
      ct = flip(ct, axis);
      start -= (count - 1) * step;
    }
    ct = dilate(ct, axis, step);
    const used = count === 0 ? 0 : (count - 1) * step + 1;
    if (count === 0) start = 0;
    before.push(start);
    after.push((dim as number) - start - used);
  }
  return [pad(ct, before, after)];
};

/** The input's cotangent of a gather: updates added where they were read. */
const gatherRule: Rule<"gather"> = ({ cotangents, inputs: [x, indices], attrs: { axis } }) => {
  const ct = cotangents[0]!;
  const rank = x!.rank;
  const inner = Array.from({ length: indices!.rank }, (_, i) => axis + i);
  const outer = Array.from({ length: ct.rank }, (_, i) => i).filter((i) => !inner.includes(i));
  const updates = transpose(ct, [...inner, ...outer]);
  const front = [axis, ...Array.from({ length: rank }, (_, i) => i).filter((i) => i !== axis)];
  const zeros = expand(
    ct.graph.lift(0, ct.dtype),
    front.map((i) => x!.shape[i]!),
  );
  const added = scatterNd(zeros, unsqueeze(indices!, -1), updates, "add");
  const back = front.map((_, i) => front.indexOf(i));
  return [transpose(added, back), undefined];
};

/** Reads x at indices (…, depth) of its first axes. */
function gatherNd(x: Value, indices: Value): Value {
  const depth = indices.shape.at(-1) as number;
  if (depth === 0) return expand(x, [...indices.shape.slice(0, -1), ...x.shape]);
  const lead = toStatic(x.shape.slice(0, depth), "gatherNd");
  const strides = lead.map((_, i) => sizeOf(lead.slice(i + 1)));
  // Negative indices count from the end of their own axis; with one axis gather sees to that.
  const sizes = Tensor.from(lead, [depth], "int32");
  const own = depth === 1 ? indices : where(less(indices, 0), add(indices, sizes), indices);
  const flat = sum(mul(own, Tensor.from(strides, [depth], "int32")), -1);
  return gather(reshape(x, [sizeOf(lead), ...x.shape.slice(depth)]), flat, 0);
}

const rules: { readonly [O in OpName]?: Rule<O> } = {
  neg: unary((ct) => neg(ct)),
  abs: unary((ct, x) => mul(ct, sign(x))),
  exp: unary((ct, _, y) => mul(ct, y)),
  log: unary((ct, x) => div(ct, x)),
  sqrt: unary((ct, _, y) => div(mul(ct, 0.5), y)),
  sin: unary((ct, x) => mul(ct, cos(x))),
  cos: unary((ct, x) => neg(mul(ct, sin(x)))),
  tanh: unary((ct, _, y) => mul(ct, sub(1, square(y)))),
  erf: unary((ct, x) => mul(ct, mul(exp(neg(square(x))), 2 / Math.sqrt(Math.PI)))),
  sigmoid: unary((ct, _, y) => mul(ct, mul(y, sub(1, y)))),
  reciprocal: unary((ct, _, y) => neg(mul(ct, square(y)))),
  // From the result, so that the input need not be kept.
  relu: unary((ct, _, y) => mul(ct, cast(less(0, y), ct.dtype))),
  softplus: unary((ct, x) => mul(ct, sigmoid(x))),
  add: binary(
    (ct) => ct,
    (ct) => ct,
  ),
  sub: binary(
    (ct) => ct,
    (ct) => neg(ct),
  ),
  mul: binary(
    (ct, _, b) => mul(ct, b),
    (ct, a) => mul(ct, a),
  ),
  div: binary(
    (ct, _, b) => div(ct, b),
    (ct, _, b, y) => neg(div(mul(ct, y), b)),
  ),
  pow: binary(
    (ct, a, b) => mul(ct, mul(b, pow(a, sub(exponentFor(a, b), 1)))),
    (ct, a, _, y) =>
      mul(
        ct,
        mul(
          y,
          where(
            less(0, a),
            log(where(less(0, a), a, expand(a.graph.lift(1, a.dtype), a.shape))),
            zerosLike(a),
          ),
        ),
      ),
  ),
  mod: binary(
    (ct) => ct,
    (ct, a, b) => neg(mul(ct, div(sub(a, mod(a, b)), b))),
  ),
  min: binary(winner(less), (ct, a, b) => winner(less)(ct, b, a)),
  max: binary(
    winner((a, b) => less(b, a)),
    (ct, a, b) => winner((p, q) => less(q, p))(ct, b, a),
  ),
  where: ({ cotangents: [ct], inputs: [condition, a, b], needs }) => [
    undefined,
    needs(1) ? unbroadcast(where(condition!, ct!, zerosLike(ct!)), a!.shape) : undefined,
    needs(2) ? unbroadcast(where(condition!, zerosLike(ct!), ct!), b!.shape) : undefined,
  ],
  cast: ({ cotangents: [ct], inputs: [x] }) => [
    x!.dtype.startsWith("float") ? cast(ct!, x!.dtype) : undefined,
  ],
  sum: reduced((ct) => ct),
  mean: reduced((ct, _, count) => mul(ct, 1 / count)) as unknown as Rule<"mean">,
  reduceMax: extreme,
  reduceMin: extreme as unknown as Rule<"reduceMin">,
  prod: ({ cotangents, inputs: [x], attrs }) => {
    const ct = attrs.keepDims ? cotangents[0]! : unreduce(cotangents[0]!, attrs.axes, x!.rank);
    return [mul(ct, otherFactors(x!, attrs.axes))];
  },
  cumSum: ({ cotangents: [ct], attrs }) => [
    cumSum(ct!, attrs.axis, { exclusive: attrs.exclusive, reverse: !attrs.reverse }),
  ],
  topK: ({ cotangents: [ct], inputs: [x], outputs: [, indices], attrs }) => [
    ct ? scatterElements(zerosLike(x!), indices!, ct, attrs.axis, "add") : undefined,
  ],
  reshape: ({ cotangents: [ct], inputs: [x] }) => [reshape(ct!, x!.shape)],
  transpose: ({ cotangents: [ct], attrs: { perm } }) => [
    transpose(
      ct!,
      perm.map((_, i) => perm.indexOf(i)),
    ),
  ],
  expand: ({ cotangents: [ct], inputs: [x] }) => [unbroadcast(ct!, x!.shape)],
  slice: sliceRule,
  concat: ({ cotangents: [ct], inputs, attrs: { axis }, needs }) => {
    let start = 0;
    return inputs.map((input, i) => {
      const size = input.shape[axis] as number;
      const from = start;
      start += size;
      return needs(i) ? slice(ct!, axis, from, from + size) : undefined;
    });
  },
  split: ({ cotangents, outputs, attrs }) => [
    concat(
      outputs.map((output, i) => cotangents[i] ?? zerosLike(output)),
      attrs.axis,
    ),
  ],
  pad: ({ cotangents: [ct], inputs: [x], attrs }) => [
    emit("slice", [ct!], {
      starts: attrs.before,
      ends: x!.shape.map((dim, i) =>
        attrs.before[i] === 0 && attrs.after[i] === 0 ? dim : attrs.before[i]! + (dim as number),
      ),
      steps: x!.shape.map(() => 1),
    }),
  ],
  gather: gatherRule,
  gatherElements: ({ cotangents: [ct], inputs: [x, indices], attrs }) => [
    scatterElements(zerosLike(x!), indices!, ct!, attrs.axis, "add"),
    undefined,
  ],
  scatterNd: ({ cotangents: [ct], inputs: [, indices, updates], attrs, needs }) => [
    attrs.reduction === "add" ? ct : scatterNd(ct!, indices!, zerosLike(updates!)),
    undefined,
    needs(2) ? gatherNd(ct!, indices!) : undefined,
  ],
  scatterElements: ({ cotangents: [ct], inputs: [, indices, updates], attrs, needs }) => [
    attrs.reduction === "add"
      ? ct
      : scatterElements(ct!, indices!, zerosLike(updates!), attrs.axis),
    undefined,
    needs(2) ? gatherElements(ct!, indices!, attrs.axis) : undefined,
  ],
  dot: ({ cotangents: [ct], inputs: [a, b], attrs: { transA, transB, alpha }, needs }) => [
    needs(0)
      ? transA
        ? dot(b!, ct!, { transA: transB, transB: true, alpha })
        : dot(ct!, b!, { transB: !transB, alpha })
      : undefined,
    needs(1)
      ? transB
        ? dot(ct!, a!, { transA: true, transB: transA, alpha })
        : dot(a!, ct!, { transA: !transA, alpha })
      : undefined,
  ],
  conv: ({ cotangents: [ct], inputs: [x, weight], attrs, needs }) => [
    needs(0) ? convInputGradient(ct!, weight!, x!, attrs) : undefined,
    needs(1) ? convWeightGradient(x!, ct!, weight!, attrs) : undefined,
  ],
  convTranspose: ({ cotangents: [ct], inputs: [x, weight], attrs, needs }) => {
    const { strides, pads, dilations, groups } = attrs;
    const same = { strides, pads, dilations, groups };
    return [
      needs(0) ? convWindows(ct!, weight!, x!, same) : undefined,
      needs(1) ? convWeightGradient(ct!, x!, weight!, same) : undefined,
    ];
  },
  maxPool: ({ cotangents: [ct], inputs: [x], outputs: [, indices] }) => {
    const size = sizeOf(toStatic(x!.shape, "maxPool"));
    const zeros = expand(ct!.graph.lift(0, ct!.dtype), [size]);
    const flat = scatterElements(zeros, reshape(indices!, [-1]), reshape(ct!, [-1]), 0, "add");
    return [reshape(flat, x!.shape)];
  },
  scan: scanRule,
  call: ({ inputs, outputs, cotangents, attrs }) => attrs.vjp(inputs, outputs, cotangents),
  ...fusedRules,
  groupNorm: groupNormRule,
  batchNorm: batchNormRule,
  resize: resizeRule,
  gridSample: gridSampleRule,
  lstm: lstmRule,
  gru: gruRule,
  linearRecurrence: recurrenceRule,
  selectiveScan: selectiveScanRule,
  selectiveScanGradient: throughExpansion,
  ssd: ssdRule,
};

/** Operators through which no derivative passes. */
const flat: ReadonlySet<OpName> = new Set<OpName>([
  "sign",
  "floor",
  "ceil",
  "round",
  "equal",
  "less",
  "lessOrEqual",
  "and",
  "or",
  "xor",
  "not",
  "bitAnd",
  "bitOr",
  "bitXor",
  "isNan",
  "argMax",
  "argMin",
  "stopGradient",
  "iota",
  "constant",
  "input",
  "dequantize",
]);

/**
 * Cotangents of a node's inputs.
 * @throws UnsupportedError for an operator without a derivative.
 */
export function applyRule(context: VjpContext<OpName>): Cotangents {
  const { op } = context.node;
  if (flat.has(op)) return [];
  const rule = rules[op] as Rule<OpName> | undefined;
  if (rule) return rule(context);
  if (isFused(op)) return throughExpansion(context);
  throw new UnsupportedError(`grad: operator "${op}" has no derivative — stop the gradient there.`);
}
