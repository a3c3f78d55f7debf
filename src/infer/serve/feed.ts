/** Tokens of one request from who makes them to who reads them, in order. */
import type { ChosenLogprob, FinishReason } from "../completion.ts";

export interface ServedToken {
  readonly token: number;
  /** If it was asked for. */
  readonly logprob?: ChosenLogprob;
}

/** How tokens were spent. */
export interface ServeUsage {
  readonly promptTokens: number;
  /** Of the prompt, found in the cache. */
  readonly cachedTokens: number;
  readonly newTokens: number;
}

export interface ServeResult {
  /** Without the stopping token. */
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly finishReason: FinishReason;
  /** One for each token, if they were asked for. */
  readonly logprobs?: readonly ChosenLogprob[];
  readonly usage: ServeUsage;
}

/** A request that was taken. Its tokens come in order, to one reader; reading none of them is fine. */
export interface ServeHandle extends AsyncIterable<ServedToken> {
  /**
   * What became of it.
   * @throws what made it fail: of the request alone, or of the engine.
   */
  readonly result: Promise<ServeResult>;
  /** Ends it before the next step; the result is "aborted" with the tokens made so far. */
  cancel(): void;
}

/** The side of who makes them. */
export class TokenFeed {
  readonly result: Promise<ServeResult>;
  readonly #tokens: ServedToken[] = [];
  #isDone = false;
  #error: unknown;
  #wake: (() => void) | undefined;
  #resolve!: (result: ServeResult) => void;
  #reject!: (error: unknown) => void;

  constructor() {
    this.result = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    // Whoever reads the tokens hears of a failure there.
    this.result.catch(() => {});
  }

  get isDone(): boolean {
    return this.#isDone;
  }

  push(token: ServedToken): void {
    this.#tokens.push(token);
    this.#wake?.();
  }

  finish(result: ServeResult): void {
    this.#isDone = true;
    this.#resolve(result);
    this.#wake?.();
  }

  fail(error: unknown): void {
    this.#isDone = true;
    this.#error = error;
    this.#reject(error);
    this.#wake?.();
  }

  /** The side of who reads them. A reader that leaves its loop early cancels the request. */
  handle(cancel: () => void): ServeHandle {
    return { result: this.result, cancel, [Symbol.asyncIterator]: () => this.#read(cancel) };
  }

  async *#read(cancel: () => void): AsyncGenerator<ServedToken> {
    try {
      for (;;) {
        while (this.#tokens.length > 0) yield this.#tokens.shift()!;
        if (this.#isDone) break;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
        });
      }
    } finally {
      if (!this.#isDone) cancel();
    }
    if (this.#error !== undefined) throw this.#error;
  }
}
