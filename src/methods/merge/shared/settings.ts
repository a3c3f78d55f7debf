/** Options that differ by layer and tensor, as mergekit writes them: numbers, gradients, filters. */
import { FormatError } from "../../../errors.ts";

export type Scalar = number | boolean | string;

/** A value for tensors whose name contains the filter; without one, or with "*", for all. */
export interface Filtered {
  readonly filter?: string;
  readonly value: Scalar | readonly Scalar[];
}

/**
 * One value; a list, which is a gradient over the layers; or values by filter, of which the first whose filter
 * fits counts.
 */
export type Setting = Scalar | readonly Scalar[] | readonly Filtered[];

export type Parameters = Readonly<Record<string, Setting>>;

const mostValues = 4096;

function isScalar(value: unknown): value is Scalar {
  return (
    typeof value === "boolean" ||
    typeof value === "string" ||
    (typeof value === "number" && Number.isFinite(value))
  );
}

function show(value: unknown): string {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 57)}...` : text;
}

/** A number that YAML took for text, as 1e-3. */
function plain(value: Scalar): Scalar {
  if (typeof value !== "string" || !/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i.test(value))
    return value;
  return Number(value);
}

function readValue(value: unknown, where: string): Scalar | readonly Scalar[] {
  if (isScalar(value)) return plain(value);
  if (Array.isArray(value) && value.length > 0 && value.length <= mostValues) {
    if (value.every(isScalar)) return value.map(plain);
  }
  throw new FormatError(
    `${where} must be a number, true, false, a word, or a list of at most ${mostValues} of them, got ${show(value)}.`,
  );
}

function readFiltered(value: unknown, where: string): Filtered {
  const item = value as Readonly<Record<string, unknown>>;
  const known = ["filter", "value"];
  const other = Object.keys(item).find((name) => !known.includes(name));
  if (other !== undefined) {
    throw new FormatError(`${where}: has no field "${other}" — it has filter and value.`);
  }
  const { filter } = item;
  if (filter !== undefined && filter !== null && typeof filter !== "string") {
    throw new FormatError(`${where}.filter must be part of a tensor's name, got ${show(filter)}.`);
  }
  const read = readValue(item["value"], `${where}.value`);
  return { ...(typeof filter === "string" && { filter }), value: read };
}

/**
 * Reads a setting from a configuration.
 * @param where begins an error: the field
 * @throws FormatError for another form.
 */
export function readSetting(value: unknown, where: string): Setting {
  const isTable = (item: unknown): boolean =>
    typeof item === "object" && item !== null && !Array.isArray(item);
  if (isTable(value)) return [readFiltered(value, where)];
  if (Array.isArray(value) && value.some(isTable)) {
    if (value.length > mostValues || !value.every(isTable)) {
      throw new FormatError(
        `${where} must be values or at most ${mostValues} {filter, value}, not both, got ${show(value)}.`,
      );
    }
    return value.map((item, i) => readFiltered(item, `${where}[${i}]`));
  }
  return readValue(value, where);
}

/** @param t place among the layers, from 0 to 1 */
function along(values: readonly Scalar[], t: number): Scalar {
  const scaled = t * (values.length - 1);
  const before = Math.floor(scaled);
  // Words and flags do not mix.
  if (!values.every((value) => typeof value === "number")) return values[before];
  const after = Math.min(values.length - 1, before + 1);
  const share = scaled - before;
  return (1 - share) * values[before] + share * values[after];
}

/**
 * What a setting is for a tensor.
 * @param t place among the layers, from 0 to 1
 * @returns undefined where no filter fits
 */
export function settingFor(setting: Setting, tensor: string, t: number): Scalar | undefined {
  if (isScalar(setting)) return setting;
  const list = setting as readonly (Scalar | Filtered)[];
  if (list.every(isScalar)) return along(list, t);
  for (const item of list as readonly Filtered[]) {
    const fits = item.filter === undefined || item.filter === "*" || tensor.includes(item.filter);
    if (fits) return isScalar(item.value) ? item.value : along(item.value, t);
  }
  return undefined;
}

/** The first of several tables that says something of an option for a tensor. */
export function lookUp(
  tables: readonly (Parameters | undefined)[],
  option: string,
  tensor: string,
  t: number,
): Scalar | undefined {
  for (const table of tables) {
    if (!table || !Object.hasOwn(table, option)) continue;
    const value = settingFor(table[option], tensor, t);
    if (value !== undefined) return value;
  }
  return undefined;
}
