/**
 * Records of a `.json` file: an array of objects, read element by element, or lines of JSON, which
 * many data sets keep under this name.
 */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { decodeUtf8 } from "../host/utf8.ts";
import { Gather, maxRecordBytes } from "./lines.ts";
import { jsonLines, type LocatedRecord, parseRecord } from "./records.ts";

const [quote, backslash, comma, newline] = [0x22, 0x5c, 0x2c, 0x0a];
const isOpen = (byte: number): boolean => byte === 0x5b || byte === 0x7b;
const isClose = (byte: number): boolean => byte === 0x5d || byte === 0x7d;
const isSpace = (byte: number): boolean =>
  byte === 0x20 || byte === 0x09 || byte === newline || byte === 0x0d;

/** The first byte that is neither space nor part of a byte order mark. */
async function firstByte(files: Files, path: string): Promise<number | undefined> {
  for await (const bytes of files.stream(path)) {
    for (const byte of bytes) {
      if (!isSpace(byte) && byte !== 0xef && byte !== 0xbb && byte !== 0xbf) return byte;
    }
  }
  return undefined;
}

export async function* jsonRecords(files: Files, path: string): AsyncGenerator<LocatedRecord> {
  const first = await firstByte(files, path);
  if (first === 0x5b) yield* elements(files, path);
  else if (first === 0x7b) yield* jsonLines(files, path);
  else if (first !== undefined) {
    throw new FormatError(
      `${path}: must be an array of objects, or an object a line, got ${JSON.stringify(String.fromCharCode(first))} at its start.`,
      { path },
    );
  }
}

/**
 * Elements of the array, found by brackets and quotes alone; each is then parsed strictly, so that
 * whatever the search took for one and is none is refused there.
 */
async function* elements(files: Files, path: string): AsyncGenerator<LocatedRecord> {
  const element = new Gather();
  // Depth 0 is before the array, 1 in it; strings hide brackets.
  let [depth, line, startLine] = [0, 1, 1];
  let [isString, isEscaped, isEnded, isBlank] = [false, false, false, true];
  let count = 0;
  const wrong = (what: string): FormatError =>
    new FormatError(`${path}:${line}: ${what}.`, { path, line });
  const take = (): LocatedRecord => {
    const where = `${path}:${startLine}`;
    const text = decodeUtf8(element.take(), where, { path, line: startLine });
    isBlank = true;
    count++;
    return { record: parseRecord(text.trim(), where), where };
  };
  for await (const bytes of files.stream(path)) {
    let start = 0;
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i]!;
      if (byte === newline) line++;
      if (isString) {
        if (isEscaped) isEscaped = false;
        else if (byte === backslash) isEscaped = true;
        else if (byte === quote) isString = false;
        continue;
      }
      if (isSpace(byte)) continue;
      if (isEnded) throw wrong("text after the array's end");
      if (depth === 0) {
        // Only a byte order mark stands before the bracket.
        if (byte !== 0x5b) continue;
        depth = 1;
        start = i + 1;
        continue;
      }
      if (depth === 1 && (byte === comma || byte === 0x5d)) {
        element.add(bytes.subarray(start, i));
        start = i + 1;
        if (byte === 0x5d) isEnded = true;
        if (!isBlank) yield take();
        else if (byte === comma || count > 0) throw wrong("an element of the array is missing");
        else element.take();
        continue;
      }
      if (isBlank) {
        isBlank = false;
        startLine = line;
      }
      if (byte === quote) isString = true;
      else if (isOpen(byte)) depth++;
      else if (isClose(byte)) depth--;
      if (depth < 1) throw wrong("a bracket is closed that was not opened");
    }
    if (!isEnded && depth > 0) element.add(bytes.slice(start));
    if (element.size > maxRecordBytes) {
      throw new FormatError(
        `${path}:${startLine}: the element is longer than ${maxRecordBytes} bytes — are its brackets and quotes closed?`,
        { path, line: startLine },
      );
    }
  }
  if (!isEnded) throw wrong('the array has no end — is the file cut short? It must close with "]"');
}
