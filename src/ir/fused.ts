/** Operators that targets have kernels for, each defined by what it stands for in `expand.ts`. */
import { normalizeAxis } from "../tensor/shape.ts";
import type { QuantizedAttrs } from "./attrs.ts";
import { emit, emitAll } from "./emit.ts";
import { graphFor, type Operand, type Value } from "./graph.ts";

export function softmax(x: Operand, axis = -1): Value {
  const value = graphFor("softmax", [x]).lift(x);
  return emit("softmax", [value], { axis: normalizeAxis("softmax", axis, value.rank) });
}

export function logSoftmax(x: Operand, axis = -1): Value {
  const value = graphFor("logSoftmax", [x]).lift(x);
  return emit("logSoftmax", [value], { axis: normalizeAxis("logSoftmax", axis, value.rank) });
}

/** x Φ(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415); "tanh" is the form GPT-2 uses. */
export function gelu(x: Operand, approximate: "none" | "tanh" = "none"): Value {
  return emit("gelu", [x], { approximate });
}

/** x σ(x), also called swish. */
export function silu(x: Operand): Value {
  return emit("silu", [x], {});
}

/** (x - mean) / √(variance + ε) · weight + bias over the last axis (Ba et al. 2016). */
export function layerNorm(x: Operand, weight: Operand, bias: Operand, epsilon = 1e-5): Value {
  return emit("layerNorm", [x, weight, bias], { epsilon });
}

/** x / √(mean x² + ε) · weight over the last axis (Zhang and Sennrich 2019). */
export function rmsNorm(x: Operand, weight: Operand, epsilon = 1e-6): Value {
  return emit("rmsNorm", [x, weight], { epsilon });
}

/** -log softmax(logits)[target] per row: logits (N, V), targets (N,) int32 → (N,); 0 where ignored. */
export function crossEntropyRows(logits: Operand, targets: Operand, ignoreIndex = -100): Value {
  return emitAll("crossEntropy", [logits, targets], { ignoreIndex })[0]!;
}

/** x (N, in) × quantised weight (out, in) transposed → (N, out); the weight takes no gradient. */
export function quantizedLinear(
  x: Operand,
  packed: Operand,
  scales: Operand,
  attrs: QuantizedAttrs,
): Value {
  return emit("quantizedLinear", [x, packed, scales], attrs);
}

/** The float32 weight (out, in) that a quantised one stands for. */
export function dequantize(packed: Operand, scales: Operand, attrs: QuantizedAttrs): Value {
  return emit("dequantize", [packed, scales], attrs);
}
