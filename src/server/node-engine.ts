/**
 * The engine in a process of its own, which is started again when it ends in the middle of something. A thread
 * would not do: what native code does wrong in one ends all of them.
 */
import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
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
import type { EngineFacts, EngineSettings, FromSide, ToSide } from "./engine-side.ts";
import { UnavailableError } from "./errors.ts";
import { encodeAsk, openTextSide, sizeOf, type TextSide } from "./prompt-text.ts";
import type { EncodeAsk, EngineState, EngineStats, ServedEngine } from "./served.ts";

export type ToWorker = ToSide | { readonly type: "start"; readonly settings: EngineSettings };

export type FromWorker = FromSide | { readonly type: "failed"; readonly error: WireError };

/** Prompts of more characters are encoded by the engine, so that this process answers at once. */
const maxOwnCharacters = 16384;
/** Milliseconds before the first new start; doubled for each further one, up to the second. */
const [firstWait, longestWait] = [250, 30_000];
/** An engine that ran for so long had no fault at its start. */
const soundMs = 60_000;
/** Milliseconds without an answer, which comes between any two steps, after which an engine is given up. */
const [defaultHangMs, watchTurns] = [120_000, 8] as const;

export interface NodeEngineOptions {
  /** The program of the engine's process, where this file is not built. */
  readonly workerUrl?: URL;
  /** Milliseconds without a sign of life until the process is ended and started again; default two minutes. */
  readonly hangMs?: number;
  /** Told of ends and new starts. */
  readonly onEvent?: (event: string, facts: Readonly<Record<string, unknown>>) => void;
  /** Told of adapters that a start left out, as when their folder is gone. */
  readonly onLeft?: (name: string) => void;
}

/** Ends a process and waits for its end. */
async function killed(worker: ChildProcess): Promise<void> {
  if (worker.exitCode !== null || worker.signalCode !== null) return;
  await new Promise<void>((resolve) => {
    worker.once("exit", () => resolve());
    worker.kill("SIGKILL");
  });
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
  #worker: ChildProcess | undefined;
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
   * Starts the process; resolves when the text side is there, and the engine is soon: see `opened`.
   * @throws as the loading of tokenizer and template.
   */
  static async start(
    host: Host,
    settings: EngineSettings,
    options: NodeEngineOptions = {},
  ): Promise<NodeEngine> {
    const text = await openTextSide(host.files, settings.model);
    // The engine reads it when it is loaded.
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

  /** Of the engine's process, while there is one. */
  get pid(): number | undefined {
    return this.#worker?.pid;
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
    const url = this.#options.workerUrl ?? new URL("./node-worker.js", import.meta.url);
    const worker = fork(fileURLToPath(url), [], {
      // Typed arrays and maps arrive as what they are.
      serialization: "advanced",
      execArgv: [],
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    // A message to a process that has ended is lost with it: its end tells everybody.
    const send = (message: ToWorker): void => void worker.send(message, () => {});
    send({
      type: "start",
      settings: {
        ...this.#settings,
        adapters: [...this.#adapters],
        // At a new start the base matters more than an adapter whose folder has gone.
        ...(this.#restarts > 0 && { optional: [...this.#adapters.keys()] }),
      },
    });
    const link = new EngineLink(send);
    this.#worker = worker;
    this.#link = link;
    const started = performance.now();
    let cause = "";
    let isReady = false;
    worker.on("message", (message: FromWorker) => {
      if (message.type === "failed") {
        link.fail(fromWire(message.error));
        cause = message.error.message;
        worker.kill("SIGKILL");
      } else link.receive(message);
    });
    worker.on("error", (error) => {
      cause = error instanceof Error ? error.message : String(error);
    });
    worker.on("exit", (code, signal) => {
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
          : new StateError(
              `serve: the engine could not start: ${cause || (signal ?? `code ${code}`)}.`,
            ),
      );
      if (performance.now() - started > soundMs) this.#wait = firstWait;
      this.#again(cause || (signal ?? `code ${code}`));
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
        this.#watch(worker, link, (why) => {
          cause = why;
        });
      },
      () => {},
    );
  }

  /** Asks a process for a sign of life again and again, and ends it when none comes: its end starts a new one. */
  #watch(worker: ChildProcess, link: EngineLink, onHang: (why: string) => void): void {
    const { hangMs = defaultHangMs } = this.#options;
    // Turns are counted, not time: a machine that slept is no engine that hangs.
    let silent = 0;
    const timer = setInterval(() => {
      if (this.#worker !== worker) {
        clearInterval(timer);
      } else if (silent >= watchTurns) {
        clearInterval(timer);
        onHang(`it gave no sign of life for ${hangMs} ms`);
        worker.kill("SIGKILL");
      } else if (silent++ === 0) {
        link.ping().then(
          () => {
            silent = 0;
          },
          () => {},
        );
      }
    }, hangMs / watchTurns);
    timer.unref();
  }

  /** Starts a new process after a while. */
  #again(cause: string): void {
    const wait = this.#wait;
    this.#wait = Math.min(longestWait, 2 * wait);
    this.#restarts++;
    this.#state = "restarting";
    this.#options.onEvent?.("engine ended", { cause, againInMs: wait });
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
    const link = this.#open();
    const [stats] = await Promise.all([link.client.call("stats"), link.ping()]);
    return stats;
  }

  /** Bytes that the engine's process held when it was last asked. */
  get memory(): number | undefined {
    return this.#link?.memory;
  }

  /** Ends the process at once, as a fault of native code does; it is started again. */
  async crash(): Promise<void> {
    if (this.#worker) await killed(this.#worker);
  }

  /** Ends the process for good, after the step that runs; after `ms` at once. */
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
    if (worker) await killed(worker);
  }
}
