/**
 * Who is next: a queue for each key, served in turns by deficit round robin.
 *
 * Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round-Robin", IEEE/ACM Transactions on
 * Networking 1996: each turn adds a quantum to what a key may spend, and it is served while its first item
 * costs no more than that. A key with a hundred requests and a key with one get equal shares.
 */
import { OptionError, StateError } from "../../errors.ts";

/** More work than is taken: a client may come again later. `details.limit` is what was reached. */
export class BusyError extends StateError {}

/** Something that waits. */
export interface Waiting {
  readonly key: string;
  /** What serving it takes, in tokens; at least 1. */
  readonly cost: number;
  /** Of one key's items, higher ones go first. */
  readonly priority: number;
}

export interface QueueLimits {
  /** Items that wait, of all keys; default 1024. */
  readonly queued?: number;
  /** Items of one key that wait; default: as many as of all. */
  readonly queuedPerKey?: number;
}

/** Spent in one turn: about a short request. */
const quantum = 512;

interface Turn<T> {
  readonly items: T[];
  deficit: number;
  /** Whether this turn's quantum was added. */
  isPaid: boolean;
}

export class FairQueue<T extends Waiting> {
  readonly #limits: Required<QueueLimits>;
  /** Keys in the order of their turns, the first one's now. */
  readonly #turns: Map<string, Turn<T>> = new Map();
  #size = 0;

  /** @throws OptionError for a limit below 1. */
  constructor(limits: QueueLimits = {}) {
    const { queued = 1024, queuedPerKey = queued } = limits;
    for (const [name, value] of Object.entries({ queued, queuedPerKey })) {
      if (Number.isInteger(value) && value >= 1 && value <= 1e6) continue;
      throw new OptionError(`queue: ${name} must be a whole number from 1 to 1e6, got ${value}.`);
    }
    this.#limits = { queued, queuedPerKey };
  }

  get size(): number {
    return this.#size;
  }

  /** Items of a key that wait. */
  sizeOf(key: string): number {
    return this.#turns.get(key)?.items.length ?? 0;
  }

  /** @throws BusyError when the queue, or the key's part of it, is full. */
  check(key: string): void {
    const { queued, queuedPerKey } = this.#limits;
    if (this.#size >= queued) {
      throw new BusyError(
        `serve: ${this.#size} requests wait, which is all that are taken — try again later.`,
        { limit: "queued" },
      );
    }
    if (this.sizeOf(key) >= queuedPerKey) {
      throw new BusyError(
        `serve: ${this.sizeOf(key)} requests of this key wait, which is all that it may have — try again later.`,
        { limit: "queuedPerKey" },
      );
    }
  }

  /** Adds an item; throws as `check`. */
  push(item: T): void {
    this.check(item.key);
    let turn = this.#turns.get(item.key);
    if (!turn) {
      turn = { items: [], deficit: 0, isPaid: false };
      this.#turns.set(item.key, turn);
    }
    let at = turn.items.length;
    while (at > 0 && turn.items[at - 1]!.priority < item.priority) at--;
    turn.items.splice(at, 0, item);
    this.#size++;
  }

  /**
   * The item that is to be served next; it stays until `remove`, and is the same until something changes.
   * @param isOpen whether a key may be served; others keep their place and earn nothing.
   */
  peek(isOpen: (key: string) => boolean): T | undefined {
    const open = [...this.#turns.keys()].filter(isOpen);
    if (open.length === 0) return undefined;
    for (;;) {
      for (const key of open) {
        const turn = this.#turns.get(key)!;
        if (!turn.isPaid) {
          turn.isPaid = true;
          turn.deficit += quantum;
        }
        if (turn.items[0]!.cost <= turn.deficit) return turn.items[0]!;
        turn.isPaid = false;
        this.#turns.delete(key);
        this.#turns.set(key, turn);
      }
    }
  }

  /** Takes the item that `peek` gave: its key pays for it. */
  take(item: T): void {
    const turn = this.#turns.get(item.key);
    if (turn) turn.deficit -= item.cost;
    this.remove(item);
  }

  /** Takes an item away unserved. */
  remove(item: T): boolean {
    const turn = this.#turns.get(item.key);
    const at = turn?.items.indexOf(item) ?? -1;
    if (!turn || at < 0) return false;
    turn.items.splice(at, 1);
    this.#size--;
    // Who has nothing to ask for saves nothing up.
    if (turn.items.length === 0) this.#turns.delete(item.key);
    return true;
  }

  /** Everything that waits, in no particular order. */
  *[Symbol.iterator](): IterableIterator<T> {
    for (const { items } of this.#turns.values()) yield* items;
  }
}
