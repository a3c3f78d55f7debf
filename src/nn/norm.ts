/** Normalisation over features. */
import { layerNorm, rmsNorm } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { ones, zeros } from "./init.ts";
import { type Context, Module, type Slot } from "./module.ts";

/** Ba et al. 2016, over the last axis. Parameters: weight (features,), bias (features,). */
export class LayerNorm extends Module {
  readonly weight: Slot;
  readonly bias: Slot;
  readonly epsilon: number;

  constructor(features: number, options: { readonly epsilon?: number } = {}) {
    super();
    this.epsilon = options.epsilon ?? 1e-5;
    this.weight = this.parameter("weight", [features], ones);
    this.bias = this.parameter("bias", [features], zeros);
  }

  forward(context: Context, x: Value): Value {
    return layerNorm(x, context.get(this.weight), context.get(this.bias), this.epsilon);
  }
}

/** Zhang and Sennrich 2019, over the last axis. Parameter: weight (features,). */
export class RmsNorm extends Module {
  readonly weight: Slot;
  readonly epsilon: number;

  constructor(features: number, options: { readonly epsilon?: number } = {}) {
    super();
    this.epsilon = options.epsilon ?? 1e-6;
    this.weight = this.parameter("weight", [features], ones);
  }

  forward(context: Context, x: Value): Value {
    return rmsNorm(x, context.get(this.weight), this.epsilon);
  }
}
