/**
 * Weighted quickselect: the first elements of an order up to a weight, without sorting all of it.
 * Hoare, "Algorithm 65: Find", CACM 1961, on cumulated weights instead of ranks.
 */

/**
 * Moves the shortest prefix of the order whose weights sum to `target` to the front of `ids`, in no
 * particular order inside; linear time on average.
 * @param compare a strict total order: never 0 for two different ids.
 * @param weight at least 0
 * @param target above 0
 * @returns the length of the prefix; all of `ids` when their weights do not reach the target.
 */
export function selectPrefix(
  ids: Int32Array,
  compare: (a: number, b: number) => number,
  weight: (id: number) => number,
  target: number,
): number {
  let low = 0;
  let high = ids.length;
  let need = target;
  const swap = (i: number, j: number): void => {
    const held = ids[i]!;
    ids[i] = ids[j]!;
    ids[j] = held;
  };
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    // Median of three, at the end of the range while the rest is parted.
    if (compare(ids[middle]!, ids[low]!) < 0) swap(middle, low);
    if (compare(ids[high - 1]!, ids[low]!) < 0) swap(high - 1, low);
    if (compare(ids[middle]!, ids[high - 1]!) < 0) swap(middle, high - 1);
    const pivot = ids[high - 1]!;
    let border = low;
    let before = 0;
    for (let i = low; i < high - 1; i++) {
      if (compare(ids[i]!, pivot) >= 0) continue;
      before += weight(ids[i]!);
      swap(i, border++);
    }
    swap(border, high - 1);
    if (need <= before) high = border;
    else if (need <= before + weight(pivot)) return border + 1;
    else {
      need -= before + weight(pivot);
      low = border + 1;
    }
  }
  return high;
}
