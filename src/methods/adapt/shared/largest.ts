/** The largest entries of many tensors together: exact counts, without sorting or joining them. */
import { OptionError } from "../../../errors.ts";

/** Numbers by name, and which of them are out: 1 in the mask. */
export interface Candidates {
  readonly values: Float32Array;
  readonly out?: Uint8Array;
}

/**
 * Marks the k entries of largest magnitude over all tensors. Among equal magnitudes the earlier entry counts
 * as the larger, in the order of the tensors, so that exactly k are marked.
 *
 * |x| of a float32 orders as its lower 31 bits do: entries are counted by the upper 16 of them, then by the
 * lower 15 where the k-th lies.
 * @param tensors finite numbers, by name
 * @returns masks of 0 and 1 by name
 * @throws OptionError when fewer than k entries are there.
 */
export function markLargest(
  tensors: ReadonlyMap<string, Candidates>,
  k: number,
): Map<string, Uint8Array<ArrayBuffer>> {
  const all = [...tensors.values()].map(({ values, out }) => ({
    words: new Uint32Array(values.buffer, values.byteOffset, values.length),
    out,
  }));
  const count = (bins: Uint32Array, place: (bits: number) => number): number => {
    let total = 0;
    for (const { words, out } of all) {
      for (let i = 0; i < words.length; i++) {
        if (out?.[i] === 1) continue;
        const at = place(words[i]! & 0x7fffffff);
        if (at >= 0) bins[at]!++;
        total++;
      }
    }
    return total;
  };
  const upper = new Uint32Array(65536);
  const total = count(upper, (bits) => bits >>> 15);
  if (!(Number.isInteger(k) && k >= 0 && k <= total)) {
    throw new OptionError(`largest: k must be a whole number from 0 to ${total}, got ${k}.`);
  }
  // Entries above the threshold are all marked, and the first `equals` at it.
  let [threshold, equals] = [0x80000000, 0];
  if (k > 0) {
    let [larger, high] = [0, 65535];
    while (larger + upper[high]! < k) larger += upper[high--]!;
    const lower = new Uint32Array(32768);
    count(lower, (bits) => (bits >>> 15 === high ? bits & 0x7fff : -1));
    let low = 32767;
    while (larger + lower[low]! < k) larger += lower[low--]!;
    threshold = high * 32768 + low;
    equals = k - larger;
  }
  const names = [...tensors.keys()];
  return new Map(
    all.map(({ words, out }, t) => {
      const mask = new Uint8Array(words.length);
      for (let i = 0; i < words.length; i++) {
        if (out?.[i] === 1) continue;
        const bits = words[i]! & 0x7fffffff;
        if (bits > threshold || (bits === threshold && equals-- > 0)) mask[i] = 1;
      }
      return [names[t]!, mask];
    }),
  );
}
