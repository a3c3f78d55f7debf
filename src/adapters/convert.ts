/**
 * Any additive adapter as a plain LoRA, which every other tool reads, banks hold and batches mix.
 *
 *   Δ = merge(0)                      what the adapter adds to a layer's weight
 *   Δ = U Σ Vᵀ,  A = V_kᵀ, B = U_k Σ_k, alpha = k
 *   k = rank, or the least with Σ_{i ≤ k} σ_i² ≥ energy · Σ σ_i²
 *
 * As PEFT's `convert_to_lora`. Differs: a rank above a layer's directions is cut to them, a layer that the adapter
 * leaves as it is gets none, and convolutions and embeddings are converted too. Holds the whole Δ of all layers
 * while it works.
 */
import { OptionError, UnsupportedError } from "../errors.ts";
import type { PretrainedModel } from "../models/model.ts";
import { peftName } from "../models/peft-paths.ts";
import type { TensorRecord } from "../nn/module.ts";
import { type Matrix, matrix, type Svd, topSvd } from "../tensor/linalg/index.ts";
import { sizeOf } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import type { Adapter, LoadedAdapter } from "./adapter.ts";
import { isLoraBase, type LoraBase } from "./lora-layer.ts";
import { loraOf, type PartFactors, updateOf } from "./lora-parts.ts";
import { modulesNamed, withModules } from "./saved-modules.ts";

export interface ConvertOptions {
  /** Rank of every layer; this or `energy`. */
  readonly rank?: number;
  /** Share of each layer's sum of squared singular values that its rank must hold, in (0, 1]. */
  readonly energy?: number;
  readonly signal?: AbortSignal;
  readonly onProgress?: (done: number, of: number) => void;
}

export interface ConvertedLayer {
  readonly path: string;
  readonly rank: number;
  /** Share of the layer's sum of squares that is kept. */
  readonly energy: number;
}

export interface ConvertedAdapter extends LoadedAdapter {
  readonly adapter: Adapter;
  readonly params: TensorRecord;
  readonly layers: readonly ConvertedLayer[];
  /** Share of the sum of squares over all layers that is kept. */
  readonly energy: number;
}

function check({ rank, energy }: ConvertOptions): void {
  if ((rank === undefined) === (energy === undefined)) {
    throw new OptionError("convert: give either a rank, or the share of energy to keep.");
  }
  if (rank !== undefined && !(Number.isInteger(rank) && rank >= 1 && rank <= 65536)) {
    throw new OptionError(`convert: rank must be a whole number from 1 to 65536, got ${rank}.`);
  }
  if (energy !== undefined && !(energy > 0 && energy <= 1)) {
    throw new OptionError(`convert: energy must be a number in (0, 1], got ${energy}.`);
  }
}

const squares = (data: ArrayLike<number>): number => {
  let sum = 0;
  for (let i = 0; i < data.length; i++) sum += data[i]! * data[i]!;
  return sum;
};

/** What an adapter adds to each parameter it changes: written into zeros, which all lie in one piece of memory. */
function changesOf(
  model: PretrainedModel,
  { adapter, params, buffers }: LoadedAdapter,
): TensorRecord {
  const slots = [...model.slots()];
  const most = Math.max(...slots.map(([, { shape }]) => sizeOf(shape)));
  const zeros = new Float32Array(most);
  const base = Object.fromEntries(
    slots.map(([path, { shape }]) => [
      path,
      new Tensor("float32", shape, zeros.subarray(0, sizeOf(shape))),
    ]),
  );
  return adapter.merge(base, params, buffers);
}

/** The first directions of a change, as many as are asked for or hold the energy. */
function directionsOf(change: Matrix, total: number, { rank, energy }: ConvertOptions): Svd {
  const side = Math.min(change.rows, change.columns);
  if (rank !== undefined) return topSvd(change, Math.min(rank, side));
  // Rounding must not ask for directions that are not there.
  const wanted = energy! * total * (1 - 1e-12);
  for (let count = Math.min(8, side); ; count = Math.min(2 * count, side)) {
    const found = topSvd(change, count);
    let [held, k] = [0, 0];
    while (k < count && held < wanted) held += found.s[k++]! ** 2;
    if (held < wanted && count < side) continue;
    return { ...found, s: found.s.slice(0, Math.max(1, k)) };
  }
}

function factorsOf({ u, s, vt }: Svd): PartFactors {
  const rank = s.length;
  const a = matrix(rank, vt.columns, vt.data.slice(0, rank * vt.columns));
  const b = matrix(u.rows, rank);
  for (let j = 0; j < b.rows; j++) {
    for (let i = 0; i < rank; i++) b.data[j * rank + i] = u.data[j * u.columns + i]! * s[i]!;
  }
  return { a, b };
}

/** What is saved whole beside the adapter, by the names of its configuration. */
function savedBeside(
  model: PretrainedModel,
  loaded: LoadedAdapter,
): {
  readonly names: readonly string[];
  readonly paths: ReadonlySet<string>;
  readonly taskType: unknown;
} {
  const { adapter, params, buffers = {} } = loaded;
  const config = adapter.config({ params: { ...params }, buffers: { ...buffers } });
  const names = (config["modules_to_save"] ?? []) as readonly string[];
  const roots = names.flatMap((name) => modulesNamed(model, name));
  const paths = [...model.slots()]
    .map(([path]) => path)
    .filter((path) => roots.some((root) => path.startsWith(`${root}.`)));
  return { names, paths: new Set(paths), taskType: config["task_type"] };
}

/**
 * Converts an adapter to a plain LoRA whose scale is 1; modules saved beside it stay beside it.
 * @throws UnsupportedError for an adapter whose effect is no fixed change of weights, or that changes more than
 * layers which LoRA sits on.
 * @throws OptionError unless either a rank or an energy is given, or when nothing is changed.
 */
export function convertToLora(
  model: PretrainedModel,
  loaded: LoadedAdapter,
  options: ConvertOptions,
): ConvertedAdapter {
  check(options);
  const { adapter, params } = loaded;
  if (!adapter.isAdditive || adapter.mergeable === "no") {
    throw new UnsupportedError(
      `convert: what ${adapter.title} (${adapter.kind}) does is no fixed change of weights, which LoRA could hold — merge it into the model instead (plasticity merge-adapter), where it can be.`,
    );
  }
  const saved = savedBeside(model, loaded);
  const layersByPath = new Map(
    [...model.modules()].filter((entry): entry is [string, LoraBase] => isLoraBase(entry[1])),
  );
  const changes = Object.entries(changesOf(model, loaded)).filter(
    ([name, change]) => !saved.paths.has(name) && squares(change.numbers()) > 0,
  );
  const updates = new Map<string, PartFactors>();
  const layers: ConvertedLayer[] = [];
  let [kept, all] = [0, 0];
  const order = new Map([...layersByPath.keys()].map((path, i) => [path, i]));
  const pathOf = (name: string): string => name.replace(/\.weight$/, "");
  changes.sort(([a], [b]) => (order.get(pathOf(a)) ?? 0) - (order.get(pathOf(b)) ?? 0));
  for (const [name, change] of changes) {
    options.signal?.throwIfAborted();
    const path = pathOf(name);
    const layer = name === path ? undefined : layersByPath.get(path);
    if (!layer) {
      throw new UnsupportedError(
        `convert: ${adapter.title} changes "${name}", which is no weight that LoRA sits on — merge it into the model instead (plasticity merge-adapter).`,
      );
    }
    const update = updateOf(layer, change);
    const total = squares(update.data);
    const found = directionsOf(update, total, options);
    const held = Math.min(total, squares(found.s));
    updates.set(path, factorsOf(found));
    layers.push({ path, rank: found.s.length, energy: held / total });
    kept += held;
    all += total;
    options.onProgress?.(layers.length, changes.length);
  }
  if (layers.length === 0) {
    throw new OptionError("convert: the adapter changes nothing, so there is nothing to convert.");
  }
  const made = loraOf(model, updates);
  if (saved.names.length === 0) return { ...made, layers, energy: kept / all };
  const beside = [...saved.paths].map((path) => peftName(model, path));
  return {
    adapter: withModules(made.adapter, model, saved.names, {
      ...(typeof saved.taskType === "string" && { taskType: saved.taskType }),
    }),
    params: {
      ...made.params,
      ...Object.fromEntries(beside.map((name) => [name, params[name]!])),
    },
    layers,
    energy: kept / all,
  };
}
