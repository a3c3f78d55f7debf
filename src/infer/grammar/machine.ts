/**
 * A pushdown automaton over bytes: lexemes (finite automata) joined by rules that call each other.
 *
 * A state is a set of configurations, since a text may be read in several ways: a lexeme, how far it was read, and
 * a stack of where to go on. Stacks and states are made once for each content, so that states can be compared and
 * what was found for one is found again.
 */
import { dead, far, type Lexeme, unopened } from "./dfa.ts";

/** Where a rule can be. Rules end in `done`. */
export type Node = LexNode | CallNode | ChoiceNode | ItemNode | AfterNode | DoneNode;

interface Numbered {
  readonly id: number;
  /** Calls inside each other that it takes to get to the rule's end, at least; set by `Rules.finish`. */
  height: number;
}

/** Reads a lexeme. */
export interface LexNode extends Numbered {
  readonly kind: "lex";
  readonly lexeme: Lexeme;
  readonly next: Node;
}

/** Runs a rule, whose beginning may be set after it was named. */
export interface CallNode extends Numbered {
  readonly kind: "call";
  readonly rule: Rule;
  readonly next: Node;
}

export interface ChoiceNode extends Numbered {
  readonly kind: "choice";
  readonly options: Node[];
}

/** A list's next item: which one is the count of its frame. */
export interface ItemNode extends Numbered {
  readonly kind: "item";
  readonly list: List;
}

/** After an item of a list: another one, or the end. */
export interface AfterNode extends Numbered {
  readonly kind: "after";
  readonly list: List;
}

export interface DoneNode extends Numbered {
  readonly kind: "done";
}

export interface Rule {
  start: Node | undefined;
}

/** What is repeated: items of an array, or entries of an object. */
export interface List {
  /** The rule of the item at a place. */
  ruleAt(index: number): Rule;
  readonly least: number;
  /** Infinity where there is no end. */
  readonly most: number;
  /** Reads what stands between two items, then is done. */
  between: Node;
  /** Goes on after the last item. */
  close: Node;
  item: ItemNode;
  after: AfterNode;
}

/** Nested calls at most. */
export const maxHeight = 400;

/** Where to go on when a rule is done. */
interface Frame {
  readonly id: number;
  readonly node: Node;
  readonly count: number;
  readonly below: Frame | undefined;
  readonly depth: number;
  readonly above: Map<number, Frame>;
}

export interface Configuration {
  readonly node: LexNode;
  /** Of the lexeme. */
  readonly state: number;
  /** Of the lexeme's counter. */
  readonly count: number;
  readonly stack: Frame | undefined;
}

/** Ways to read a text that are followed at most; further ones are given up. */
const maxConfigurations = 2000;
const maxStates = 20_000;
const maxFrames = 200_000;
/** Counts of lists are below this. */
const countLimit = 2 ** 20;

export class State {
  readonly configurations: readonly Configuration[];
  /** Whether the text may end here. */
  readonly isComplete: boolean;
  /** Whether it is in free text, in one way to read it. */
  readonly isFree: boolean;
  readonly id: number;
  /** States after a symbol, where they were asked for. */
  readonly next: Map<number, State | undefined> = new Map();

  constructor(id: number, configurations: readonly Configuration[], isComplete: boolean) {
    this.id = id;
    this.configurations = configurations;
    this.isComplete = isComplete;
    this.isFree = configurations.some(({ node }) => node.lexeme.isFree === true);
  }

  /** Whether nothing may follow. */
  get isFinished(): boolean {
    return this.isComplete && this.configurations.length === 0;
  }
}

/** Configurations while they are collected. */
class Collection {
  readonly found: Configuration[] = [];
  readonly keys: string[] = [];
  readonly #seen: Set<string> = new Set();
  isComplete = false;

  add(configuration: Configuration): void {
    if (this.found.length >= maxConfigurations) return;
    const { node, state, count, stack } = configuration;
    const key = `${node.id}.${state}.${count}.${stack?.id ?? ""}`;
    if (this.#seen.has(key)) return;
    this.#seen.add(key);
    this.found.push(configuration);
    this.keys.push(key);
  }
}

export class Machine {
  readonly #start: Rule;
  readonly #maxHeight: number;
  #states: Map<string, State> = new Map();
  #roots: Map<number, Frame> = new Map();
  #frames = 0;
  #lastFrame = 0;
  #lastState = 0;

  /** @param height calls inside each other at most; at least what the rule needs */
  constructor(start: Rule, height: number = maxHeight) {
    this.#start = start;
    this.#maxHeight = Math.max(height, start.start!.height + 1);
  }

  /** The state before anything is read. */
  start(): State {
    const found = new Collection();
    this.#expand(this.#start.start!, 0, undefined, found);
    return this.#state(found);
  }

  /** The state after a symbol; `undefined` where none may come. */
  step(state: State, symbol: number): State | undefined {
    const known = state.next.get(symbol);
    if (known || state.next.has(symbol)) return known;
    const found = new Collection();
    for (const { node, state: at, count, stack } of state.configurations) {
      const { lexeme } = node;
      const to = lexeme.step(at, symbol);
      if (to === dead) continue;
      const counter = lexeme.counter;
      const counted = counter ? counter.next(to, count) : 0;
      if (counter && !counter.isLive(to, counted)) continue;
      if (lexeme.continues(to)) found.add({ node, state: to, count: counted, stack });
      if (lexeme.accepts(to)) this.#expand(node.next, 0, stack, found);
    }
    const next = found.found.length > 0 || found.isComplete ? this.#state(found) : undefined;
    state.next.set(symbol, next);
    return next;
  }

  /** What follows a lexeme's end. */
  after({ node, stack }: Configuration): State {
    const found = new Collection();
    this.#expand(node.next, 0, stack, found);
    return this.#state(found);
  }

  /**
   * A state that allows the same tokens, in which strings whose limits are further than a token are not counted.
   * @param characters of the longest token
   */
  uncounted(state: State, characters: number): State {
    const isFar = ({ node, count }: Configuration): boolean =>
      count >= 0 && node.lexeme.counter?.isFar(count, characters) === true;
    if (!state.configurations.some(isFar)) return state;
    const found = new Collection();
    found.isComplete = state.isComplete;
    for (const configuration of state.configurations) {
      found.add(isFar(configuration) ? { ...configuration, count: far } : configuration);
    }
    return this.#state(found);
  }

  #state({ found, keys, isComplete }: Collection): State {
    const key = `${keys.slice().sort().join()}${isComplete ? "!" : ""}`;
    let state = this.#states.get(key);
    if (!state) {
      // States that are in use stay; only their being made once is given up.
      if (this.#states.size >= maxStates) this.#states = new Map();
      state = new State(this.#lastState++, found, isComplete);
      this.#states.set(key, state);
    }
    return state;
  }

  #push(node: Node, count: number, below: Frame | undefined): Frame {
    if (this.#frames > maxFrames) {
      this.#frames = 0;
      this.#roots = new Map();
    }
    const above = below ? below.above : this.#roots;
    const key = node.id * countLimit + count;
    let frame = above.get(key);
    if (!frame) {
      frame = {
        id: this.#lastFrame++,
        node,
        count,
        below,
        depth: (below?.depth ?? 0) + 1,
        above: new Map(),
      };
      this.#frames++;
      above.set(key, frame);
    }
    return frame;
  }

  /** Whether an item fits on top of a stack. */
  #hasRoom(list: List, index: number, stack: Frame | undefined): boolean {
    return (stack?.depth ?? 0) + 1 + list.ruleAt(index).start!.height <= this.#maxHeight;
  }

  /** Adds what may be read at a node. */
  #expand(node: Node, count: number, stack: Frame | undefined, into: Collection): void {
    if ((stack?.depth ?? 0) + node.height > this.#maxHeight) return;
    switch (node.kind) {
      case "lex": {
        const { lexeme } = node;
        if (lexeme.continues(0)) {
          into.add({ node, state: 0, count: lexeme.counter ? unopened : 0, stack });
        }
        if (lexeme.accepts(0)) this.#expand(node.next, 0, stack, into);
        return;
      }
      case "choice":
        for (const option of node.options) this.#expand(option, count, stack, into);
        return;
      case "call": {
        // A rule that is called last returns where its caller would.
        const isLast = node.next.kind === "done";
        this.#expand(node.rule.start!, 0, isLast ? stack : this.#push(node.next, 0, stack), into);
        return;
      }
      case "item":
        if (this.#hasRoom(node.list, count, stack)) {
          this.#expand(
            node.list.ruleAt(count).start!,
            0,
            this.#push(node.list.after, count + 1, stack),
            into,
          );
        }
        return;
      case "after": {
        const { list } = node;
        if (count < list.most && this.#hasRoom(list, count, stack)) {
          this.#expand(list.between, 0, this.#push(list.item, count, stack), into);
        }
        if (count >= list.least) this.#expand(list.close, 0, stack, into);
        return;
      }
      case "done":
        if (!stack) into.isComplete = true;
        else this.#expand(stack.node, stack.count, stack.below, into);
    }
  }
}
