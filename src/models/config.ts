/** Reading config.json: every number is checked and capped before anything is built from it. */
import { FormatError } from "../errors.ts";

export type Check = (value: unknown) => string | undefined;

const positiveTo =
  (cap: number): Check =>
  (value) =>
    Number.isInteger(value) && (value as number) > 0 && (value as number) <= cap
      ? undefined
      : `must be a whole number from 1 to ${cap}`;

export const positive: Check = positiveTo(2 ** 24);

/** Layers: modules are made for each, so their number is capped lower; the deepest have about 1000. */
export const layerCount: Check = positiveTo(4096);

export const positiveReal: Check = (value) =>
  typeof value === "number" && value > 0 && Number.isFinite(value)
    ? undefined
    : "must be a number above 0";

export function flag(value: unknown): boolean {
  return value === true;
}

/** Reads numbers by key; a missing one takes the default, or is an error. */
export function readConfig(
  where: string,
  json: Readonly<Record<string, unknown>>,
): (key: string, check: Check, missing?: number) => number {
  return (key, check, missing) => {
    const value = json[key] ?? missing;
    if (value === undefined) throw new FormatError(`${where}: "${key}" is missing.`);
    const wrong = check(value);
    if (wrong) {
      throw new FormatError(
        `${where}: "${key}" ${wrong}, got ${JSON.stringify(value).slice(0, 80)}.`,
      );
    }
    return value as number;
  };
}
