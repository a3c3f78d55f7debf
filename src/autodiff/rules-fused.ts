/** Derivatives of the fused operators over rows: activations, softmax, norms of features, losses. */
import type { OpName } from "../ir/attrs.ts";
import { add, cast, equal, exp, mul, neg, sigmoid, square, sub, where } from "../ir/elementwise.ts";
import { emit } from "../ir/emit.ts";
import { geluCubic, geluScale } from "../ir/expand.ts";
import { scatterElements } from "../ir/indexing.ts";
import { unsqueeze } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { mean, sum } from "../ir/reduce.ts";
import { type Rule, throughExpansion } from "./rule.ts";

export const fusedRules: { readonly [O in OpName]?: Rule<O> } = {
  softmax: ({ cotangents: [ct], outputs: [y], attrs: { axis } }) => [
    mul(y!, sub(ct!, sum(mul(ct!, y!), axis, { keepDims: true }))),
  ],
  logSoftmax: ({ cotangents: [ct], outputs: [y], attrs: { axis } }) => [
    sub(ct!, mul(exp(y!), sum(ct!, axis, { keepDims: true }))),
  ],
  gelu: ({ cotangents: [ct], inputs: [x], outputs: [y], attrs }) => {
    if (attrs.approximate === "none") {
      // Φ(x) + x φ(x); Φ is y / x only away from 0, so it is formed anew.
      const density = mul(exp(mul(square(x!), -0.5)), 1 / Math.sqrt(2 * Math.PI));
      const phi = add(mul(emit("erf", [mul(x!, Math.SQRT1_2)], {}), 0.5), 0.5);
      return [mul(ct!, add(phi, mul(x!, density)))];
    }
    // y = x s, s = σ(x (c + c a x²)): y' = s + (y - y s)(c + 3 c a x²)
    const squared = square(x!);
    const s = sigmoid(mul(x!, add(mul(squared, geluScale * geluCubic), geluScale)));
    const slope = add(mul(squared, 3 * geluScale * geluCubic), geluScale);
    return [mul(ct!, add(s, mul(sub(y!, mul(y!, s)), slope)))];
  },
  silu: ({ cotangents: [ct], inputs: [x], outputs: [y] }) => {
    // y = x s: y' = s + y (1 - s) = s + y - y s
    const s = sigmoid(x!);
    return [mul(ct!, add(s, sub(y!, mul(y!, s))))];
  },
  layerNorm: (context) => {
    const { cotangents, inputs, outputs, needs } = context;
    if (cotangents[1] || cotangents[2]) return throughExpansion(context);
    const [x, weight] = inputs;
    const [, center, inverse] = outputs;
    const ct = cotangents[0]!;
    const z = mul(sub(x!, center!), inverse!);
    const lead = Array.from({ length: x!.rank - 1 }, (_, i) => i);
    const g = mul(ct, weight!);
    const keep = { keepDims: true };
    return [
      needs(0)
        ? mul(inverse!, sub(sub(g, mul(z, mean(mul(g, z), -1, keep))), mean(g, -1, keep)))
        : undefined,
      needs(1) ? sum(mul(ct, z), lead) : undefined,
      needs(2) ? sum(ct, lead) : undefined,
    ];
  },
  rmsNorm: (context) => {
    const { cotangents, inputs, outputs, needs } = context;
    if (cotangents[1]) return throughExpansion(context);
    const [x, weight] = inputs;
    const ct = cotangents[0]!;
    const z = mul(x!, outputs[1]!);
    const lead = Array.from({ length: x!.rank - 1 }, (_, i) => i);
    const g = mul(ct, weight!);
    return [
      needs(0)
        ? mul(outputs[1]!, sub(g, mul(z, mean(mul(g, z), -1, { keepDims: true }))))
        : undefined,
      needs(1) ? sum(mul(ct, z), lead) : undefined,
    ];
  },
  crossEntropy: (context) => {
    const { cotangents, inputs, outputs, attrs } = context;
    if (cotangents[1]) return throughExpansion(context);
    const targets = inputs[1]!;
    const kept = cast(equal(targets, attrs.ignoreIndex), cotangents[0]!.dtype);
    const row = unsqueeze(mul(cotangents[0]!, sub(1, kept)), 1);
    const safe = where(equal(targets, attrs.ignoreIndex), 0, targets);
    // row · (softmax - one-hot)
    const soft = mul(exp(outputs[1]!), row);
    return [scatterElements(soft, unsqueeze(safe, 1), neg(row), 1, "add"), undefined];
  },
  quantizedLinear: ({ cotangents: [ct], inputs: [, packed, scales], attrs }) => [
    dot(ct!, emit("dequantize", [packed!, scales!], attrs)),
  ],
};
