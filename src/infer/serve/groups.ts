/** Rows of different lengths in passes: together costs padding, apart costs reading the weights again. */

/** What a pass costs, in bytes that memory moves. */
export interface PassCost {
  /** Of a pass, however few its rows: about the weights' bytes. */
  readonly fixed: number;
  /** Of a block of one row: read, written side by side, read again. */
  readonly perBlock: number;
}

/**
 * Splits rows into passes of least cost: sorted by length, since a pass pads all its rows to the longest.
 * @param blocksOf blocks that a row needs
 */
export function groupRows<T>(
  rows: readonly T[],
  blocksOf: (row: T) => number,
  { fixed, perBlock }: PassCost,
): T[][] {
  const sorted = [...rows].sort((a, b) => blocksOf(b) - blocksOf(a));
  const count = sorted.length;
  // best[i]: least cost of the first i rows; cut[i]: where their last pass begins.
  const best = new Float64Array(count + 1);
  const cut = new Int32Array(count + 1);
  for (let end = 1; end <= count; end++) {
    best[end] = Infinity;
    for (let start = 0; start < end; start++) {
      const longest = Math.max(1, blocksOf(sorted[start]!));
      const cost = best[start]! + fixed + (end - start) * longest * perBlock;
      if (cost < best[end]!) {
        best[end] = cost;
        cut[end] = start;
      }
    }
  }
  const groups: T[][] = [];
  for (let end = count; end > 0; end = cut[end]!) groups.unshift(sorted.slice(cut[end]!, end));
  return groups;
}
