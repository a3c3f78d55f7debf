/** Makes the nodes of a pushdown automaton, and settles how much each needs. */
import { OptionError } from "../../errors.ts";
import type { Lexeme } from "./dfa.ts";
import { Literal } from "./dfa.ts";
import type { AfterNode, DoneNode, ItemNode, List, Node, Rule } from "./machine.ts";

const maxNodes = 200_000;
/** Bytes of all lexemes together. */
const maxLexemeBytes = 2 ** 26;

type Open<T extends Node> = { -readonly [K in keyof T]: T[K] };

const encoder = new TextEncoder();

/** Begins as all nodes do: it needs more than there is until `finish`. */
const unsettled = Infinity;

export interface ListOptions {
  readonly ruleAt: (index: number) => Rule;
  /** Items whose rules `ruleAt` tells apart; those after them are like the last one. */
  readonly distinct: number;
  readonly least: number;
  readonly most: number;
  readonly between: Node;
  readonly close: Node;
}

export class Rules {
  /** A rule's end. */
  readonly done: DoneNode;
  readonly #where: string;
  readonly #nodes: Node[] = [];
  readonly #distinct: Map<List, number> = new Map();
  readonly #lexemes: Set<Lexeme> = new Set();
  readonly #literals: Map<string, Literal> = new Map();
  #bytes = 0;

  /** @param where begins errors */
  constructor(where: string) {
    this.#where = where;
    this.done = this.#add({ kind: "done", id: 0, height: 0 });
  }

  #add<T extends Node>(node: Open<T>): T {
    if (this.#nodes.length >= maxNodes) {
      throw new OptionError(
        `${this.#where}: needs more than ${maxNodes} nodes — make it smaller, or use $ref for what repeats.`,
      );
    }
    node.id = this.#nodes.length;
    this.#nodes.push(node as Node);
    return node as unknown as T;
  }

  lex(lexeme: Lexeme, next: Node = this.done): Node {
    if (!this.#lexemes.has(lexeme)) {
      this.#lexemes.add(lexeme);
      this.#bytes += lexeme.bytes;
      if (this.#bytes > maxLexemeBytes) {
        throw new OptionError(
          `${this.#where}: its strings and numbers need more than ${maxLexemeBytes} bytes together — make patterns, ranges and lists of values smaller.`,
        );
      }
    }
    return this.#add({ kind: "lex", id: 0, height: unsettled, lexeme, next });
  }

  /** Reads a text. */
  text(text: string, next: Node = this.done): Node {
    let lexeme = this.#literals.get(text);
    if (!lexeme) {
      lexeme = new Literal([...encoder.encode(text)]);
      this.#literals.set(text, lexeme);
    }
    return this.lex(lexeme, next);
  }

  call(rule: Rule, next: Node = this.done): Node {
    return this.#add({ kind: "call", id: 0, height: unsettled, rule, next });
  }

  /** One of some nodes; of none nothing can be read. */
  choice(options: readonly Node[]): Node {
    if (options.length === 1) return options[0]!;
    return this.#add({ kind: "choice", id: 0, height: unsettled, options: options.slice() });
  }

  /** The node that reads a list's first item and all that follows. */
  list(options: ListOptions): Node {
    const { distinct, ...own } = options;
    const list = own as unknown as List;
    list.item = this.#add<ItemNode>({ kind: "item", id: 0, height: unsettled, list });
    list.after = this.#add<AfterNode>({ kind: "after", id: 0, height: unsettled, list });
    this.#distinct.set(list, distinct);
    return list.item;
  }

  /**
   * Settles all heights, when every rule has its beginning.
   * @throws OptionError when a rule comes back to itself without reading anything, or cannot end.
   */
  finish(start: Rule, why: string | undefined): void {
    // From the end of rules backwards, so the last nodes first; recursion takes a few rounds more.
    for (let changed = true; changed; ) {
      changed = false;
      for (const node of this.#nodes) {
        const height = this.#heightOf(node);
        if (height >= node.height) continue;
        node.height = height;
        changed = true;
      }
    }
    if (start.start!.height === Infinity) {
      throw new OptionError(
        `${this.#where}: no value fits it, or none that ends${why === undefined ? " — it may need itself inside itself." : `: ${why}`}`,
      );
    }
    this.#checkCycles();
  }

  #heightOf(node: Node): number {
    switch (node.kind) {
      case "done":
        return 0;
      case "lex":
        return node.next.height;
      case "choice":
        return node.options.reduce((least, { height }) => Math.min(least, height), Infinity);
      case "call":
        return Math.max(
          node.rule.start!.height + (node.next.kind === "done" ? 0 : 1),
          node.next.height,
        );
      case "item":
        return Math.max(this.#itemsHeight(node.list, 1), node.list.close.height);
      case "after":
        return Math.max(
          node.list.least > 1 ? this.#itemsHeight(node.list, node.list.least) : 0,
          node.list.close.height,
        );
    }
  }

  /** What the first items of a list need, at least so many and those that it must have. */
  #itemsHeight(list: List, atLeast: number): number {
    const count = Math.min(Math.max(atLeast, list.least), this.#distinct.get(list)!);
    let height = 1;
    for (let i = 0; i < count; i++) {
      height = Math.max(height, 1 + list.ruleAt(i).start!.height);
    }
    return height;
  }

  /** A rule that begins with itself would be expanded for ever. */
  #checkCycles(): void {
    const isOpen = new Set<Node>();
    const isDone = new Set<Node>();
    const stack: { node: Node; next: Node[] }[] = [];
    const enter = (node: Node): void => {
      if (isDone.has(node)) return;
      if (isOpen.has(node)) {
        throw new OptionError(
          `${this.#where}: a $ref comes back to itself without anything between — leave it out of anyOf or allOf.`,
        );
      }
      isOpen.add(node);
      stack.push({ node, next: this.#freeSteps(node) });
    };
    for (const first of this.#nodes) {
      enter(first);
      while (stack.length > 0) {
        const top = stack.at(-1)!;
        const next = top.next.pop();
        if (next) enter(next);
        else {
          stack.pop();
          isOpen.delete(top.node);
          isDone.add(top.node);
        }
      }
    }
  }

  /** Nodes that are reached from a node without reading anything. */
  #freeSteps(node: Node): Node[] {
    switch (node.kind) {
      case "lex":
        return node.lexeme.accepts(0) ? [node.next] : [];
      case "choice":
        return node.options.slice();
      case "call":
        return [node.rule.start!];
      case "item":
        return [node.list.ruleAt(0).start!];
      default:
        return [];
    }
  }
}
