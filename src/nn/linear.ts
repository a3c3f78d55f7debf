import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { reshape } from "../ir/layout.ts";
import { asRows, dot } from "../ir/linear.ts";
import { kaimingUniform, uniform } from "./init.ts";
import { type Context, type Initializer, Module, type Slot } from "./module.ts";

export interface LinearOptions {
  readonly bias?: boolean;
  readonly init?: Initializer;
  /** The weight is stored (in, out) instead of (out, in), as GPT-2's Conv1D does. */
  readonly inputsFirst?: boolean;
}

/** x Wᵀ + b: (…, in) → (…, out). Parameters: weight (out, in), bias (out,). */
export class Linear extends Module {
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly inputsFirst: boolean;
  readonly weight: Slot;
  readonly bias: Slot | undefined;

  constructor(inFeatures: number, outFeatures: number, options: LinearOptions = {}) {
    super();
    this.inFeatures = inFeatures;
    this.outFeatures = outFeatures;
    this.inputsFirst = options.inputsFirst ?? false;
    const shape = this.inputsFirst ? [inFeatures, outFeatures] : [outFeatures, inFeatures];
    this.weight = this.parameter("weight", shape, options.init ?? kaimingUniform);
    this.bias =
      options.bias === false
        ? undefined
        : this.parameter("bias", [outFeatures], options.init ?? uniform(1 / Math.sqrt(inFeatures)));
  }

  forward(context: Context, x: Value): Value {
    const rows = asRows(x);
    let y =
      context.options.linear?.get(this)?.(rows, context) ??
      dot(rows, context.get(this.weight), { transB: !this.inputsFirst });
    if (this.bias) y = add(y, context.get(this.bias));
    y = context.site(this, rows, y);
    return x.rank === 2 ? y : reshape(y, [...x.shape.slice(0, -1), this.outFeatures]);
  }
}
