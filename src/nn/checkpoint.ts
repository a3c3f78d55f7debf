import { checkpoint } from "../autodiff/grad.ts";
import type { ValueTree } from "../ir/control.ts";
import type { Value } from "../ir/graph.ts";
import { flatten, unflatten } from "../tensor/tree.ts";
import type { Context, Slot } from "./module.ts";

/**
 * Runs a block, whose result is a tree of values; where the context asks for it, its inside is
 * recomputed in the backward pass. State that the block sets leaves it as one more result.
 */
export function checkpointed<R>(context: Context, x: Value, block: (x: Value) => R): R {
  if (!context.options.checkpoint) return block(x);
  let form: unknown;
  let updated: Slot[] = [];
  const before = new Map(context.updates);
  const outputs = checkpoint((input) => {
    form = block(input);
    const updates = [...context.updates].filter(([slot, value]) => before.get(slot) !== value);
    updated = updates.map(([slot]) => slot);
    return [...flatten<Value>(form as ValueTree).leaves, ...updates.map(([, value]) => value)];
  })(x);
  const count = outputs.length - updated.length;
  updated.forEach((slot, i) => {
    context.set(slot, outputs[count + i]!);
  });
  return unflatten(form, outputs.slice(0, count)) as R;
}
