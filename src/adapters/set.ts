/**
 * Several adapters of one model at hand: add, remove, activate one or some with weights, switch and go back to the
 * base. What is active is one adapter for training and decoding (`joined.ts`); other adapters for other rows of a
 * batch are a bank's (`bank.ts`).
 *
 * Adapters of the same form, as two LoRAs of one rank on the same layers, give the same program: after switching
 * between them, a decoder that was opened on `live` goes on with the other numbers and compiles nothing.
 */
import { OptionError, StateError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { PretrainedModel } from "../models/model.ts";
import type { TensorRecord } from "../nn/module.ts";
import { showShape } from "../tensor/shape.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Adapter, AnyAdapterKind, LoadedAdapter } from "./adapter.ts";
import { type JoinedPart, joinAdapters, joinedNumbers, ownOf } from "./joined.ts";
import { loadAdapter, type SaveAdapterOptions, saveAdapter } from "./peft.ts";

export interface ActiveAdapter {
  readonly name: string;
  readonly weight: number;
}

export interface AdapterSet {
  /** In the order in which they were added. */
  readonly names: readonly string[];
  /** What is active, in order; also while the set is disabled. */
  readonly active: readonly ActiveAdapter[];
  readonly isEnabled: boolean;
  /** @throws OptionError for a name that is taken, or that is no folder's name. */
  add(name: string, loaded: LoadedAdapter): void;
  /** Lets one go; it is no longer active. */
  remove(name: string): void;
  /** @throws OptionError for a name that is not there. */
  get(name: string): LoadedAdapter;
  /**
   * One name, several, or names with weights, in that order; their weights are 1 where none is given.
   * @throws OptionError for a name that is not there, or a weight that is no number.
   * @throws UnsupportedError for adapters that do not go together; what was active stays so.
   */
  activate(which: string | readonly string[] | Readonly<Record<string, number>>): void;
  /** The base model alone, until `enable`. */
  disable(): void;
  enable(): void;
  /** What is active as one adapter; undefined for the base model alone. The same form gives the same object. */
  loaded(): LoadedAdapter | undefined;
  /**
   * The same for a program that stays: its numbers are those of what is active when it runs.
   * @throws StateError without an active adapter; at a run, when what is active then has another form.
   */
  live(): LoadedAdapter;
  /** Takes back numbers of what is active, as trained. @throws StateError when they are not all there. */
  put(numbers: {
    readonly params: Readonly<TensorRecord>;
    readonly buffers?: Readonly<TensorRecord>;
  }): void;
}

const most = 1024;

/** What a program is compiled for: settings, and names and shapes of numbers. */
function formOf({ adapter, params, buffers = {} }: LoadedAdapter): string {
  const { base_model_name_or_path: _, ...config } = adapter.config({
    params: { ...params },
    buffers: { ...buffers },
  });
  const shapes = (tensors: Readonly<Record<string, Tensor>>): string[] =>
    Object.entries(tensors).map(
      ([name, { dtype, shape }]) => `${name} ${dtype} ${showShape(shape)}`,
    );
  return JSON.stringify([config, adapter.targets, shapes(params), shapes(buffers)]);
}

/** An empty set. */
export function adapterSet(): AdapterSet {
  const members = new Map<string, LoadedAdapter>();
  /** By form, so that the same form gives the same object. */
  const joined = new Map<string, Adapter>();
  let active: readonly ActiveAdapter[] = [];
  let isEnabled = true;

  const member = (name: string): LoadedAdapter => {
    const found = members.get(name);
    if (found) return found;
    const there = [...members.keys()];
    throw new OptionError(
      `set: has no adapter "${name}" — ${there.length === 0 ? "it is empty; add one." : `it has ${there.slice(0, 8).join(", ")}.`}`,
    );
  };
  const partsOf = (list: readonly ActiveAdapter[]): JoinedPart[] =>
    list.map(({ name, weight }) => ({ loaded: member(name), weight }));
  const join = (list: readonly ActiveAdapter[]): { form: string; loaded: LoadedAdapter } => {
    const parts = partsOf(list);
    const isWeighted = parts.some(({ weight }) => weight !== 1);
    const isOne = parts.length === 1 && !isWeighted;
    const form = JSON.stringify([isWeighted, parts.map(({ loaded }) => formOf(loaded))]);
    const adapters = parts.map(({ loaded }) => loaded.adapter);
    const adapter = joined.get(form) ?? (isOne ? adapters[0]! : joinAdapters(adapters, isWeighted));
    joined.set(form, adapter);
    const { params, buffers = {} } = isOne ? parts[0]!.loaded : joinedNumbers(parts, isWeighted);
    return { form, loaded: { adapter, params, buffers } };
  };
  const present = (): ReturnType<typeof join> | undefined =>
    isEnabled && active.length > 0 ? join(active) : undefined;

  return {
    get names() {
      return [...members.keys()];
    },
    get active() {
      return active;
    },
    get isEnabled() {
      return isEnabled;
    },
    add(name, loaded): void {
      if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) {
        throw new OptionError(
          `set: a name must be letters, digits, ".", "_" and "-", 64 at most, got "${name.slice(0, 80)}".`,
        );
      }
      if (members.has(name)) {
        throw new OptionError(`set: "${name}" is there already — remove it first.`);
      }
      if (members.size >= most) {
        throw new OptionError(`set: holds at most ${most} adapters — remove one first.`);
      }
      members.set(name, loaded);
    },
    remove(name): void {
      member(name);
      members.delete(name);
      active = active.filter((one) => one.name !== name);
    },
    get: member,
    activate(which): void {
      const list =
        typeof which === "string"
          ? [{ name: which, weight: 1 }]
          : Array.isArray(which)
            ? (which as readonly string[]).map((name) => ({ name, weight: 1 }))
            : Object.entries(which as Readonly<Record<string, number>>).map(([name, weight]) => ({
                name,
                weight,
              }));
      for (const { name, weight } of list) {
        member(name);
        if (Math.abs(weight) <= 1e6) continue;
        throw new OptionError(
          `set: the weight of "${name}" must be a number from -1e6 to 1e6, got ${weight}.`,
        );
      }
      const twice = list.find(({ name }, i) => list.findIndex((one) => one.name === name) < i);
      if (twice) throw new OptionError(`set: "${twice.name}" is named twice.`);
      if (list.length > 0) join(list);
      active = list;
    },
    disable(): void {
      isEnabled = false;
    },
    enable(): void {
      isEnabled = true;
    },
    loaded: () => present()?.loaded,
    live(): LoadedAdapter {
      const first = present();
      if (!first) throw new StateError("set: no adapter is active — activate one first.");
      const now = (): LoadedAdapter => {
        const found = present();
        if (found?.form === first.form) return found.loaded;
        throw new StateError(
          `set: what is active now ${found ? "has another form than" : "is the base alone, not"} what the program was opened with — open it again.`,
        );
      };
      return {
        adapter: first.loaded.adapter,
        get params() {
          return now().params;
        },
        get buffers() {
          return now().buffers!;
        },
      };
    },
    put({ params, buffers = {} }): void {
      const found = present();
      if (!found) throw new StateError("set: no adapter is active — activate one first.");
      const known = found.loaded;
      const lost = Object.keys(known.params).find((name) => !Object.hasOwn(params, name));
      if (lost !== undefined) {
        throw new StateError(`set: the numbers lack "${lost}" — are they of what is active?`);
      }
      const isOne = active.length === 1 && active[0]!.weight === 1;
      for (const [i, { name }] of active.entries()) {
        const before = member(name);
        const of = (all: Readonly<TensorRecord>): TensorRecord => (isOne ? all : ownOf(all, i));
        const [own, other] = [of(params), { ...before.buffers, ...of(buffers) }];
        members.set(name, {
          adapter: before.adapter,
          params: Object.fromEntries(Object.keys(before.params).map((key) => [key, own[key]!])),
          buffers: Object.fromEntries(
            Object.keys(before.buffers ?? {}).map((key) => [key, other[key]!]),
          ),
        });
      }
    },
  };
}

/** Writes every adapter into a folder of its name below a folder, as PEFT does. */
export async function saveAdapterSet(
  files: Files,
  path: string,
  set: AdapterSet,
  options: Omit<SaveAdapterOptions, "buffers"> = {},
): Promise<void> {
  for (const name of set.names) {
    const { adapter, params, buffers = {} } = set.get(name);
    await saveAdapter(files, files.join(path, name), adapter, params, { ...options, buffers });
  }
}

/**
 * Reads the adapters in the folders below a folder, none of them active.
 * @throws as `loadAdapter`; OptionError when there is none.
 */
export async function loadAdapterSet(
  files: Files,
  path: string,
  model: PretrainedModel,
  kinds?: readonly AnyAdapterKind[],
): Promise<AdapterSet> {
  const set = adapterSet();
  const entries = await files.list(path);
  const folders = entries.filter(({ isDirectory }) => isDirectory).map((entry) => entry.path);
  for (const folder of folders.sort()) {
    if (!(await files.info(files.join(folder, "adapter_config.json")))) continue;
    set.add(folder.split(/[\\/]/).at(-1)!, await loadAdapter(files, folder, model, kinds));
  }
  if (set.names.length === 0) {
    throw new OptionError(`${path}: has no folder with an adapter in it.`);
  }
  return set;
}
