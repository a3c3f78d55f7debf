/** Normalisation: over features, over groups of channels, over the batch. */
import { OptionError, ShapeError } from "../errors.ts";
import { add, mul, stopGradient } from "../ir/elementwise.ts";
import { layerNorm, rmsNorm } from "../ir/fused.ts";
import type { Value } from "../ir/graph.ts";
import { type Affine, batchNorm, batchNormWith, groupNorm } from "../ir/norm.ts";
import { showShape, sizeOf, toStatic } from "../tensor/shape.ts";
import { constant, ones, zeros } from "./init.ts";
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

export interface RmsNormOptions {
  /** Added under the root; default 1e-6. */
  readonly epsilon?: number;
  /** Added to the stored weight, which starts at 1 less: 1 in Gemma, whose weights start at 0. Default 0. */
  readonly offset?: number;
}

/** Zhang and Sennrich 2019, over the last axis. Parameter: weight (features,). */
export class RmsNorm extends Module {
  readonly weight: Slot;
  readonly epsilon: number;
  readonly offset: number;

  constructor(features: number, options: RmsNormOptions = {}) {
    super();
    this.epsilon = options.epsilon ?? 1e-6;
    this.offset = options.offset ?? 0;
    this.weight = this.parameter("weight", [features], constant(1 - this.offset));
  }

  forward(context: Context, x: Value): Value {
    const weight = context.get(this.weight);
    return rmsNorm(x, this.offset === 0 ? weight : add(weight, this.offset), this.epsilon);
  }
}

/** The scale and shift of a layer that has them. */
function affineOf(context: Context, weight?: Slot, bias?: Slot): Affine | undefined {
  return weight && bias && { weight: context.get(weight), bias: context.get(bias) };
}

function needChannels(where: string, x: Value, channels: number): void {
  if (x.rank < 2 || x.shape[1] !== channels) {
    throw new ShapeError(`${where}: needs (N, ${channels}, spatial…), got ${showShape(x.shape)}.`);
  }
}

export interface GroupNormOptions {
  /** Default 1e-5. */
  readonly epsilon?: number;
  /** Scale and shift per channel; default true. */
  readonly affine?: boolean;
}

/**
 * Wu and He 2018: each group of channels of an example is normalised over its positions; with as many
 * groups as channels it is instance norm. (N, C, spatial…) → the same.
 * Parameters: weight (C,), bias (C,).
 * @throws OptionError when the groups do not divide the channels.
 */
export class GroupNorm extends Module {
  readonly groups: number;
  readonly channels: number;
  readonly epsilon: number;
  readonly weight: Slot | undefined;
  readonly bias: Slot | undefined;

  constructor(groups: number, channels: number, options: GroupNormOptions = {}) {
    super();
    if (!Number.isInteger(groups) || groups < 1 || channels % groups !== 0) {
      throw new OptionError(`groupNorm: groups must divide ${channels} channels, got ${groups}.`);
    }
    this.groups = groups;
    this.channels = channels;
    this.epsilon = options.epsilon ?? 1e-5;
    const affine = options.affine ?? true;
    this.weight = affine ? this.parameter("weight", [channels], ones) : undefined;
    this.bias = affine ? this.parameter("bias", [channels], zeros) : undefined;
  }

  forward(context: Context, x: Value): Value {
    needChannels("groupNorm", x, this.channels);
    toStatic(x.shape, "groupNorm");
    const affine = affineOf(context, this.weight, this.bias);
    return groupNorm(x, this.groups, affine, this.epsilon);
  }
}

export interface BatchNormOptions {
  /** Default 1e-5. */
  readonly epsilon?: number;
  /** Share of the new batch in the running statistics, in (0, 1]; default 0.1. */
  readonly momentum?: number;
  /** Scale and shift per channel; default true. */
  readonly affine?: boolean;
}

/** Ioffe and Szegedy 2015; subclasses say which ranks they take. */
abstract class BatchNorm extends Module {
  readonly channels: number;
  readonly epsilon: number;
  readonly momentum: number;
  readonly weight: Slot | undefined;
  readonly bias: Slot | undefined;
  readonly runningMean: Slot;
  readonly runningVar: Slot;
  readonly batches: Slot;
  readonly #ranks: readonly number[];

  constructor(channels: number, ranks: readonly number[], options: BatchNormOptions) {
    super();
    this.#ranks = ranks;
    this.channels = channels;
    this.epsilon = options.epsilon ?? 1e-5;
    this.momentum = options.momentum ?? 0.1;
    if (!(this.momentum > 0 && this.momentum <= 1)) {
      throw new OptionError(`batchNorm: momentum must be in (0, 1], got ${this.momentum}.`);
    }
    const affine = options.affine ?? true;
    this.weight = affine ? this.parameter("weight", [channels], ones) : undefined;
    this.bias = affine ? this.parameter("bias", [channels], zeros) : undefined;
    this.runningMean = this.state("running_mean", [channels], zeros);
    this.runningVar = this.state("running_var", [channels], ones);
    this.batches = this.state("num_batches_tracked", [], zeros, "int32");
  }

  /**
   * In training the batch's statistics are used, and mixed into the running ones; else the running
   * ones are used.
   * @param statistics which to use, whatever the mode
   * @throws ShapeError for another number of channels or axes, or one number per channel in training.
   */
  forward(
    context: Context,
    x: Value,
    statistics: "batch" | "running" = context.training ? "batch" : "running",
  ): Value {
    needChannels("batchNorm", x, this.channels);
    if (!this.#ranks.includes(x.rank)) {
      throw new ShapeError(
        `batchNorm: needs ${this.#ranks.join(" or ")} dimensions, got ${showShape(x.shape)}.`,
      );
    }
    const affine = affineOf(context, this.weight, this.bias);
    if (statistics === "running") {
      const running = {
        mean: context.get(this.runningMean),
        variance: context.get(this.runningVar),
      };
      return batchNormWith(x, running, affine, this.epsilon);
    }
    const count = sizeOf(toStatic(x.shape, "batchNorm")) / this.channels;
    if (count < 2) {
      throw new ShapeError(
        `batchNorm: training needs more than one number per channel, got ${showShape(x.shape)} — use a larger batch.`,
      );
    }
    const { y, mean, variance } = batchNorm(x, affine, this.epsilon);
    this.#update(context, mean, mul(variance, count / (count - 1)));
    return y;
  }

  /** The running variance takes the unbiased one, as in PyTorch. */
  #update(context: Context, center: Value, unbiased: Value): void {
    for (const [slot, batch] of [
      [this.runningMean, center],
      [this.runningVar, unbiased],
    ] as const) {
      const fresh = stopGradient(batch);
      const kept = mul(context.get(slot), 1 - this.momentum);
      context.set(slot, add(kept, mul(fresh, this.momentum)));
    }
    context.set(this.batches, add(context.get(this.batches), 1));
  }
}

/**
 * Batch normalisation of (N, C) or (N, C, L).
 * Parameters: weight (C,), bias (C,). State: running_mean (C,), running_var (C,),
 * num_batches_tracked () int32.
 */
export class BatchNorm1d extends BatchNorm {
  constructor(channels: number, options: BatchNormOptions = {}) {
    super(channels, [2, 3], options);
  }
}

/**
 * Batch normalisation of (N, C, H, W). Parameters and state as `BatchNorm1d`.
 */
export class BatchNorm2d extends BatchNorm {
  constructor(channels: number, options: BatchNormOptions = {}) {
    super(channels, [4], options);
  }
}
