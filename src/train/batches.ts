import type { Example } from "../data/examples.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Batch } from "./program.ts";

/** Sizes that batches take: few, so that few programs are made. */
export function roundUp(size: number, multiple: number): number {
  return Math.max(multiple, Math.ceil(size / multiple) * multiple);
}

export interface BatchShape {
  /** Sequences; missing ones are empty. */
  readonly rows: number;
  /** Lengths are rounded up to a multiple of this; default 16. */
  readonly lengthMultiple?: number;
  /** Positions that the model has: padding ends there. */
  readonly maxLength?: number;
}

/**
 * Examples as one batch: padded at the end, with logits only where there is loss. A token is
 * predicted from the one before it, so an example of n tokens takes n - 1 positions.
 */
export function makeBatch(examples: readonly Example[], shape: BatchShape): Batch {
  const longest = Math.max(...examples.map(({ ids }) => ids.length - 1));
  const padded = roundUp(longest, shape.lengthMultiple ?? 16);
  const length = Math.max(longest, Math.min(padded, shape.maxLength ?? padded));
  const ids = new Int32Array(shape.rows * length);
  const rows: number[] = [];
  const targets: number[] = [];
  examples.forEach((example, row) => {
    ids.set(example.ids.subarray(0, example.ids.length - 1), row * length);
    for (let i = 1; i < example.ids.length; i++) {
      if (!example.mask[i]) continue;
      rows.push(row * length + i - 1);
      targets.push(example.ids[i]!);
    }
  });
  const count = roundUp(rows.length, roundUp(shape.rows * 4, 32));
  const weights = Float32Array.from({ length: count }, (_, i) => (i < rows.length ? 1 : 0));
  const filled = (values: readonly number[]): Int32Array<ArrayBuffer> =>
    Int32Array.from({ length: count }, (_, i) => values[i] ?? 0);
  return {
    ids: new Tensor("int32", [shape.rows, length], ids),
    rows: new Tensor("int32", [count], filled(rows)),
    targets: new Tensor("int32", [count], filled(targets)),
    weights: new Tensor("float32", [count], weights),
  };
}

/** Positions that carry loss. */
export function lossCount(examples: readonly Example[]): number {
  return examples.reduce((sum, { mask }) => sum + mask.reduce((a, b) => a + b, 0), 0);
}
