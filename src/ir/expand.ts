/** What each fused operator stands for: the definition that the reference backend runs. */
import { ShapeError } from "../errors.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { AttrsOf, OpName, PoolAttrs } from "./attrs.ts";
import {
  add,
  cast,
  div,
  equal,
  erf,
  exp,
  log,
  maximum,
  mod,
  mul,
  neg,
  not,
  reciprocal,
  rsqrt,
  sigmoid,
  square,
  stopGradient,
  sub,
} from "./elementwise.ts";
import { emit } from "./emit.ts";
import type { Value } from "./graph.ts";
import { gatherElements } from "./indexing.ts";
import { pad, reshape, squeeze, stack, unsqueeze } from "./layout.ts";
import { dot } from "./linear.ts";
import { expandBatchNorm, expandGroupNorm } from "./norm.ts";
import { expandRecurrence, type RecurrenceForm } from "./recurrence.ts";
import { expandGru, expandLstm } from "./recurrent.ts";
import { max, mean, sum } from "./reduce.ts";
import { expandGridSample, expandResize } from "./resample.ts";
import { expandSelectiveScan, expandSelectiveScanGradient } from "./selective-scan.ts";
import { blockedSelectiveScan, blockedSelectiveScanGradient } from "./selective-scan-blocked.ts";
import { expandSsd } from "./ssd.ts";

/** The forms in which a target wants what has more than one. */
export interface Forms {
  readonly recurrence: RecurrenceForm;
}

/** What the reference backend runs. */
export const plainForms: Forms = { recurrence: "scan" };

type Expand<O extends OpName> = (
  inputs: readonly Value[],
  attrs: AttrsOf[O],
  forms: Forms,
) => readonly Value[];

const keep = { keepDims: true } as const;

function shifted(x: Value, axis: number): Value {
  return sub(x, stopGradient(max(x, axis, keep)));
}

/** tanh form: ½x(1 + tanh u) = x σ(2u), u = √(2/π) (x + 0.044715 x³). */
export const geluScale: number = 2 * Math.sqrt(2 / Math.PI);
export const geluCubic: number = 0.044715;

const table: { readonly [O in OpName]?: Expand<O> } = {
  softmax: ([x], { axis }) => {
    const e = exp(shifted(x!, axis));
    return [div(e, sum(e, axis, keep))];
  },
  logSoftmax: ([x], { axis }) => {
    const z = shifted(x!, axis);
    return [sub(z, log(sum(exp(z), axis, keep)))];
  },
  gelu: ([x], { approximate }) => {
    if (approximate === "none") return [mul(mul(x!, 0.5), add(erf(mul(x!, Math.SQRT1_2)), 1))];
    const inner = add(mul(square(x!), geluScale * geluCubic), geluScale);
    return [mul(x!, sigmoid(mul(x!, inner)))];
  },
  silu: ([x]) => [mul(x!, sigmoid(x!))],
  layerNorm: ([x, weight, bias], { epsilon }) => {
    const center = mean(x!, -1, keep);
    const z = sub(x!, center);
    const inverse = rsqrt(add(mean(square(z), -1, keep), epsilon));
    return [add(mul(mul(z, inverse), weight!), bias!), center, inverse];
  },
  rmsNorm: ([x, weight], { epsilon }) => {
    const inverse = rsqrt(add(mean(square(x!), -1, keep), epsilon));
    return [mul(mul(x!, inverse), weight!), inverse];
  },
  crossEntropy: ([logits, targets], { ignoreIndex }) => {
    const logProbs = emit("logSoftmax", [logits!], { axis: 1 });
    const kept = not(equal(targets!, ignoreIndex));
    // Ignored targets may lie outside the vocabulary: read entry 0 instead.
    const safe = mul(targets!, cast(kept, "int32"));
    const picked = squeeze(gatherElements(logProbs, unsqueeze(safe, 1), 1), 1);
    return [neg(mul(picked, cast(kept, picked.dtype))), logProbs];
  },
  avgPool: ([x], attrs) => {
    const share = attrs.countIncludePad ? undefined : windowCounts(x!, attrs);
    const total = windowSum(x!, attrs);
    const size = attrs.kernel.reduce((a, b) => a * b, 1);
    return [share ? mul(total, share) : mul(total, 1 / size)];
  },
  dequantize: ([packed, scales], attrs) => {
    const { bits, blockSize, inFeatures, outFeatures } = attrs;
    const blocks = inFeatures / blockSize;
    const bytes = cast(packed!, "int32");
    const numbers =
      bits === 8
        ? bytes
        : reshape(stack([mod(bytes, 16), div(bytes, 16)], -1), [outFeatures, blocks, blockSize]);
    const centred = cast(sub(numbers, bits === 8 ? 128 : 8), "float32");
    return [reshape(mul(centred, unsqueeze(scales!, -1)), [outFeatures, inFeatures])];
  },
  quantizedLinear: ([x, packed, scales], attrs) => [
    dot(x!, emit("dequantize", [packed!, scales!], attrs), { transB: true }),
  ],
  groupNorm: expandGroupNorm,
  batchNorm: expandBatchNorm,
  resize: expandResize,
  gridSample: expandGridSample,
  lstm: expandLstm,
  gru: expandGru,
  linearRecurrence: (inputs, attrs, forms) => expandRecurrence(inputs, attrs, forms.recurrence),
  selectiveScan: (inputs, attrs, forms) =>
    isBlocked(inputs, forms)
      ? blockedSelectiveScan(inputs, attrs)
      : expandSelectiveScan(inputs, attrs),
  selectiveScanGradient: (inputs, attrs, forms) =>
    isBlocked(inputs, forms)
      ? blockedSelectiveScanGradient(inputs, attrs)
      : expandSelectiveScanGradient(inputs, attrs),
  ssd: expandSsd,
};

/** Sequences of no steps have no blocks. */
function isBlocked([x]: readonly Value[], forms: Forms): boolean {
  return forms.recurrence === "blocked" && x!.shape[1] !== 0;
}

/** Sum over each window: every position of the kernel as a strided slice. */
function windowSum(x: Value, { kernel, strides, pads }: PoolAttrs): Value {
  const spatial = kernel.length;
  const padded = pad(x, [0, 0, ...pads.slice(0, spatial)], [0, 0, ...pads.slice(spatial)]);
  const out = kernel.map(
    (size, i) => Math.floor(((padded.shape[2 + i] as number) - size) / strides[i]!) + 1,
  );
  let total: Value | undefined;
  const positions = kernel.reduce((a, b) => a * b, 1);
  for (let p = 0; p < positions; p++) {
    const offset: number[] = [];
    for (let i = spatial - 1, rest = p; i >= 0; i--) {
      offset.unshift(rest % kernel[i]!);
      rest = Math.floor(rest / kernel[i]!);
    }
    const part = emit("slice", [padded], {
      starts: [0, 0, ...offset],
      ends: [
        ...padded.shape.slice(0, 2),
        ...offset.map((o, i) => o + (out[i]! - 1) * strides[i]! + 1),
      ],
      steps: [1, 1, ...strides],
    });
    total = total ? add(total, part) : part;
  }
  if (!total) throw new ShapeError("avgPool: the kernel is empty.");
  return total;
}

/** 1 / (elements of each window that are not padding), (1, 1, spatial…). */
function windowCounts(x: Value, attrs: PoolAttrs): Value {
  const sizes = x.shape.slice(2) as number[];
  const ones = Tensor.from(
    new Float64Array(sizes.reduce((a, b) => a * b, 1)).fill(1),
    [1, 1, ...sizes],
    x.dtype,
  );
  return reciprocal(maximum(windowSum(x.graph.lift(ones), attrs), 1));
}

export function isFused(op: OpName): boolean {
  return op in table;
}

/** Adds what a fused operator stands for to the graph being traced; returns all its outputs. */
export function expandNode(
  op: OpName,
  inputs: readonly Value[],
  attrs: AttrsOf[OpName],
  forms: Forms = plainForms,
): readonly Value[] {
  const expand = table[op] as Expand<OpName>;
  return expand(inputs, attrs, forms);
}
