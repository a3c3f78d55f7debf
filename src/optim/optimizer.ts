/**
 * What an optimiser is: one step for one parameter, written in graph operators. An elementwise one
 * runs as a single SIMD pass; others, and all on a GPU, run as a graph.
 */
import type { Value } from "../ir/graph.ts";
import type { StaticShape } from "../tensor/shape.ts";

export type Values = Readonly<Record<string, Value>>;

export interface Optimizer {
  readonly name: string;
  /** Every element is updated from its own parameter, gradient and state alone. */
  readonly elementwise: boolean;
  /** State kept for a parameter of this shape, zero at first; names as in PyTorch. */
  slots(shape: StaticShape): Readonly<Record<string, StaticShape>>;
  /** Why a parameter of this shape cannot be taken, as the end of a sentence. */
  refusal?(shape: StaticShape): string | undefined;
  /** Numbers of a step, the same for all parameters. `step` counts from 1. */
  scalars(step: number, learningRate: number): Readonly<Record<string, number>>;
  /** The new parameter and state; `scalars` holds rank-0 values. */
  update(
    param: Value,
    gradient: Value,
    slots: Values,
    scalars: Values,
  ): { readonly param: Value; readonly slots: Values };
}
