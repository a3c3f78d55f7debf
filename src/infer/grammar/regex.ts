/**
 * Patterns as automata over characters: Thompson's construction, then subsets, as in Aho, Sethi and Ullman,
 * "Compilers" (1986), §3.7. Matching takes linear time whatever the pattern is.
 */
import { OptionError } from "../../errors.ts";
import {
  anyCharacter,
  complement,
  type Pattern,
  parsePattern,
  type Ranges,
} from "./regex-parse.ts";

const maxNfaStates = 20_000;
const maxStates = 2000;
const maxClasses = 1000;
/** Work on sets of NFA states at most, in states visited. */
const maxWork = 3e6;

/** An automaton over characters. State 0 is the first; each can reach an accepting one. */
export interface CharacterDfa {
  readonly size: number;
  /** Where state `p` goes: sorted, without overlap; other characters lead nowhere. */
  readonly moves: readonly (readonly Move[])[];
  readonly accepting: readonly boolean[];
}

export interface Move {
  readonly from: number;
  readonly to: number;
  readonly target: number;
}

/** All strings. */
export const anyString: CharacterDfa = {
  size: 1,
  moves: [anyCharacter.map(([from, to]) => ({ from, to, target: 0 }))],
  accepting: [true],
};

interface NfaState {
  /** Reached without a character; `at` says where alone that may be. */
  readonly free: { readonly to: number; readonly at?: "start" | "end" }[];
  move?: { readonly ranges: Ranges; readonly to: number };
}

class Nfa {
  readonly states: NfaState[] = [];
  readonly #where: string;

  constructor(where: string) {
    this.#where = where;
  }

  add(): number {
    if (this.states.length >= maxNfaStates) {
      throw new OptionError(
        `${this.#where}: the pattern repeats too much, it needs more than ${maxNfaStates} states.`,
      );
    }
    return this.states.push({ free: [] }) - 1;
  }

  link(from: number, to: number, at?: "start" | "end"): void {
    this.states[from]!.free.push(at === undefined ? { to } : { to, at });
  }

  /** A pattern between two states. */
  between(pattern: Pattern, from: number, to: number): void {
    switch (pattern.kind) {
      case "set": {
        const own = this.add();
        this.link(from, own);
        // Twice the complement: without halves of surrogate pairs, which no text has.
        this.states[own]!.move = { ranges: complement(complement(pattern.ranges)), to };
        return;
      }
      case "start":
      case "end":
        this.link(from, to, pattern.kind);
        return;
      case "choice":
        for (const part of pattern.parts) this.between(part, from, to);
        return;
      case "join": {
        let at = from;
        for (const part of pattern.parts) {
          const next = this.add();
          this.between(part, at, next);
          at = next;
        }
        this.link(at, to);
        return;
      }
      case "repeat": {
        let at = from;
        for (let i = 0; i < pattern.least; i++) {
          const next = this.add();
          this.between(pattern.part, at, next);
          at = next;
        }
        if (pattern.most === Infinity) {
          const loop = this.add();
          this.link(at, loop);
          const back = this.add();
          this.between(pattern.part, loop, back);
          this.link(back, loop);
          this.link(loop, to);
          return;
        }
        for (let i = pattern.least; i < pattern.most; i++) {
          this.link(at, to);
          const next = this.add();
          this.between(pattern.part, at, next);
          at = next;
        }
        this.link(at, to);
      }
    }
  }
}

/** First characters of the pieces that all sets of an NFA are made of. */
function bordersOf(states: readonly NfaState[], where: string): number[] {
  const borders = new Set<number>();
  for (const { move } of states) {
    for (const [from, to] of move?.ranges ?? []) borders.add(from).add(to + 1);
  }
  if (borders.size > maxClasses) {
    throw new OptionError(
      `${where}: the pattern tells ${borders.size} sets of characters apart, at most ${maxClasses} are taken.`,
    );
  }
  return [...borders].sort((a, b) => a - b);
}

/**
 * The strings that hold a match of a pattern somewhere, as JSON Schema has it; `undefined` where there are
 * none.
 * @param where begins errors: the place in the schema
 * @throws OptionError for a pattern that is not understood, or needs too many states.
 */
export function compilePattern(source: string, where: string): CharacterDfa | undefined {
  const nfa = new Nfa(where);
  const [start, first, last, final] = [nfa.add(), nfa.add(), nfa.add(), nfa.add()];
  const any: Pattern = {
    kind: "repeat",
    part: { kind: "set", ranges: anyCharacter },
    least: 0,
    most: Infinity,
  };
  nfa.between(any, start, first);
  nfa.between(parsePattern(source, where), first, last);
  nfa.between(any, last, final);
  return determinize(nfa.states, { start, matched: last, final }, where);
}

interface Landmarks {
  readonly start: number;
  /** After a match: from here on everything is accepted. */
  readonly matched: number;
  readonly final: number;
}

function determinize(
  states: readonly NfaState[],
  { start, matched, final }: Landmarks,
  where: string,
): CharacterDfa | undefined {
  let work = 0;
  /** States reached without a character, sorted. */
  const closure = (from: Iterable<number>, isStart: boolean, isEnd: boolean): number[] => {
    const seen = new Set<number>();
    const open = [...from];
    for (let id = open.pop(); id !== undefined; id = open.pop()) {
      if (seen.has(id)) continue;
      seen.add(id);
      if (++work > maxWork) throw new OptionError(`${where}: the pattern is too hard to compile.`);
      for (const { to, at } of states[id]!.free) {
        if (at === undefined || (at === "start" ? isStart : isEnd)) open.push(to);
      }
    }
    return [...seen].sort((a, b) => a - b);
  };
  /** What was matched stays so, whatever else goes on. */
  const settled = closure([matched], false, false);
  const borders = bordersOf(states, where);
  const pieceOf = new Map(borders.map((border, i) => [border, i]));
  const sets: (readonly number[])[] = [];
  const ids = new Map<string, number>();
  const idOf = (set: readonly number[], isStart: boolean): number => {
    // What only ^ tells apart matters at the beginning alone.
    const key = `${isStart ? "^" : ""}${set.filter((id) => states[id]!.move || states[id]!.free.some(({ at }) => at)).join()}${set.includes(final) ? "!" : ""}`;
    let id = ids.get(key);
    if (id === undefined) {
      id = sets.length;
      if (id >= maxStates) {
        throw new OptionError(
          `${where}: the pattern needs more than ${maxStates} states — make its repetitions shorter.`,
        );
      }
      ids.set(key, id);
      sets.push(set);
    }
    return id;
  };
  const first = closure([start], true, false);
  idOf(first.includes(matched) ? settled : first, true);
  const moves: Move[][] = [];
  const accepting: boolean[] = [];
  for (let id = 0; id < sets.length; id++) {
    const set = sets[id]!;
    accepting.push(closure(set, id === 0, true).includes(final));
    const reached: (Set<number> | undefined)[] = new Array(borders.length);
    for (const from of set) {
      const { move } = states[from]!;
      for (const [low, high] of move?.ranges ?? []) {
        for (let i = pieceOf.get(low)!; i < borders.length && borders[i]! <= high; i++) {
          reached[i] ??= new Set();
          reached[i]!.add(move!.to);
          if (++work > maxWork)
            throw new OptionError(`${where}: the pattern is too hard to compile.`);
        }
      }
    }
    const own: Move[] = [];
    reached.forEach((next, i) => {
      if (!next) return;
      const set = closure(next, false, false);
      const target = idOf(set.includes(matched) ? settled : set, false);
      const [from, to] = [borders[i]!, borders[i + 1]! - 1];
      const before = own.at(-1);
      if (before?.target === target && before.to === from - 1) {
        own[own.length - 1] = { from: before.from, to, target };
      } else own.push({ from, to, target });
    });
    moves.push(own);
  }
  return trim(moves, accepting);
}

/** Without states that can accept nothing. */
export function trim(
  moves: readonly (readonly Move[])[],
  accepting: readonly boolean[],
): CharacterDfa | undefined {
  const before: number[][] = moves.map(() => []);
  moves.forEach((own, from) => {
    for (const { target } of own) before[target]!.push(from);
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
  if (!isLive[0]) return undefined;
  const kept = moves.flatMap((_, id) => (isLive[id] ? [id] : []));
  const renamed = new Map(kept.map((id, i) => [id, i]));
  return {
    size: kept.length,
    moves: kept.map((id) =>
      moves[id]!.flatMap(({ from, to, target }) =>
        isLive[target] ? [{ from, to, target: renamed.get(target)! }] : [],
      ),
    ),
    accepting: kept.map((id) => accepting[id]!),
  };
}

/**
 * The strings that two automata both accept; `undefined` where there are none.
 * @throws OptionError when that needs too many states.
 */
export function intersect(
  a: CharacterDfa,
  b: CharacterDfa,
  where: string,
): CharacterDfa | undefined {
  const ids = new Map<number, number>();
  const pairs: (readonly [number, number])[] = [];
  const idOf = (p: number, q: number): number => {
    const key = p * b.size + q;
    let id = ids.get(key);
    if (id === undefined) {
      id = pairs.length;
      if (id >= maxStates) {
        throw new OptionError(
          `${where}: its patterns together need more than ${maxStates} states.`,
        );
      }
      ids.set(key, id);
      pairs.push([p, q]);
    }
    return id;
  };
  idOf(0, 0);
  const moves: Move[][] = [];
  for (let id = 0; id < pairs.length; id++) {
    const [p, q] = pairs[id]!;
    const [left, right] = [a.moves[p]!, b.moves[q]!];
    const own: Move[] = [];
    for (let i = 0, j = 0; i < left.length && j < right.length; ) {
      const [from, to] = [
        Math.max(left[i]!.from, right[j]!.from),
        Math.min(left[i]!.to, right[j]!.to),
      ];
      if (from <= to) own.push({ from, to, target: idOf(left[i]!.target, right[j]!.target) });
      if (left[i]!.to < right[j]!.to) i++;
      else j++;
    }
    moves.push(own);
  }
  return trim(
    moves,
    pairs.map(([p, q]) => a.accepting[p]! && b.accepting[q]!),
  );
}

/** Whether an automaton accepts a text. */
export function matches({ moves, accepting }: CharacterDfa, text: string): boolean {
  let state = 0;
  for (const character of text) {
    const code = character.codePointAt(0)!;
    const move = moves[state]!.find(({ from, to }) => from <= code && code <= to);
    if (!move) return false;
    state = move.target;
  }
  return accepting[state]!;
}
