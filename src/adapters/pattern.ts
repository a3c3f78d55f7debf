/**
 * Names of layers as PEFT's `rank_pattern` and `alpha_pattern` give them (`get_pattern_key`): a regular
 * expression for the whole path of a layer, or for its last parts.
 *
 * An adapter folder may come from anyone, so patterns are read by this file and not by RegExp: the safe
 * part of Python's syntax (literals, `.`, classes, `\d \w`, groups, `|`, `* + ?`, `^ $`), matched
 * without going back (Thompson 1968), in time that grows with pattern × path.
 */
import { UnsupportedError } from "../errors.ts";

const maxLength = 512;

type Tree =
  | { readonly kind: "one"; readonly test: (character: string) => boolean }
  | { readonly kind: "anchor"; readonly isStart: boolean }
  | { readonly kind: "all" | "any"; readonly items: readonly Tree[] }
  | { readonly kind: "repeat"; readonly item: Tree; readonly sign: string };

const classes: Readonly<Record<string, RegExp>> = {
  d: /\d/,
  D: /\D/,
  w: /\w/,
  W: /\W/,
};

class PatternParser {
  readonly #text: readonly string[];
  readonly #name: string;
  #at = 0;

  constructor(pattern: string, where: string) {
    this.#name = `${where} ${JSON.stringify(pattern)}`;
    this.#text = [...pattern];
  }

  whole(): Tree {
    const tree = this.#alternatives();
    if (this.#at < this.#text.length) throw this.#unknown();
    return tree;
  }

  #unknown(): UnsupportedError {
    const got = this.#text[this.#at];
    return new UnsupportedError(
      `${this.#name}: ${got === undefined ? "ends too early" : `${JSON.stringify(got)} at ${this.#at} is not supported`} — write names, ".", classes, groups, "|", "*", "+" and "?".`,
    );
  }

  #alternatives(): Tree {
    const items = [this.#sequence()];
    while (this.#text[this.#at] === "|") {
      this.#at++;
      items.push(this.#sequence());
    }
    return { kind: "any", items };
  }

  #sequence(): Tree {
    const items: Tree[] = [];
    for (;;) {
      const next = this.#text[this.#at];
      if (next === undefined || next === "|" || next === ")") return { kind: "all", items };
      let item = this.#atom();
      const sign = this.#text[this.#at];
      if (sign === "*" || sign === "+" || sign === "?") {
        item = { kind: "repeat", item, sign };
        this.#at++;
        // Lazy or not, the same texts match.
        if (this.#text[this.#at] === "?") this.#at++;
      }
      items.push(item);
    }
  }

  #atom(): Tree {
    const character = this.#text[this.#at]!;
    if ("*+?{}]".includes(character)) throw this.#unknown();
    this.#at++;
    if (character === "^" || character === "$") {
      return { kind: "anchor", isStart: character === "^" };
    }
    if (character === ".") return { kind: "one", test: () => true };
    if (character === "[") return this.#class();
    if (character === "\\") return { kind: "one", test: this.#escape() };
    if (character !== "(") return { kind: "one", test: (other) => other === character };
    if (this.#text[this.#at] === "?") {
      if (this.#text[this.#at + 1] !== ":") throw this.#unknown();
      this.#at += 2;
    }
    const tree = this.#alternatives();
    if (this.#text[this.#at] !== ")") throw this.#unknown();
    this.#at++;
    return tree;
  }

  /** After a backslash: a class, or a sign that stands for itself. */
  #escape(): (character: string) => boolean {
    const letter = this.#text[this.#at];
    if (letter === undefined) throw this.#unknown();
    const known = Object.hasOwn(classes, letter) ? classes[letter]! : undefined;
    if (!known && /[A-Za-z0-9]/.test(letter)) throw this.#unknown();
    this.#at++;
    return known ? (character) => known.test(character) : (character) => character === letter;
  }

  #class(): Tree {
    const isInverted = this.#text[this.#at] === "^";
    if (isInverted) this.#at++;
    const tests: ((character: string) => boolean)[] = [];
    do {
      const low = this.#text[this.#at++];
      if (low === undefined || low === "[") throw this.#unknown();
      if (low === "\\") {
        tests.push(this.#escape());
      } else if (this.#text[this.#at] === "-" && this.#text[this.#at + 1] !== "]") {
        const high = this.#text[this.#at + 1];
        if (high === undefined || high < low || high === "\\") throw this.#unknown();
        this.#at += 2;
        tests.push((character) => character >= low && character <= high);
      } else {
        tests.push((character) => character === low);
      }
    } while (this.#text[this.#at] !== "]");
    this.#at++;
    return {
      kind: "one",
      test: (character) => tests.some((test) => test(character)) !== isInverted,
    };
  }
}

/** A state of the automaton: takes a character, or passes on at once (where an anchor holds). */
interface State {
  readonly test?: (character: string) => boolean;
  readonly anchor?: "start" | "end";
  readonly next: State[];
}

function link(tree: Tree, next: State): State {
  switch (tree.kind) {
    case "one":
      return { test: tree.test, next: [next] };
    case "anchor":
      return { anchor: tree.isStart ? "start" : "end", next: [next] };
    case "all":
      return tree.items.reduceRight((after, item) => link(item, after), next);
    case "any":
      return { next: tree.items.map((item) => link(item, next)) };
    case "repeat": {
      if (tree.sign === "?") return { next: [link(tree.item, next), next] };
      const again: State = { next: [] };
      const body = link(tree.item, again);
      again.next.push(body, next);
      return tree.sign === "+" ? body : again;
    }
  }
}

/**
 * Whether a layer's path, or its last parts, match a pattern whole.
 * @param where begins every error.
 * @throws UnsupportedError for syntax beyond the safe part, or more than 512 characters.
 */
export function compilePattern(
  pattern: string,
  where: string = "pattern",
): (path: string) => boolean {
  if (pattern.length > maxLength) {
    throw new UnsupportedError(
      `${where} ${JSON.stringify(`${pattern.slice(0, 40)}…`)} has ${pattern.length} characters, at most ${maxLength} are read.`,
    );
  }
  const end: State = { next: [] };
  const first = link(new PatternParser(pattern, where).whole(), end);
  return (path) => {
    const text = [...path];
    const reach = (states: Iterable<State>, at: number): Set<State> => {
      const found = new Set<State>();
      const open = [...states];
      for (let state = open.pop(); state; state = open.pop()) {
        if (found.has(state)) continue;
        found.add(state);
        if (state.test) continue;
        if (state.anchor === "start" && at !== 0) continue;
        if (state.anchor === "end" && at !== text.length) continue;
        open.push(...state.next);
      }
      return found;
    };
    let states = new Set<State>();
    for (let at = 0; at <= text.length; at++) {
      // A match may begin with the path, or after any of its dots.
      const begin = at === 0 || text[at - 1] === "." ? [first] : [];
      states = reach([...states, ...begin], at);
      if (at === text.length) break;
      const taken: State[] = [];
      for (const state of states) if (state.test?.(text[at]!)) taken.push(...state.next);
      states = new Set(taken);
    }
    return states.has(end);
  };
}
