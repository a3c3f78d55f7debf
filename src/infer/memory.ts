/** The state between tokens kept from one call of `generate` to the next, as turns of a chat need. */
import { StateError } from "../errors.ts";
import type { TokenState } from "./state.ts";

/**
 * Gives each call of one decoder what its prompt shares with the tokens of the call before: only the rest
 * is read. Results are those of a whole prefill, up to rounding.
 */
export class PromptMemory {
  #owner: object | undefined;
  #cache: TokenState | undefined;
  #tokens: readonly number[] = [];
  #isOpen = false;

  /** Tokens that the state has read. */
  get length(): number {
    return this.#tokens.length;
  }

  /** Forgets everything; needed before another decoder can use it. */
  clear(): void {
    this.#owner = undefined;
    this.#cache = undefined;
    this.#tokens = [];
  }

  /**
   * The cache, cut to tokens that it shares with a prompt; at least the prompt's last token is left to
   * read. For the decoder.
   * @throws StateError when another decoder filled it, or a call is still running.
   */
  open(owner: object, prompt: ArrayLike<number>, make: () => TokenState): TokenState {
    if (this.#isOpen) throw new StateError("memory: a call that uses it is still running.");
    if (this.#owner !== undefined && this.#owner !== owner) {
      throw new StateError("memory: belongs to another decoder — clear it first.");
    }
    this.#owner = owner;
    this.#isOpen = true;
    this.#cache ??= make();
    let shared = 0;
    const most = Math.min(this.#tokens.length, prompt.length - 1);
    while (shared < most && this.#tokens[shared] === prompt[shared]) shared++;
    this.#cache.truncate(shared);
    return this.#cache;
  }

  /** Notes which tokens were given to the decoder; the cache holds the first of them. */
  close(tokens: readonly number[]): void {
    this.#isOpen = false;
    this.#tokens = tokens.slice(0, this.#cache?.lengths[0] ?? 0);
  }
}
