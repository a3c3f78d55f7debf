/**
 * A bank of LoRA adapters: one batch, another adapter for every row.
 *
 *   y_i = W x_i + B[s_i] A[s_i] x_i      s_i the slot of row i
 *
 * As in Punica (Chen et al., "Punica: Multi-Tenant LoRA Serving", MLSys 2024, arXiv:2310.18547) the base
 * product is one for all rows, and only the thin products are a row's own. Adapters are inputs of a
 * program: filling or clearing a slot writes numbers and compiles nothing. A rank below the bank's is
 * filled up with zeros, and slot 0 is the base model: zeros, whose sum with W x is W x bit for bit.
 *
 *   A → (slots + 1, in, maxRank)      B → (slots + 1, maxRank, out), alpha / rank written into it
 *
 * Both lie the way the product with a row reads them. Memory: `bytes`.
 */
import { OptionError, ShapeError, UnsupportedError } from "../errors.ts";
import { add } from "../ir/elementwise.ts";
import type { Value } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { reshape } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import type { LanguageModel } from "../models/model.ts";
import type { Linear } from "../nn/linear.ts";
import type { ContextOptions, Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import { sameShape, showShape } from "../tensor/shape.ts";
import { Tensor } from "../tensor/tensor.ts";
import { type Adapter, targetsOf } from "./adapter.ts";
import type { LoraAdapter, LoraLayer } from "./lora.ts";

export interface LoraBankOptions {
  /** Adapters held at once, 1 to 1024; slots count from 1. */
  readonly slots: number;
  /** Largest rank that fits, 1 to 1024. */
  readonly maxRank: number;
  /** Layers as `lora` takes them. Default: the model's own. */
  readonly targetModules?: readonly string[] | "all-linear";
}

/** Bytes of all matrices of a bank. */
const maxBytes = 2 ** 33;

export interface LoraBank {
  /** Adapters held at once; 1 to `slots` are theirs, 0 is the base model. */
  readonly slots: number;
  readonly maxRank: number;
  /** Paths of the layers it can adapt. */
  readonly targets: readonly string[];
  /** A and B of every layer; programs read them at each run. */
  readonly params: TensorRecord;
  /** Memory of `params`. */
  readonly bytes: number;
  /**
   * Writes an adapter into a slot, over what was there.
   * @throws UnsupportedError for an adapter that is no LoRA.
   * @throws OptionError for a slot, a rank or a layer outside the bank.
   * @throws ShapeError when `params` are not the adapter's; the slot stays as it was.
   */
  fill(slot: number, adapter: Adapter, params: Readonly<Record<string, Tensor>>): void;
  /** Makes a slot the base model again. */
  clear(slot: number): void;
  /** Another object after each change of the slot: what was computed with it before is out of date. */
  contentOf(slot: number): object;
  /** @throws OptionError when a number is no slot of this bank. */
  check(slots: readonly number[]): void;
  /**
   * What the forward pass does.
   * @param values of `params`
   * @param slots (B,) int32, the slot of each sequence; layers see B·T rows.
   */
  context(values: ValueRecord, slots: Value): ContextOptions;
}

interface Place {
  readonly path: string;
  readonly layer: Linear;
  readonly a: string;
  readonly b: string;
}

/**
 * An empty bank for a model: every slot is the base model.
 * @throws OptionError for sizes outside their range, more than 8 GiB, or targets that match no layer.
 */
export function loraBank(model: LanguageModel, options: LoraBankOptions): LoraBank {
  const { slots, maxRank } = options;
  for (const [what, value] of Object.entries({ slots, maxRank })) {
    if (Number.isInteger(value) && value >= 1 && value <= 1024) continue;
    throw new OptionError(`bank: ${what} must be a whole number from 1 to 1024, got ${value}.`);
  }
  const targets = targetsOf(model, options.targetModules);
  const places = targets.map((path): Place => {
    const layer = model.targets.get(path)!;
    return { path, layer, a: `${path}.bank_A`, b: `${path}.bank_B` };
  });
  const perSlot = places.reduce(
    (sum, { layer }) => sum + maxRank * (layer.inFeatures + layer.outFeatures) * 4,
    0,
  );
  const bytes = perSlot * (slots + 1);
  if (bytes > maxBytes) {
    throw new OptionError(
      `bank: ${slots} slots of rank ${maxRank} on ${targets.length} layers take ${bytes} bytes, at most ${maxBytes} are taken — use fewer slots, a smaller rank or fewer layers.`,
    );
  }
  const params: TensorRecord = {};
  for (const { layer, a, b } of places) {
    params[a] = Tensor.zeros([slots + 1, layer.inFeatures, maxRank], "float32");
    params[b] = Tensor.zeros([slots + 1, maxRank, layer.outFeatures], "float32");
  }
  const contents: object[] = Array.from({ length: slots + 1 }, () => ({}));

  const checkSlot = (slot: number): void => {
    if (Number.isInteger(slot) && slot >= 1 && slot <= slots) return;
    throw new OptionError(
      `bank: slot must be a whole number from 1 to ${slots}, got ${slot} — 0 is the base model.`,
    );
  };
  /** A slot's part of a matrix. */
  const part = (name: string, slot: number): Float32Array => {
    const { data, size } = params[name]!;
    const length = size / (slots + 1);
    return (data as Float32Array).subarray(slot * length, (slot + 1) * length);
  };

  return {
    slots,
    maxRank,
    targets,
    params,
    bytes,
    fill(slot, adapter, own): void {
      checkSlot(slot);
      const layers = checkAdapter(adapter, places, maxRank, own);
      contents[slot] = {};
      for (const { path, a, b } of places) {
        const [partA, partB] = [part(a, slot), part(b, slot)];
        partA.fill(0);
        partB.fill(0);
        const layer = layers.get(path);
        if (layer) write(layer, own, maxRank, partA, partB);
      }
    },
    clear(slot): void {
      checkSlot(slot);
      contents[slot] = {};
      for (const { a, b } of places) {
        part(a, slot).fill(0);
        part(b, slot).fill(0);
      }
    },
    contentOf: (slot) => contents[slot]!,
    check(list): void {
      for (const slot of list) if (slot !== 0) checkSlot(slot);
    },
    context: (values, ids) => ({
      sites: new Map<Module, SiteFn>(
        places.map(({ layer, a, b }) => [
          layer,
          (x, y) => {
            // (B·T, in) → (B, T, in), a stack of products with one matrix a sequence.
            const rows = reshape(x, [ids.shape[0]!, -1, layer.inFeatures]);
            const inner = dot(rows, gather(values[a]!, ids));
            return add(y, reshape(dot(inner, gather(values[b]!, ids)), y.shape));
          },
        ]),
      ),
    }),
  };
}

/** The adapter's layers, when all of it fits. */
function checkAdapter(
  adapter: Adapter,
  places: readonly Place[],
  maxRank: number,
  params: Readonly<Record<string, Tensor>>,
): ReadonlyMap<string, LoraLayer> {
  const { layers, isPlain } = adapter as Partial<LoraAdapter>;
  if (!layers || !isPlain) {
    throw new UnsupportedError(
      layers
        ? "bank: this LoRA has more than products beside linear layers (DoRA, biases, embeddings or convolutions) — give it a batch of its own."
        : `bank: an adapter of kind ${adapter.kind} does not fit a bank, only LoRA does — give it a batch of its own.`,
    );
  }
  const known = new Map(places.map(({ path, layer }) => [path, layer]));
  const names = new Set<string>();
  for (const [path, { layer, rank, a, b }] of layers) {
    const own = known.get(path);
    if (!own) {
      throw new OptionError(
        `bank: the adapter sits on "${path}", the bank does not — make the bank with its targetModules.`,
      );
    }
    if (rank > maxRank) {
      throw new OptionError(
        `bank: the adapter has rank ${rank} on "${path}", the bank takes ${maxRank} — make it with a larger maxRank.`,
      );
    }
    const shapes = { [a]: [rank, own.inFeatures], [b]: [own.outFeatures, rank] };
    for (const [name, shape] of Object.entries(shapes)) {
      names.add(name);
      const tensor = params[name];
      if (tensor && sameShape(tensor.shape, shape) && layer.inFeatures === own.inFeatures) continue;
      throw new ShapeError(
        `bank: "${name}" must have shape ${showShape(shape)}, got ${tensor ? showShape(tensor.shape) : "nothing"} — are these the adapter's parameters, and is it for this model?`,
      );
    }
  }
  const stray = Object.keys(params).find((name) => !names.has(name));
  if (stray !== undefined) {
    throw new OptionError(`bank: "${stray}" is no parameter of the adapter.`);
  }
  return layers;
}

/** Aᵀ into (in, maxRank) and scale · Bᵀ into (maxRank, out), whose rest is zero. */
function write(
  { layer, rank, scale, a, b }: LoraLayer,
  params: Readonly<Record<string, Tensor>>,
  maxRank: number,
  intoA: Float32Array,
  intoB: Float32Array,
): void {
  const { inFeatures, outFeatures } = layer;
  const [thin, wide] = [params[a]!.numbers(), params[b]!.numbers()];
  for (let r = 0; r < rank; r++) {
    for (let i = 0; i < inFeatures; i++) intoA[i * maxRank + r] = thin[r * inFeatures + i]!;
    for (let o = 0; o < outFeatures; o++) {
      intoB[r * outFeatures + o] = scale * wide[o * rank + r]!;
    }
  }
}
