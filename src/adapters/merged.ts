/** An adapter written into a model's parameters, and taken out again with the same bits. */
import { StateError, UnsupportedError } from "../errors.ts";
import type { TensorRecord } from "../nn/module.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { LoadedAdapter } from "./adapter.ts";

export interface MergedAdapter {
  /** Parameters that were changed, by path. */
  readonly changed: readonly string[];
  /**
   * Puts back what was there, the same tensors. Adapters that were merged later go first.
   * @throws StateError when it is out already, or another change lies over it.
   */
  unmerge(): void;
}

/**
 * Writes an adapter into parameters: their record gets other tensors, and the old ones are kept until `unmerge`.
 * Programs that hold the old ones on a device do not see it: open them afterwards.
 * @param params the model's, by path; changed in place
 * @throws UnsupportedError for an adapter that cannot be written into weights.
 */
export function mergeInto(params: TensorRecord, loaded: LoadedAdapter): MergedAdapter {
  const { adapter } = loaded;
  if (adapter.mergeable === "no") {
    throw new UnsupportedError(
      `merge: ${adapter.title} (${adapter.kind}) cannot be written into weights — use it beside its base model.`,
    );
  }
  const merged = adapter.merge(params, loaded.params, loaded.buffers);
  const before = new Map<string, Tensor | undefined>();
  for (const [name, tensor] of Object.entries(merged)) {
    before.set(name, params[name]);
    params[name] = tensor;
  }
  let isOut = false;
  return {
    changed: [...before.keys()],
    unmerge(): void {
      if (isOut) throw new StateError("unmerge: the adapter is out already.");
      const covered = Object.keys(merged).find((name) => params[name] !== merged[name]);
      if (covered !== undefined) {
        throw new StateError(
          `unmerge: "${covered}" was changed after this adapter was merged — take out what came later first.`,
        );
      }
      for (const [name, tensor] of before) {
        if (tensor) params[name] = tensor;
        else delete params[name];
      }
      isOut = true;
    },
  };
}
