import { checkpoint } from "../autodiff/grad.ts";
import type { ValueTree } from "../ir/control.ts";
import type { Value } from "../ir/graph.ts";
import { flatten, unflatten } from "../tensor/tree.ts";
import type { Context } from "./module.ts";

/**
 * Runs a block, whose result is a tree of values; where the context asks for it, its inside is
 * recomputed in the backward pass.
 */
export function checkpointed<R>(context: Context, x: Value, block: (x: Value) => R): R {
  if (!context.options.checkpoint) return block(x);
  let form: unknown;
  const outputs = checkpoint((input) => {
    form = block(input);
    return flatten<Value>(form as ValueTree).leaves;
  })(x);
  return unflatten(form, outputs) as R;
}
