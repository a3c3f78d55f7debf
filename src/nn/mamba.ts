/**
 * The mixers of Mamba and Mamba-2, with transformers' parameter names.
 *
 * Gu and Dao 2023, arXiv:2312.00752; Dao and Gu 2024, arXiv:2405.21060; the recurrences are in `ssm.ts`.
 */
import { OptionError } from "../errors.ts";
import { add, cast, clamp, exp, less, mul, neg, not, softplus } from "../ir/elementwise.ts";
import { rmsNorm, silu } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { gatherElements, iota } from "../ir/indexing.ts";
import {
  concat,
  expand,
  pad,
  reshape,
  slice,
  split,
  squeeze,
  swapAxes,
  unsqueeze,
} from "../ir/layout.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Conv1d, causalDepthwise } from "./conv.ts";
import { ones } from "./init.ts";
import { Linear } from "./linear.ts";
import { type Context, type Initializer, Module, type Slot } from "./module.ts";
import { selectiveScan, selectiveStep, ssd, ssdStep } from "./ssm.ts";

/** What a mixer keeps between tokens: the last inputs of its convolution, and its state. */
export interface MixerState {
  /** (B, channels, kernel - 1) */
  readonly conv: Value;
  /** Mamba: (B, D, N); Mamba-2: (B, H, P, N). */
  readonly ssm: Value;
}

export interface MixerOptions {
  /** The state before the first token; default zeros. */
  readonly state?: MixerState;
  /** Steps before which all that was is forgotten, state and convolution: bool (B, T). */
  readonly resets?: Value;
  /** Steps of each row that are there, int32 (B,): what follows leaves the state as it is. Default all. */
  readonly lengths?: Value;
}

/** log(1 … N) for each channel (S4D-Real). */
const logStates: Initializer = (_, shape) =>
  Float32Array.from({ length: sizeOf(shape) }, (__, i) => Math.log(1 + (i % shape[1]!)));

/** log(1 … H) */
const logHeads: Initializer = (_, shape) =>
  Float32Array.from({ length: sizeOf(shape) }, (__, i) => Math.log(1 + i));

/** Softplus of it is spread evenly in the logarithm over [0.001, 0.1] (section 3.6). */
const stepBias: Initializer = (rng, shape) =>
  rng.uniforms(sizeOf(shape)).map((u) => {
    const step = Math.max(1e-4, Math.exp(Math.log(0.001) + u * Math.log(100)));
    return step + Math.log(-Math.expm1(-step));
  });

/** The convolution over time and what is left of its inputs for the next call, x (B, T, C). */
function convolve(
  context: Context,
  layer: Conv1d,
  x: Value,
  { state, resets, lengths }: MixerOptions,
): [y: Value, rest: Value] {
  const channelsFirst = swapAxes(x);
  const [batch, channels, length] = channelsFirst.shape as readonly [number, number, number];
  const before = layer.kernel[0]! - 1;
  const weight = context.get(layer.weight);
  const bias = layer.bias && context.get(layer.bias);
  const past = state?.conv;
  const joined = past
    ? concat([past, channelsFirst], 2)
    : pad(channelsFirst, [0, 0, before], [0, 0, 0]);
  const y = resets
    ? convolveWithin(joined, weight, bias, resets)
    : causalDepthwise(channelsFirst, weight, bias, past);
  if (!lengths) return [swapAxes(silu(y)), slice(joined, 2, length)];
  // Step t is column t + before of `joined`: the last steps before `lengths` begin at column `lengths`.
  const columns = add(reshape(lengths, [batch, 1, 1]), reshape(iota(before), [1, 1, before]));
  const rest = gatherElements(joined, expand(columns, [batch, channels, before]), 2);
  return [swapAxes(silu(y)), rest];
}

/** `causalDepthwise` that looks back as far as the last reset: x_{t-j} counts if t-j+1 … t are none. */
function convolveWithin(
  joined: Value,
  weight: Value,
  bias: Value | undefined,
  resets: Value,
): Value {
  const [channels, , kernel] = weight.shape as readonly [number, number, number];
  const [batch, length] = resets.shape as readonly [number, number];
  const taps = reshape(weight, [channels, kernel]);
  const goesOn = reshape(cast(not(resets), joined.dtype), [batch, 1, length]);
  let y: Value | undefined;
  let reach: Value | undefined;
  for (let back = 0; back < kernel; back++) {
    const at = kernel - 1 - back;
    const seen = mul(slice(joined, 2, at, at + length), slice(taps, 1, at, at + 1));
    if (back > 0) {
      const moved = slice(pad(goesOn, [0, 0, back - 1], [0, 0, 0], 1), 2, 0, length);
      reach = reach ? mul(reach, moved) : moved;
    }
    const part = reach ? mul(seen, reach) : seen;
    y = y ? add(y, part) : part;
  }
  return bias ? add(y!, reshape(bias, [channels, 1])) : y!;
}

/** Step sizes (B, T, …) of which those beyond the rows' lengths are 0: such a step changes no state. */
function within(delta: Value, lengths: Value | undefined): Value {
  if (!lengths) return delta;
  const [, length] = delta.shape as readonly [number, number];
  const isThere = less(reshape(iota(length), [1, length]), unsqueeze(lengths, 1));
  return mul(delta, unsqueeze(cast(isThere, delta.dtype), 2));
}

export interface MambaOptions {
  /** States of a channel; 16 in the released models. */
  readonly stateSize: number;
  /** Inner channels over dModel; default 2. */
  readonly expand?: number;
  /** Width of the convolution; default 4. */
  readonly kernel?: number;
  /** Rank of the step sizes; default ⌈dModel / 16⌉. */
  readonly rank?: number;
  /** Biases of the projections; default false. */
  readonly bias?: boolean;
  readonly convBias?: boolean;
  /** Steps between states kept for the backward pass. */
  readonly chunk?: number;
}

/**
 * (B, T, dModel) → (B, T, dModel). Parameters: in_proj, conv1d, x_proj, dt_proj, out_proj,
 * A_log (D, N), D (D,).
 */
export class MambaMixer extends Module {
  readonly in_proj: Linear;
  readonly conv1d: Conv1d;
  readonly x_proj: Linear;
  readonly dt_proj: Linear;
  readonly out_proj: Linear;
  readonly aLog: Slot;
  readonly skip: Slot;
  readonly #sizes: readonly [rank: number, states: number];
  readonly #chunk: number | undefined;

  constructor(dModel: number, options: MambaOptions) {
    super();
    const inner = dModel * (options.expand ?? 2);
    const rank = options.rank ?? Math.ceil(dModel / 16);
    const { stateSize, kernel = 4, bias = false } = options;
    this.#sizes = [rank, stateSize];
    this.#chunk = options.chunk;
    this.aLog = this.parameter("A_log", [inner, stateSize], logStates);
    this.skip = this.parameter("D", [inner], ones);
    const conv = { groups: inner, bias: options.convBias ?? true };
    this.conv1d = this.child("conv1d", new Conv1d(inner, inner, kernel, conv));
    this.in_proj = this.child("in_proj", new Linear(dModel, 2 * inner, { bias }));
    this.x_proj = this.child("x_proj", new Linear(inner, rank + 2 * stateSize, { bias: false }));
    this.dt_proj = this.child("dt_proj", new StepSizes(rank, inner));
    this.out_proj = this.child("out_proj", new Linear(inner, dModel, { bias }));
  }

  forward(context: Context, x: Value, options: MixerOptions = {}): { y: Value; state: MixerState } {
    const inner = this.conv1d.inChannels;
    const [u, gate] = split(this.in_proj.forward(context, x), [inner, inner]);
    const [mixed, conv] = convolve(context, this.conv1d, u!, options);
    const [rank, states] = this.#sizes;
    const [low, b, c] = split(this.x_proj.forward(context, mixed), [rank, states, states]);
    const delta = within(softplus(this.dt_proj.forward(context, low!)), options.lengths);
    const parts = { x: mixed, delta, b: b!, c: c! };
    const a = neg(exp(context.get(this.aLog)));
    const skip = context.get(this.skip);
    const [y, ssm] = this.#recur(parts, a, skip, options);
    return { y: this.out_proj.forward(context, mul(y, silu(gate!))), state: { conv, ssm } };
  }

  #recur(
    parts: { x: Value; delta: Value; b: Value; c: Value },
    a: Value,
    skip: Value,
    options: MixerOptions,
  ): [y: Value, state: Value] {
    const initial = options.state?.ssm;
    if (parts.x.shape[1] === 1 && initial && !options.resets) {
      const at = (value: Value): Value => squeeze(value, 1);
      const { x, delta, b, c } = parts;
      const step = { x: at(x), delta: at(delta), a, b: at(b), c: at(c), skip };
      const [y, state] = selectiveStep(initial, step);
      return [reshape(y, x.shape), state];
    }
    const { y, state } = selectiveScan(
      {
        ...parts,
        a,
        skip,
        ...(initial && { initial }),
        ...(options.resets && { resets: options.resets }),
      },
      this.#chunk === undefined ? {} : { chunk: this.#chunk },
    );
    return [y, state];
  }
}

/** The projection to step sizes; its bias sets their range. */
class StepSizes extends Linear {
  constructor(rank: number, channels: number) {
    super(rank, channels, {
      init: (rng, shape) =>
        shape.length === 1
          ? stepBias(rng, shape)
          : rng.uniforms(sizeOf(shape)).map((u) => (2 * u - 1) / Math.sqrt(rank)),
    });
  }
}

export interface Mamba2Options {
  /** States of a head; 128 in the released models. */
  readonly stateSize: number;
  readonly headDim: number;
  /** Inner channels over dModel; default 2. */
  readonly expand?: number;
  /** Groups of heads that share B and C; default 1. */
  readonly groups?: number;
  /** Width of the convolution; default 4. */
  readonly kernel?: number;
  /** Biases of the projections; default false. */
  readonly bias?: boolean;
  readonly convBias?: boolean;
  /** Under the root of the gated norm; default 1e-5. */
  readonly epsilon?: number;
  /** Least and largest step size; default no limit. */
  readonly stepLimit?: readonly [number, number];
  /** Steps that are one product of matrices. */
  readonly chunk?: number;
}

/** RMSNorm of a gated input, over each group of features. Parameter: weight (features,). */
export class GatedRmsNorm extends Module {
  readonly weight: Slot;
  readonly epsilon: number;
  readonly #size: number;

  constructor(features: number, options: { readonly groups: number; readonly epsilon: number }) {
    super();
    this.weight = this.parameter("weight", [features], ones);
    this.epsilon = options.epsilon;
    this.#size = features / options.groups;
  }

  /** norm(x silu(gate)) · weight: (…, features) each. */
  forward(context: Context, x: Value, gate: Value): Value {
    const weight = context.get(this.weight);
    const gated = mul(x, silu(gate));
    if (weight.shape[0] === this.#size) return rmsNorm(gated, weight, this.epsilon);
    const grouped = reshape(gated, [...x.shape.slice(0, -1), -1, this.#size]);
    const one = expand(x.graph.lift(1, x.dtype), [this.#size]);
    return mul(reshape(rmsNorm(grouped, one, this.epsilon), x.shape), weight);
  }
}

/**
 * (B, T, dModel) → (B, T, dModel). Parameters: in_proj, conv1d, norm, out_proj, A_log (H,), D (H,),
 * dt_bias (H,).
 * @throws OptionError when heads do not divide the inner channels.
 */
export class Mamba2Mixer extends Module {
  readonly in_proj: Linear;
  readonly conv1d: Conv1d;
  readonly norm: GatedRmsNorm;
  readonly out_proj: Linear;
  readonly aLog: Slot;
  readonly skip: Slot;
  readonly stepBias: Slot;
  readonly #inner: number;
  readonly #heads: number;
  readonly #options: Mamba2Options;

  constructor(dModel: number, options: Mamba2Options) {
    super();
    const { stateSize, headDim, groups = 1, kernel = 4, bias = false } = options;
    const inner = dModel * (options.expand ?? 2);
    const heads = inner / headDim;
    if (!Number.isInteger(heads) || heads % groups !== 0) {
      throw new OptionError(
        `mamba2: headDim ${headDim} must divide ${inner} inner channels into heads, and ${groups} groups the heads.`,
      );
    }
    this.#inner = inner;
    this.#heads = heads;
    this.#options = options;
    const channels = inner + 2 * groups * stateSize;
    this.stepBias = this.parameter("dt_bias", [heads], stepBias);
    this.aLog = this.parameter("A_log", [heads], logHeads);
    this.skip = this.parameter("D", [heads], ones);
    const conv = { groups: channels, bias: options.convBias ?? true };
    this.conv1d = this.child("conv1d", new Conv1d(channels, channels, kernel, conv));
    this.in_proj = this.child("in_proj", new Linear(dModel, inner + channels + heads, { bias }));
    this.norm = this.child(
      "norm",
      new GatedRmsNorm(inner, { groups, epsilon: options.epsilon ?? 1e-5 }),
    );
    this.out_proj = this.child("out_proj", new Linear(inner, dModel, { bias }));
  }

  forward(context: Context, x: Value, options: MixerOptions = {}): { y: Value; state: MixerState } {
    const { stateSize, headDim, groups = 1, stepLimit, chunk } = this.#options;
    const [batch, length] = x.shape as readonly [number, number, number];
    const [gate, u, steps] = split(this.in_proj.forward(context, x), [
      this.#inner,
      this.conv1d.inChannels,
      this.#heads,
    ]);
    const [mixed, conv] = convolve(context, this.conv1d, u!, options);
    const shared = groups * stateSize;
    const [values, keys, queries] = split(mixed, [this.#inner, shared, shared]);
    const free = softplus(add(steps!, context.get(this.stepBias)));
    const limited = stepLimit ? clamp(free, stepLimit[0], stepLimit[1]) : free;
    const delta = within(limited, options.lengths);
    const parts = {
      x: reshape(values!, [batch, length, this.#heads, headDim]),
      delta,
      b: reshape(keys!, [batch, length, groups, stateSize]),
      c: reshape(queries!, [batch, length, groups, stateSize]),
    };
    const a = neg(exp(context.get(this.aLog)));
    const skip = context.get(this.skip);
    const initial = options.state?.ssm;
    let y: Value;
    let ssm: Value;
    if (length === 1 && initial && !options.resets) {
      const at = (value: Value): Value => squeeze(value, 1);
      const step = { x: at(parts.x), delta: at(delta), a, b: at(parts.b), c: at(parts.c), skip };
      [y, ssm] = ssdStep(initial, step);
    } else {
      const run = ssd(
        {
          ...parts,
          a,
          skip,
          ...(initial && { initial }),
          ...(options.resets && { resets: options.resets }),
        },
        chunk === undefined ? {} : { chunk },
      );
      [y, ssm] = [run.y, run.state];
    }
    const flat = reshape(y, [batch, length, this.#inner]);
    const normed = this.norm.forward(context, flat, gate!);
    return { y: this.out_proj.forward(context, normed), state: { conv, ssm } };
  }
}
