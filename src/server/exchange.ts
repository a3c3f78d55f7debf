/** One request and its answer: its name, its caller, what the log tells of it, and its end. */
import type { Caller } from "./keys.ts";

/** What is noted of a request: never what was said in it. */
export interface Notes {
  model?: string;
  stream?: boolean;
  promptTokens?: number;
  newTokens?: number;
  error?: string;
}

export class Exchange {
  readonly id: string;
  readonly method: string;
  readonly started: number;
  caller: Caller = { id: "" };
  route = "unknown";
  readonly notes: Notes = {};
  /** What went wrong inside, for the log. */
  fault: Error | undefined;
  /** The answer goes on after its head: who streams it says when it ends. */
  isStreaming = false;
  readonly #abort = new AbortController();
  readonly #ends: (() => void)[] = [];
  #isDone = false;

  constructor(id: string, method: string, started: number, client: AbortSignal | undefined) {
    this.id = id;
    this.method = method;
    this.started = started;
    if (client?.aborted) this.abort();
    else if (client) {
      // What Node keeps of a request's signal must lead to nothing of ours when the request is over: it stays
      // as long as anything holds the request.
      const left = (): void => this.abort();
      client.addEventListener("abort", left, { once: true });
      this.#ends.push(() => client.removeEventListener("abort", left));
    }
  }

  /** Fires when the client has gone, or the server goes. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  get isDone(): boolean {
    return this.#isDone;
  }

  abort(): void {
    if (!this.#abort.signal.aborted) this.#abort.abort();
  }

  onEnd(work: () => void): void {
    if (this.#isDone) work();
    else this.#ends.push(work);
  }

  /** Nothing more comes. */
  end(): void {
    if (this.#isDone) return;
    this.#isDone = true;
    for (const work of this.#ends.splice(0)) work();
  }
}
