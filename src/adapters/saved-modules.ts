/** Modules that are trained whole beside an adapter and kept in its folder: PEFT's `modules_to_save`. */
import { OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { Context, Slot, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Adapter } from "./adapter.ts";

const prefix = "base_model.model.";

export interface SavedModulesOptions {
  /** First numbers by the model's paths; default: new ones. */
  readonly params?: Readonly<TensorRecord>;
  /** As PEFT names it: `SEQ_CLS`, `TOKEN_CLS`, `SEQ_2_SEQ_LM`, `FEATURE_EXTRACTION`. Default: the adapter's. */
  readonly taskType?: string;
}

/** Paths of the modules that a name means: the whole path, or its last parts. */
export function modulesNamed(model: PretrainedModel, name: string): string[] {
  return [...model.modules()]
    .map(([path]) => path)
    .filter((path) => path === name || path.endsWith(`.${name}`));
}

/**
 * The adapter, and with it all parameters of the modules whose paths are these names or end with them.
 * @throws OptionError for a name that no module has.
 */
export function withModules(
  adapter: Adapter,
  model: PretrainedModel,
  modules: readonly string[],
  options: SavedModulesOptions = {},
): Adapter {
  const found = new Map<string, Slot>();
  const slots = [...model.slots()];
  for (const name of modules) {
    const roots = modulesNamed(model, name);
    const own = slots.filter(([path]) => roots.some((root) => path.startsWith(`${root}.`)));
    if (own.length === 0) {
      throw new OptionError(`modules_to_save: "${name}" names no module of this ${model.family}.`);
    }
    for (const [path, slot] of own) found.set(path, slot);
  }
  const taskType = options.taskType;
  return {
    ...adapter,
    init: (rng: Rng): TensorRecord => {
      const params = adapter.init(rng);
      const fresh = options.params ?? model.init(rng.fold("modules")).params;
      for (const path of found.keys()) params[prefix + path] = fresh[path]!.clone();
      return params;
    },
    context: (values: ValueRecord) => {
      const inner = adapter.context(values);
      const replace = new Map<Slot, (context: Context) => Value>(inner.replace);
      for (const [path, slot] of found) replace.set(slot, () => values[prefix + path]!);
      return { ...inner, replace };
    },
    merge: (base, params, buffers) => {
      const merged = adapter.merge(base, params, buffers);
      for (const path of found.keys()) merged[path] = params[prefix + path]!;
      return merged;
    },
    config: (numbers) => ({
      ...adapter.config(numbers),
      modules_to_save: modules.length > 0 ? [...modules] : null,
      ...(taskType !== undefined && { task_type: taskType }),
    }),
  };
}
