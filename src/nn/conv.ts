/** Convolutions over one or two spatial axes, channels second. */
import { OptionError, ShapeError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { concat, pad, reshape } from "../ir/layout.ts";
import { conv, convTranspose } from "../ir/linear.ts";
import { showShape, sizeOf } from "../tensor/shape.ts";
import { kaimingUniform, uniform } from "./init.ts";
import { type Context, type Initializer, Module, type Slot } from "./module.ts";

/** One number for all spatial axes, or one each. */
export type PerAxis = number | readonly number[];

export interface ConvOptions {
  /** Default 1. */
  readonly stride?: PerAxis;
  /** Zeros on both sides; default 0. */
  readonly padding?: PerAxis;
  /** Default 1. */
  readonly dilation?: PerAxis;
  /** Channels fall into this many parts that do not mix; as many as inputs is depthwise. Default 1. */
  readonly groups?: number;
  /** Default true. */
  readonly bias?: boolean;
  readonly init?: Initializer;
}

export interface ConvTransposeOptions extends ConvOptions {
  /** Added to one side of the output size; default 0. */
  readonly outputPadding?: PerAxis;
}

function axes(name: string, value: PerAxis | undefined, spatial: number, least: number): number[] {
  const missing = least;
  const list =
    typeof value === "object" ? [...value] : new Array<number>(spatial).fill(value ?? missing);
  if (list.length !== spatial || list.some((n) => !Number.isInteger(n) || n < least)) {
    throw new OptionError(
      `conv: ${name} must be ${spatial} whole numbers from ${least}, got [${list.join(", ")}].`,
    );
  }
  return list;
}

export interface ConvGeometry {
  readonly stride: number[];
  readonly padding: number[];
  readonly dilation: number[];
  readonly groups: number;
}

/** What all convolutions share; a subclass fixes the number of spatial axes. */
export abstract class AnyConv extends Module {
  readonly inChannels: number;
  readonly outChannels: number;
  readonly kernel: readonly number[];
  readonly weight: Slot;
  readonly bias: Slot | undefined;
  readonly geometry: ConvGeometry;

  constructor(
    spatial: number,
    transposed: boolean,
    inChannels: number,
    outChannels: number,
    kernel: PerAxis,
    options: ConvOptions,
  ) {
    super();
    const groups = options.groups ?? 1;
    if (!Number.isInteger(groups) || groups < 1 || inChannels % groups || outChannels % groups) {
      throw new OptionError(
        `conv: groups must divide ${inChannels} input and ${outChannels} output channels, got ${groups}.`,
      );
    }
    this.inChannels = inChannels;
    this.outChannels = outChannels;
    this.kernel = axes("kernel", kernel, spatial, 1);
    this.geometry = {
      stride: axes("stride", options.stride, spatial, 1),
      padding: axes("padding", options.padding, spatial, 0),
      dilation: axes("dilation", options.dilation, spatial, 1),
      groups,
    };
    const [first, second] = transposed ? [inChannels, outChannels] : [outChannels, inChannels];
    const shape = [first, second / groups, ...this.kernel];
    this.weight = this.parameter("weight", shape, options.init ?? kaimingUniform);
    // PyTorch bounds the bias by the weight's fan in.
    const bound = 1 / Math.sqrt((second / groups) * sizeOf(this.kernel));
    this.bias =
      options.bias === false
        ? undefined
        : this.parameter("bias", [outChannels], options.init ?? uniform(bound));
  }

  protected check(x: Value): void {
    if (x.rank !== 2 + this.kernel.length || x.shape[1] !== this.inChannels) {
      const spatial = this.kernel.length === 1 ? "L" : "H, W";
      throw new ShapeError(
        `conv: needs (N, ${this.inChannels}, ${spatial}), got ${showShape(x.shape)}.`,
      );
    }
  }

  protected finish(context: Context, x: Value, y: Value): Value {
    const ones = this.kernel.map(() => 1);
    const biased = this.bias
      ? add(y, reshape(context.get(this.bias), [1, this.outChannels, ...ones]))
      : y;
    return context.site(this, x, biased);
  }
}

abstract class PlainConv extends AnyConv {
  forward(context: Context, x: Value): Value {
    this.check(x);
    return this.finish(context, x, conv(x, context.get(this.weight), this.geometry));
  }
}

abstract class TransposedConv extends AnyConv {
  readonly #outputPadding: number[];

  constructor(
    spatial: number,
    inChannels: number,
    outChannels: number,
    kernel: PerAxis,
    options: ConvTransposeOptions,
  ) {
    super(spatial, true, inChannels, outChannels, kernel, options);
    this.#outputPadding = axes("outputPadding", options.outputPadding, spatial, 0);
  }

  forward(context: Context, x: Value): Value {
    this.check(x);
    const options = { ...this.geometry, outputPadding: this.#outputPadding };
    return this.finish(context, x, convTranspose(x, context.get(this.weight), options));
  }
}

/**
 * Cross-correlation: (N, C, L) → (N, O, L'), L' = ⌊(L + 2 padding - dilation (kernel - 1) - 1) / stride⌋ + 1.
 * Parameters: weight (O, C/groups, kernel), bias (O,).
 * @throws OptionError when groups do not divide the channels.
 */
export class Conv1d extends PlainConv {
  constructor(inChannels: number, outChannels: number, kernel: PerAxis, options: ConvOptions = {}) {
    super(1, false, inChannels, outChannels, kernel, options);
  }
}

/**
 * Cross-correlation: (N, C, H, W) → (N, O, H', W'), sizes as in `Conv1d`.
 * Parameters: weight (O, C/groups, kernelH, kernelW), bias (O,).
 * @throws OptionError when groups do not divide the channels.
 */
export class Conv2d extends PlainConv {
  constructor(inChannels: number, outChannels: number, kernel: PerAxis, options: ConvOptions = {}) {
    super(2, false, inChannels, outChannels, kernel, options);
  }
}

/**
 * The transpose of `Conv1d`: (N, C, L) → (N, O, L'),
 * L' = (L - 1) stride - 2 padding + dilation (kernel - 1) + outputPadding + 1.
 * Parameters: weight (C, O/groups, kernel), bias (O,).
 */
export class ConvTranspose1d extends TransposedConv {
  constructor(
    inChannels: number,
    outChannels: number,
    kernel: PerAxis,
    options: ConvTransposeOptions = {},
  ) {
    super(1, inChannels, outChannels, kernel, options);
  }
}

/**
 * The transpose of `Conv2d`: (N, C, H, W) → (N, O, H', W'), sizes as in `ConvTranspose1d`.
 * Parameters: weight (C, O/groups, kernelH, kernelW), bias (O,).
 */
export class ConvTranspose2d extends TransposedConv {
  constructor(
    inChannels: number,
    outChannels: number,
    kernel: PerAxis,
    options: ConvTransposeOptions = {},
  ) {
    super(2, inChannels, outChannels, kernel, options);
  }
}

/**
 * x (N, C, L) filtered per channel by its own past: y_t = Σ_i w_i x_{t - K + 1 + i}, zeros before the
 * first step. Weight (C, 1, K), bias (C,).
 * @param past the K - 1 inputs before the first step, (N, C, K - 1)
 */
export function causalDepthwise(x: Value, weight: Value, bias?: Value, past?: Value): Value {
  const [channels, , kernel] = weight.shape as readonly number[];
  const zeros = [0, 0, kernel! - 1];
  const padded = past ? concat([past, x], 2) : pad(x, zeros, [0, 0, 0]);
  const y = conv(padded, weight, { groups: channels! });
  return bias ? add(y, reshape(bias, [1, channels!, 1])) : y;
}
