/**
 * Many requests in one batch that never stops: continuous batching over pages, with an adapter for each row.
 *
 * Yu et al., "Orca: A Distributed Serving System for Transformer-Based Generative Models", OSDI 2022
 * (scheduling by iteration); Kwon et al., SOSP 2023, arXiv:2309.06180 (pages, preemption); Agrawal et al.,
 * "Sarathi-Serve", OSDI 2024, arXiv:2403.02310 (prompts in chunks between steps).
 *
 * Every answer is that of the same request alone, to the bit: each row is computed from at least two rows up
 * (row invariance); prompts are cut where pages end, whatever else runs; pages are shared only where their
 * content was computed in the same way; a request that gave way to others goes on from such pages and makes
 * the rest again token by token; and its random numbers are its own.
 */
import type { LoadedAdapter } from "../../adapters/adapter.ts";
import type { Backend } from "../../backend/backend.ts";
import { OptionError, StateError } from "../../errors.ts";
import type { Clock } from "../../host/host.ts";
import type { LanguageModel, LanguageModelSizes } from "../../models/model.ts";
import type { TensorRecord } from "../../nn/module.ts";
import type { FinishReason } from "../completion.ts";
import { type AdapterInfo, AdapterSlots } from "./adapter-slots.ts";
import { type Chunk, nextChunks } from "./chunks.ts";
import { Drawer } from "./draw.ts";
import type { ServeHandle } from "./feed.ts";
import { groupRows, type PassCost } from "./groups.ts";
import { ServeCounters, type ServeMetrics } from "./metrics.ts";
import { PagedCache, type PagedCacheOptions } from "./pages.ts";
import { cacheSizesOf, PagedProgram, type PagedProgramOptions, passLength } from "./program.ts";
import { FairQueue, type QueueLimits } from "./queue.ts";
import { checkRequest, type ServeRequest, Stream } from "./stream.ts";

export interface ServeOptions extends PagedProgramOptions, QueueLimits {
  /** Memory and page size of the cache; default 512 MiB. */
  readonly cache?: Partial<PagedCacheOptions>;
  /** Requests that run at once, 1 to 256; default 32. */
  readonly running?: number;
  /** Of one key; default: all. */
  readonly runningPerKey?: number;
  /** Tokens of prompts that are read between two steps, from a page's to 65536; default 256. */
  readonly prefillTokens?: number;
}

export class ServeEngine {
  readonly #sizes: LanguageModelSizes;
  readonly #program: PagedProgram;
  readonly #cache: PagedCache;
  readonly #slots: AdapterSlots;
  readonly #queue: FairQueue<Stream>;
  readonly #counters: ServeCounters;
  readonly #cost: PassCost;
  readonly #drawer: Drawer;
  readonly #limits: Readonly<Record<"running" | "runningPerKey" | "prefillTokens", number>>;
  /** In the order in which they got a place. */
  readonly #running: Stream[] = [];
  /** Requests that gave way, the earlier ones first: they come before all that wait. */
  readonly #preempted: Stream[] = [];
  #serial = 0;
  #loop: Promise<void> | undefined;
  #isClosed = false;

  private constructor(
    sizes: LanguageModelSizes,
    program: PagedProgram,
    cache: PagedCache,
    counters: ServeCounters,
    cost: PassCost,
    options: ServeOptions,
  ) {
    this.#sizes = sizes;
    this.#program = program;
    this.#cache = cache;
    this.#counters = counters;
    this.#cost = cost;
    this.#drawer = new Drawer(sizes.vocabSize);
    this.#slots = new AdapterSlots(
      options.bank,
      () => cache.newRoot(),
      (root) => cache.forget(root),
    );
    this.#queue = new FairQueue(options);
    this.#limits = limitsOf(options, cache.pageTokens);
  }

  /**
   * Traces the model and loads its one session.
   * @throws OptionError for an option outside its range; as `PagedProgram.load` for a model or a backend that
   * cannot be served.
   */
  static async create(
    model: LanguageModel,
    params: TensorRecord,
    backend: Backend,
    clock: Pick<Clock, "monotonic">,
    options: ServeOptions = {},
  ): Promise<ServeEngine> {
    if (options.adapter && options.bank) {
      throw new OptionError("serve: takes an adapter or a bank, got both — load it into the bank.");
    }
    const cache = new PagedCache(cacheSizesOf(model, options.adapter), {
      bytes: 2 ** 29,
      ...options.cache,
    });
    limitsOf(options, cache.pageTokens);
    const program = await PagedProgram.load(model, params, backend, cache, options);
    const weights = Object.values(params).reduce((sum, { data }) => sum + data.byteLength, 0);
    // What a pass costs beside its weights is about what moving 10 MB takes.
    const cost = { fixed: weights + 1e7, perBlock: 3 * cache.pageBytes };
    // Keys of a longer sequence would be turned by other angles than those in pages.
    const maxPositions = Math.min(model.sizes.maxPositions, model.cacheLimit ?? Infinity);
    const sizes = { ...model.sizes, maxPositions };
    return new ServeEngine(sizes, program, cache, new ServeCounters(clock), cost, options);
  }

  /** Tokens of a prompt and its answer at most. */
  get maxLength(): number {
    return Math.min(this.#sizes.maxPositions, this.#cache.pages * this.#cache.pageTokens);
  }

  get adapters(): readonly AdapterInfo[] {
    return this.#slots.list;
  }

  /** As `AdapterSlots.load`. */
  loadAdapter(name: string, loaded: LoadedAdapter): number {
    this.#check();
    return this.#slots.load(name, loaded);
  }

  /** As `AdapterSlots.unload`. */
  unloadAdapter(name: string, options: { readonly refuse?: boolean } = {}): Promise<void> {
    return this.#slots.unload(name, options);
  }

  /**
   * Takes a request. Work begins with the next step.
   * @throws OptionError for one that is not valid or would never fit, MissingError for an adapter that is not
   * loaded, BusyError when the queue or the key's part of it is full, StateError after `close`.
   */
  submit(request: ServeRequest): ServeHandle {
    this.#check();
    checkRequest(request, this.#sizes);
    const now = this.#counters.now;
    const length = request.prompt.length + (request.maxNewTokens ?? 64);
    if (Math.min(length, this.#sizes.maxPositions) > this.maxLength) {
      throw new OptionError(
        `serve: ${request.prompt.length} tokens and ${request.maxNewTokens ?? 64} to come do not fit into the cache, which holds ${this.maxLength} — ask for fewer, or give the cache more memory.`,
      );
    }
    try {
      this.#queue.check(request.key ?? "");
    } catch (error) {
      this.#counters.refused++;
      throw error;
    }
    const lease = this.#slots.lease(request.adapter);
    const { maxPositions } = this.#sizes;
    const stream = new Stream(request, lease, maxPositions, this.#drawer, now, (own) =>
      this.#cancel(own),
    );
    this.#queue.push(stream);
    this.#counters.submitted++;
    this.#counters.promptTokens += stream.promptLength;
    this.#loop ??= this.#work();
    return stream.handle;
  }

  metrics(): ServeMetrics {
    return this.#counters.snapshot({
      queued: this.#queue.size + this.#preempted.length,
      running: this.#running.length,
      cache: this.#cache.stats,
      adapters: this.#slots.list.length,
    });
  }

  /** Takes no more requests; resolves when those that it has are done. */
  async drain(): Promise<void> {
    this.#isClosed = true;
    await this.#loop;
  }

  /** Cancels every request, waits for the step that runs, and frees the session. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const stream of [...this.#queue, ...this.#preempted, ...this.#running]) {
      this.#cancel(stream);
    }
    await this.#loop;
    await this.#program.release();
  }

  #check(): void {
    if (this.#isClosed) throw new StateError("serve: the engine takes no more requests.");
  }

  /** Ends a request that waits at once, one that runs before the next step. */
  #cancel(stream: Stream): void {
    if (stream.isDone) return;
    stream.isCancelled = true;
    if (!stream.cache) this.#end(stream, "aborted");
  }

  async #work(): Promise<void> {
    // Requests of one turn of the event loop begin together.
    await Promise.resolve();
    const counters = this.#counters;
    try {
      while (this.#queue.size + this.#preempted.length + this.#running.length > 0) {
        const start = counters.now;
        this.#sweep();
        this.#admit();
        this.#expectProgress();
        await this.#readPrompts();
        await this.#makeTokens();
        counters.busySeconds += counters.now - start;
      }
    } finally {
      this.#loop = undefined;
    }
  }

  /** Ends what was cancelled. */
  #sweep(): void {
    for (const stream of [...this.#running, ...this.#preempted]) {
      if (stream.isCancelled) this.#end(stream, "aborted");
    }
  }

  /** With nothing running the first that waits always has room; without this a fault would never end. */
  #expectProgress(): void {
    const stuck = this.#preempted[0] ?? this.#queue.peek(() => true);
    if (this.#running.length > 0 || !stuck) return;
    this.#fail(stuck, new StateError("serve: the request found no place in an empty batch."));
  }

  /** Gives places to those that waited longest, as far as there are places and pages. */
  #admit(): void {
    const perKey = new Map<string, number>();
    for (const { key } of this.#running) perKey.set(key, (perKey.get(key) ?? 0) + 1);
    const isOpen = (key: string): boolean => (perKey.get(key) ?? 0) < this.#limits.runningPerKey;
    while (this.#running.length < this.#limits.running) {
      const stream = this.#preempted[0] ?? this.#queue.peek(isOpen);
      if (!stream || !this.#enter(stream)) return;
      if (this.#preempted[0] === stream) this.#preempted.shift();
      else this.#queue.take(stream);
      perKey.set(stream.key, (perKey.get(stream.key) ?? 0) + 1);
    }
  }

  /** Opens a request's pages, with what is known of its tokens; false where there is no room. */
  #enter(stream: Stream): boolean {
    const cache = this.#cache;
    const { tokens, length, promptLength, lease } = stream;
    // The last token is always read: its logits are wanted.
    const found = cache.peek(lease.root, tokens, length - 1, promptLength);
    const taken = found.filter((page) => cache.isIdle(page)).length;
    const missing = cache.pagesFor(Math.min(length + 1, stream.limit)) - found.length;
    // A page for each that runs: else they would soon push the new one out again.
    if (missing + taken + this.#running.length > cache.available) return false;
    const sequence = cache.open(lease.root);
    const hits = cache.adopt(sequence, tokens, length - 1, promptLength);
    cache.reserve(sequence, Math.min(length + 1, stream.limit));
    stream.cache = sequence;
    this.#found(stream, hits);
    if (stream.serial < 0) {
      stream.serial = this.#serial++;
      this.#counters.queue.add(this.#counters.now - stream.moments.submitted);
    }
    const at = this.#running.findIndex(({ serial }) => serial > stream.serial);
    this.#running.splice(at < 0 ? this.#running.length : at, 0, stream);
    return true;
  }

  /** Notes tokens of the cache that a request took over, those aside that it had read itself before. */
  #found(stream: Stream, tokens: number): void {
    const { length } = stream.cache!;
    const fresh = Math.max(0, Math.min(tokens, length - stream.reached));
    stream.reached = Math.max(stream.reached, length);
    stream.cachedTokens += fresh;
    this.#counters.cachedTokens += fresh;
  }

  /** Reads chunks of prompts, those of the earliest requests first, up to the budget of a turn. */
  async #readPrompts(): Promise<void> {
    const taken = new Set<Stream>();
    let budget = this.#limits.prefillTokens;
    while (budget > 0) {
      const found = (stream: Stream, tokens: number): void => this.#found(stream, tokens);
      const chunks = nextChunks(this.#running, taken, budget, this.#cache, found);
      if (chunks.length === 0) return;
      const blocksOf = ({ from }: Chunk): number => this.#cache.pagesFor(from);
      for (const group of groupRows(chunks, blocksOf, this.#cost)) await this.#readChunks(group);
      budget -= chunks.length * passLength(chunks[0]!.count);
    }
  }

  async #readChunks(chunks: readonly Chunk[]): Promise<void> {
    const streams = chunks.flatMap(({ stream, followers }) => [stream, ...followers]);
    const rows = chunks.map(({ stream, from, count }) => ({
      tokens: stream.tokens.subarray(from, from + count),
      held: from,
      pages: stream.cache!.pages,
      slot: stream.lease.slot,
    }));
    const pass = await this.#pass(streams, rows);
    if (!pass) return;
    this.#counters.prefills++;
    chunks.forEach(({ stream, count, followers }, row) => {
      this.#counters.prefillTokens += count;
      this.#cache.write(stream.cache!, pass.present, row, count);
      this.#cache.publish(stream.cache!, stream.tokens, stream.promptLength);
      for (const follower of followers) {
        this.#cache.follow(follower.cache!, stream.cache!);
        this.#found(follower, count);
      }
      const logits = this.#logits(pass.logits, row);
      this.#read(stream, count);
      for (const one of [stream, ...followers]) this.#advance(one, logits);
    });
  }

  /** One token for every request that has read its prompt. */
  async #makeTokens(): Promise<void> {
    for (const stream of [...this.#running]) {
      if (stream.cache && !stream.isReading && !stream.isCancelled) this.#makeRoom(stream);
    }
    const ready = this.#running.filter(
      (stream) => !stream.isCancelled && !stream.isReading && stream.cache!.length < stream.length,
    );
    const blocksOf = (stream: Stream): number => this.#cache.pagesFor(stream.cache!.length);
    for (const group of groupRows(ready, blocksOf, this.#cost)) {
      const rows = group.map((stream) => ({
        tokens: stream.tokens.subarray(stream.cache!.length, stream.cache!.length + 1),
        held: stream.cache!.length,
        pages: stream.cache!.pages,
        slot: stream.lease.slot,
      }));
      const pass = await this.#pass(group, rows);
      if (!pass) continue;
      this.#counters.steps++;
      this.#counters.stepRows += group.length;
      group.forEach((stream, row) => {
        this.#cache.write(stream.cache!, pass.present, row, 1);
        this.#read(stream, 1);
        this.#advance(stream, this.#logits(pass.logits, row));
      });
    }
  }

  /** Room for one more token; those who came last give way, at last the request itself. */
  #makeRoom(stream: Stream): void {
    while (stream.cache && !this.#cache.reserve(stream.cache, stream.cache.length + 1)) {
      this.#preempt(this.#running.at(-1)!);
    }
  }

  /** Takes a request's place; its full pages stay as long as nobody needs them. */
  #preempt(stream: Stream): void {
    this.#counters.preemptions++;
    this.#cache.publish(stream.cache!, stream.tokens, stream.promptLength);
    this.#leave(stream);
    const at = this.#preempted.findIndex(({ serial }) => serial > stream.serial);
    this.#preempted.splice(at < 0 ? this.#preempted.length : at, 0, stream);
  }

  #leave(stream: Stream): void {
    if (!stream.cache) return;
    this.#cache.close(stream.cache);
    stream.cache = undefined;
    this.#running.splice(this.#running.indexOf(stream), 1);
  }

  /** Runs a pass; when it fails its requests do, and nobody else. */
  async #pass(
    streams: readonly Stream[],
    rows: Parameters<PagedProgram["run"]>[0],
  ): Promise<Awaited<ReturnType<PagedProgram["run"]>> | undefined> {
    const start = this.#counters.now;
    try {
      return await this.#program.run(rows);
    } catch (error) {
      for (const stream of streams) this.#fail(stream, error);
      return undefined;
    } finally {
      this.#counters.passSeconds += this.#counters.now - start;
    }
  }

  #logits(logits: Float32Array, row: number): Float32Array {
    const { vocabSize } = this.#sizes;
    return logits.subarray(row * vocabSize, (row + 1) * vocabSize);
  }

  /** Notes tokens that a pass read, those apart that had been read before. */
  #read(stream: Stream, count: number): void {
    const { length } = stream.cache!;
    this.#counters.replayedTokens += Math.min(count, Math.max(0, stream.reached - length + count));
    stream.reached = Math.max(stream.reached, length);
  }

  /** After a pass: the next token, where all tokens so far were read. */
  #advance(stream: Stream, logits: Float32Array): void {
    if (stream.cache!.length < stream.length || stream.isCancelled) return;
    try {
      const { token, logprob } = stream.chooser.choose(logits);
      if (token === undefined) {
        this.#end(stream, "stop");
        return;
      }
      this.#time(stream);
      const reason = stream.push(token, logprob);
      if (reason) this.#end(stream, reason);
    } catch (error) {
      this.#fail(stream, error);
    }
  }

  #time({ moments }: Stream): void {
    const { now } = this.#counters;
    if (moments.lastToken === undefined) this.#counters.firstToken.add(now - moments.submitted);
    else this.#counters.betweenTokens.add(now - moments.lastToken);
    moments.lastToken = now;
    this.#counters.token();
  }

  #end(stream: Stream, reason: FinishReason): void {
    const counter = reason === "stop" ? "stopped" : reason;
    this.#counters[counter]++;
    this.#remove(stream);
    stream.finish(reason);
  }

  #fail(stream: Stream, error: unknown): void {
    if (stream.isDone) return;
    this.#counters.failed++;
    this.#remove(stream);
    stream.fail(error);
  }

  #remove(stream: Stream): void {
    this.#queue.remove(stream);
    const at = this.#preempted.indexOf(stream);
    if (at >= 0) this.#preempted.splice(at, 1);
    this.#leave(stream);
    stream.lease.done();
    this.#counters.request.add(this.#counters.now - stream.moments.submitted);
  }
}

/** @throws OptionError for a limit outside its range. */
function limitsOf(
  options: ServeOptions,
  pageTokens: number,
): Readonly<Record<"running" | "runningPerKey" | "prefillTokens", number>> {
  const { running = 32, runningPerKey = running, prefillTokens = 256 } = options;
  const check = (name: string, value: number, low: number, high: number): void => {
    if (Number.isInteger(value) && value >= low && value <= high) return;
    throw new OptionError(
      `serve: ${name} must be a whole number from ${low} to ${high}, got ${value}.`,
    );
  };
  check("running", running, 1, 256);
  check("runningPerKey", runningPerKey, 1, 256);
  check("prefillTokens", prefillTokens, pageTokens, 65536);
  return { running, runningPerKey, prefillTokens };
}
