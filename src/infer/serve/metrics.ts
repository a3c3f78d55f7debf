/** What an engine did, counted: raw numbers, from which a surface makes its own figures. */
import type { Clock } from "../../host/host.ts";
import type { CacheStats } from "./pages.ts";

/** Counts of values up to each bound, and of all, as Prometheus counts them. */
export interface HistogramCounts {
  readonly bounds: readonly number[];
  /** Values at most as large as the bound in their place. */
  readonly counts: readonly number[];
  readonly count: number;
  readonly sum: number;
}

/** Seconds; from a step of a small model to a request that waited for long. */
const seconds = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
] as const;

export class Histogram {
  readonly #bounds: readonly number[];
  readonly #counts: number[];
  #count = 0;
  #sum = 0;

  constructor(bounds: readonly number[] = seconds) {
    this.#bounds = bounds;
    this.#counts = bounds.map(() => 0);
  }

  add(value: number): void {
    this.#count++;
    this.#sum += value;
    for (let i = this.#bounds.length - 1; i >= 0 && value <= this.#bounds[i]!; i--) {
      this.#counts[i]!++;
    }
  }

  get counts(): HistogramCounts {
    return {
      bounds: this.#bounds,
      counts: [...this.#counts],
      count: this.#count,
      sum: this.#sum,
    };
  }
}

export interface ServeMetrics {
  readonly queued: number;
  /** Requests that hold pages: they read their prompt or make tokens. */
  readonly running: number;
  /** Since the engine was made, as all counts. */
  readonly requests: {
    readonly submitted: number;
    readonly refused: number;
    readonly stopped: number;
    readonly length: number;
    readonly aborted: number;
    readonly failed: number;
  };
  readonly promptTokens: number;
  /** Tokens of prompts that were found in the cache, and not read. */
  readonly cachedTokens: number;
  readonly newTokens: number;
  /** New tokens a second over the last ten seconds. */
  readonly tokensPerSecond: number;
  /** Passes that read prompts, and tokens they read, without padding. */
  readonly prefills: number;
  readonly prefillTokens: number;
  /** Passes that made one token for each of their rows, and the rows of all of them. */
  readonly steps: number;
  readonly stepRows: number;
  /** Tokens that were computed again after a preemption. */
  readonly replayedTokens: number;
  readonly preemptions: number;
  /** Seconds in passes, and in everything else while there was work. */
  readonly passSeconds: number;
  readonly hostSeconds: number;
  readonly cache: CacheStats;
  readonly adapters: number;
  readonly latencies: {
    /** From submission to a place in the batch. */
    readonly queue: HistogramCounts;
    /** From submission to the first token. */
    readonly firstToken: HistogramCounts;
    /** From one token of a request to the next. */
    readonly betweenTokens: HistogramCounts;
    /** From submission to the end. */
    readonly request: HistogramCounts;
  };
}

const window = 10;

/** Counts by the second, of the last ten whole ones. */
class Rate {
  readonly #counts: number[] = new Array<number>(window + 1).fill(0);
  #second: number;
  readonly #start: number;

  constructor(now: number) {
    this.#second = Math.floor(now);
    this.#start = now;
  }

  #advance(now: number): void {
    const second = Math.floor(now);
    for (let at = Math.max(this.#second + 1, second - window); at <= second; at++) {
      this.#counts[at % this.#counts.length] = 0;
    }
    this.#second = Math.max(this.#second, second);
  }

  add(now: number): void {
    this.#advance(now);
    this.#counts[this.#second % this.#counts.length]!++;
  }

  at(now: number): number {
    this.#advance(now);
    const total = this.#counts.reduce((sum, count) => sum + count, 0);
    const span = Math.min(window + (now - this.#second), now - this.#start);
    return span > 0 ? total / span : 0;
  }
}

/** The counters that an engine moves. */
export class ServeCounters {
  submitted = 0;
  refused = 0;
  stopped = 0;
  length = 0;
  aborted = 0;
  failed = 0;
  promptTokens = 0;
  cachedTokens = 0;
  newTokens = 0;
  prefills = 0;
  prefillTokens = 0;
  steps = 0;
  stepRows = 0;
  replayedTokens = 0;
  preemptions = 0;
  passSeconds = 0;
  busySeconds = 0;
  readonly queue: Histogram = new Histogram();
  readonly firstToken: Histogram = new Histogram();
  readonly betweenTokens: Histogram = new Histogram();
  readonly request: Histogram = new Histogram();
  readonly #clock: Pick<Clock, "monotonic">;
  readonly #rate: Rate;

  constructor(clock: Pick<Clock, "monotonic">) {
    this.#clock = clock;
    this.#rate = new Rate(this.now);
  }

  /** Seconds from an arbitrary start. */
  get now(): number {
    return this.#clock.monotonic() / 1000;
  }

  /** A new token of a request. */
  token(): void {
    this.newTokens++;
    this.#rate.add(this.now);
  }

  snapshot(state: Pick<ServeMetrics, "queued" | "running" | "cache" | "adapters">): ServeMetrics {
    const { submitted, refused, stopped, length, aborted, failed } = this;
    const { promptTokens, cachedTokens, newTokens, prefills, prefillTokens } = this;
    const { steps, stepRows, replayedTokens, preemptions, passSeconds, busySeconds } = this;
    return {
      ...state,
      requests: { submitted, refused, stopped, length, aborted, failed },
      promptTokens,
      cachedTokens,
      newTokens,
      tokensPerSecond: this.#rate.at(this.now),
      prefills,
      prefillTokens,
      steps,
      stepRows,
      replayedTokens,
      preemptions,
      passSeconds,
      hostSeconds: Math.max(0, busySeconds - passSeconds),
      latencies: {
        queue: this.queue.counts,
        firstToken: this.firstToken.counts,
        betweenTokens: this.betweenTokens.counts,
        request: this.request.counts,
      },
    };
  }
}
