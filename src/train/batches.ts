import type { Example } from "../data/examples.ts";
import type { Rng } from "../tensor/rng.ts";
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
  /** What is drawn anew in each step of a training, by seed and step; none where a model is judged. */
  readonly rng?: Rng;
}

/**
 * Examples as one batch: padded at the end, with logits only where there is loss. A token is
 * predicted from the one before it, so an example of n tokens takes n - 1 positions. Where an example
 * is several packed into one, attention and positions stay inside each.
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
    ...(examples.some(({ segments }) => segments) && segmentsOf(examples, shape.rows, length)),
    rows: new Tensor("int32", [count], filled(rows)),
    targets: new Tensor("int32", [count], filled(targets)),
    weights: new Tensor("float32", [count], weights),
  };
}

/** Which example a token is of, -1 for padding, and its position there. */
function segmentsOf(
  examples: readonly Example[],
  rows: number,
  length: number,
): Required<Pick<Batch, "segments" | "positions">> {
  const segments = new Int32Array(rows * length).fill(-1);
  const positions = new Int32Array(rows * length);
  examples.forEach(({ ids, segments: own }, row) => {
    for (let i = 0; i < ids.length - 1; i++) {
      const at = row * length + i;
      segments[at] = own?.[i] ?? 0;
      positions[at] = i > 0 && segments[at] === segments[at - 1] ? positions[at - 1]! + 1 : 0;
    }
  });
  return {
    segments: new Tensor("int32", [rows, length], segments),
    positions: new Tensor("int32", [rows, length], positions),
  };
}
