/**
 * Token masks of an automaton over bytes. What a token does inside one lexeme is found once for all grammars and
 * stacks; only where a token goes on beyond a lexeme's end is the rest of it read with the stack, as in Dong et al.
 * 2024, "XGrammar", arXiv:2411.15100, §3.1.
 */
import { dead, far, type Lexeme } from "./dfa.ts";
import type { Configuration, Machine, State } from "./machine.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** Bytes that the parts of a vocabulary hold at most, and the masks of a grammar. */
const maxPartBytes = 2 ** 25;
const maxMaskBytes = 2 ** 24;

/** What tokens do inside a lexeme, from one of its states on. */
interface Part {
  /** Tokens that end inside the lexeme; by rising need where characters are counted. */
  readonly tokens: Int32Array;
  /** Characters that the string has at least after a token, more than it has before. */
  readonly needs: Int32Array | undefined;
  /** All of `tokens` as bits, where they are many. */
  readonly bits: Uint32Array | undefined;
  /** Tokens that end with the lexeme, and characters up to there; where characters are counted. */
  readonly endings: Int32Array;
  readonly endingCounts: Int32Array | undefined;
  /** Nodes of the trie where the lexeme may end and a token goes on. */
  readonly exits: Int32Array;
  /** Characters up to there. */
  readonly exitCounts: Int32Array | undefined;
}

const bytesOf = (part: Part): number =>
  4 *
  (part.tokens.length +
    (part.needs?.length ?? 0) +
    (part.bits?.length ?? 0) +
    2 * part.endings.length +
    part.exits.length +
    (part.exitCounts?.length ?? 0));

/** What was found for lexemes; shared by all grammars of a vocabulary. */
class Parts {
  readonly #vocabulary: Vocabulary;
  #found: WeakMap<object, Map<number, Part>> = new WeakMap();
  #bytes = 0;

  constructor(vocabulary: Vocabulary) {
    this.#vocabulary = vocabulary;
  }

  get({ node: { lexeme }, state, count }: Configuration): Part {
    // A simple counter's limits are held against the needs; others are followed.
    const from = lexeme.counter?.isSimple === false ? count : far;
    const shared = (lexeme.counter?.isSimple ? lexeme.core : undefined) ?? lexeme;
    let own = this.#found.get(shared);
    if (!own) {
      own = new Map();
      this.#found.set(shared, own);
    }
    const key = state * 2 ** 22 + from + 2;
    let part = own.get(key);
    if (!part) {
      part = this.#find(lexeme, state, from);
      this.#bytes += bytesOf(part) + 100;
      if (this.#bytes > maxPartBytes) {
        this.#bytes = 0;
        this.#found = new WeakMap();
      } else own.set(key, part);
    }
    return part;
  }

  #find(lexeme: Lexeme, start: number, from: number): Part {
    const { symbols, end, first, tokens, level, size, depth } = this.#vocabulary;
    const { counter } = lexeme;
    const [states, counts] = [new Int32Array(depth + 1), new Int32Array(depth + 1)];
    states[0] = start;
    counts[0] = from === far ? 0 : from;
    const isSimple = counter !== undefined && from === far;
    const found = new Int32Array(tokens.length);
    const needs = new Int32Array(isSimple ? tokens.length : 0);
    let count = 0;
    const [endings, endingCounts]: [number[], number[]] = [[], []];
    const [exits, exitCounts]: [number[], number[]] = [[], []];
    for (let node = 1; node < symbols.length; ) {
      const at = level[node]!;
      const to = lexeme.step(states[at - 1]!, symbols[node]!);
      let isOpen = to !== dead;
      if (isOpen && counter) {
        counts[at] = counter.next(to, counts[at - 1]!);
        if (!isSimple) isOpen = counter.isLive(to, counts[at]!);
      }
      if (!isOpen) {
        node = end[node]!;
        continue;
      }
      states[at] = to;
      const isEnd = lexeme.accepts(to);
      const last = first[node + 1]!;
      for (let i = first[node]!; i < last; i++) {
        if (isSimple && isEnd) {
          endings.push(tokens[i]!);
          endingCounts.push(counts[at]!);
          continue;
        }
        if (isSimple) needs[count] = counter.need(to, counts[at]!);
        found[count++] = tokens[i]!;
      }
      if (isEnd && end[node]! > node + 1) {
        exits.push(node);
        if (isSimple) exitCounts.push(counts[at]!);
      }
      node++;
    }
    const all = found.slice(0, count);
    const order = isSimple ? byValue(needs.subarray(0, count)) : undefined;
    let bits: Uint32Array | undefined;
    if (all.length > size / 32) {
      bits = new Uint32Array((size + 31) >>> 5);
      setBits(bits, all, all.length);
    }
    return {
      tokens: order ? order.map((i) => all[i]!) : all,
      needs: order?.map((i) => needs[i]!),
      bits,
      endings: Int32Array.from(endings),
      endingCounts: isSimple ? Int32Array.from(endingCounts) : undefined,
      exits: Int32Array.from(exits),
      exitCounts: isSimple ? Int32Array.from(exitCounts) : undefined,
    };
  }
}

const partsOf: WeakMap<Vocabulary, Parts> = new WeakMap();

/** Places of small whole numbers, in rising order of the numbers. */
function byValue(values: Int32Array): Int32Array {
  let top = 0;
  for (const value of values) top = Math.max(top, value);
  const at = new Int32Array(top + 2);
  for (const value of values) at[value + 1]!++;
  for (let value = 1; value < at.length; value++) at[value]! += at[value - 1]!;
  const order = new Int32Array(values.length);
  for (let i = 0; i < values.length; i++) order[at[values[i]!]!++] = i;
  return order;
}

/** How many numbers of a rising list are at most `limit`. */
function countUpTo(rising: Int32Array, limit: number): number {
  let [low, high] = [0, rising.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (rising[middle]! <= limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

function setBit(into: Uint32Array, token: number): void {
  into[token >>> 5]! |= 1 << (token & 31);
}

function setBits(into: Uint32Array, tokens: Int32Array, count: number): void {
  for (let i = 0; i < count; i++) setBit(into, tokens[i]!);
}

/** The masks of one automaton over one vocabulary. */
export class Masks {
  readonly #machine: Machine;
  readonly #vocabulary: Vocabulary;
  readonly #parts: Parts;
  readonly #states: (State | undefined)[];
  #found: Map<State, Uint32Array> = new Map();

  constructor(machine: Machine, vocabulary: Vocabulary) {
    this.#machine = machine;
    this.#vocabulary = vocabulary;
    let parts = partsOf.get(vocabulary);
    if (!parts) {
      parts = new Parts(vocabulary);
      partsOf.set(vocabulary, parts);
    }
    this.#parts = parts;
    this.#states = new Array(vocabulary.depth + 1).fill(undefined);
  }

  /** Bits of the tokens that may come in a state, (size + 31) / 32 words; not to be changed. */
  of(given: State): Uint32Array {
    const state = this.#machine.uncounted(given, this.#vocabulary.depth);
    let mask = this.#found.get(state);
    if (!mask) {
      mask = new Uint32Array((this.#vocabulary.size + 31) >>> 5);
      for (const configuration of state.configurations) this.#add(configuration, mask);
      while (this.#found.size > 0 && (this.#found.size + 1) * mask.byteLength > maxMaskBytes) {
        this.#found.delete(this.#found.keys().next().value!);
      }
      this.#found.set(state, mask);
    }
    return mask;
  }

  #add(configuration: Configuration, mask: Uint32Array): void {
    const { counter } = configuration.node.lexeme;
    const { count } = configuration;
    const part = this.#parts.get(configuration);
    const { tokens, needs, bits, endings, endingCounts, exits, exitCounts } = part;
    const isLimited = needs !== undefined && count !== far;
    const room = isLimited ? counter!.high - count : Infinity;
    const allowed = isLimited ? countUpTo(needs, room) : tokens.length;
    if (bits && allowed === tokens.length) {
      for (let word = 0; word < mask.length; word++) mask[word]! |= bits[word]!;
    } else setBits(mask, tokens, allowed);
    const isWithin = (own: number): boolean =>
      !isLimited || (own <= room && count + own >= counter!.low);
    for (let i = 0; i < endings.length; i++) {
      if (isWithin(endingCounts![i]!)) setBit(mask, endings[i]!);
    }
    if (exits.length === 0) return;
    const next = this.#machine.after(configuration);
    if (next.configurations.length === 0) return;
    for (let i = 0; i < exits.length; i++) {
      if (exitCounts && !isWithin(exitCounts[i]!)) continue;
      this.#walk(next, exits[i]!, mask);
    }
  }

  /** Tokens below a node of the trie that can be read from a state on. */
  #walk(from: State, root: number, mask: Uint32Array): void {
    const { symbols, end, first, tokens, level } = this.#vocabulary;
    const states = this.#states;
    states[level[root]!] = from;
    for (let node = root + 1; node < end[root]!; ) {
      const at = level[node]!;
      const to = this.#machine.step(states[at - 1]!, symbols[node]!);
      if (!to) {
        node = end[node]!;
        continue;
      }
      states[at] = to;
      for (let i = first[node]!; i < first[node + 1]!; i++) setBit(mask, tokens[i]!);
      node++;
    }
  }
}
