/**
 * Rows of a Parquet file as records, a row group at a time; the decoding is done by `hyparquet` and
 * `hyparquet-compressors`. Columns that are of no use are not read.
 */
import type { AsyncBuffer, Compressors, FileMetaData } from "hyparquet";
import { FormatError, PlasticityError, UnsupportedError } from "../errors.ts";
import type { Files, OpenFile } from "../host/host.ts";
import { decodeUtf8 } from "../host/utf8.ts";
import type { JsonObject, JsonValue } from "../io/json.ts";
import type { LocatedRecord } from "./records.ts";

/** Of the footer, which names every column of every row group. */
const maxFooterBytes = 2 ** 27;
const maxColumns = 4096;
const maxGroups = 2 ** 20;
/** Rows that are held at once. */
const maxGroupRows = 2 ** 22;
/** Bytes of one row group's columns, packed and unpacked, and of one page. */
const maxGroupBytes = 2 ** 30;
/** Lists and structs inside each other in a cell. */
const maxDepth = 32;

const codecs = ["UNCOMPRESSED", "SNAPPY", "GZIP", "BROTLI", "ZSTD", "LZ4", "LZ4_RAW"];

function asBuffer(file: OpenFile): AsyncBuffer {
  return {
    byteLength: file.bytes,
    async slice(start: number, end: number = file.bytes): Promise<ArrayBuffer> {
      const size = end - start;
      if (!(start >= 0 && size >= 0 && end <= file.bytes && size <= maxGroupBytes)) {
        throw new FormatError(
          `${file.path}: bytes ${start} to ${end} are named, the file has ${file.bytes} (at most ${maxGroupBytes} are read at once).`,
          { path: file.path },
        );
      }
      const into = new Uint8Array(size);
      await file.read(into, start);
      return into.buffer;
    },
  };
}

/** Every codec with a cap on what it unpacks; a page names its own size. */
function capped(compressors: Compressors, path: string): Compressors {
  const result: Compressors = {};
  for (const [name, unpack] of Object.entries(compressors) as [
    keyof Compressors,
    NonNullable<Compressors[keyof Compressors]>,
  ][]) {
    result[name] = (input, length) => {
      if (!(length >= 0 && length <= maxGroupBytes)) {
        throw new FormatError(
          `${path}: a page unpacks to ${length} bytes, at most ${maxGroupBytes} are read.`,
          { path },
        );
      }
      return unpack(input, length);
    };
  }
  return result;
}

/** A cell as JSON would have it: whole numbers that a double cannot hold become text, bytes null. */
function toJson(value: unknown, where: string, depth = 0): JsonValue {
  if (depth > maxDepth) {
    throw new FormatError(`${where}: a cell is nested deeper than ${maxDepth} levels.`);
  }
  switch (typeof value) {
    case "string":
    case "boolean":
      return value;
    case "number":
      return Number.isFinite(value) ? value : null;
    case "bigint":
      return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  }
  if (value === null || value === undefined || value instanceof Uint8Array) return null;
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? null : value.toISOString();
  if (Array.isArray(value)) return value.map((item) => toJson(item, where, depth + 1));
  if (ArrayBuffer.isView(value)) return Array.from(value as unknown as ArrayLike<number>);
  const result = Object.create(null) as Record<string, JsonValue>;
  for (const [key, item] of Object.entries(value)) result[key] = toJson(item, where, depth + 1);
  return result;
}

function checkFooter(metadata: FileMetaData, path: string): void {
  const wrong = (what: string): FormatError => new FormatError(`${path}: ${what}.`, { path });
  const columns = metadata.schema[0]?.num_children ?? 0;
  if (columns > maxColumns || metadata.schema.length > 4 * maxColumns) {
    throw wrong(`names ${columns} columns, at most ${maxColumns} are read`);
  }
  if (metadata.row_groups.length > maxGroups) {
    throw wrong(`has ${metadata.row_groups.length} row groups, at most ${maxGroups} are read`);
  }
  for (const [i, group] of metadata.row_groups.entries()) {
    if (!(group.num_rows >= 0n && group.num_rows <= maxGroupRows)) {
      throw wrong(
        `row group ${i} has ${group.num_rows} rows, at most ${maxGroupRows} are read at once — write it with smaller row groups`,
      );
    }
  }
}

/** The codecs and sizes of the columns that are to be read. */
function checkGroup(
  group: FileMetaData["row_groups"][number],
  columns: ReadonlySet<string>,
  where: string,
): void {
  let bytes = 0;
  for (const { meta_data: column } of group.columns) {
    const name = column?.path_in_schema[0];
    if (!column || name === undefined) {
      throw new FormatError(`${where}: a column chunk has no description — is the file encrypted?`);
    }
    if (!columns.has(name)) continue;
    if (!codecs.includes(column.codec)) {
      throw new UnsupportedError(
        `${where}: column ${JSON.stringify(name)} is packed with ${column.codec ?? "an unknown codec"} — write it with ${codecs.slice(1).join(", ")} or none.`,
        { codec: column.codec },
      );
    }
    bytes += Math.max(Number(column.total_uncompressed_size), Number(column.total_compressed_size));
  }
  if (!(bytes >= 0 && bytes <= maxGroupBytes)) {
    throw new FormatError(
      `${where}: its columns take ${bytes} bytes, at most ${maxGroupBytes} are read at once — write the file with smaller row groups.`,
    );
  }
}

/** Turns what the decoder throws into a sentence with the file; our own errors stay. */
async function decoding<T>(where: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (cause instanceof PlasticityError) throw cause;
    const what = cause instanceof Error ? cause.message : String(cause);
    throw new FormatError(
      `${where}: cannot be decoded as Parquet, ${what} — is the file whole?`,
      { path: where },
      { cause },
    );
  }
}

async function footerOf(file: OpenFile): Promise<FileMetaData> {
  const { path, bytes } = file;
  const tail = new Uint8Array(8);
  if (bytes >= 12) await file.read(tail, bytes - 8);
  if (decodeAscii(tail.subarray(4)) !== "PAR1") {
    throw new FormatError(
      `${path}: does not end with "PAR1", as a Parquet file does — is it whole, and is it one?`,
      { path },
    );
  }
  const size = new DataView(tail.buffer).getUint32(0, true);
  if (size > maxFooterBytes || size > bytes - 12) {
    throw new FormatError(
      `${path}: its footer says ${size} bytes, the file has ${bytes} (at most ${maxFooterBytes} are read).`,
      { path },
    );
  }
  const footer = new Uint8Array(size + 8);
  await file.read(footer, bytes - footer.length);
  const { parquetMetadata } = await import("hyparquet");
  // Statistics may end inside a character, so the footer's texts are decoded leniently.
  const metadata = await decoding(
    `${path}: footer`,
    (async () => parquetMetadata(footer.buffer, { geoparquet: false }))(),
  );
  checkFooter(metadata, path);
  return metadata;
}

function decodeAscii(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes);
}

/** @param wanted columns to read where the file has them; default all. */
export async function* parquetRecords(
  files: Files,
  path: string,
  wanted: readonly string[] | undefined,
): AsyncGenerator<LocatedRecord> {
  const [{ parquetReadObjects, parquetSchema }, { compressors, decompressZstd }] =
    await Promise.all([import("hyparquet"), import("hyparquet-compressors")]);
  const file = await files.open(path);
  try {
    const metadata = await footerOf(file);
    const names = (
      await decoding(`${path}: footer`, (async () => parquetSchema(metadata).children)())
    ).map(({ element }) => element.name);
    const columns = wanted ? names.filter((name) => wanted.includes(name)) : names;
    if (columns.length === 0) {
      throw new FormatError(
        `${path}: has the columns ${names.slice(0, 20).join(", ") || "none"}, of which none is understood — name them with --map column=field.`,
        { path },
      );
    }
    const chosen = new Set(columns);
    const unpack = capped(
      // The library's own call lets the packed data say how long it gets.
      { ...compressors, ZSTD: (input, length) => decompressZstd(input, new Uint8Array(length)) },
      path,
    );
    const buffer = asBuffer(file);
    let start = 0;
    for (const [i, group] of metadata.row_groups.entries()) {
      const rows = Number(group.num_rows);
      const where = `${path}: row group ${i} (rows ${start + 1} to ${start + rows})`;
      if (rows > 0) {
        checkGroup(group, chosen, where);
        const found = await decoding(
          where,
          parquetReadObjects({
            file: buffer,
            metadata,
            columns,
            rowStart: start,
            rowEnd: start + rows,
            compressors: unpack,
            geoparquet: false,
            parsers: {
              stringFromBytes: (bytes: Uint8Array | undefined) => bytes && decodeUtf8(bytes, where),
              jsonFromBytes: (bytes: Uint8Array | undefined) => bytes && decodeUtf8(bytes, where),
            },
          }),
        );
        if (found.length !== rows) {
          throw new FormatError(`${where}: ${found.length} rows were decoded.`, { path });
        }
        for (let row = 0; row < rows; row++) {
          const at = `${path}: row ${start + row + 1}`;
          const record = Object.create(null) as Record<string, JsonValue>;
          for (const name of columns) record[name] = toJson(found[row]![name], at);
          yield { record: record as JsonObject, where: at };
        }
      }
      start += rows;
    }
  } finally {
    await file.close();
  }
}
