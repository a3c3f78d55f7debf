/** Adapters of a bank by name: which slot has which, who uses it, and when it can go. */
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import type { LoraBank } from "../../adapters/bank.ts";
import { MissingError, OptionError, StateError } from "../../errors.ts";

/** An adapter that can be asked for. */
export interface AdapterInfo {
  readonly name: string;
  readonly slot: number;
  /** Requests that run with it or wait to. */
  readonly users: number;
}

interface Held {
  readonly name: string;
  readonly slot: number;
  readonly root: number;
  users: number;
  /** Told when the last user has gone, once the adapter is to go. */
  leaving: { readonly promise: Promise<void>; readonly done: () => void } | undefined;
}

/** A slot's content in use: it is neither overwritten nor cleared before `done`. */
export interface SlotLease {
  readonly slot: number;
  /** Names the content: keys and values of different contents are never mixed. */
  readonly root: number;
  /** To be called once. */
  done(): void;
}

const maxName = 256;

export class AdapterSlots {
  readonly #bank: LoraBank | undefined;
  readonly #newRoot: () => number;
  readonly #forget: (root: number) => void;
  readonly #base: number;
  readonly #byName: Map<string, Held> = new Map();
  readonly #bySlot: Map<number, Held> = new Map();

  /**
   * @param newRoot a number for a new content
   * @param forget called with the number of a content that is no more
   */
  constructor(bank: LoraBank | undefined, newRoot: () => number, forget: (root: number) => void) {
    this.#bank = bank;
    this.#newRoot = newRoot;
    this.#forget = forget;
    this.#base = newRoot();
  }

  get list(): readonly AdapterInfo[] {
    return [...this.#byName.values()].map(({ name, slot, users }) => ({ name, slot, users }));
  }

  /**
   * Writes an adapter into a free slot; nothing is compiled, and what runs goes on. Under a name that is
   * taken it stands in for the former one, which goes when its last user has gone.
   * @returns the slot
   * @throws StateError when there is no bank, or all slots are taken; as `LoraBank.fill` for an adapter that
   * does not fit, and the former one stays.
   */
  load(name: string, { adapter, params }: LoadedAdapter): number {
    const bank = this.#bank;
    if (!bank) {
      throw new StateError("serve: the engine has no bank of adapters — make it with one.");
    }
    if (name.length < 1 || name.length > maxName) {
      throw new OptionError(
        `serve: an adapter's name must have 1 to ${maxName} characters, got ${name.length}.`,
      );
    }
    let slot = 1;
    while (this.#bySlot.has(slot)) slot++;
    if (slot > bank.slots) {
      throw new StateError(
        `serve: all ${bank.slots} slots hold an adapter — unload one, or make the engine with more.`,
      );
    }
    try {
      bank.fill(slot, adapter, params);
    } catch (error) {
      bank.clear(slot);
      throw error;
    }
    const former = this.#byName.get(name);
    const held: Held = { name, slot, root: this.#newRoot(), users: 0, leaving: undefined };
    this.#byName.set(name, held);
    this.#bySlot.set(slot, held);
    if (former) void this.#retire(former);
    return slot;
  }

  /**
   * Takes an adapter away: no request can ask for it from now on. Resolves when those that use it have ended
   * and its slot is free.
   * @param refuse throw instead, while it is in use
   * @throws MissingError for a name that is not there, StateError while it is in use.
   */
  async unload(
    name: string,
    { refuse = false }: { readonly refuse?: boolean } = {},
  ): Promise<void> {
    const held = this.#find(name);
    if (refuse && held.users > 0) {
      throw new StateError(
        `serve: adapter "${name}" is used by ${held.users} requests — wait for them, or unload it without refuse.`,
        { users: held.users },
      );
    }
    this.#byName.delete(name);
    await this.#retire(held);
  }

  /**
   * The slot of a name, kept for a request; without a name the base model's.
   * @throws MissingError for a name that is not there.
   */
  lease(name: string | undefined): SlotLease {
    if (name === undefined) return { slot: 0, root: this.#base, done: () => {} };
    const held = this.#find(name);
    held.users++;
    let isDone = false;
    return {
      slot: held.slot,
      root: held.root,
      done: () => {
        if (isDone) return;
        isDone = true;
        held.users--;
        if (held.users === 0) held.leaving?.done();
      },
    };
  }

  #find(name: string): Held {
    const held = this.#byName.get(name);
    if (held) return held;
    const known = [...this.#byName.keys()];
    throw new MissingError(
      `serve: there is no adapter "${name.slice(0, maxName)}" — ${known.length > 0 ? `there are ${known.slice(0, 8).join(", ")}` : "none is loaded"}.`,
    );
  }

  #retire(held: Held): Promise<void> {
    if (held.leaving) return held.leaving.promise;
    const free = (): void => {
      this.#bank!.clear(held.slot);
      this.#bySlot.delete(held.slot);
      this.#forget(held.root);
    };
    let done!: () => void;
    const promise = new Promise<void>((resolve) => {
      done = () => {
        free();
        resolve();
      };
    });
    held.leaving = { promise, done };
    if (held.users === 0) done();
    return promise;
  }
}
