/**
 * JSON strings as automata over bytes: every character of the value as UTF-8 or, where it must be, escaped, and
 * characters counted against limits of length.
 */
import { OptionError } from "../../errors.ts";
import { type Counter, Dfa, dead, far } from "./dfa.ts";
import { anyString, type CharacterDfa, type Move } from "./regex.ts";

const maxStates = 40_000;
/** States times lengths of a table that says from where which lengths can be reached. */
const maxTable = 2 ** 22;

const [quote, backslash] = [0x22, 0x5c];
/** Escapes of one letter and the characters that they stand for. */
const short: readonly (readonly [letter: number, code: number])[] = [
  [quote, quote],
  [backslash, backslash],
  [0x62, 0x08],
  [0x66, 0x0c],
  [0x6e, 0x0a],
  [0x72, 0x0d],
  [0x74, 0x09],
];

/** Characters that stand as they are, by how many bytes they have in UTF-8. */
const raw: readonly (readonly [bytes: number, from: number, to: number])[] = [
  [1, 0x20, 0x21],
  [1, 0x23, 0x5b],
  [1, 0x5d, 0x7f],
  [2, 0x80, 0x7ff],
  [3, 0x800, 0xd7ff],
  [3, 0xe000, 0xffff],
  [4, 0x10000, 0x10ffff],
];

/** The byte that a first byte of so many in UTF-8 begins from. */
const lead: readonly number[] = [0, 0, 0xc0, 0xe0, 0xf0];

export interface StringOptions {
  /** Characters at least; default 0. */
  readonly minLength?: number;
  /** Characters at most, by the schema. */
  readonly maxLength?: number;
  /** Characters at most where the schema says nothing. */
  readonly defaultMaxLength: number;
  /** Takes every spelling: any character as `\u0041`, and `\/`. Only for an automaton with one state. */
  readonly isLoose?: boolean;
  /** Begins errors: the place in the schema. */
  readonly where: string;
}

/** States are made once for each way that they go on. */
class Builder {
  readonly rows: Map<number, number>[] = [];
  readonly #known: Map<string, number> = new Map();
  readonly #where: string;

  constructor(where: string) {
    this.#where = where;
  }

  add(): number {
    if (this.rows.length >= maxStates) {
      throw new OptionError(
        `${this.#where}: needs more than ${maxStates} states — make the pattern simpler.`,
      );
    }
    return this.rows.push(new Map()) - 1;
  }

  /** The state that goes on so. */
  state(moves: readonly (readonly [byte: number, to: number])[]): number {
    const key = moves.map(([byte, to]) => `${byte}:${to}`).join();
    let id = this.#known.get(key);
    if (id === undefined) {
      id = this.add();
      for (const [byte, to] of moves) this.rows[id]!.set(byte, to);
      this.#known.set(key, id);
    }
    return id;
  }

  /** Where numbers from `base` on lead that are written with so many digits more; `dead` where nowhere. */
  digits(
    moves: readonly Move[],
    base: number,
    levels: number,
    radix: number,
    bytesOf: (digit: number) => readonly number[],
  ): number {
    if (moves.length === 0) return dead;
    if (levels === 0) return moves[0]!.target;
    const width = radix ** (levels - 1);
    const whole =
      moves.length === 1 && moves[0]!.from <= base && moves[0]!.to >= base + width * radix - 1;
    let same: number | undefined;
    const next: (readonly [number, number])[] = [];
    for (let digit = 0; digit < radix; digit++) {
      const from = base + digit * width;
      const to =
        same ??
        this.digits(within(moves, from, from + width - 1), from, levels - 1, radix, bytesOf);
      if (whole) same = to;
      if (to !== dead) for (const byte of bytesOf(digit)) next.push([byte, to]);
    }
    return this.state(next);
  }
}

/** The part of sorted moves between two characters. */
function within(moves: readonly Move[], from: number, to: number): Move[] {
  const found: Move[] = [];
  for (const move of moves) {
    if (move.to < from) continue;
    if (move.from > to) break;
    found.push({ from: Math.max(from, move.from), to: Math.min(to, move.to), target: move.target });
  }
  return found;
}

const continuation = (digit: number): readonly number[] => [0x80 + digit];

function hexDigit(digit: number): readonly number[] {
  const text = digit.toString(16);
  return [...new Set([text, text.toUpperCase()])].map((letter) => letter.charCodeAt(0));
}

/** The state after `\u`. */
function hexState(builder: Builder, moves: readonly Move[], isLoose: boolean): number {
  if (!isLoose) return builder.digits(within(moves, 0, 0x1f), 0, 4, 16, hexDigit);
  // One target for all; a high half is followed by `\u` and a low one.
  const { target } = moves[0]!;
  const one = (bytes: readonly number[], to: number): number =>
    builder.state(bytes.map((byte) => [byte, to] as const));
  const digit = Array.from({ length: 16 }, (_, i) => hexDigit(i)).flat();
  const last = one(digit, one(digit, target));
  const low = one(
    [0x44, 0x64],
    one([...hexDigit(12), ...hexDigit(13), ...hexDigit(14), ...hexDigit(15)], last),
  );
  const pair = one([backslash], one([0x75], low));
  return builder.digits(
    [
      { from: 0, to: 0xd7ff, target },
      { from: 0xd800, to: 0xdbff, target: pair },
      { from: 0xe000, to: 0xffff, target },
    ],
    0,
    4,
    16,
    hexDigit,
  );
}

/** Strings of any length, and what limits of length need to know of them. */
interface Core {
  readonly dfa: Dfa;
  readonly rows: readonly Map<number, number>[];
  /** 1 for states between two characters. */
  readonly isBorder: Uint8Array;
  /** The state after the closing quote. */
  readonly end: number;
  /** Characters that are missing from each state to the end, at least. */
  readonly shortest: Int32Array;
}

/** Strings of all characters, in one spelling and in all. */
const anyCores: (Core | undefined)[] = [undefined, undefined];

function coreOf(characters: CharacterDfa, isLoose: boolean, where: string): Core {
  if (characters !== anyString) return makeCore(characters, isLoose, where);
  const index = isLoose ? 1 : 0;
  anyCores[index] ??= makeCore(characters, isLoose, where);
  return anyCores[index];
}

function makeCore(characters: CharacterDfa, isLoose: boolean, where: string): Core {
  const builder = new Builder(where);
  const [open, end] = [builder.add(), builder.add()];
  const borders = characters.moves.map(() => builder.add());
  builder.rows[open]!.set(quote, borders[0]!);
  characters.moves.forEach((own, p) => {
    const row = builder.rows[borders[p]!]!;
    const moves = own.map(({ from, to, target }) => ({ from, to, target: borders[target]! }));
    if (characters.accepting[p]) row.set(quote, end);
    for (const [byte, to] of rawMoves(builder, moves)) row.set(byte, to);
    const escaped: [number, number][] = [];
    for (const [letter, code] of short) {
      const [move] = within(moves, code, code);
      if (move) escaped.push([letter, move.target]);
    }
    if (isLoose) escaped.push([0x2f, moves[0]!.target]);
    const hex = hexState(builder, moves, isLoose);
    if (hex !== dead) escaped.push([0x75, hex]);
    if (escaped.length > 0) row.set(backslash, builder.state(escaped));
  });
  const { rows } = builder;
  const isBorder = new Uint8Array(rows.length);
  for (const state of borders) isBorder[state] = 1;
  const shortest = shortestFrom(rows, isBorder, end);
  return { dfa: table(rows, end, where), rows, isBorder, end, shortest };
}

/** First bytes of characters that stand as they are. */
function rawMoves(builder: Builder, moves: readonly Move[]): [byte: number, to: number][] {
  const found: [number, number][] = [];
  for (const [bytes, from, to] of raw) {
    const part = within(moves, from, to);
    if (part.length === 0) continue;
    const width = 64 ** (bytes - 1);
    const [first, last] = [part[0]!.from, part.at(-1)!.to].map((code) => Math.floor(code / width));
    for (let digit = first!; digit <= last!; digit++) {
      const base = digit * width;
      const own = within(part, base, base + width - 1);
      const next = builder.digits(own, base, bytes - 1, 64, continuation);
      if (next !== dead) found.push([lead[bytes]! + digit, next]);
    }
  }
  return found;
}

/**
 * The JSON strings whose values an automaton accepts and whose length is within its limits, quotes included;
 * `undefined` where there are none.
 * @throws OptionError when that needs too many states, naming the place.
 */
export function jsonString(characters: CharacterDfa, options: StringOptions): Dfa | undefined {
  const { minLength = 0, maxLength, defaultMaxLength, where, isLoose = false } = options;
  if (maxLength !== undefined && minLength > maxLength) return undefined;
  const { dfa, rows, isBorder, end, shortest } = coreOf(characters, isLoose, where);
  const size = rows.length;
  // Every length can be reached from everywhere where one state takes all.
  const isFree = characters.size === 1;
  let most = maxLength;
  if (most === undefined) {
    // A shortest string of at least `minLength` has at most a state's number of characters more.
    const least = minLength + characters.size;
    const affordable = isFree || minLength === 0 ? Infinity : Math.floor(maxTable / size) - 2;
    most = Math.max(least, Math.min(defaultMaxLength, affordable));
  }
  const needsTable = minLength > 0 && !isFree;
  if (needsTable && size * (most + 2) > maxTable) {
    throw new OptionError(
      `${where}: a pattern with minLength ${minLength} and maxLength ${most} needs too large a table — make the lengths or the pattern smaller.`,
    );
  }
  const reachable = needsTable ? reachableFrom(rows, isBorder, end, minLength, most) : undefined;
  const [low, high] = [minLength, most];
  const slack = characters.size + 1;
  const counter: Counter = {
    next: (state, count) => (count === far || !isBorder[state] ? count : count + 1),
    isLive: (state, count) => {
      if (count === far) return true;
      if (state === end) return count >= low && count <= high;
      if (count > high) return false;
      if (reachable) return reachable[state * (high + 2) + count + 1] === 1;
      return Math.max(0, count) + shortest[state]! <= high;
    },
    need: (state, count) => count + shortest[state]!,
    low,
    high,
    isSimple: reachable === undefined,
    isFar: (count, more) => count >= low && high - count > more + slack,
  };
  return counter.isLive(0, -1) ? dfa.counting(counter) : undefined;
}

function shortestFrom(
  rows: readonly Map<number, number>[],
  isBorder: Uint8Array,
  end: number,
): Int32Array {
  const shortest = new Int32Array(rows.length).fill(2 ** 30);
  shortest[end] = 0;
  const before: number[][] = rows.map(() => []);
  rows.forEach((row, from) => {
    for (const to of new Set(row.values())) before[to]!.push(from);
  });
  // From the end, a step into a border costs one: nearest first by two queues.
  let open: number[] = [end];
  while (open.length > 0) {
    const later: number[] = [];
    for (let state = open.pop(); state !== undefined; state = open.pop()) {
      for (const from of before[state]!) {
        const own = shortest[state]! + isBorder[state]!;
        if (own >= shortest[from]!) continue;
        shortest[from] = own;
        (isBorder[state] ? later : open).push(from);
      }
    }
    open = later;
  }
  // The first border is reached by the opening quote, which is no character.
  shortest[0] = shortest[0]! - 1;
  return shortest;
}

/** For each state and count from -1 on, whether the string can still be ended within its lengths. */
function reachableFrom(
  rows: readonly Map<number, number>[],
  isBorder: Uint8Array,
  end: number,
  low: number,
  high: number,
): Uint8Array {
  const width = high + 2;
  const found = new Uint8Array(rows.length * width);
  const inside = rows.map((row) => [...new Set(row.values())]);
  // Bytes inside a character lead to higher depths only, so a few rounds settle a count.
  for (let count = high; count >= -1; count--) {
    const at = count + 1;
    if (count >= low) found[end * width + at] = 1;
    for (let changed = true; changed; ) {
      changed = false;
      for (let state = rows.length - 1; state >= 0; state--) {
        if (found[state * width + at] === 1) continue;
        const isLive = inside[state]!.some((to) =>
          isBorder[to]
            ? count < high && found[to * width + at + 1] === 1
            : found[to * width + at] === 1,
        );
        if (!isLive) continue;
        found[state * width + at] = 1;
        changed = true;
      }
    }
  }
  return found;
}

function table(rows: readonly Map<number, number>[], end: number, where: string): Dfa {
  const classOf = new Uint8Array(256);
  const classes = new Map<string, number>();
  const columns: number[] = [];
  classes.set("", 0);
  for (let byte = 0; byte < 256; byte++) {
    let key = "";
    rows.forEach((row, state) => {
      const to = row.get(byte);
      if (to !== undefined) key += `${state}:${to},`;
    });
    let own = classes.get(key);
    if (own === undefined) {
      own = classes.size;
      classes.set(key, own);
      columns.push(byte);
    }
    classOf[byte] = own;
  }
  const width = classes.size;
  if (rows.length * width > maxTable) {
    throw new OptionError(
      `${where}: needs a table of ${rows.length} states and ${width} kinds of bytes, which is too large — make the pattern simpler.`,
    );
  }
  const cells = new Int32Array(rows.length * width).fill(dead);
  rows.forEach((row, state) => {
    columns.forEach((byte, i) => {
      cells[state * width + i + 1] = row.get(byte) ?? dead;
    });
  });
  const accepting = new Uint8Array(rows.length);
  accepting[end] = 1;
  return new Dfa(classOf, width, cells, accepting);
}
