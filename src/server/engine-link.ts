/** The side that uses an engine behind messages: requests, calls, and prompts that are long to encode. */
import {
  EngineClient,
  type FromEngine,
  fromWire,
  type ServeHandle,
  type WireRequest,
} from "../index.ts";
import type { EngineFacts, FromSide, ToSide } from "./engine-side.ts";
import type { EncodeAsk } from "./served.ts";

interface Waiting {
  resolve(value: Int32Array<ArrayBuffer> | undefined): void;
  reject(error: unknown): void;
}

export class EngineLink {
  readonly client: EngineClient;
  readonly ready: Promise<EngineFacts>;
  readonly #post: (message: ToSide) => void;
  readonly #waiting: Map<number, Waiting> = new Map();
  #nextId = 1;
  #memory: number | undefined;
  #error: unknown;
  #setReady!: (facts: EngineFacts) => void;
  #setFailed!: (error: unknown) => void;

  constructor(post: (message: ToSide) => void) {
    this.#post = post;
    this.client = new EngineClient(post);
    this.ready = new Promise((resolve, reject) => {
      this.#setReady = resolve;
      this.#setFailed = reject;
    });
    this.ready.catch(() => {});
  }

  receive(message: FromSide): void {
    switch (message.type) {
      case "ready":
        this.#setReady(message.facts);
        return;
      case "pong":
        this.#memory = message.memory;
        this.#take(message.id)?.resolve(undefined);
        return;
      case "encoded":
        this.#take(message.id)?.resolve(message.ids);
        return;
      case "refused":
        this.#take(message.id)?.reject(fromWire(message.error));
        return;
      default:
        this.client.receive(message satisfies FromEngine);
    }
  }

  #take(id: number): Waiting | undefined {
    const waiting = this.#waiting.get(id);
    this.#waiting.delete(id);
    return waiting;
  }

  #ask(make: (id: number) => ToSide): Promise<Int32Array<ArrayBuffer> | undefined> {
    if (this.#error !== undefined) return Promise.reject(this.#error);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#post(make(id));
    });
  }

  async encode(ask: EncodeAsk): Promise<Int32Array<ArrayBuffer>> {
    return (await this.#ask((id) => ({ type: "encode", id, ask })))!;
  }

  /** Bytes that the engine's process held at the last ping. */
  get memory(): number | undefined {
    return this.#memory;
  }

  /** Answered between two steps. */
  async ping(): Promise<void> {
    await this.#ask((id) => ({ type: "ping", id }));
  }

  /**
   * Hands a request over; messages keep their order, so a request that is refused is so before the ping is
   * answered.
   */
  async submit(request: WireRequest): Promise<ServeHandle> {
    const handle = this.client.submit(request);
    let failure: { readonly error: unknown } | undefined;
    handle.result.catch((error: unknown) => {
      failure = { error };
    });
    await this.ping();
    if (failure) throw failure.error;
    return handle;
  }

  /** The other side is gone: all that is open fails, and so does what comes later. */
  fail(error: unknown): void {
    this.#error = error;
    this.#setFailed(error);
    this.client.fail(error);
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
