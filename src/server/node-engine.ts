/** The engine in a worker thread, which is started again when it ends in the middle of something. */
import { Worker } from "node:worker_threads";
import {
  type ChatTemplate,
  fromWire,
  type Host,
  type ServeHandle,
  StateError,
  type Tokenizer,
  type WireError,
  type WireRequest,
} from "../index.ts";
import { EngineLink } from "./engine-link.ts";
import type { EngineFacts, EngineSettings, FromSide } from "./engine-side.ts";
import { UnavailableError } from "./errors.ts";
import { encodeAsk, openTextSide, sizeOf, type TextSide } from "./prompt-text.ts";
import type { EncodeAsk, EngineState, EngineStats, ServedEngine } from "./served.ts";

export type FromWorker = FromSide | { readonly type: "failed"; readonly error: WireError };

/** Prompts of more characters are encoded by the worker, so that this thread answers at once. */
const maxOwnCharacters = 16384;
/** Milliseconds before the first new start; doubled for each further one, up to the second. */
const [firstWait, longestWait] = [250, 30_000];
/** An engine that ran for so long had no fault at its start. */
const soundMs = 60_000;

export interface NodeEngineOptions {
  /** The worker's program, where this file is not built. */
  readonly workerUrl?: URL;
  /** Told of ends and new starts. */
  readonly onEvent?: (event: string, facts: Readonly<Record<string, unknown>>) => void;
  /** Told of adapters that a start left out, as when their folder is gone. */
  readonly onLeft?: (name: string) => void;
}

export class NodeEngine implements ServedEngine {
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  readonly #text: TextSide;
  readonly #settings: EngineSettings;
  readonly #options: NodeEngineOptions;
  readonly #adapters: Map<string, string>;
  #facts: EngineFacts = { maxLength: 0, vocabSize: 0, left: [] };
  #state: EngineState = "loading";
  #worker: Worker | undefined;
  #link: EngineLink | undefined;
  #timer: NodeJS.Timeout | undefined;
  #wait: number = firstWait;
  #restarts = 0;

  private constructor(text: TextSide, settings: EngineSettings, options: NodeEngineOptions) {
    this.#text = text;
    this.tokenizer = text.tokenizer;
    this.template = text.template;
    this.#settings = settings;
    this.#options = options;
    this.#adapters = new Map(settings.adapters);
  }

  /**
   * Starts the worker; resolves when the text side is there, and the engine is soon: see `opened`.
   * @throws as the loading of tokenizer and template.
   */
  static async start(
    host: Host,
    settings: EngineSettings,
    options: NodeEngineOptions = {},
  ): Promise<NodeEngine> {
    const text = await openTextSide(host.files, settings.model);
    // A worker cannot change the environment that the engine reads.
    process.env["ORT_DISABLE_TELEMETRY"] ??= "1";
    const engine = new NodeEngine(text, settings, options);
    engine.#begin();
    return engine;
  }

  get state(): EngineState {
    return this.#state;
  }

  get maxLength(): number {
    return this.#facts.maxLength;
  }

  get vocabSize(): number {
    return this.#facts.vocabSize;
  }

  /** New starts so far. */
  get restarts(): number {
    return this.#restarts;
  }

  /**
   * Resolves when the first engine has loaded its model.
   * @throws what kept it from that.
   */
  async opened(): Promise<void> {
    await this.#link?.ready;
  }

  #begin(): void {
    const worker = new Worker(
      this.#options.workerUrl ?? new URL("./node-worker.js", import.meta.url),
      {
        workerData: {
          ...this.#settings,
          adapters: [...this.#adapters],
          // At a new start the base matters more than an adapter whose folder has gone.
          ...(this.#restarts > 0 && { optional: [...this.#adapters.keys()] }),
        },
      },
    );
    const link = new EngineLink((message) => worker.postMessage(message));
    this.#worker = worker;
    this.#link = link;
    const started = performance.now();
    let cause = "";
    let isReady = false;
    worker.on("message", (message: FromWorker) => {
      if (message.type === "failed") {
        link.fail(fromWire(message.error));
        cause = message.error.message;
        void worker.terminate();
      } else link.receive(message);
    });
    worker.on("error", (error) => {
      cause = error instanceof Error ? error.message : String(error);
    });
    worker.on("exit", (code) => {
      if (this.#worker !== worker) return;
      this.#worker = undefined;
      if (this.#state === "closed") {
        link.fail(new UnavailableError("The server is shutting down."));
        return;
      }
      link.fail(
        isReady
          ? new UnavailableError(
              "The engine ended while it worked on this request; it is started again — send the request once more.",
            )
          : new StateError(`serve: the engine could not start: ${cause || `code ${code}`}.`),
      );
      if (performance.now() - started > soundMs) this.#wait = firstWait;
      this.#again(cause, code);
    });
    link.ready.then(
      (facts) => {
        isReady = true;
        for (const [name, why] of facts.left) {
          this.#adapters.delete(name);
          this.#options.onEvent?.("adapter left out", { adapter: name, why });
          this.#options.onLeft?.(name);
        }
        this.#facts = facts;
        if (this.#state !== "closed") this.#state = "ready";
        this.#options.onEvent?.("engine ready", {
          seconds: Math.round(performance.now() - started) / 1000,
        });
      },
      () => {},
    );
  }

  /** Starts a new worker after a while. */
  #again(cause: string, code: number): void {
    const wait = this.#wait;
    this.#wait = Math.min(longestWait, 2 * wait);
    this.#restarts++;
    this.#state = "restarting";
    this.#options.onEvent?.("engine ended", { cause, code, againInMs: wait });
    this.#timer = setTimeout(() => this.#begin(), wait);
  }

  #open(): EngineLink {
    if (this.#state === "ready") return this.#link!;
    throw new UnavailableError(
      this.#state === "closed"
        ? "The server is shutting down."
        : `The engine is ${this.#state} — try again in a moment.`,
    );
  }

  async encode(ask: EncodeAsk): Promise<Int32Array<ArrayBuffer>> {
    if (sizeOf(ask) <= maxOwnCharacters) return encodeAsk(this.#text, ask);
    return this.#open().encode(ask);
  }

  async submit(request: WireRequest): Promise<ServeHandle> {
    return this.#open().submit(request);
  }

  async embed(
    texts: readonly string[],
  ): Promise<{ readonly vectors: readonly Float32Array[]; readonly tokens: number }> {
    return this.#open().client.call("embed", { texts });
  }

  async loadAdapter(name: string, folder: string): Promise<void> {
    await this.#open().client.call("load", { name, source: folder });
    this.#adapters.set(name, folder);
  }

  async unloadAdapter(name: string): Promise<void> {
    this.#adapters.delete(name);
    await this.#open().client.call("unload", { name });
  }

  async stats(): Promise<EngineStats> {
    return this.#open().client.call("stats");
  }

  /** Ends the worker at once, as a crash does; it is started again. For tests and for one that hangs. */
  async crash(): Promise<void> {
    await this.#worker?.terminate();
  }

  /** Ends the worker for good, after the step that runs; after `ms` at once. */
  async close(ms = 5000): Promise<void> {
    if (this.#state === "closed") return;
    const isReady = this.#state === "ready";
    this.#state = "closed";
    clearTimeout(this.#timer);
    const [worker, link] = [this.#worker, this.#link];
    if (isReady && link) {
      await Promise.race([
        link.client.call("close").catch(() => {}),
        new Promise((resolve) => setTimeout(resolve, ms).unref()),
      ]);
    }
    link?.fail(new StateError("serve: the engine is closed."));
    await worker?.terminate();
  }
}
