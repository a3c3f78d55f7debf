/** Rows of CSV and TSV files (RFC 4180) as records; the parsing is done by `csv-parse`. */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import type { JsonObject } from "../io/json.ts";
import { type Line, maxRecordBytes, readLines, refuseNul } from "./lines.ts";
import type { LocatedRecord } from "./records.ts";

const maxColumns = 4096;
/** Characters given to the parser at once. */
const blockSize = 2 ** 17;

interface ParsedRow {
  readonly record: readonly string[];
  /** `lines`: of the row's last line in the block, from 1; `empty_lines`: blank ones so far. */
  readonly info: { readonly lines: number };
}

type Parse = (text: string, options: object) => ParsedRow[];

interface Block {
  readonly text: string;
  /** The file's line that it begins with. */
  readonly first: number;
}

/**
 * Blocks of whole rows: a row ends with a line, and outside quotes. Quotes come in pairs (a quote in
 * a cell is doubled), so a row goes on while their number is odd.
 */
async function* blocks(lines: AsyncIterable<Line>, path: string): AsyncGenerator<Block> {
  let texts: string[] = [];
  let [size, first, rowSize, rowFirst, isQuoted] = [0, 1, 0, 1, false];
  for await (const { number, text } of lines) {
    refuseNul(text, `${path}:${number}`);
    if (!isQuoted) [rowSize, rowFirst] = [0, number];
    rowSize += text.length + 1;
    if (rowSize > maxRecordBytes) {
      throw new FormatError(
        `${path}:${rowFirst}: the row is longer than ${maxRecordBytes} characters — is a quote not closed?`,
        { path, line: rowFirst },
      );
    }
    for (let at = text.indexOf('"'); at >= 0; at = text.indexOf('"', at + 1)) isQuoted = !isQuoted;
    texts.push(text);
    size += text.length + 1;
    if (size >= blockSize && !isQuoted) {
      yield { text: `${texts.join("\n")}\n`, first };
      [texts, size, first] = [[], 0, number + 1];
    }
  }
  if (isQuoted) {
    throw new FormatError(
      `${path}:${rowFirst}: a quote that opens in this row is not closed — close it, or double the quotes inside a cell.`,
      { path, line: rowFirst },
    );
  }
  if (texts.length > 0) yield { text: `${texts.join("\n")}\n`, first };
}

function checkHeader(header: readonly string[], where: string): void {
  if (header.length > maxColumns) {
    throw new FormatError(
      `${where}: the header has ${header.length} columns, at most ${maxColumns} are read.`,
      { path: where },
    );
  }
  const seen = new Set<string>();
  for (const name of header) {
    if (name === "" || seen.has(name)) {
      throw new FormatError(
        `${where}: the header names ${name === "" ? "a column with nothing" : `${JSON.stringify(name)} twice`} — the first row must name every column, each once.`,
        { path: where },
      );
    }
    seen.add(name);
  }
}

export async function* csvRecords(
  files: Files,
  path: string,
  delimiter: string,
): AsyncGenerator<LocatedRecord> {
  // The form for browsers brings its own Buffer, which is several times slower than Node's.
  const { parse } = (await ("Buffer" in globalThis
    ? import("csv-parse/sync")
    : import("csv-parse/browser/esm/sync"))) as { parse: Parse };
  let header: readonly string[] | undefined;
  for await (const { text, first } of blocks(readLines(files, path), path)) {
    let rows: ParsedRow[];
    try {
      rows = parse(text, {
        delimiter,
        record_delimiter: "\n",
        relax_column_count: true,
        skip_empty_lines: true,
        info: true,
      });
    } catch (cause) {
      const { code, lines } = cause as { readonly code?: string; readonly lines?: number };
      const line = first + (lines ?? 1) - 1;
      const what =
        code === "INVALID_OPENING_QUOTE"
          ? "a quote stands inside a cell that does not begin with one"
          : code === "CSV_INVALID_CLOSING_QUOTE"
            ? "text follows the quote that closes a cell"
            : (cause as Error).message;
      throw new FormatError(
        `${path}:${line}: ${what} — put the cell in quotes, and double the quotes inside it.`,
        { path, line },
        { cause },
      );
    }
    for (const { record, info } of rows) {
      const breaks = record.reduce((sum, cell) => sum + (cell.split("\n").length - 1), 0);
      const where = `${path}:${first + info.lines - 1 - breaks}`;
      if (!header) {
        header = record.map((name) => name.trim());
        checkHeader(header, where);
        continue;
      }
      if (record.length !== header.length) {
        throw new FormatError(
          `${where}: the row has ${record.length} cells, the header names ${header.length} columns (${header.slice(0, 20).join(", ")}).`,
          { path: where },
        );
      }
      const row = Object.create(null) as Record<string, string>;
      for (const [i, name] of header.entries()) row[name] = record[i]!;
      yield { record: row as JsonObject, where };
    }
  }
}
