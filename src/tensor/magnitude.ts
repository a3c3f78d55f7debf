/**
 * Which entries of a change are the largest in magnitude: exact counts, without sorting them, and without the
 * change itself in memory.
 *
 * The bits of a magnitude order as the magnitude does: |x| of float32 is its lower 31 bits. Short arrays are
 * sorted, long ones counted by the upper 16 of these bits, then by the lower 15.
 */

/** model - base, entry by entry, rounded to float32; without a base the model's own numbers. */
export interface Change {
  readonly model: Float32Array;
  readonly base: Float32Array | undefined;
}

/** Arrays up to this length are sorted. */
const fewest = 4096;
const part = 8192;

/** Memory of one call, used again: the functions here await nothing. */
const floats: Float32Array<ArrayBuffer> = new Float32Array(part);
const words: Uint32Array<ArrayBuffer> = new Uint32Array(floats.buffer);

/** Puts entries from `start` on into `floats`, whose bits are `words`. */
function load({ model, base }: Change, start: number, size: number): void {
  if (!base) {
    for (let i = 0; i < size; i++) floats[i] = model[start + i];
    return;
  }
  for (let i = 0; i < size; i++) floats[i] = model[start + i] - base[start + i];
}

/** A cut in the order from the largest: all above the magnitude stand before it, and the first of its equals. */
interface Cut {
  /** Lower 31 bits of the magnitude. */
  readonly bits: number;
  /** Equals that stand before the cut, the earlier ones. */
  readonly equals: number;
}

/** Before all, and behind all. */
const front: Cut = { bits: 0x7fffffff, equals: 0 };
const back: Cut = { bits: -1, equals: 0 };

/** @param ranks places in (0, size) */
function cutsSorted(change: Change, start: number, size: number, ranks: readonly number[]): Cut[] {
  load(change, start, size);
  const sorted = Uint32Array.from(words.subarray(0, size), (word) => word & 0x7fffffff).sort();
  return ranks.map((rank) => {
    const bits = sorted[size - rank];
    let larger = rank;
    while (larger > 0 && sorted[size - larger] === bits) larger--;
    return { bits, equals: rank - larger };
  });
}

/** The bucket of a table in which a cut falls, and what of the rank is left inside it. */
function bucketOf(table: Uint32Array, rank: number): readonly [bucket: number, left: number] {
  let [left, bucket] = [rank, table.length - 1];
  while (left > table[bucket]) left -= table[bucket--];
  return [bucket, left];
}

function cutsCounted(change: Change, start: number, size: number, ranks: readonly number[]): Cut[] {
  const upper = new Uint32Array(65536);
  for (let at = 0; at < size; at += part) {
    const count = Math.min(part, size - at);
    load(change, start + at, count);
    for (let i = 0; i < count; i++) upper[(words[i] & 0x7fffffff) >>> 15]++;
  }
  return ranks.map((rank) => {
    const [high, left] = bucketOf(upper, rank);
    const lower = new Uint32Array(32768);
    for (let at = 0; at < size; at += part) {
      const count = Math.min(part, size - at);
      load(change, start + at, count);
      for (let i = 0; i < count; i++) {
        const bits = words[i] & 0x7fffffff;
        if (bits >>> 15 === high) lower[bits & 0x7fff]++;
      }
    }
    const [low, equals] = bucketOf(lower, left);
    return { bits: high * 32768 + low, equals };
  });
}

/**
 * Marks the entries whose place in the order of magnitudes, largest first, lies in [from, to). Among equal
 * magnitudes the earlier entry counts as the larger, so that exactly to - from are marked.
 * @param change finite numbers; those from `start` on, `size` of them, are ranked
 * @param mask as long as the change: 1 for entries that are marked, 0 for others
 */
export function markBand(
  change: Change,
  from: number,
  to: number,
  mask: Uint8Array,
  start = 0,
  size: number = change.model.length,
): void {
  const [first, last] = [Math.max(0, from), Math.min(size, to)];
  if (first >= last || (first === 0 && last === size)) {
    mask.fill(first >= last ? 0 : 1, start, start + size);
    return;
  }
  const ranks = [first, last].filter((rank) => rank > 0 && rank < size);
  const cuts = (size <= fewest ? cutsSorted : cutsCounted)(change, start, size, ranks);
  const top = first === 0 ? front : cuts[0];
  const end = last === size ? back : cuts[cuts.length - 1];
  let [topLeft, endLeft] = [top.equals, end.equals];
  const [topBits, endBits] = [top.bits, end.bits];
  for (let at = 0; at < size; at += part) {
    const count = Math.min(part, size - at);
    load(change, start + at, count);
    for (let i = 0; i < count; i++) {
      const bits = words[i] & 0x7fffffff;
      // 1 where the first number is below the second, without a branch.
      let isMarked = ((endBits - bits) >>> 31) - ((topBits - bits) >>> 31);
      if (bits === endBits && endLeft-- > 0) isMarked = 1;
      if (bits === topBits && topLeft-- > 0) isMarked = 0;
      mask[start + at + i] = isMarked;
    }
  }
}

/**
 * The place of each entry in the order of magnitudes, 0 for the smallest. Among equals the earlier entry
 * counts as the larger.
 * @param values finite numbers, at most 2^21
 * @param ranks of the same length
 */
export function ranksOf(values: Float32Array, ranks: Uint32Array): void {
  const size = values.length;
  const bits = new Uint32Array(values.buffer, values.byteOffset, size);
  // Magnitude and place in one exact number: 31 and 21 bits.
  const keys = new Float64Array(size);
  for (let i = 0; i < size; i++) keys[i] = (bits[i] & 0x7fffffff) * 2 ** 21 + (size - 1 - i);
  keys.sort();
  for (let rank = 0; rank < size; rank++) ranks[size - 1 - (keys[rank] % 2 ** 21)] = rank;
}
