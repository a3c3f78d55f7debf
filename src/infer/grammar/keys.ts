/** Keys of objects that a schema does not name: none that it names, and none twice in one object. */
import { type Counter, type Dfa, dead, type Lexeme } from "./dfa.ts";
import { jsonString } from "./json-string.ts";
import { anyString } from "./regex.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** Characters of a key at most, more where a named one is longer. */
const maxKeyLength = 256;

const encoder = new TextEncoder();

/** A string that is none of some others: a state is a place in a trie of those, and one of the string. */
class KeyLexeme implements Lexeme {
  readonly size: number;
  readonly bytes: number;
  readonly counter: Counter;
  readonly #base: Dfa;
  /** By place in the trie; place 0 is off it. */
  readonly #children: Map<number, number>[] = [new Map(), new Map()];
  readonly #isTaken: boolean[] = [false, false];

  constructor(base: Dfa, taken: readonly string[]) {
    this.#base = base;
    for (const name of taken) {
      let at = 1;
      for (const byte of encoder.encode(JSON.stringify(name))) {
        let next = this.#children[at]!.get(byte);
        if (next === undefined) {
          next = this.#children.length;
          this.#children[at]!.set(byte, next);
          this.#children.push(new Map());
          this.#isTaken.push(false);
        }
        at = next;
      }
      this.#isTaken[at] = true;
    }
    const width = base.size;
    this.size = width * this.#children.length;
    this.bytes = 200 * this.#children.length;
    const counter = base.counter!;
    this.counter = {
      next: (state, count) => counter.next(state % width, count),
      isLive: (state, count) => counter.isLive(state % width, count),
      need: (state, count) => counter.need(state % width, count),
      isFar: (count, more) => counter.isFar(count, more),
      low: counter.low,
      high: counter.high,
      isSimple: counter.isSimple,
    };
  }

  /** State 0 is the first: it stands for the beginning of both. */
  step(state: number, symbol: number): number {
    const width = this.#base.size;
    const to = this.#base.step(state % width, symbol);
    if (to === dead) return dead;
    const at = state === 0 ? 1 : Math.floor(state / width);
    const place = this.#children[at]!.get(symbol) ?? 0;
    if (this.#base.accepts(to) && this.#isTaken[place]) return dead;
    return place * width + to;
  }

  accepts(state: number): boolean {
    return this.#base.accepts(state % this.#base.size);
  }

  continues(state: number): boolean {
    return this.#base.continues(state % this.#base.size);
  }
}

let plain: Dfa | undefined;

/** A key that is none of some names; every character is spelled in one way, so that equal keys are equal text. */
export function keyLexeme(taken: readonly string[], where: string): Lexeme {
  const longest = taken.reduce((most, name) => Math.max(most, name.length), 0);
  const make = (most: number): Dfa => jsonString(anyString, { defaultMaxLength: most, where })!;
  if (longest >= maxKeyLength) return new KeyLexeme(make(longest + 1), taken);
  plain ??= make(maxKeyLength);
  return taken.length === 0 ? plain : new KeyLexeme(plain, taken);
}

interface KeyList {
  readonly key: string;
  readonly before: KeyList | undefined;
}

interface Scope {
  readonly isObject: boolean;
  readonly keys: KeyList | undefined;
  readonly below: Scope | undefined;
}

/** Where in JSON text a reader is; never changed. */
export interface KeyState {
  readonly scope: Scope | undefined;
  /** Whether the next string is a key. */
  readonly isAtKey: boolean;
  readonly isInString: boolean;
  readonly isEscaped: boolean;
  /** What of a key was read, in Latin-1; `undefined` outside keys. */
  readonly key: string | undefined;
}

export const beforeKeys: KeyState = {
  scope: undefined,
  isAtKey: false,
  isInString: false,
  isEscaped: false,
  key: undefined,
};

const has = (keys: KeyList | undefined, key: string): boolean => {
  for (let at = keys; at; at = at.before) if (at.key === key) return true;
  return false;
};

/** After a byte of JSON text; `undefined` where an object has a key twice. */
export function afterByte(state: KeyState, byte: number): KeyState | undefined {
  const { scope, isInString, isEscaped, key, isAtKey } = state;
  if (isInString) {
    if (!isEscaped && byte === 0x22) {
      if (key === undefined) return { ...state, isInString: false };
      if (has(scope!.keys, key)) return undefined;
      const keys: KeyList = { key, before: scope!.keys };
      return {
        ...state,
        scope: { ...scope!, keys },
        isInString: false,
        isAtKey: false,
        key: undefined,
      };
    }
    const own = key === undefined ? undefined : key + String.fromCharCode(byte);
    if (key === undefined && !isEscaped && byte !== 0x5c) return state;
    return { ...state, key: own, isEscaped: !isEscaped && byte === 0x5c };
  }
  switch (byte) {
    case 0x22:
      return { ...state, isInString: true, key: isAtKey ? "" : undefined };
    case 0x7b:
      return {
        ...beforeKeys,
        scope: { isObject: true, keys: undefined, below: scope },
        isAtKey: true,
      };
    case 0x5b:
      return { ...beforeKeys, scope: { isObject: false, keys: undefined, below: scope } };
    case 0x7d:
    case 0x5d:
      return { ...beforeKeys, scope: scope?.below };
    case 0x2c:
      return { ...state, isAtKey: scope?.isObject === true };
    default:
      return state;
  }
}

/** Tokens with a quotation mark, which alone can end a key. */
const quoting: WeakMap<Vocabulary, Int32Array> = new WeakMap();

function quotingTokens(vocabulary: Vocabulary): Int32Array {
  let found = quoting.get(vocabulary);
  if (!found) {
    const ids = Array.from({ length: vocabulary.size }, (_, id) => id);
    found = Int32Array.from(ids.filter((id) => vocabulary.symbolsOf(id)?.includes(0x22)));
    quoting.set(vocabulary, found);
  }
  return found;
}

/**
 * A mask without the tokens that would end a key which the object has already. Where nothing were left the mask
 * stays: a key at its longest length must end.
 */
export function withoutRepeats(
  state: KeyState,
  vocabulary: Vocabulary,
  mask: Uint32Array,
): Uint32Array {
  if (!state.scope) return mask;
  let own: Uint32Array | undefined;
  for (const token of quotingTokens(vocabulary)) {
    const word = token >>> 5;
    if (((mask[word]! >>> (token & 31)) & 1) === 0) continue;
    let at: KeyState | undefined = state;
    for (const byte of vocabulary.symbolsOf(token)!) {
      at = afterByte(at, byte);
      if (!at) break;
    }
    if (at) continue;
    own ??= mask.slice();
    own[word]! &= ~(1 << (token & 31));
  }
  return own?.some((word) => word !== 0) ? own : mask;
}
