/**
 * Files of a tar archive (POSIX.1-2017 ustar, with pax and GNU long names), read strictly: regular files alone,
 * under paths that stay inside.
 */
import { FormatError } from "../errors.ts";

export interface TarFile {
  /** Parts joined by "/", none of them "." or "..". */
  readonly path: string;
  /** A view of the archive. */
  readonly bytes: Uint8Array;
}

export interface TarOptions {
  /** Most entries; default 50,000. */
  readonly maxFiles?: number;
}

const block = 512;
const longest = 4096;

function text(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return new TextDecoder("utf-8", { fatal: true }).decode(end < 0 ? bytes : bytes.subarray(0, end));
}

/** Path from a name in an archive. @throws FormatError for one that leads outside. */
function safePath(name: string, where: string): string {
  const parts = name.split("/").filter((part) => part !== "" && part !== ".");
  const isOutside = name.startsWith("/") || parts.includes("..");
  if (isOutside || /[\\\0]/.test(name) || /^[A-Za-z]:/.test(name) || name.length > longest) {
    throw new FormatError(
      `${where}: the archive holds ${JSON.stringify(name.slice(0, 80))}, a path that is not taken.`,
    );
  }
  return parts.join("/");
}

function octal(field: Uint8Array, where: string): number {
  const digits = text(field).trim();
  // Sizes above 8 GiB are written in binary; nothing here is so large.
  if (!/^[0-7]{1,12}$/.test(digits))
    throw new FormatError(`${where}: a number in a header is wrong.`);
  return Number.parseInt(digits, 8);
}

/** The path that a pax record gives, if it gives one. */
function paxPath(bytes: Uint8Array, where: string): string | undefined {
  let at = 0;
  while (at < bytes.length) {
    const space = bytes.indexOf(0x20, at);
    const size = Number(text(bytes.subarray(at, space)));
    if (!(Number.isInteger(size) && size > 0 && at + size <= bytes.length)) {
      throw new FormatError(`${where}: a pax record is broken.`);
    }
    const record = text(bytes.subarray(space + 1, at + size - 1));
    if (record.startsWith("path=")) return record.slice(5);
    at += size;
  }
  return undefined;
}

/**
 * @param where begins errors: whose archive it is
 * @throws FormatError for links, devices, paths that lead outside, wrong checksums, and an archive cut short.
 */
export function* readTar(
  archive: Uint8Array,
  where: string,
  { maxFiles = 50_000 }: TarOptions = {},
): Generator<TarFile> {
  let long: string | undefined;
  let count = 0;
  for (let at = 0; at + block <= archive.length; ) {
    const header = archive.subarray(at, at + block);
    if (header.every((byte) => byte === 0)) return;
    const field = (from: number, size: number): Uint8Array => header.subarray(from, from + size);
    // The sum of the header's bytes, its own field counted as spaces.
    const sum = header.reduce((a, byte, i) => a + (i >= 148 && i < 156 ? 0x20 : byte), 0);
    if (octal(field(148, 8), where) !== sum) {
      throw new FormatError(`${where}: the header at byte ${at} has a wrong checksum.`);
    }
    const size = octal(field(124, 12), where);
    const start = at + block;
    if (start + size > archive.length) {
      throw new FormatError(`${where}: the archive is cut short in the entry at byte ${at}.`);
    }
    const bytes = archive.subarray(start, start + size);
    at = start + Math.ceil(size / block) * block;
    const type = String.fromCharCode(header[156]!);
    if (type === "x" || type === "L") {
      long = type === "x" ? (paxPath(bytes, where) ?? long) : text(bytes);
      continue;
    }
    if (type === "g") continue;
    const prefix = text(field(257, 5)) === "ustar" ? text(field(345, 155)) : "";
    const name = long ?? (prefix === "" ? "" : `${prefix}/`) + text(field(0, 100));
    long = undefined;
    const path = safePath(name, where);
    if (type === "5") continue;
    if (type !== "0" && type !== "\0") {
      throw new FormatError(
        `${where}: ${JSON.stringify(path)} is a link or a device — only files are taken.`,
      );
    }
    if (++count > maxFiles) throw new FormatError(`${where}: holds more than ${maxFiles} files.`);
    yield { path, bytes };
  }
}
