/** Rows of the result: what is compared, by which measure, and whether the limit holds. */

export type Measure = "ms" | "tokens/s" | "MB" | "GFLOP/s" | "s" | "%";

export interface Result {
  readonly work: string;
  readonly unit: Measure;
  readonly ours: number | null;
  /** Whom it is compared with, with version; null where the limit is on the number itself. */
  readonly peer: string | null;
  readonly theirs: number | null;
  /** How many times better than the peer; for memory and growth, the share of the peer's. */
  readonly ratio: number | null;
  readonly bound: "atLeast" | "atMost";
  /** On the ratio, or on `ours` where there is no peer; null: reported only. */
  readonly limit: number | null;
  /** Null where something is missing, or nothing is demanded. */
  readonly holds: boolean | null;
  readonly note?: string;
}

interface Judging {
  readonly bound: Result["bound"];
  ratio(ours: number, theirs: number): number;
}

const judging: Readonly<Record<Measure, Judging>> = {
  ms: { bound: "atLeast", ratio: (ours, theirs) => theirs / ours },
  "tokens/s": { bound: "atLeast", ratio: (ours, theirs) => ours / theirs },
  "GFLOP/s": { bound: "atLeast", ratio: (ours, theirs) => ours / theirs },
  MB: { bound: "atMost", ratio: (ours, theirs) => ours / theirs },
  s: { bound: "atMost", ratio: (ours, theirs) => ours / theirs },
  "%": { bound: "atMost", ratio: (ours, theirs) => ours / theirs },
};

export interface Facts {
  readonly work: string;
  readonly unit: Measure;
  readonly ours: number | null;
  readonly peer: string | null;
  readonly theirs: number | null;
  readonly limit: number | null;
  readonly note?: string | undefined;
}

/** Fills in ratio and verdict. */
export function judge({ note, ...facts }: Facts): Result {
  const { unit, ours, peer, theirs, limit } = facts;
  const { bound, ratio: compare } = judging[unit];
  const ratio = ours === null || theirs === null ? null : compare(ours, theirs);
  const judged = peer === null ? ours : ratio;
  const isGood = (value: number, wanted: number): boolean =>
    bound === "atLeast" ? value >= wanted : value <= wanted;
  return {
    ...facts,
    ratio,
    bound,
    holds: judged === null || limit === null ? null : isGood(judged, limit),
    ...(note && { note }),
  };
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  if (sorted.length === 0) return Number.NaN;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** Three to four figures, as a person reads them. */
export function showNumber(value: number): string {
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** The cells of a row: work, ours, theirs, ratio, limit, holds. */
export function showRow(result: Result): string[] {
  const { unit, ours, theirs, ratio, bound, limit, holds, peer } = result;
  const amount = (value: number | null): string =>
    value === null ? "-" : `${showNumber(value)} ${unit}`;
  const sign = bound === "atLeast" ? "≥" : "≤";
  const onOwn = peer === null ? ` ${unit}` : "×";
  return [
    result.work,
    amount(ours),
    theirs === null ? (peer === null ? "" : `- (${peer})`) : `${amount(theirs)} (${peer})`,
    ratio === null ? "" : `${ratio.toFixed(2)}×`,
    limit === null ? "" : `${sign} ${limit}${onOwn}`,
    holds === null ? "" : holds ? "yes" : "no",
  ];
}
