/** Lines of a text file as it streams. */
import { FormatError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { decodeUtf8 } from "../host/utf8.ts";

/** A line, a paragraph, a row or an element of a JSON array longer than this is not an example. */
export const maxRecordBytes: number = 2 ** 22;

export interface Line {
  /** From 1. */
  readonly number: number;
  /** Without its line break; a byte order mark before the first is left out. */
  readonly text: string;
}

/** Bytes that arrive in parts and are taken whole. */
export class Gather {
  #parts: Uint8Array[] = [];
  size = 0;

  add(part: Uint8Array): void {
    if (part.length === 0) return;
    this.#parts.push(part);
    this.size += part.length;
  }

  take(): Uint8Array {
    const [only] = this.#parts;
    let bytes = only ?? new Uint8Array(0);
    if (this.#parts.length > 1) {
      bytes = new Uint8Array(this.size);
      let at = 0;
      for (const part of this.#parts) {
        bytes.set(part, at);
        at += part.length;
      }
    }
    this.#parts = [];
    this.size = 0;
    return bytes;
  }
}

/**
 * Lines of a UTF-8 file, with bounded memory.
 * @throws FormatError naming file and line of what is not UTF-8 or too long.
 */
export async function* readLines(files: Files, path: string): AsyncGenerator<Line> {
  const rest = new Gather();
  let number = 1;
  const add = (part: Uint8Array): void => {
    rest.add(part);
    if (rest.size > maxRecordBytes) {
      throw new FormatError(
        `${path}:${number}: the line is longer than ${maxRecordBytes} bytes — is it a file of lines?`,
        { path, line: number },
      );
    }
  };
  const take = (): Line => {
    const whole = decodeUtf8(rest.take(), `${path}:${number}`, { path, line: number });
    const text = number === 1 ? whole.replace(/^\ufeff/, "") : whole;
    return { number: number++, text: text.replace(/\r$/, "") };
  };
  for await (const bytes of files.stream(path)) {
    let start = 0;
    for (let end = bytes.indexOf(0x0a); end >= 0; end = bytes.indexOf(0x0a, start)) {
      add(bytes.subarray(start, end));
      yield take();
      start = end + 1;
    }
    add(bytes.subarray(start));
  }
  if (rest.size > 0) yield take();
}

/** @throws FormatError when a text holds a NUL, as binary files and UTF-16 do. */
export function refuseNul(text: string, where: string): void {
  if (!text.includes("\0")) return;
  throw new FormatError(`${where}: holds a NUL character — save the file as UTF-8 text.`, {
    path: where,
  });
}
