/** Activations beside those of the graph (relu, gelu, silu, sigmoid, tanh, softplus). */
import { OptionError } from "../errors.ts";
import {
  add,
  clamp,
  exp,
  less,
  maximum,
  minimum,
  mul,
  relu,
  sigmoid,
  softplus,
  sub,
  tanh,
  where,
} from "../ir/elementwise.ts";
import { gelu, silu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { chunk } from "../ir/layout.ts";

/** x where positive, else slope · x (Maas et al. 2013). */
export function leakyRelu(x: Value, slope = 0.01): Value {
  return where(less(0, x), x, mul(x, slope));
}

/** x where positive, else alpha (e^x - 1) (Clevert et al. 2016). */
export function elu(x: Value, alpha = 1): Value {
  // The branch that is not taken must stay finite, or its derivative is 0 · ∞.
  return where(less(0, x), x, mul(sub(exp(minimum(x, 0)), 1), alpha));
}

/** Klambauer et al. 2017: keeps mean 0 and variance 1. */
export function selu(x: Value): Value {
  return mul(elu(x, 1.6732632423543772), 1.0507009873554805);
}

/** x tanh(log(1 + e^x)) (Misra 2019). */
export function mish(x: Value): Value {
  return mul(x, tanh(softplus(x)));
}

/** x σ(1.702 x), CLIP's approximation of gelu. */
export function quickGelu(x: Value): Value {
  return mul(x, sigmoid(mul(x, 1.702)));
}

/** min(max(x, 0), 6) */
export function relu6(x: Value): Value {
  return clamp(x, 0, 6);
}

/** max(x, 0)² (So et al. 2021, "Primer"). */
export function squaredRelu(x: Value): Value {
  const positive = relu(x);
  return mul(positive, positive);
}

/** min(max(x + 3, 0), 6) / 6 (Howard et al. 2019, "MobileNetV3"). */
export function hardSigmoid(x: Value): Value {
  return mul(relu6(add(x, 3)), 1 / 6);
}

/** x · hardSigmoid(x) */
export function hardSwish(x: Value): Value {
  return mul(x, hardSigmoid(x));
}

/** min(max(x, low), high) */
export function hardTanh(x: Value, low = -1, high = 1): Value {
  return clamp(x, low, high);
}

/** x where |x| > threshold, else 0. */
export function hardShrink(x: Value, threshold = 0.5): Value {
  const outside = less(threshold, maximum(x, sub(0, x)));
  return where(outside, x, mul(x, 0));
}

/** Half of the last axis gated by the other: a σ(b) (Dauphin et al. 2017). */
export function glu(x: Value): Value {
  const [a, b] = chunk(x, 2, -1);
  return mul(a!, sigmoid(b!));
}

/** Half of the last axis gated by the other: silu(a) b (Shazeer 2020). */
export function swiglu(x: Value): Value {
  const [a, b] = chunk(x, 2, -1);
  return mul(silu(a!), b!);
}

export type Activation = (x: Value) => Value;

const named: Readonly<Record<string, Activation>> = {
  relu,
  relu6,
  gelu: (x) => gelu(x),
  gelu_new: (x) => gelu(x, "tanh"),
  gelu_pytorch_tanh: (x) => gelu(x, "tanh"),
  quick_gelu: quickGelu,
  silu,
  swish: silu,
  tanh,
  sigmoid,
  elu: (x) => elu(x),
  selu,
  mish,
  leaky_relu: (x) => leakyRelu(x),
  hardswish: hardSwish,
  relu2: squaredRelu,
};

/**
 * The activation that a config.json names.
 * @throws OptionError for a name that is not known.
 */
export function activationNamed(name: string): Activation {
  const known = Object.hasOwn(named, name) ? named[name] : undefined;
  if (known) return known;
  throw new OptionError(
    `activation "${name}" is not known — one of ${Object.keys(named).sort().join(", ")}.`,
  );
}
