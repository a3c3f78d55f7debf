/** What `info` says of a thing: facts and tables for people, the same as data for machines. */
import type { Align, Output } from "../output.ts";

export interface Table {
  readonly title: string;
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
  readonly align?: readonly Align[];
}

export interface Report {
  /** What kind of thing it is: a fixed word. */
  readonly kind: string;
  readonly facts: readonly (readonly [label: string, text: string])[];
  readonly tables: readonly Table[];
  readonly data: Readonly<Record<string, unknown>>;
}

export function showBytes(bytes: number): string {
  for (const [size, unit] of [
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
  ] as const) {
    if (bytes >= size) return `${(bytes / size).toPrecision(3)} ${unit}`;
  }
  return `${bytes} bytes`;
}

export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((a, b) => a * b, 1);
}

/** `F16 12, F32 3`: how many there are of each. */
export function showCounts(counts: ReadonlyMap<string, number>): string {
  return [...counts].map(([name, count]) => `${name} ${count}`).join(", ");
}

export function countBy<T>(items: Iterable<T>, key: (item: T) => string): Map<string, number> {
  const counts = new Map<string, number>();
  for (const item of items) counts.set(key(item), (counts.get(key(item)) ?? 0) + 1);
  return new Map([...counts].sort((a, b) => b[1] - a[1]));
}

export function print(output: Output, report: Report): void {
  const width = Math.max(...report.facts.map(([label]) => label.length));
  for (const [label, text] of report.facts) output.line(`${label.padEnd(width)}  ${text}`);
  for (const { title, head, rows, align } of report.tables) {
    output.line();
    output.line(title);
    output.table(head, rows, align);
  }
  output.json({ kind: report.kind, ...report.data });
}
