/** What a merge reads, writes and needs in memory, from its plan. */

import { bitsOf } from "../../../io/safetensors-types.ts";
import type { PretrainedModel } from "../../../models/model.ts";
import type { MergePlan, PlannedTensor } from "./plan.ts";
import type { Source } from "./source.ts";

const elements = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** Bytes of all tensors of all models that are read. */
export function inputBytes(plan: MergePlan, sources: readonly Source[]): number {
  let sum = 0;
  for (const { base, inputs } of plan.tensors) {
    for (const { source, name } of base ? [base, ...inputs] : inputs) {
      sum += sources[source].entries.get(name)!.bytes;
    }
  }
  return sum;
}

export function outputBytes(plan: MergePlan): number {
  return plan.tensors.reduce(
    (sum, { shape, dtype }) => sum + (elements(shape) * bitsOf[dtype]) / 8,
    0,
  );
}

/** Inputs, result, what is stored, and a task vector with masks. */
function bytesInWork({ shape, base, inputs, dtype }: PlannedTensor): number {
  const size = elements(shape);
  const count = inputs.length + (base ? 1 : 0);
  return size * (4 * count + 4 + bitsOf[dtype] / 8 + (base ? 4 + inputs.length : 0));
}

export const memoryOf: {
  /** Most bytes of tensors at once: the largest one, or two smaller ones in a row. */
  merge(plan: MergePlan, sources: readonly Source[]): number;
  /** Bytes of trying a model: its weights as float32, and what a session adds. */
  probe(model: PretrainedModel): number;
} = {
  merge: (plan, sources) => {
    const adapters = sources.reduce(
      (sum, { adapter }) =>
        sum + Object.values(adapter?.params ?? {}).reduce((a, { size }) => a + 4 * size, 0),
      0,
    );
    return adapters + Math.max(0, ...plan.tensors.map(bytesInWork));
  },
  probe: (model) => {
    let count = 0;
    for (const [, { shape }] of model.slots()) count += elements(shape);
    // Weights are inputs of the session and shared with it; a few activations and logits come beside.
    return 4 * count * 1.3 + 150e6;
  },
};
