/**
 * JSON from outside (RFC 8259), stricter than JSON.parse: no key twice in one object, capped depth,
 * size and count, no numbers that overflow, no lone surrogates.
 *
 * Objects have no prototype, so that a key such as `__proto__` is an entry like any other.
 */
import { FormatError } from "../errors.ts";
import { decodeUtf8 } from "../host/utf8.ts";

export type JsonValue = null | boolean | number | string | readonly JsonValue[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: JsonValue;
}

export interface JsonOptions {
  /** Objects and arrays inside each other; default 64. */
  readonly maxDepth?: number;
  /** Bytes (of text: UTF-16 units); default 256 MiB. */
  readonly maxBytes?: number;
  /** Values in the whole document; default ten million. */
  readonly maxValues?: number;
  /** Makes the value of a number from its text, for callers to whom 1 and 1.0 differ. */
  readonly number?: (text: string) => JsonValue;
  /**
   * What the bare word Infinity stands for, which Python's json writes and which is no JSON; default:
   * it is refused.
   */
  readonly infinity?: JsonValue;
  /** Added to the details of every error. */
  readonly details?: Readonly<Record<string, unknown>>;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const MINUS = 0x2d;

const escapes: Readonly<Record<string, string>> = {
  '"': '"',
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

function isDigit(code: number): boolean {
  return code >= 0x30 && code <= 0x39;
}

class JsonParser {
  readonly #text: string;
  readonly #where: string;
  readonly #maxDepth: number;
  readonly #maxValues: number;
  readonly #toNumber: ((text: string) => JsonValue) | undefined;
  readonly #infinity: JsonValue | undefined;
  readonly #details: Readonly<Record<string, unknown>>;
  #at = 0;
  #values = 0;

  constructor(text: string, where: string, options: JsonOptions) {
    this.#text = text;
    this.#where = where;
    this.#maxDepth = options.maxDepth ?? 64;
    this.#maxValues = options.maxValues ?? 1e7;
    this.#toNumber = options.number;
    this.#infinity = options.infinity;
    this.#details = options.details ?? {};
  }

  document(): JsonValue {
    this.#skipSpace();
    const value = this.#value(0);
    this.#skipSpace();
    if (this.#at < this.#text.length) throw this.#error(`text after the value, ${this.#here()}`);
    return value;
  }

  /** Offsets are bytes of the file, which is what a hex editor shows. */
  #error(what: string, at: number = this.#at, details: Record<string, unknown> = {}): FormatError {
    const offset = new TextEncoder().encode(this.#text.slice(0, at)).length;
    return new FormatError(`${this.#where}: invalid JSON at byte ${offset}: ${what}.`, {
      path: this.#where,
      offset,
      ...this.#details,
      ...details,
    });
  }

  #here(): string {
    const code = this.#text.codePointAt(this.#at);
    if (code === undefined) return "got the end of the text";
    return `got ${JSON.stringify(String.fromCodePoint(code))}`;
  }

  #skipSpace(): void {
    for (;;) {
      const code = this.#text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
      this.#at++;
    }
  }

  #value(depth: number): JsonValue {
    if (++this.#values > this.#maxValues) {
      throw this.#error(`more than ${this.#maxValues} values`);
    }
    const code = this.#text.charCodeAt(this.#at);
    if (code === QUOTE) return this.#string();
    if (code === 0x7b) return this.#object(depth + 1);
    if (code === 0x5b) return this.#array(depth + 1);
    if (code === MINUS || isDigit(code)) return this.#number();
    if (code === 0x74) return this.#word("true", true);
    if (code === 0x66) return this.#word("false", false);
    if (code === 0x6e) return this.#word("null", null);
    if (code === 0x49 && this.#infinity !== undefined) {
      return this.#word("Infinity", this.#infinity);
    }
    throw this.#error(`a value is needed, ${this.#here()}`);
  }

  #word<T extends JsonValue>(word: string, value: T): T {
    if (!this.#text.startsWith(word, this.#at)) {
      throw this.#error(
        `a value is needed, got ${JSON.stringify(this.#text.slice(this.#at, this.#at + word.length))}`,
      );
    }
    this.#at += word.length;
    return value;
  }

  #checkDepth(depth: number): void {
    if (depth > this.#maxDepth) {
      throw this.#error(`nested deeper than ${this.#maxDepth} levels`);
    }
  }

  #array(depth: number): JsonValue[] {
    this.#checkDepth(depth);
    const result: JsonValue[] = [];
    this.#at++;
    this.#skipSpace();
    if (this.#take("]")) return result;
    for (;;) {
      result.push(this.#value(depth));
      this.#skipSpace();
      if (this.#take("]")) return result;
      if (!this.#take(",")) throw this.#error(`"," or "]" is needed, ${this.#here()}`);
      this.#skipSpace();
    }
  }

  #object(depth: number): JsonObject {
    this.#checkDepth(depth);
    const result = Object.create(null) as Record<string, JsonValue>;
    this.#at++;
    this.#skipSpace();
    if (this.#take("}")) return result;
    for (;;) {
      const start = this.#at;
      if (this.#text.charCodeAt(start) !== QUOTE) {
        throw this.#error(`a key in quotes is needed, ${this.#here()}`);
      }
      const key = this.#string();
      if (key in result) {
        throw this.#error(`key ${JSON.stringify(key)} stands twice in one object`, start, { key });
      }
      this.#skipSpace();
      if (!this.#take(":")) throw this.#error(`":" is needed, ${this.#here()}`);
      this.#skipSpace();
      result[key] = this.#value(depth);
      this.#skipSpace();
      if (this.#take("}")) return result;
      if (!this.#take(",")) throw this.#error(`"," or "}" is needed, ${this.#here()}`);
      this.#skipSpace();
    }
  }

  #take(character: string): boolean {
    if (this.#text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #string(): string {
    const text = this.#text;
    const open = this.#at++;
    let result = "";
    let from = this.#at;
    for (;;) {
      const code = text.charCodeAt(this.#at);
      if (code === QUOTE) {
        result += text.slice(from, this.#at++);
        return result;
      }
      if (code === BACKSLASH) {
        result += text.slice(from, this.#at) + this.#escape();
        from = this.#at;
      } else if (code < 0x20) {
        throw this.#error(`a control character in a string must be escaped, ${this.#here()}`);
      } else if (code >= 0xd800 && code <= 0xdfff) {
        // Only text that did not come from UTF-8 can hold a half here.
        if (code > 0xdbff || !this.#isLowHalf(text.charCodeAt(this.#at + 1))) {
          throw this.#error("half of a surrogate pair in a string");
        }
        this.#at += 2;
      } else if (Number.isNaN(code)) {
        throw this.#error("a string has no closing quote", open);
      } else this.#at++;
    }
  }

  #isLowHalf(code: number): boolean {
    return code >= 0xdc00 && code <= 0xdfff;
  }

  #escape(): string {
    const start = this.#at;
    const letter = this.#text[start + 1] ?? "";
    if (letter !== "u") {
      const value = Object.hasOwn(escapes, letter) ? escapes[letter] : undefined;
      if (value === undefined) throw this.#error(`unknown escape ${JSON.stringify(`\\${letter}`)}`);
      this.#at += 2;
      return value;
    }
    const unit = this.#hexUnit(start);
    if (unit < 0xd800 || unit > 0xdfff) return String.fromCharCode(unit);
    const next = this.#at;
    if (unit > 0xdbff || this.#text.slice(next, next + 2) !== "\\u") {
      throw this.#error("half of a surrogate pair is escaped alone", start);
    }
    const low = this.#hexUnit(next);
    if (!this.#isLowHalf(low)) {
      throw this.#error("half of a surrogate pair is escaped alone", start);
    }
    return String.fromCharCode(unit, low);
  }

  #hexUnit(start: number): number {
    const hex = this.#text.slice(start + 2, start + 6);
    if (!/^[0-9a-fA-F]{4}$/.test(hex)) {
      throw this.#error(`"\\u" needs four hexadecimal digits, got ${JSON.stringify(hex)}`, start);
    }
    this.#at = start + 6;
    return Number.parseInt(hex, 16);
  }

  #number(): JsonValue {
    const text = this.#text;
    const start = this.#at;
    if (text.charCodeAt(this.#at) === MINUS) this.#at++;
    const first = this.#at;
    this.#digits();
    if (text[first] === "0" && this.#at > first + 1) {
      throw this.#error("a number must not begin with 0", start);
    }
    if (this.#take(".")) this.#digits();
    if (this.#take("e") || this.#take("E")) {
      if (!this.#take("+")) this.#take("-");
      this.#digits();
    }
    const written = text.slice(start, this.#at);
    if (this.#toNumber) return this.#toNumber(written);
    const value = Number(written);
    if (!Number.isFinite(value)) throw this.#error(`${written.slice(0, 40)} is too large`, start);
    return value;
  }

  #digits(): void {
    if (!isDigit(this.#text.charCodeAt(this.#at))) {
      throw this.#error(`a digit is needed, ${this.#here()}`);
    }
    while (isDigit(this.#text.charCodeAt(this.#at))) this.#at++;
  }
}

/**
 * The value of a JSON document.
 * @param where what is read, usually its path; begins every error.
 * @throws FormatError with the byte offset; a repeated key is in `details.key`.
 */
export function parseJson(
  source: string | Uint8Array,
  where: string,
  options: JsonOptions = {},
): JsonValue {
  const limit = options.maxBytes ?? 2 ** 28;
  if (source.length > limit) {
    throw new FormatError(
      `${where}: JSON of ${source.length} bytes is too large, at most ${limit} are read.`,
      { path: where, ...options.details },
    );
  }
  const text = typeof source === "string" ? source : decodeUtf8(source, where, options.details);
  return new JsonParser(text, where, options).document();
}

export function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
