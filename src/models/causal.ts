/** What decoders with rotary positions share: rotations, heads, attention with a past, the loop of blocks. */
import { UnsupportedError } from "../errors.ts";
import type { Value } from "../ir/graph.ts";
import { expand, reshape, transpose, unsqueeze } from "../ir/layout.ts";
import {
  type AttentionOptions,
  attention,
  attentionProbabilities,
  indicesTo,
} from "../nn/attention.ts";
import { checkpointed } from "../nn/checkpoint.ts";
import { Linear } from "../nn/linear.ts";
import type { Context, Module } from "../nn/module.ts";
import {
  inverseFrequencies,
  type RopeOptions,
  type RopeTable,
  type Rotation,
  ropeTable,
  rotationAt,
  rotationByLength,
} from "../nn/rope.ts";
import type { Dim } from "../tensor/shape.ts";
import type { ForwardOptions, LayerPast } from "./model.ts";

/** Rows and tokens of a batch, (B, T). */
export type BatchSize = readonly [batch: Dim, length: Dim];

/** Of the table of rotations: a million positions of heads of 128 just fit. */
const maxTableBytes = 2 ** 29;

/** Rotations of a model's positions: one table per length, so that equal tables are one constant. */
export class Rotations {
  readonly options: RopeOptions;
  readonly #where: string;
  readonly #tables: Map<string, RopeTable> = new Map();

  /**
   * @param where begins an error: the architecture
   * @throws OptionError for an odd number of dimensions, or lists of factors that do not fit them.
   */
  constructor(where: string, options: RopeOptions) {
    this.#where = where;
    this.options = options;
    for (const length of [0, Infinity]) inverseFrequencies(options, length);
  }

  /**
   * Rotations for a batch: of positions 0 … T - 1, or of the ids given.
   * @throws UnsupportedError when the table of all positions is too large.
   */
  of(ids: Value, positions: Value | undefined): Rotation {
    const [batch, length] = ids.shape as BatchSize;
    if (!positions && typeof length === "number") return this.#table(length, length);
    const at = positions ?? expand(unsqueeze(indicesTo(ids.graph, length), 0), [batch, length]);
    const { maxPositions } = this.options;
    const limit = this.cacheLimit;
    // A cache ends at maxPositions, where "dynamic" would begin to stretch.
    if (limit === undefined) return rotationAt(this.#table(maxPositions, 0), at);
    const long = this.#table(maxPositions, maxPositions);
    return rotationByLength(this.#table(limit, 0), long, at);
  }

  /**
   * A sequence longer than this is turned by other angles than a shorter one, so that keys kept of the
   * shorter one are void; none for most models.
   */
  get cacheLimit(): number | undefined {
    const { maxPositions, scaling } = this.options;
    return scaling?.type === "longrope" && scaling.originalMaxPositions < maxPositions
      ? scaling.originalMaxPositions
      : undefined;
  }

  #table(positions: number, length: number): RopeTable {
    const key = `${positions},${length}`;
    let table = this.#tables.get(key);
    if (!table) {
      const bytes = positions * this.options.headDim * 4;
      if (bytes > maxTableBytes) {
        throw new UnsupportedError(
          `${this.#where}: the rotations of ${positions} positions take ${bytes} bytes, at most ${maxTableBytes} are made — set a smaller max_position_embeddings in config.json.`,
        );
      }
      table = ropeTable(this.options, positions, length);
      this.#tables.set(key, table);
    }
    return table;
  }
}

/** (B·T, H·D) → (B, H, T, D) */
export function splitHeads(
  x: Value,
  [batch, length]: BatchSize,
  heads: number,
  headDim: number,
): Value {
  return transpose(reshape(x, [batch, length, heads, headDim]), [0, 2, 1, 3]);
}

export interface AttendOptions {
  /** Only the last `window` positions; default all. */
  readonly window?: number;
  /** Default 1 / √headDim. */
  readonly scale?: number;
}

/** What attention gives to its output layer, (B·T, H·D), and what it weighed values with, (B, H, T, S). */
export interface Attended {
  readonly mixed: Value;
  readonly probabilities: () => Value;
}

/** Causal attention of queries (B, H, T, D) with what a forward pass was given. */
export function attend(
  q: Value,
  { keys, values }: LayerPast,
  { mask, positions, past }: ForwardOptions,
  layer: LayerPast | undefined,
  { window, scale }: AttendOptions = {},
): Attended {
  const [, heads, , headDim] = q.shape as readonly number[];
  const options: AttentionOptions = {
    causal: true,
    ...(window !== undefined && { window, ...(positions && { positions }) }),
    ...(scale !== undefined && { scale }),
    ...(mask && { mask }),
    ...(layer && { past: { ...layer, mask: past!.mask } }),
  };
  const mixed = attention(q, keys, values, options);
  return {
    mixed: reshape(transpose(mixed, [0, 2, 1, 3]), [-1, heads! * headDim!]),
    probabilities: () => attentionProbabilities(q, keys, options),
  };
}

/** Runs blocks one after the other, each recomputed in the backward pass where the context says so. */
export function runBlocks<B extends Module>(
  context: Context,
  x: Value,
  size: BatchSize,
  blocks: readonly B[],
  options: ForwardOptions,
  forward: (block: B, x: Value, past: LayerPast | undefined, index: number) => [Value, LayerPast],
): { readonly x: Value; readonly present: readonly LayerPast[] } {
  let y = x;
  const present: LayerPast[] = [];
  for (const [i, block] of blocks.entries()) {
    const past = options.past?.layers[i];
    const [next, kv] = checkpointed(context, y, (input): [Value, LayerPast] => {
      const [output, present] = forward(block, input, past, i);
      return [context.site(block, input, output, { size }), present];
    });
    y = next;
    present.push(kv);
  }
  return { x: y, present };
}

/** The linear layers of a module by path: where adapters sit. */
export function linearsOf(module: Module): ReadonlyMap<string, Linear> {
  return new Map(
    [...module.modules()].flatMap(([path, child]): [string, Linear][] =>
      child instanceof Linear ? [[path, child]] : [],
    ),
  );
}
