/**
 * An engine in another thread: plain messages, the side that has the engine, and the side that uses it.
 * Neither knows what carries the messages: whoever makes them gives `post` and calls `receive`.
 *
 * Messages of one direction must arrive in order, as those of a MessagePort do, and be copied as structured
 * clones are. Nothing is sent while a pass runs; a cancel takes effect before the next one.
 */
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import {
  DtypeError,
  FormatError,
  MissingError,
  OptionError,
  PlasticityError,
  ShapeError,
  StateError,
  UnsupportedError,
} from "../../errors.ts";
import type { AdapterInfo } from "./adapter-slots.ts";
import type { EmbedBatcher } from "./embed-batcher.ts";
import type { ServeEngine } from "./engine.ts";
import { type ServedToken, type ServeHandle, type ServeResult, TokenFeed } from "./feed.ts";
import type { ServeMetrics } from "./metrics.ts";
import { BusyError } from "./queue.ts";
import type { ServeRequest } from "./stream.ts";

/** A request without what cannot be sent; `extra` goes to `EngineHostOptions.prepare`. */
export interface WireRequest
  extends Omit<ServeRequest, "prompt" | "constraint" | "isEnd" | "onToken"> {
  readonly prompt: Int32Array | readonly number[];
  readonly extra?: unknown;
}

/** What can be asked of an engine besides requests, and what it answers. */
export interface EngineCalls {
  /** `source` goes to `EngineHostOptions.loadAdapter`. */
  load: {
    readonly ask: { readonly name: string; readonly source: unknown };
    readonly answer: number;
  };
  unload: {
    readonly ask: { readonly name: string; readonly refuse?: boolean };
    readonly answer: undefined;
  };
  embed: {
    readonly ask: { readonly texts: readonly string[] };
    readonly answer: { readonly vectors: readonly Float32Array[]; readonly tokens: number };
  };
  stats: {
    readonly ask: undefined;
    readonly answer: { readonly metrics: ServeMetrics; readonly adapters: readonly AdapterInfo[] };
  };
  drain: { readonly ask: undefined; readonly answer: undefined };
  close: { readonly ask: undefined; readonly answer: undefined };
}

export type CallName = keyof EngineCalls;

export type ToEngine =
  | { readonly type: "submit"; readonly id: number; readonly request: WireRequest }
  | { readonly type: "cancel"; readonly id: number }
  | { readonly type: "call"; readonly id: number; readonly name: CallName; readonly ask: unknown };

export type FromEngine =
  | {
      /** Of one pass, for all requests. */
      readonly type: "tokens";
      readonly tokens: readonly (ServedToken & { readonly id: number })[];
    }
  | { readonly type: "done"; readonly id: number; readonly result: ServeResult }
  | { readonly type: "answer"; readonly id: number; readonly answer: unknown }
  | { readonly type: "error"; readonly id: number; readonly error: WireError };

/** An error as it is sent. */
export interface WireError {
  readonly name: string;
  readonly code: PlasticityError["code"];
  readonly message: string;
  readonly details: Readonly<Record<string, unknown>>;
}

const kinds = {
  ShapeError,
  DtypeError,
  OptionError,
  FormatError,
  UnsupportedError,
  StateError,
  MissingError,
  BusyError,
} as const;

/** @param error of any kind; those that are not of this package become internal ones. */
export function toWire(error: unknown): WireError {
  if (!(error instanceof PlasticityError)) {
    const message = error instanceof Error ? error.message : String(error);
    return { name: "PlasticityError", code: "internal", message, details: {} };
  }
  const { name, code, message } = error;
  // What cannot be sent is left out, rather than lose the error.
  const details = Object.fromEntries(
    Object.entries(error.details).filter(([, value]) =>
      ["string", "number", "boolean"].includes(typeof value),
    ),
  );
  return { name, code, message, details };
}

export function fromWire({ name, code, message, details }: WireError): PlasticityError {
  const Kind = Object.hasOwn(kinds, name) ? kinds[name as keyof typeof kinds] : undefined;
  return Kind ? new Kind(message, details) : new PlasticityError(code, message, details);
}

export interface EngineHostOptions {
  /** Makes an adapter of what a client named: a folder, bytes. Default: adapters are refused. */
  readonly loadAdapter?: (source: unknown) => Promise<LoadedAdapter>;
  /** Default: texts are refused. */
  readonly embedder?: Pick<EmbedBatcher, "embed">;
  /** What a request's `extra` stands for: a grammar, stop strings. */
  readonly prepare?: (
    extra: unknown,
    request: WireRequest,
  ) => Pick<ServeRequest, "constraint" | "isEnd">;
}

/** The side that has the engine. */
export class EngineHost {
  readonly #engine: ServeEngine;
  readonly #post: (message: FromEngine) => void;
  readonly #options: EngineHostOptions;
  readonly #handles: Map<number, ServeHandle> = new Map();
  #tokens: (ServedToken & { readonly id: number })[] = [];

  constructor(
    engine: ServeEngine,
    post: (message: FromEngine) => void,
    options: EngineHostOptions = {},
  ) {
    this.#engine = engine;
    this.#post = post;
    this.#options = options;
  }

  receive(message: ToEngine): void {
    if (message.type === "cancel") this.#handles.get(message.id)?.cancel();
    else if (message.type === "submit") this.#submit(message.id, message.request);
    else {
      this.#call(message.name, message.ask).then(
        (answer) => this.#post({ type: "answer", id: message.id, answer }),
        (error) => this.#fail(message.id, error),
      );
    }
  }

  #submit(id: number, { extra, ...request }: WireRequest): void {
    try {
      const more = extra === undefined ? {} : this.#options.prepare?.(extra, request);
      if (!more) throw new OptionError("serve: this engine takes no extra of a request.");
      const onToken = (token: ServedToken): void => this.#token({ ...token, id });
      const handle = this.#engine.submit({ ...request, ...more, onToken });
      this.#handles.set(id, handle);
      void handle.result
        .then(
          (result) => {
            this.#flush();
            this.#post({ type: "done", id, result });
          },
          (error) => this.#fail(id, error),
        )
        .finally(() => this.#handles.delete(id));
    } catch (error) {
      this.#fail(id, error);
    }
  }

  /** Tokens of one pass go together. */
  #token(token: ServedToken & { readonly id: number }): void {
    if (this.#tokens.length === 0) queueMicrotask(() => this.#flush());
    this.#tokens.push(token);
  }

  #flush(): void {
    if (this.#tokens.length === 0) return;
    this.#post({ type: "tokens", tokens: this.#tokens });
    this.#tokens = [];
  }

  #fail(id: number, error: unknown): void {
    this.#flush();
    this.#post({ type: "error", id, error: toWire(error) });
  }

  async #call(name: CallName, ask: unknown): Promise<unknown> {
    switch (name) {
      case "load": {
        const { loadAdapter } = this.#options;
        if (!loadAdapter) throw new UnsupportedError("serve: this engine loads no adapters.");
        const own = ask as EngineCalls["load"]["ask"];
        return this.#engine.loadAdapter(own.name, await loadAdapter(own.source));
      }
      case "unload": {
        const { name: adapter, ...options } = ask as EngineCalls["unload"]["ask"];
        return this.#engine.unloadAdapter(adapter, options);
      }
      case "embed": {
        const { embedder } = this.#options;
        if (!embedder) throw new UnsupportedError("serve: this engine gives no vectors of texts.");
        const { vectors, tokens } = await embedder.embed(
          (ask as EngineCalls["embed"]["ask"]).texts,
        );
        return { vectors, tokens };
      }
      case "stats":
        return { metrics: this.#engine.metrics(), adapters: this.#engine.adapters };
      case "drain":
        return this.#engine.drain();
      case "close":
        return this.#engine.close();
    }
  }
}

interface Call {
  resolve(answer: unknown): void;
  reject(error: unknown): void;
}

/** The side that uses it. */
export class EngineClient {
  readonly #post: (message: ToEngine) => void;
  readonly #feeds: Map<number, TokenFeed> = new Map();
  readonly #calls: Map<number, Call> = new Map();
  #nextId = 1;
  #error: unknown;

  constructor(post: (message: ToEngine) => void) {
    this.#post = post;
  }

  /** Requests and calls that are not answered. */
  get open(): number {
    return this.#feeds.size + this.#calls.size;
  }

  /** As `ServeEngine.submit`; whatever is wrong with the request comes as its failure. */
  submit(request: WireRequest): ServeHandle {
    this.#check();
    const id = this.#nextId++;
    const feed = new TokenFeed();
    this.#feeds.set(id, feed);
    try {
      this.#post({ type: "submit", id, request });
    } catch (error) {
      this.#feeds.delete(id);
      throw error;
    }
    return feed.handle(() => {
      if (this.#feeds.has(id)) this.#post({ type: "cancel", id });
    });
  }

  /** Asks for something else. */
  call<N extends CallName>(
    name: N,
    ...[ask]: EngineCalls[N]["ask"] extends undefined ? [] : [EngineCalls[N]["ask"]]
  ): Promise<EngineCalls[N]["answer"]> {
    this.#check();
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve: resolve as Call["resolve"], reject });
      this.#post({ type: "call", id, name, ask });
    });
  }

  receive(message: FromEngine): void {
    if (message.type === "tokens") {
      for (const { id, ...token } of message.tokens) this.#feeds.get(id)?.push(token);
      return;
    }
    const { id } = message;
    const [feed, call] = [this.#feeds.get(id), this.#calls.get(id)];
    this.#feeds.delete(id);
    this.#calls.delete(id);
    if (message.type === "done") feed?.finish(message.result);
    else if (message.type === "answer") call?.resolve(message.answer);
    else {
      const error = fromWire(message.error);
      feed?.fail(error);
      call?.reject(error);
    }
  }

  /** The other side is gone: everything that is open fails, and so does what comes later. */
  fail(error: unknown): void {
    this.#error = error;
    for (const feed of this.#feeds.values()) feed.fail(error);
    for (const call of this.#calls.values()) call.reject(error);
    this.#feeds.clear();
    this.#calls.clear();
  }

  #check(): void {
    if (this.#error !== undefined) throw this.#error;
  }
}
