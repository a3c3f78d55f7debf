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
 *   A (slots + 1, R, in)      B (slots + 1, R, out), alpha / rank written into it
 *
 * A processor gains nothing from a product for each row (Punica's SGMV gathers on a GPU): it would read its
 * adapter's matrices anew for every row. So the matrices of the adapters that a batch uses, U of them, are laid
 * side by side, and two products serve all rows; between them each row keeps its own R of the U · R numbers:
 *
 *   x (rows, in) · A_usedᵀ → (rows, U · R), what is another adapter's made zero · B_used → (rows, out)
 *
 * Where all rows share one adapter it costs what that adapter costs alone. A row's bits must not depend on what
 * stands beside it, and a product of matrices cuts long sums at places that depend on its width. So the first product
 * is cut here, into C of at most 128 inputs each, which are summed in order; and R is the rank rounded up to a
 * power of two, so that no cut of the second goes through an adapter's own numbers. A lies as
 * (C, slots + 1, R, in / C). Memory: `bytes`.
 */
import { OptionError, ShapeError, UnsupportedError } from "../errors.ts";
import { add, greater, where } from "../ir/elementwise.ts";
import type { Spec } from "../ir/graph.ts";
import { gather } from "../ir/indexing.ts";
import { expand, reshape, transpose } from "../ir/layout.ts";
import { dot } from "../ir/linear.ts";
import { sum } from "../ir/reduce.ts";
import type { LanguageModel } from "../models/model.ts";
import type { Linear } from "../nn/linear.ts";
import type { ContextOptions, Module, SiteFn, TensorRecord, ValueRecord } from "../nn/module.ts";
import { type Dim, mulDims, sameShape, showShape } from "../tensor/shape.ts";
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

/** Slots that a batch uses, (U,) int32; and which of them is a sequence's, (B, U): 1, else 0. */
const [usedName, pickName] = ["bank_used", "bank_pick"] as const;

/** Sums of no more products than this are never cut; longer ones at a multiple of it. */
const block = 128;

/** The largest divisor that is no larger than a block. */
function partOf(features: number): number {
  for (let size = Math.min(block, features); ; size--) if (features % size === 0) return size;
}

/** Rows of a slot's matrices. */
const paddedRank = (rank: number): number =>
  rank > block ? Math.ceil(rank / block) * block : Math.max(4, 2 ** Math.ceil(Math.log2(rank)));

export interface LoraBank {
  /** Adapters held at once; 1 to `slots` are theirs, 0 is the base model. */
  readonly slots: number;
  readonly maxRank: number;
  /** Paths of the layers it can adapt. */
  readonly targets: readonly string[];
  /** A and B of every layer; programs read them at each run. */
  readonly params: TensorRecord;
  /** What programs are given, in this order: `params`, and what a batch uses of them. */
  readonly specs: Readonly<Record<string, Spec>>;
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
   * Numbers for `specs`.
   * @param slots of each sequence of a batch
   */
  inputs(slots: ArrayLike<number>): TensorRecord;
  /**
   * What the forward pass does.
   * @param values of `specs`
   */
  context(values: ValueRecord): ContextOptions;
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
  const width = paddedRank(maxRank);
  const perSlot = places.reduce(
    (sum, { layer }) => sum + width * (layer.inFeatures + layer.outFeatures) * 4,
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
    const size = partOf(layer.inFeatures);
    params[a] = Tensor.zeros([layer.inFeatures / size, slots + 1, width, size], "float32");
    params[b] = Tensor.zeros([slots + 1, width, layer.outFeatures], "float32");
  }
  const contents: object[] = Array.from({ length: slots + 1 }, () => ({}));

  const checkSlot = (slot: number): void => {
    if (Number.isInteger(slot) && slot >= 1 && slot <= slots) return;
    throw new OptionError(
      `bank: slot must be a whole number from 1 to ${slots}, got ${slot} — 0 is the base model.`,
    );
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
        empty(params[a]!, params[b]!, slot);
        const layer = layers.get(path);
        if (layer) write(layer, own, params[a]!, params[b]!, slot);
      }
    },
    clear(slot): void {
      checkSlot(slot);
      contents[slot] = {};
      for (const { a, b } of places) empty(params[a]!, params[b]!, slot);
    },
    contentOf: (slot) => contents[slot]!,
    check(list): void {
      for (const slot of list) if (slot !== 0) checkSlot(slot);
    },
    specs: {
      ...params,
      [usedName]: { shape: ["adapters"], dtype: "int32" },
      [pickName]: { shape: ["rows", "adapters"], dtype: "float32" },
    },
    inputs(list): TensorRecord {
      const used = [...new Set(Array.from(list))]
        .filter((slot) => slot !== 0)
        .sort((x, y) => x - y);
      if (used.length === 0) used.push(0);
      const pick = new Float32Array(list.length * used.length);
      for (let row = 0; row < list.length; row++) {
        const at = used.indexOf(list[row]!);
        if (at >= 0) pick[row * used.length + at] = 1;
      }
      return {
        ...params,
        [usedName]: new Tensor("int32", [used.length], Int32Array.from(used)),
        [pickName]: new Tensor("float32", [list.length, used.length], pick),
      };
    },
    context(values): ContextOptions {
      const [used, pick] = [values[usedName]!, values[pickName]!];
      const [rows, count] = pick.shape as [Dim, Dim];
      const wide = mulDims(count, width);
      // (B, 1, U · R): a choice, and no product with zeros, so that no adapter's overflow reaches others.
      const isOwn = greater(
        reshape(expand(reshape(pick, [rows, count, 1]), [rows, count, width]), [rows, 1, wide]),
        0,
      );
      return {
        sites: new Map<Module, SiteFn>(
          places.map(({ layer, a, b }) => [
            layer,
            (x, y) => {
              const size = partOf(layer.inFeatures);
              const tokens = x.shape[0]!;
              const parts = transpose(reshape(x, [tokens, -1, size]), [1, 0, 2]);
              const thin = reshape(gather(values[a]!, used, 1), [-1, wide, size]);
              const inner = sum(dot(parts, thin, { transB: true }), 0);
              const kept = where(isOwn, reshape(inner, [rows, -1, wide]), 0);
              const back = reshape(gather(values[b]!, used), [wide, layer.outFeatures]);
              return add(y, dot(reshape(kept, [tokens, wide]), back));
            },
          ]),
        ),
      };
    },
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
  // Zeros of other rows meet these numbers: zero times infinity would be theirs too.
  for (const { a, b, scale } of layers.values()) {
    for (const [name, by] of [
      [a, 1],
      [b, scale],
    ] as const) {
      const numbers = Array.from(params[name]!.numbers());
      const at = numbers.findIndex((x) => !Number.isFinite(Math.fround(x * by)));
      if (at < 0) continue;
      throw new OptionError(
        `bank: "${name}" holds ${numbers[at]} at element ${at}, which is no finite number when scaled by ${by}.`,
      );
    }
  }
  const stray = Object.keys(params).find((name) => !names.has(name));
  if (stray !== undefined) {
    throw new OptionError(`bank: "${stray}" is no parameter of the adapter.`);
  }
  return layers;
}

/** The numbers of a slot in one part of A, (C, slots + 1, R, in / C), or in B, which is one part. */
function slotOf({ shape, data }: Tensor, part: number, slot: number): Float32Array {
  const [slots, width, size] = shape.slice(-3) as [number, number, number];
  const length = width * size;
  const at = (part * slots + slot) * length;
  return (data as Float32Array).subarray(at, at + length);
}

function empty(a: Tensor, b: Tensor, slot: number): void {
  for (let part = 0; part < a.shape[0]!; part++) slotOf(a, part, slot).fill(0);
  slotOf(b, 0, slot).fill(0);
}

/** A, and Bᵀ times its scale; what is behind the rank stays zero. */
function write(
  { layer, rank, scale, a, b }: LoraLayer,
  params: Readonly<Record<string, Tensor>>,
  intoA: Tensor,
  intoB: Tensor,
  slot: number,
): void {
  const { inFeatures, outFeatures } = layer;
  const thin = Float32Array.from(params[a]!.numbers());
  const wide = params[b]!.numbers();
  const size = intoA.shape[3]!;
  for (let part = 0; part < intoA.shape[0]!; part++) {
    const into = slotOf(intoA, part, slot);
    for (let r = 0; r < rank; r++) {
      const at = r * inFeatures + part * size;
      into.set(thin.subarray(at, at + size), r * size);
    }
  }
  const into = slotOf(intoB, 0, slot);
  for (let r = 0; r < rank; r++) {
    for (let o = 0; o < outFeatures; o++) {
      into[r * outFeatures + o] = scale * wide[o * rank + r]!;
    }
  }
}
