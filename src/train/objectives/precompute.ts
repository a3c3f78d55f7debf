/** The reference's log-probabilities, computed once before training instead of in every step. */
import type { Backend } from "../../backend/backend.ts";
import { place, releaseAll } from "../../backend/place.ts";
import type { ExampleSet, Preference } from "../../data/set.ts";
import type { Module } from "../../nn/module.ts";
import { type Trainee, TrainProgram } from "../program.ts";
import { dpo, type ReferencedPreference } from "./dpo.ts";

export interface PrecomputeOptions {
  /** Pairs together; default 16. */
  readonly batchSize?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number) => void;
}

/**
 * Preferences with log π_ref of both answers, by the model as it stands before training: for `dpo` and
 * `ipo`. Training then runs no reference; 16 bytes a pair stay in memory. `undefined` when the signal
 * ended it.
 */
export async function precomputeReference(
  trainee: Trainee<Module>,
  set: ExampleSet<Preference>,
  backend: Backend,
  { batchSize = 16, signal, onProgress }: PrecomputeOptions = {},
): Promise<ExampleSet<ReferencedPreference> | undefined> {
  const { maxLength } = trainee;
  const shape = { rows: batchSize, ...(maxLength !== undefined && { maxLength }) };
  const [chosen, rejected] = [new Float64Array(set.count), new Float64Array(set.count)];
  const order = Uint32Array.from({ length: set.count }, (_, i) => i);
  order.sort((a, b) => set.lengths[a]! - set.lengths[b]! || a - b);
  const objective = dpo();
  const frozen = await place(trainee.frozen, backend.device);
  const trained = await place(trainee.trained, backend.device);
  const program = new TrainProgram({ ...trainee, objective, frozen, trained }, backend);
  try {
    for (let start = 0; start < order.length; start += batchSize) {
      if (signal?.aborted) return undefined;
      const indices = order.subarray(start, start + batchSize);
      const batch = objective.batch(await set.get(indices), shape);
      const found = await program.inspect(batch, trained);
      indices.forEach((index, i) => {
        chosen[index] = found["chosen"]!.data[i] as number;
        rejected[index] = found["rejected"]!.data[i] as number;
      });
      onProgress?.(start + indices.length);
    }
  } finally {
    await program.release();
    releaseAll([...Object.values(frozen), ...Object.values(trained)]);
  }
  return {
    ...set,
    async get(indices) {
      const pairs = await set.get(indices);
      return pairs.map((pair, i) => ({
        ...pair,
        reference: { chosen: chosen[indices[i]!]!, rejected: rejected[indices[i]!]! },
      }));
    },
  };
}
