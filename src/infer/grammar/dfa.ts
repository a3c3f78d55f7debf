/** Finite automata over symbols: bytes of UTF-8, and from 256 on special tokens. */
import { OptionError } from "../../errors.ts";

/** What leads nowhere. */
export const dead = -1;

/**
 * A regular piece of a text. States are numbers from 0; `count` goes along for lexemes that count characters
 * (`isCounting`) and is 0 in others.
 */
export interface Lexeme {
  /** State after a symbol, or `dead`. A state that is given can reach an accepting one. */
  step(state: number, symbol: number): number;
  /** Whether the piece may end here. */
  accepts(state: number): boolean;
  /** Whether any symbol may follow inside the piece. */
  continues(state: number): boolean;
  readonly size: number;
  /** Memory that its tables hold. */
  readonly bytes: number;
  /** How characters are counted, where they are. */
  readonly counter?: Counter;
  /** The same for lexemes that differ only in the limits of a simple counter. */
  readonly core?: object;
  /** Whether it is free text, in which nothing is JSON. */
  readonly isFree?: boolean;
}

/** Limits on how many characters a string has, with what can still be reached from each state. */
export interface Counter {
  /** The count after a step into a state. */
  next(state: number, count: number): number;
  /** Whether an accepting state can be reached. */
  isLive(state: number, count: number): boolean;
  /** The count at least that the string needs to end, from a state and its count. */
  need(state: number, count: number): number;
  /** Least and most characters. */
  readonly low: number;
  readonly high: number;
  /** Whether `need` and the limits say alone whether a state is live; else only `isLive` does. */
  readonly isSimple: boolean;
  /** Whether so many more characters cannot come to a limit, whatever they are. */
  isFar(count: number, characters: number): boolean;
}

/** The count of a string whose limits are far: it is not counted on. */
export const far = -2;
/** The count before a string's opening quote. */
export const unopened = -1;

/** A fixed text. */
export class Literal implements Lexeme {
  readonly size: number;
  readonly bytes: number;
  readonly #symbols: readonly number[];

  constructor(symbols: readonly number[]) {
    this.#symbols = symbols;
    this.size = symbols.length + 1;
    this.bytes = 8 * this.size;
  }

  step(state: number, symbol: number): number {
    return this.#symbols[state] === symbol ? state + 1 : dead;
  }

  accepts(state: number): boolean {
    return state === this.#symbols.length;
  }

  continues(state: number): boolean {
    return state < this.#symbols.length;
  }
}

/** A table of transitions over classes of bytes. */
export class Dfa implements Lexeme {
  readonly size: number;
  readonly bytes: number;
  readonly counter?: Counter;
  readonly core?: object;
  readonly #classes: number;
  readonly #classOf: Uint8Array;
  readonly #table: Int32Array;
  readonly #accepting: Uint8Array;
  readonly #continues: Uint8Array;

  constructor(
    classOf: Uint8Array,
    classes: number,
    table: Int32Array,
    accepting: Uint8Array,
    counted?: { readonly counter: Counter; readonly core: object },
  ) {
    this.#classOf = classOf;
    this.#classes = classes;
    this.#table = table;
    this.#accepting = accepting;
    this.size = accepting.length;
    this.bytes = table.byteLength + 2 * this.size + 256;
    this.#continues = new Uint8Array(this.size);
    for (let i = 0; i < table.length; i++) {
      if (table[i] !== dead) this.#continues[Math.floor(i / classes)] = 1;
    }
    if (counted) {
      this.counter = counted.counter;
      this.core = counted.core;
    }
  }

  step(state: number, symbol: number): number {
    return symbol < 256 ? this.#table[state * this.#classes + this.#classOf[symbol]!]! : dead;
  }

  accepts(state: number): boolean {
    return this.#accepting[state] === 1;
  }

  continues(state: number): boolean {
    return this.#continues[state] === 1;
  }

  /** The same transitions with characters counted. */
  counting(counter: Counter): Dfa {
    const counted = { counter, core: this };
    return new Dfa(this.#classOf, this.#classes, this.#table, this.#accepting, counted);
  }
}

/** Names of DFA states while one is explored. */
export interface Exploration<S> {
  readonly start: S;
  /** Equal for states that are the same. */
  key(state: S): string | number;
  /** The state after a byte; `undefined` where there is none. */
  step(state: S, byte: number): S | undefined;
  accepts(state: S): boolean;
}

export interface ExploreOptions {
  /** Begins an error: what is compiled. */
  readonly where: string;
  readonly maxStates: number;
  /** Bytes that may lead anywhere; others are dead from every state. Default all. */
  readonly bytes?: readonly number[];
}

const allBytes: readonly number[] = Array.from({ length: 256 }, (_, byte) => byte);

/** A DFA, and the explored state that each of its states stands for. */
export interface Explored<S> {
  readonly dfa: Dfa;
  readonly states: readonly S[];
}

/**
 * The DFA of what is explored, without states from which nothing is accepted; `undefined` where nothing is.
 * @throws OptionError for more states than may be.
 */
export function explore<S>(
  exploration: Exploration<S>,
  { where, maxStates, bytes = allBytes }: ExploreOptions,
): Explored<S> | undefined {
  const ids = new Map<string | number, number>();
  const states: S[] = [];
  const idOf = (state: S): number => {
    const key = exploration.key(state);
    let id = ids.get(key);
    if (id === undefined) {
      id = states.length;
      if (id >= maxStates) {
        throw new OptionError(
          `${where}: needs more than ${maxStates} states — make the pattern, the range or the lengths smaller.`,
        );
      }
      ids.set(key, id);
      states.push(state);
    }
    return id;
  };
  idOf(exploration.start);
  const width = bytes.length;
  const rows: Int32Array[] = [];
  for (let id = 0; id < states.length; id++) {
    const row = new Int32Array(width);
    for (let i = 0; i < width; i++) {
      const to = exploration.step(states[id]!, bytes[i]!);
      row[i] = to === undefined ? dead : idOf(to);
    }
    rows.push(row);
  }
  const accepting = states.map((state) => exploration.accepts(state));
  const isLive = liveStates(rows, accepting);
  if (!isLive[0]) return undefined;
  const kept = states.flatMap((_, id) => (isLive[id] ? [id] : []));
  const renamed = new Int32Array(states.length).fill(dead);
  kept.forEach((id, i) => {
    renamed[id] = i;
  });
  const trimmed = kept.map((id) => rows[id]!.map((to) => (to === dead ? dead : renamed[to]!)));
  return {
    dfa: tabulate(
      trimmed,
      kept.map((id) => accepting[id]!),
      bytes,
    ),
    states: kept.map((id) => states[id]!),
  };
}

/** States from which an accepting one can be reached. */
function liveStates(rows: readonly Int32Array[], accepting: readonly boolean[]): boolean[] {
  const before: number[][] = rows.map(() => []);
  rows.forEach((row, from) => {
    for (const to of new Set(row)) if (to !== dead) before[to]!.push(from);
  });
  const isLive = accepting.slice();
  const open = isLive.flatMap((live, id) => (live ? [id] : []));
  for (let id = open.pop(); id !== undefined; id = open.pop()) {
    for (const from of before[id]!) {
      if (isLive[from]) continue;
      isLive[from] = true;
      open.push(from);
    }
  }
  return isLive;
}

/** Bytes that act alike everywhere share a column. */
function tabulate(
  rows: readonly Int32Array[],
  accepting: readonly boolean[],
  bytes: readonly number[],
): Dfa {
  const classOf = new Uint8Array(256);
  const classes = new Map<string, number>();
  const columns: number[] = [];
  // Class 0 is of bytes that lead nowhere; it has no column of its own.
  classes.set(rows.map(() => dead).join(), 0);
  bytes.forEach((byte, column) => {
    const key = rows.map((row) => row[column]!).join();
    let own = classes.get(key);
    if (own === undefined) {
      own = classes.size;
      classes.set(key, own);
      columns.push(column);
    }
    classOf[byte] = own;
  });
  const width = classes.size;
  const table = new Int32Array(rows.length * width).fill(dead);
  rows.forEach((row, state) => {
    columns.forEach((column, i) => {
      table[state * width + i + 1] = row[column]!;
    });
  });
  return new Dfa(classOf, width, table, Uint8Array.from(accepting, Number));
}

/** One of some texts, each of bytes. */
export function oneOf(texts: readonly Uint8Array[], options: ExploreOptions): Dfa {
  interface TrieNode {
    readonly id: number;
    readonly children: Map<number, TrieNode>;
    ends: boolean;
  }
  let count = 0;
  const node = (): TrieNode => ({ id: count++, children: new Map(), ends: false });
  const root = node();
  for (const text of texts) {
    let at = root;
    for (const byte of text) {
      let next = at.children.get(byte);
      if (!next) {
        next = node();
        at.children.set(byte, next);
      }
      at = next;
    }
    at.ends = true;
  }
  const bytes = [...new Set(texts.flatMap((text) => [...text]))];
  return explore<TrieNode>(
    {
      start: root,
      key: ({ id }) => id,
      step: ({ children }, byte) => children.get(byte),
      accepts: ({ ends }) => ends,
    },
    { ...options, bytes },
  )!.dfa;
}

/** At most so many of some bytes, also none. */
export function upTo(most: number, bytes: readonly number[], where: string): Dfa {
  return explore<number>(
    {
      start: 0,
      key: (n) => n,
      step: (n, byte) => (n < most && bytes.includes(byte) ? n + 1 : undefined),
      accepts: () => true,
    },
    { where, maxStates: most + 1, bytes },
  )!.dfa;
}
