/** Options of optimisers and schedules: defaults, and sentences for what does not fit. */
import { OptionError } from "../errors.ts";

/** Steps between two words by inserting, deleting or replacing one letter. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = row[j - 1]! + Number(a[i - 1] !== b[j - 1]);
      next.push(Math.min(replaced, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}

const plain = (name: string): string => name.toLowerCase().replace(/[_-]/g, "");

/** `did you mean "x"? ` when a name is near, then all names. */
export function suggest(name: string, names: readonly string[], what: string): string {
  const ranked = names
    .map((known) => ({ known, far: distance(plain(name), plain(known)) }))
    .sort((a, b) => a.far - b.far);
  const best = ranked[0];
  const near = best && best.far <= Math.max(1, Math.floor(best.known.length / 3));
  return `${near ? `did you mean "${best.known}"? ` : ""}${what} are ${names.join(", ")}.`;
}

/**
 * The options with defaults filled in.
 * @throws OptionError for a name that has no default.
 */
export function withDefaults<T extends object>(where: string, defaults: T, options: Partial<T>): T {
  const names = Object.keys(defaults);
  const given = Object.entries(options).filter(([, value]) => value !== undefined);
  for (const [name] of given) {
    if (names.includes(name)) continue;
    throw new OptionError(
      `${where}: unknown option "${name}" — ${suggest(name, names, "its options")}`,
    );
  }
  return { ...defaults, ...Object.fromEntries(given) };
}

interface Range {
  readonly test: (value: number) => boolean;
  readonly words: string;
}

export const share: Range = { test: (x) => x >= 0 && x < 1, words: "in [0, 1)" };
export const fromZero: Range = { test: (x) => x >= 0 && x < Infinity, words: "a number from 0" };
export const positive: Range = { test: (x) => x > 0 && x < Infinity, words: "above 0" };
export const negative: Range = { test: (x) => x < 0 && x > -Infinity, words: "below 0" };
export const wholeFromZero: Range = {
  test: (x) => Number.isSafeInteger(x) && x >= 0,
  words: "a whole number from 0",
};
export const wholeFromOne: Range = {
  test: (x) => Number.isSafeInteger(x) && x >= 1,
  words: "a whole number from 1",
};

/** @throws OptionError naming the first value outside its range. */
export function check(
  where: string,
  range: Range,
  values: Readonly<Record<string, number | undefined>>,
): void {
  for (const [name, value] of Object.entries(values)) {
    if (typeof value === "number" && range.test(value)) continue;
    throw new OptionError(`${where}: ${name} must be ${range.words}, got ${String(value)}.`);
  }
}
