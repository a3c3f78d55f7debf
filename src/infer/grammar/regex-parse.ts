/**
 * Patterns of JSON Schema (ECMA-262 regular expressions, read with the `u` flag) as trees. What is no regular
 * language, or looks round itself, is refused.
 */
import { OptionError } from "../../errors.ts";

/** Code points from and to, both in it; sorted, without overlap. */
export type Ranges = readonly (readonly [from: number, to: number])[];

export type Pattern =
  | { readonly kind: "set"; readonly ranges: Ranges }
  | { readonly kind: "join"; readonly parts: readonly Pattern[] }
  | { readonly kind: "choice"; readonly parts: readonly Pattern[] }
  | {
      readonly kind: "repeat";
      readonly part: Pattern;
      readonly least: number;
      /** Infinity where it has no end. */
      readonly most: number;
    }
  | { readonly kind: "start" }
  | { readonly kind: "end" };

export const maxCodePoint = 0x10ffff;
const maxPatternLength = 1000;
const maxGroups = 50;
const maxRepeats = 1000;

/** Sorted, joined where they touch. */
export function normal(ranges: Ranges): Ranges {
  const sorted = ranges.slice().sort((a, b) => a[0] - b[0]);
  const joined: [number, number][] = [];
  for (const [from, to] of sorted) {
    const last = joined.at(-1);
    if (last && from <= last[1] + 1) last[1] = Math.max(last[1], to);
    else joined.push([from, to]);
  }
  return joined;
}

/** All code points that are not in a set, halves of surrogate pairs aside. */
export function complement(ranges: Ranges): Ranges {
  const left: [number, number][] = [];
  let at = 0;
  for (const [from, to] of normal([...ranges, [0xd800, 0xdfff]])) {
    if (from > at) left.push([at, from - 1]);
    at = to + 1;
  }
  if (at <= maxCodePoint) left.push([at, maxCodePoint]);
  return left;
}

export const anyCharacter: Ranges = complement([]);
const digits: Ranges = [[0x30, 0x39]];
const wordCharacters: Ranges = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
/** WhiteSpace and LineTerminator of ECMA-262. */
const spaces: Ranges = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const lineBreaks: Ranges = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];

const classEscapes: Readonly<Record<string, Ranges>> = {
  d: digits,
  D: complement(digits),
  w: wordCharacters,
  W: complement(wordCharacters),
  s: spaces,
  S: complement(spaces),
};

const controlEscapes: Readonly<Record<string, number>> = {
  t: 0x09,
  n: 0x0a,
  v: 0x0b,
  f: 0x0c,
  r: 0x0d,
  "0": 0,
};

class PatternParser {
  readonly #text: readonly string[];
  readonly #source: string;
  readonly #where: string;
  #at = 0;
  #open = 0;

  constructor(source: string, where: string) {
    this.#source = source;
    this.#text = [...source];
    this.#where = where;
  }

  parse(): Pattern {
    const whole = this.#choice();
    if (this.#at < this.#text.length) throw this.#error('has ")" without "("');
    return whole;
  }

  #error(what: string): OptionError {
    return new OptionError(
      `${this.#where}: the pattern ${JSON.stringify(this.#source)} ${what}, at character ${this.#at + 1}.`,
    );
  }

  get #next(): string | undefined {
    return this.#text[this.#at];
  }

  #take(text: string): boolean {
    for (const [i, character] of [...text].entries()) {
      if (this.#text[this.#at + i] !== character) return false;
    }
    this.#at += text.length;
    return true;
  }

  #choice(): Pattern {
    const parts = [this.#join()];
    while (this.#take("|")) parts.push(this.#join());
    return parts.length === 1 ? parts[0]! : { kind: "choice", parts };
  }

  #join(): Pattern {
    const parts: Pattern[] = [];
    while (this.#next !== undefined && this.#next !== "|" && this.#next !== ")") {
      parts.push(this.#repeated());
    }
    return parts.length === 1 ? parts[0]! : { kind: "join", parts };
  }

  #repeated(): Pattern {
    const part = this.#atom();
    const bounds = this.#bounds();
    if (!bounds) return part;
    if (part.kind === "start" || part.kind === "end") throw this.#error("repeats an anchor");
    // Whether it takes few or many first changes nothing about what it matches.
    this.#take("?");
    if (this.#next === "*" || this.#next === "+" || this.#next === "?") {
      throw this.#error("repeats a repetition");
    }
    return { kind: "repeat", part, ...bounds };
  }

  #bounds(): { least: number; most: number } | undefined {
    if (this.#take("*")) return { least: 0, most: Infinity };
    if (this.#take("+")) return { least: 1, most: Infinity };
    if (this.#take("?")) return { least: 0, most: 1 };
    if (!this.#take("{")) return undefined;
    const least = this.#number();
    let most = least;
    if (this.#take(",")) most = this.#next === "}" ? Infinity : this.#number();
    if (!this.#take("}")) throw this.#error('needs "}" after a count');
    if (most < least) throw this.#error(`repeats from ${least} to ${most} times`);
    return { least, most };
  }

  #number(): number {
    let text = "";
    while (/^\d$/.test(this.#next ?? "") && text.length < 8) text += this.#text[this.#at++]!;
    if (text === "") throw this.#error("needs a count");
    const count = Number(text);
    if (count > maxRepeats)
      throw this.#error(`repeats ${count} times, at most ${maxRepeats} are taken`);
    return count;
  }

  #atom(): Pattern {
    const character = this.#text[this.#at]!;
    switch (character) {
      case "^":
        this.#at++;
        return { kind: "start" };
      case "$":
        this.#at++;
        return { kind: "end" };
      case ".":
        this.#at++;
        return { kind: "set", ranges: complement(lineBreaks) };
      case "(":
        return this.#group();
      case "[":
        return { kind: "set", ranges: this.#class() };
      case "\\":
        return { kind: "set", ranges: this.#escape(false) };
      case "*":
      case "+":
      case "?":
      case "{":
      case "}":
      case "]":
        throw this.#error(`has ${JSON.stringify(character)} where nothing is repeated or closed`);
      default:
        this.#at++;
        return this.#one(character.codePointAt(0)!);
    }
  }

  #one(code: number): Pattern {
    if (code >= 0xd800 && code <= 0xdfff) throw this.#error("has half of a surrogate pair");
    return { kind: "set", ranges: [[code, code]] };
  }

  #group(): Pattern {
    this.#at++;
    if (++this.#open > maxGroups) throw this.#error(`nests more than ${maxGroups} groups`);
    if (this.#take("?")) {
      for (const look of ["=", "!", "<=", "<!"]) {
        if (this.#take(look)) throw this.#error("looks ahead or behind, which is not understood");
      }
      if (this.#take("<")) {
        while (this.#next !== undefined && this.#next !== ">") this.#at++;
        if (!this.#take(">")) throw this.#error("has a name without an end");
      } else if (!this.#take(":")) throw this.#error("has an unknown kind of group");
    }
    const inner = this.#choice();
    if (!this.#take(")")) throw this.#error('has "(" without ")"');
    this.#open--;
    return inner;
  }

  /** After a backslash. */
  #escape(isInClass: boolean): Ranges {
    this.#at++;
    const letter = this.#text[this.#at++];
    if (letter === undefined) throw this.#error("ends in a backslash");
    const set = classEscapes[letter];
    if (set) return set;
    const point = (code: number): Ranges => [[code, code]];
    if (letter === "0" && /^\d$/.test(this.#next ?? "")) throw this.#error("has an octal escape");
    if (Object.hasOwn(controlEscapes, letter)) return point(controlEscapes[letter]!);
    if (letter === "x") return point(this.#hex(2));
    if (letter === "u") return point(this.#unicode());
    if (letter === "c" && /^[A-Za-z]$/.test(this.#next ?? "")) {
      return point(this.#text[this.#at++]!.codePointAt(0)! % 32);
    }
    if (letter === "b" && isInClass) return point(0x08);
    if (/^[1-9k]$/.test(letter))
      throw this.#error("refers back to a group, which is not understood");
    if (/^[bB]$/.test(letter)) throw this.#error("has a border of words, which is not understood");
    if (/^[pP]$/.test(letter)) {
      throw this.#error("has a property of characters, which is not understood — list ranges");
    }
    if (/^[A-Za-z0-9]$/.test(letter)) throw this.#error(`has the unknown escape "\\${letter}"`);
    return point(letter.codePointAt(0)!);
  }

  #hex(count: number): number {
    const text = this.#text.slice(this.#at, this.#at + count).join("");
    if (!new RegExp(`^[0-9a-fA-F]{${count}}$`).test(text)) {
      throw this.#error(`needs ${count} hexadecimal digits`);
    }
    this.#at += count;
    return Number.parseInt(text, 16);
  }

  #unicode(): number {
    let code: number;
    if (this.#take("{")) {
      let text = "";
      while (/^[0-9a-fA-F]$/.test(this.#next ?? "") && text.length < 8)
        text += this.#text[this.#at++]!;
      if (text === "" || !this.#take("}")) throw this.#error('needs hexadecimal digits and "}"');
      code = Number.parseInt(text, 16);
    } else {
      code = this.#hex(4);
      if (code >= 0xd800 && code <= 0xdbff && this.#take("\\u")) {
        const low = this.#hex(4);
        if (low < 0xdc00 || low > 0xdfff) throw this.#error("has half of a surrogate pair");
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
      }
    }
    if (code > maxCodePoint || (code >= 0xd800 && code <= 0xdfff)) {
      throw this.#error("names no character");
    }
    return code;
  }

  #class(): Ranges {
    this.#at++;
    const isNegated = this.#take("^");
    const ranges: (readonly [number, number])[] = [];
    while (!this.#take("]")) {
      const from = this.#classItem();
      if (this.#next === "-" && this.#text[this.#at + 1] !== "]") {
        this.#at++;
        const to = this.#classItem();
        const isSingle = (set: Ranges): boolean => set.length === 1 && set[0]![0] === set[0]![1];
        if (!isSingle(from) || !isSingle(to) || from[0]![0] > to[0]![0]) {
          throw this.#error("has a range whose ends are not two characters in order");
        }
        ranges.push([from[0]![0], to[0]![0]]);
      } else ranges.push(...from);
    }
    return isNegated ? complement(ranges) : normal(ranges);
  }

  #classItem(): Ranges {
    const character = this.#next;
    if (character === undefined) throw this.#error('has "[" without "]"');
    if (character === "\\") return this.#escape(true);
    this.#at++;
    const code = character.codePointAt(0)!;
    if (code >= 0xd800 && code <= 0xdfff) throw this.#error("has half of a surrogate pair");
    return [[code, code]];
  }
}

/**
 * @param where begins errors: the place in the schema
 * @throws OptionError for a pattern that is too long, broken, or no regular language.
 */
export function parsePattern(source: string, where: string): Pattern {
  if (source.length > maxPatternLength) {
    throw new OptionError(
      `${where}: the pattern has ${source.length} characters, at most ${maxPatternLength} are read.`,
    );
  }
  return new PatternParser(source, where).parse();
}
