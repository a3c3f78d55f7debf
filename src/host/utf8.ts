/** UTF-8 from outside: decoded whole, or refused with the place of the first bad byte. */
import { FormatError } from "../errors.ts";

/** Offset of the first byte that no valid UTF-8 text could have there, or -1. */
function firstInvalidByte(bytes: Uint8Array): number {
  let i = 0;
  while (i < bytes.length) {
    const lead = bytes[i]!;
    let size = 1;
    let low = 0x80;
    let high = 0xbf;
    if (lead >= 0x80) {
      if (lead < 0xc2 || lead > 0xf4) return i;
      size = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
      // Unicode 15, table 3-7: no overlong forms, no surrogates, nothing past U+10FFFF.
      if (lead === 0xe0) low = 0xa0;
      else if (lead === 0xed) high = 0x9f;
      else if (lead === 0xf0) low = 0x90;
      else if (lead === 0xf4) high = 0x8f;
    }
    for (let k = 1; k < size; k++) {
      const next = bytes[i + k];
      if (next === undefined || next < low || next > high) return i;
      low = 0x80;
      high = 0xbf;
    }
    i += size;
  }
  return -1;
}

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * The text of `bytes`; a byte order mark is kept.
 * @throws FormatError naming `where` and the offset of the first byte that is not UTF-8.
 */
export function decodeUtf8(
  bytes: Uint8Array,
  where: string,
  details: Readonly<Record<string, unknown>> = {},
): string {
  try {
    return strict.decode(bytes);
  } catch (cause) {
    const offset = firstInvalidByte(bytes);
    const value = bytes[offset]?.toString(16).padStart(2, "0");
    throw new FormatError(
      `${where}: byte ${offset} (0x${value}) is not UTF-8 — save the file as UTF-8 text.`,
      { path: where, offset, ...details },
      { cause },
    );
  }
}
