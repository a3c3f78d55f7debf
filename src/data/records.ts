/** One record of a data file with its place, and lines of JSON as records. */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import { maxRecordBytes, readLines } from "./lines.ts";

/** Objects and arrays inside each other in one record. */
const maxDepth = 32;
/** Values in one record. */
const maxValues = 1e6;

export interface LocatedRecord {
  readonly record: JsonObject;
  /** `file:line`, or `file: row n` where there are no lines; begins every error. */
  readonly where: string;
}

/** Parses one record; offsets in errors count from its first byte. */
export function parseRecord(text: string, where: string): JsonObject {
  const value: JsonValue = parseJson(text, where, {
    maxBytes: maxRecordBytes,
    maxDepth,
    maxValues,
  });
  if (isJsonObject(value)) return value;
  const got = Array.isArray(value) ? "a list" : JSON.stringify(value).slice(0, 40);
  throw new FormatError(`${where}: must be an object with named fields, got ${got}.`, {
    path: where,
  });
}

export async function* jsonLines(files: Files, path: string): AsyncGenerator<LocatedRecord> {
  for await (const { number, text } of readLines(files, path)) {
    const where = `${path}:${number}`;
    if (text.trim() !== "") yield { record: parseRecord(text, where), where };
  }
}

/** Names of a record's fields for an error: the first twenty. */
export function shownKeys(record: JsonObject): string {
  const keys = Object.keys(record);
  const shown = keys.slice(0, 20).map((key) => (key.length > 40 ? `${key.slice(0, 40)}…` : key));
  if (keys.length > shown.length) shown.push(`and ${keys.length - shown.length} more`);
  return shown.join(", ") || "none";
}
