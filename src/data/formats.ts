/** Records of data files, one at a time: JSON, lines of JSON, CSV, TSV, Parquet and plain text. */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { JsonValue } from "../io/json.ts";
import { maxRecordBytes, readLines, refuseNul } from "./lines.ts";
import { jsonLines, type LocatedRecord, shownKeys } from "./records.ts";

export { type LocatedRecord, shownKeys } from "./records.ts";

export type DataFormat = "jsonl" | "json" | "text" | "csv" | "tsv" | "parquet";

export interface ReadOptions {
  /** Default "auto": by the file's name. */
  readonly format?: DataFormat | "auto";
  /** Columns to be read under another name: `{ question: "prompt" }`. */
  readonly map?: Readonly<Record<string, string>>;
  /** Fields that are of use: formats of columns leave others unread. Default: all. */
  readonly fields?: readonly string[];
}

const endings: Readonly<Record<string, DataFormat>> = {
  jsonl: "jsonl",
  ndjson: "jsonl",
  json: "json",
  txt: "text",
  md: "text",
  csv: "csv",
  tsv: "tsv",
  parquet: "parquet",
};

/**
 * The format of a file by its name.
 * @throws OptionError when the ending is unknown.
 */
export function formatOf(path: string): DataFormat {
  const ending = /\.([a-z]+)$/i.exec(path)?.[1]?.toLowerCase() ?? "";
  if (Object.hasOwn(endings, ending)) return endings[ending]!;
  throw new OptionError(
    `${path}: the file's ending says no known format — data is ${Object.keys(endings)
      .map((name) => `.${name}`)
      .join(", ")}, or name the format.`,
    { path },
  );
}

/** Paragraphs, apart by blank lines, as records with `text`. */
async function* paragraphs(files: Files, path: string): AsyncGenerator<LocatedRecord> {
  let lines: string[] = [];
  let [size, first] = [0, 1];
  const flush = (): LocatedRecord[] => {
    const text = lines.join("\n");
    lines = [];
    size = 0;
    return text === "" ? [] : [{ record: { text }, where: `${path}:${first}` }];
  };
  for await (const { number, text } of readLines(files, path)) {
    refuseNul(text, `${path}:${number}`);
    if (text.trim() === "") yield* flush();
    else {
      if (lines.length === 0) first = number;
      size += text.length + 1;
      if (size > maxRecordBytes) {
        throw new FormatError(
          `${path}:${first}: the paragraph is longer than ${maxRecordBytes} characters — part it by blank lines.`,
          { path, line: first },
        );
      }
      lines.push(text);
    }
  }
  yield* flush();
}

function renamed(
  { record, where }: LocatedRecord,
  map: Readonly<Record<string, string>>,
): LocatedRecord {
  const result = Object.create(null) as Record<string, JsonValue>;
  for (const [key, value] of Object.entries(record)) {
    if (!Object.hasOwn(map, key)) result[key] = value;
  }
  // After the others, so that a mapped column wins over one that has the name already.
  for (const [column, field] of Object.entries(map)) {
    if (!Object.hasOwn(record, column)) {
      throw new FormatError(
        `${where}: has no column ${JSON.stringify(column)} to map to ${JSON.stringify(field)} — it has ${shownKeys(record)}.`,
        { path: where, column },
      );
    }
    result[field] = record[column]!;
  }
  return { record: result, where };
}

async function* rawRecords(
  files: Files,
  path: string,
  format: DataFormat,
  columns: readonly string[] | undefined,
): AsyncGenerator<LocatedRecord> {
  switch (format) {
    case "jsonl":
      yield* jsonLines(files, path);
      return;
    case "text":
      yield* paragraphs(files, path);
      return;
    // The readers of the other formats load with the first file that needs them.
    case "json":
      yield* (await import("./json-records.ts")).jsonRecords(files, path);
      return;
    case "csv":
    case "tsv":
      yield* (await import("./csv.ts")).csvRecords(files, path, format === "csv" ? "," : "\t");
      return;
    case "parquet":
      yield* (await import("./parquet.ts")).parquetRecords(files, path, columns);
  }
}

/**
 * Records of a file with bounded memory, whatever the file's size (a Parquet file: a row group).
 * @throws FormatError naming file and line (or row) of what is broken.
 * @throws OptionError when the format is unknown.
 * @throws MissingError when the file is not there.
 */
export async function* readRecords(
  files: Files,
  path: string,
  options: ReadOptions = {},
): AsyncGenerator<LocatedRecord> {
  const { format = "auto", map = {}, fields } = options;
  const columns = fields && [...new Set([...fields, ...Object.keys(map)])];
  const isMapped = Object.keys(map).length > 0;
  const known = format === "auto" ? formatOf(path) : format;
  for await (const found of rawRecords(files, path, known, columns)) {
    yield isMapped ? renamed(found, map) : found;
  }
}
