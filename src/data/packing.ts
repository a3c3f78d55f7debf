/**
 * Packing: several examples in one row, so that less of a batch is padding. Examples stay apart:
 * `segments` says which token is whose, attention is block-diagonal and positions restart.
 *
 * Krell et al., "Efficient Sequence Packing without Cross-contamination", 2021, arXiv:2107.02027.
 * The order is first-fit decreasing (Johnson, 1973) inside windows of a shuffled order: rows are as
 * full as first-fit makes them, and each epoch's rows differ.
 */
import { OptionError } from "../errors.ts";
import type { Rng } from "../tensor/rng.ts";
import { DataHash } from "./data-hash.ts";
import type { Example } from "./example.ts";
import { checkIndex, type ExampleSet } from "./set.ts";

/** Examples that are fitted together. */
const windowSize = 4096;

/** The least index whose room is at least the size, by a tree of maxima over rooms. */
class Rooms {
  readonly #leaves: number;
  readonly #tree: Int32Array;

  constructor(count: number, room: number) {
    this.#leaves = 2 ** Math.ceil(Math.log2(Math.max(1, count)));
    this.#tree = new Int32Array(2 * this.#leaves).fill(room);
  }

  /** Takes room of the first bin that has it; there is one, as every size fits a fresh bin. */
  take(size: number): number {
    const tree = this.#tree;
    let at = 1;
    while (at < this.#leaves) at = tree[2 * at]! >= size ? 2 * at : 2 * at + 1;
    const bin = at - this.#leaves;
    tree[at]! -= size;
    for (at >>= 1; at >= 1; at >>= 1) tree[at] = Math.max(tree[2 * at]!, tree[2 * at + 1]!);
    return bin;
  }
}

/**
 * Numbers of examples by row. Rows and the order inside them depend on lengths and the stream alone.
 * @param lengths tokens of each example, each at most maxLength.
 * @param maxLength tokens that a row holds.
 * @throws OptionError when an example is longer than a row.
 */
export function packExamples(
  lengths: ArrayLike<number>,
  maxLength: number,
  rng: Rng,
): readonly (readonly number[])[] {
  if (!Number.isInteger(maxLength) || maxLength < 1) {
    throw new OptionError(`packing: maxLength must be a whole number from 1, got ${maxLength}.`);
  }
  for (let i = 0; i < lengths.length; i++) {
    if (lengths[i]! <= maxLength) continue;
    throw new OptionError(
      `packing: example ${i} has ${lengths[i]} tokens, a row holds ${maxLength} — cut examples to the row, or make it longer.`,
    );
  }
  const order = rng.fold("pack").permutation(lengths.length);
  const bins: number[][] = [];
  for (let start = 0; start < order.length; start += windowSize) {
    const part = [...order.subarray(start, start + windowSize)];
    part.sort((a, b) => lengths[b]! - lengths[a]!);
    const rooms = new Rooms(part.length, maxLength);
    const first = bins.length;
    for (const index of part) {
      const bin = first + rooms.take(lengths[index]!);
      const members = bins[bin];
      if (members) members.push(index);
      else bins[bin] = [index];
    }
  }
  return [...rng.fold("rows").permutation(bins.length)].map((i) => bins[i]!);
}

/** Share of the rows' places that hold tokens, in [0, 1]. */
export function fillRate(
  lengths: ArrayLike<number>,
  bins: readonly (readonly number[])[],
  maxLength: number,
): number {
  let tokens = 0;
  for (const bin of bins) for (const index of bin) tokens += lengths[index]!;
  return bins.length === 0 ? 0 : tokens / (bins.length * maxLength);
}

/** One row of several examples. The first token of each carries no loss, so none predicts across. */
export function packRow(examples: readonly Example[]): Example {
  const length = examples.reduce((sum, { ids }) => sum + ids.length, 0);
  const ids = new Int32Array(length);
  const mask = new Uint8Array(length);
  const segments = new Int32Array(length);
  let at = 0;
  for (const [segment, example] of examples.entries()) {
    ids.set(example.ids, at);
    mask.set(example.mask, at);
    if (example.ids.length > 0) mask[at] = 0;
    segments.fill(segment, at, at + example.ids.length);
    at += example.ids.length;
  }
  return { ids, mask, segments };
}

/** The rows of bins, of examples in memory. */
export function packBins(
  examples: readonly Example[],
  bins: readonly (readonly number[])[],
): Example[] {
  return bins.map((bin) => packRow(bin.map((index) => examples[index]!)));
}

/** A set whose examples are the rows of bins; members are read when a row is asked for. */
export function packedSet(set: ExampleSet, bins: readonly (readonly number[])[]): ExampleSet {
  const lengths = Int32Array.from(bins, (bin) =>
    bin.reduce((sum, index) => {
      checkIndex(index, set.count);
      return sum + set.lengths[index]!;
    }, 0),
  );
  const hash = new DataHash();
  hash.text(set.dataHash);
  for (const bin of bins) {
    hash.word(bin.length);
    for (const index of bin) hash.word(index);
  }
  return {
    count: bins.length,
    lengths,
    tokens: lengths.reduce((sum, length) => sum + length, 0),
    lossTokens: set.lossTokens,
    dataHash: hash.digest(),
    async get(indices) {
      const chosen = Array.from(indices, (index) => {
        checkIndex(index, bins.length);
        return bins[index]!;
      });
      const members = await set.get(chosen.flat());
      let at = 0;
      return chosen.map((bin) => {
        const row = packRow(members.slice(at, at + bin.length));
        at += bin.length;
        return row;
      });
    },
    close: () => set.close(),
  };
}

/** Positions of tokens in their own examples: 0, 1, … and again from 0 where the segment changes. */
export function positionsOf(segments: Int32Array): Int32Array<ArrayBuffer> {
  const positions = new Int32Array(segments.length);
  for (let i = 1; i < segments.length; i++) {
    positions[i] = segments[i] === segments[i - 1] ? positions[i - 1]! + 1 : 0;
  }
  return positions;
}
