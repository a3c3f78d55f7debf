/** What the server did, counted, and all counts as Prometheus reads them. */
import type { HistogramCounts, ServeMetrics } from "../index.ts";
import type { EngineStats } from "./served.ts";

const bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300] as const;

class Durations {
  readonly counts: number[] = bounds.map(() => 0);
  count = 0;
  sum = 0;

  add(value: number): void {
    this.count++;
    this.sum += value;
    for (let i = bounds.length - 1; i >= 0 && value <= bounds[i]!; i--) this.counts[i]!++;
  }
}

/** What is known of the processes. */
export interface ProcessNumbers {
  /** New starts of the engine. */
  readonly restarts: number;
  /** Bytes that the server holds, and the engine. */
  readonly memory: number | undefined;
  readonly engineMemory: number | undefined;
}

export class ServerMetrics {
  /** By method, route and status; routes are those that are there, so there are few. */
  readonly #requests: Map<string, number> = new Map();
  readonly #durations: Map<string, Durations> = new Map();
  open = 0;

  add(method: string, route: string, status: number, seconds: number): void {
    const labels = `method="${method}",route="${route}"`;
    const key = `${labels},status="${status}"`;
    this.#requests.set(key, (this.#requests.get(key) ?? 0) + 1);
    let own = this.#durations.get(labels);
    if (!own) {
      own = new Durations();
      this.#durations.set(labels, own);
    }
    own.add(seconds);
  }

  /** The text format of Prometheus, version 0.0.4. */
  text(
    engine: EngineStats | undefined,
    { restarts, memory, engineMemory }: ProcessNumbers,
  ): string {
    const lines: string[] = [];
    const family = (name: string, type: string, help: string): void => {
      lines.push(`# HELP plasticity_${name} ${help}`, `# TYPE plasticity_${name} ${type}`);
    };
    const single = (name: string, type: string, help: string, value: number): void => {
      family(name, type, help);
      lines.push(`plasticity_${name} ${value}`);
    };
    family("http_requests_total", "counter", "Requests that were answered.");
    for (const [labels, count] of this.#requests) {
      lines.push(`plasticity_http_requests_total{${labels}} ${count}`);
    }
    family("http_request_seconds", "histogram", "From a request's head to the end of its answer.");
    for (const [labels, { counts, count, sum }] of this.#durations) {
      lines.push(...histogram("http_request_seconds", { bounds, counts, count, sum }, labels));
    }
    single("http_requests_open", "gauge", "Requests that are being answered.", this.open);
    single("engine_up", "gauge", "Whether the engine answers.", engine ? 1 : 0);
    single("engine_restarts_total", "counter", "New starts of the engine.", restarts);
    if (memory !== undefined) {
      lines.push(
        "# HELP process_resident_memory_bytes Memory that the process holds.",
        "# TYPE process_resident_memory_bytes gauge",
        `process_resident_memory_bytes ${memory}`,
      );
    }
    if (engineMemory !== undefined) {
      const help = "Memory that the engine's process holds.";
      single("engine_resident_memory_bytes", "gauge", help, engineMemory);
    }
    if (engine) {
      for (const [name, type, help, value] of engineRows(engine.metrics)) {
        single(name, type, help, value);
      }
      single("adapters_loaded", "gauge", "Adapters that can be asked for.", engine.adapters.length);
      family("engine_requests_total", "counter", "Requests of the engine by how they ended.");
      for (const [how, count] of Object.entries(engine.metrics.requests)) {
        lines.push(`plasticity_engine_requests_total{state="${how}"} ${count}`);
      }
      for (const [name, help] of Object.entries(latencies)) {
        const counts = engine.metrics.latencies[name as keyof typeof latencies];
        family(`${snake(name)}_seconds`, "histogram", help);
        lines.push(...histogram(`${snake(name)}_seconds`, counts));
      }
    }
    return `${lines.join("\n")}\n`;
  }
}

const snake = (name: string): string => name.replace(/[A-Z]/g, (l) => `_${l.toLowerCase()}`);

const latencies = {
  queue: "From submission to a place in the batch.",
  firstToken: "From submission to the first token.",
  betweenTokens: "From one token of a request to the next.",
  request: "From submission to the end.",
} as const;

function engineRows(
  own: ServeMetrics,
): readonly (readonly [name: string, type: string, help: string, value: number])[] {
  const { cache } = own;
  return [
    ["requests_queued", "gauge", "Requests that wait for a place in the batch.", own.queued],
    ["requests_running", "gauge", "Requests in the batch.", own.running],
    ["prompt_tokens_total", "counter", "Tokens of prompts.", own.promptTokens],
    ["cached_tokens_total", "counter", "Tokens of prompts found in the cache.", own.cachedTokens],
    ["new_tokens_total", "counter", "Tokens made.", own.newTokens],
    ["tokens_per_second", "gauge", "Tokens made a second, of late.", own.tokensPerSecond],
    ["prefills_total", "counter", "Passes that read prompts.", own.prefills],
    ["steps_total", "counter", "Passes that made tokens.", own.steps],
    ["step_rows_total", "counter", "Rows of all passes that made tokens.", own.stepRows],
    ["preemptions_total", "counter", "Requests that gave way for a while.", own.preemptions],
    ["replayed_tokens_total", "counter", "Tokens computed again after.", own.replayedTokens],
    ["pass_seconds_total", "counter", "Seconds in passes.", own.passSeconds],
    ["host_seconds_total", "counter", "Seconds between passes.", own.hostSeconds],
    ["cache_pages", "gauge", "Pages of the cache.", cache.pages],
    ["cache_pages_used", "gauge", "Pages of requests in the batch.", cache.used],
    ["cache_pages_kept", "gauge", "Free pages that hold a prefix.", cache.kept],
    ["cache_evictions_total", "counter", "Prefixes that made room.", cache.evictions],
  ];
}

function histogram(
  name: string,
  { bounds: edges, counts, count, sum }: HistogramCounts,
  labels = "",
): string[] {
  const before = labels === "" ? "" : `${labels},`;
  const after = labels === "" ? "" : `{${labels}}`;
  return [
    ...edges.map((edge, i) => `plasticity_${name}_bucket{${before}le="${edge}"} ${counts[i]}`),
    `plasticity_${name}_bucket{${before}le="+Inf"} ${count}`,
    `plasticity_${name}_sum${after} ${sum}`,
    `plasticity_${name}_count${after} ${count}`,
  ];
}
