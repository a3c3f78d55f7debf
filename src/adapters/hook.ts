/**
 * What happens on the host around an optimiser step: a mask is chosen, a schedule moves, numbers are pulled
 * back. The engine calls it; it changes nothing itself and says what is to change.
 */
import type { TensorRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Tensor } from "../tensor/tensor.ts";

/** A step that is about to be made. */
export interface StepAhead {
  /** Steps made so far, and in all. */
  readonly step: number;
  readonly steps: number;
  /** By the seed and the step alone, so that a resumed run draws the same. */
  readonly rng: Rng;
  /** Tensors of the hook's, by name, as they are. */
  readonly buffers: Readonly<Record<string, Tensor>>;
}

/** A step that was made and applied. */
export interface StepMade extends StepAhead {
  /** Of the step, before its update. */
  readonly loss: number;
  /** Trained parameters after the update, where the hook reads them; else empty. Copy to keep. */
  readonly params: Readonly<Record<string, Tensor>>;
  /** Gradients of the step before clipping, where the hook reads them; else empty. */
  readonly gradients: Readonly<Record<string, Tensor>>;
}

/** What is to change; tensors of the same names and shapes replace the old ones. */
export interface StepChanges {
  readonly params?: TensorRecord;
  readonly buffers?: TensorRecord;
  /** The optimiser forgets its moments and counts from 0. */
  readonly resetOptimizer?: true;
  /** What is told of the step, by name. */
  readonly metrics?: Readonly<Record<string, number>>;
}

/** Called around each step of a training. */
export interface StepHook {
  /** Names of the buffers that it changes: every checkpoint holds them. */
  readonly changes: readonly string[];
  /** What `after` looks at; on a device it is fetched at every step. Default: nothing. */
  readonly reads?: { readonly params?: boolean; readonly gradients?: boolean };
  /**
   * Lengths of the phases that the steps fall into, whose sum is `steps`; the learning rate's schedule
   * begins anew with each. Default: one phase.
   */
  phases?(steps: number): readonly number[];
  before?(ahead: StepAhead): Pick<StepChanges, "buffers"> | undefined;
  after?(made: StepMade): StepChanges | undefined;
}
