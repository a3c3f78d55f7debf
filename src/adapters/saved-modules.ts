/** Modules that are trained whole beside an adapter and kept in its folder: PEFT's `modules_to_save`. */
import { FormatError, OptionError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import type { PretrainedModel } from "../models/model.ts";
import { isNamed, peftName } from "../models/peft-paths.ts";
import type { Context, Slot, TensorRecord, ValueRecord } from "../nn/module.ts";
import type { Rng } from "../tensor/rng.ts";
import type { Adapter, AdapterNumbers, PrepareScene } from "./adapter.ts";

export interface SavedModulesOptions {
  /** First numbers by the model's paths; default: new ones. */
  readonly params?: Readonly<TensorRecord>;
  /** As PEFT names it: `SEQ_CLS`, `TOKEN_CLS`, `SEQ_2_SEQ_LM`, `FEATURE_EXTRACTION`. Default: the adapter's. */
  readonly taskType?: string;
}

/** Paths of the modules that a name means: the whole path, or its last parts. */
export function modulesNamed(model: PretrainedModel, name: string): string[] {
  return [...model.modules()].map(([path]) => path).filter((path) => isNamed(model, path, name));
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
  const names = new Map([...found.keys()].map((path) => [path, peftName(model, path)]));
  const first = (rng: Rng): TensorRecord => {
    const fresh = options.params ?? model.init(rng.fold("modules")).params;
    return Object.fromEntries([...names].map(([path, name]) => [name, fresh[path]!.clone()]));
  };
  /** The tensors of the modules, and those of the adapter itself. */
  const apart = (tensors: Readonly<TensorRecord>): readonly [TensorRecord, TensorRecord] => {
    const own = new Set(names.values());
    const sides: [TensorRecord, TensorRecord] = [{}, {}];
    for (const [name, tensor] of Object.entries(tensors)) {
      sides[own.has(name) ? 0 : 1][name] = tensor;
    }
    return sides;
  };
  return {
    ...adapter,
    init: (rng: Rng): TensorRecord => ({ ...adapter.init(rng), ...first(rng) }),
    ...(adapter.prepare && {
      prepare: async (scene: PrepareScene): Promise<AdapterNumbers> => {
        const numbers = await adapter.prepare!(scene);
        return { ...numbers, params: { ...numbers.params, ...first(scene.rng) } };
      },
    }),
    ...(adapter.file && {
      file: {
        pack: ({ params, buffers }: AdapterNumbers): TensorRecord => {
          const [modules, rest] = apart(params);
          return { ...adapter.file!.pack({ params: rest, buffers }), ...modules };
        },
        unpack: (stored: Readonly<TensorRecord>, where: string): AdapterNumbers => {
          const [modules, rest] = apart(stored);
          const lost = [...names.values()].find((name) => !modules[name]);
          if (lost !== undefined) throw new FormatError(`${where}: lacks "${lost}".`);
          const numbers = adapter.file!.unpack(rest, where);
          return { ...numbers, params: { ...numbers.params, ...modules } };
        },
      },
    }),
    context: (values: ValueRecord) => {
      const inner = adapter.context(values);
      const replace = new Map<Slot, (context: Context) => Value>(inner.replace);
      for (const [path, slot] of found) replace.set(slot, () => values[names.get(path)!]!);
      return { ...inner, replace };
    },
    merge: (base, params, buffers) => {
      const merged = adapter.merge(base, params, buffers);
      for (const [path, name] of names) merged[path] = params[name]!;
      return merged;
    },
    config: (numbers) => ({
      ...adapter.config(numbers),
      modules_to_save: modules.length > 0 ? [...modules] : null,
      ...(taskType !== undefined && { task_type: taskType }),
    }),
  };
}
