/** Sessions kept for reuse: making one costs as much as some runs of it, holding one costs memory. */
import { OptionError, StateError } from "../../errors.ts";
import type { Executable } from "../backend.ts";

export interface CacheOptions {
  /** Bound on the sum of the entries' estimates; default 2 GB. */
  readonly maxBytes?: number;
  /** Default 64. */
  readonly maxCount?: number;
}

/** What a key stands for, when it is not there yet. */
export interface Entry {
  /** Estimate of what the session holds: see `peakBytes`. */
  readonly bytes: number;
  load(): Promise<Executable>;
}

/**
 * A session in use: it stays loaded until `done` is called, once. Holders of one session take turns, since it
 * runs one call at a time.
 */
export interface Lease {
  readonly executable: Executable;
  done(): Promise<void>;
}

interface Kept {
  readonly bytes: number;
  readonly loading: Promise<Executable>;
  users: number;
}

/**
 * Sessions by key: the caller's name for graph, shapes and options. When a bound is passed, those that
 * were not used for longest are released; those in use never are, so the bounds may be passed by them.
 */
export class SessionCache {
  readonly maxBytes: number;
  readonly maxCount: number;
  /** The least recently used first. */
  readonly #kept: Map<string, Kept> = new Map();

  constructor({ maxBytes = 2e9, maxCount = 64 }: CacheOptions = {}) {
    if (!(maxBytes >= 0) || !(maxCount >= 0)) {
      throw new OptionError(
        `cache: maxBytes and maxCount must be at least 0, got ${maxBytes} and ${maxCount}.`,
      );
    }
    this.maxBytes = maxBytes;
    this.maxCount = maxCount;
  }

  get count(): number {
    return this.#kept.size;
  }

  get bytes(): number {
    let total = 0;
    for (const { bytes } of this.#kept.values()) total += bytes;
    return total;
  }

  has(key: string): boolean {
    return this.#kept.has(key);
  }

  /** The session of a key, loaded if need be; callers that ask at once share one. */
  async acquire(key: string, entry: () => Entry): Promise<Lease> {
    let kept = this.#kept.get(key);
    if (!kept) {
      const wanted = entry();
      // Room first, so that old and new are not held together.
      await this.#trim(wanted.bytes, 1);
      kept = this.#kept.get(key) ?? { bytes: wanted.bytes, loading: wanted.load(), users: 0 };
    }
    this.#kept.delete(key);
    this.#kept.set(key, kept);
    kept.users++;
    let executable: Executable;
    try {
      executable = await kept.loading;
    } catch (error) {
      kept.users--;
      if (this.#kept.get(key) === kept) this.#kept.delete(key);
      throw error;
    }
    let isDone = false;
    return {
      executable,
      done: async () => {
        if (isDone) throw new StateError("cache: done was called twice on one lease.");
        isDone = true;
        kept.users--;
        await this.#trim(0, 0);
      },
    };
  }

  /** Releases all sessions that are not in use. */
  async clear(): Promise<void> {
    for (const [key, kept] of [...this.#kept]) {
      if (kept.users === 0) await this.#drop(key, kept);
    }
  }

  /** Releases what was not used for longest until there is room for so much more. */
  async #trim(bytes: number, count: number): Promise<void> {
    for (const [key, kept] of [...this.#kept]) {
      if (this.bytes + bytes <= this.maxBytes && this.count + count <= this.maxCount) return;
      if (kept.users === 0 && this.#kept.get(key) === kept) await this.#drop(key, kept);
    }
  }

  async #drop(key: string, kept: Kept): Promise<void> {
    this.#kept.delete(key);
    await (await kept.loading).release();
  }
}
