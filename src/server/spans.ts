/**
 * Spans of requests for OpenTelemetry: OTLP over HTTP in JSON, sent in batches where an endpoint is named.
 * https://opentelemetry.io/docs/specs/otlp/#otlphttp; no span holds what was said.
 */
import type { Exchange } from "./exchange.ts";

/** Spans that wait at most, and that go together. */
const [maxWaiting, batchSize] = [4096, 256];
const batchMs = 5000;
const sendMs = 10_000;

export interface SpanSettings {
  /** Where spans go, whole. */
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly serviceName: string;
}

/** `a=b,c=d`, values in percent-encoding. */
function headersIn(text: string | undefined): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const pair of (text ?? "").split(",")) {
    const at = pair.indexOf("=");
    if (at > 0) headers[pair.slice(0, at).trim()] = decodeURIComponent(pair.slice(at + 1).trim());
  }
  return headers;
}

/** What the environment asks for, by OpenTelemetry's own names; undefined where it asks for nothing. */
export function spanSettings(env: (name: string) => string | undefined): SpanSettings | undefined {
  if (/^true$/i.test(env("OTEL_SDK_DISABLED") ?? "")) return undefined;
  const traces = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
  const base = env("OTEL_EXPORTER_OTLP_ENDPOINT");
  if (!traces && !base) return undefined;
  return {
    url: traces || `${base!.replace(/\/+$/, "")}/v1/traces`,
    headers: {
      ...headersIn(env("OTEL_EXPORTER_OTLP_HEADERS")),
      ...headersIn(env("OTEL_EXPORTER_OTLP_TRACES_HEADERS")),
    },
    serviceName: env("OTEL_SERVICE_NAME") || "plasticity",
  };
}

type Attribute = { readonly key: string; readonly value: Readonly<Record<string, unknown>> };

function attributes(
  given: Readonly<Record<string, string | number | boolean | undefined>>,
): Attribute[] {
  return Object.entries(given).flatMap(([key, value]): Attribute[] => {
    if (value === undefined) return [];
    if (typeof value === "string") return [{ key, value: { stringValue: value } }];
    if (typeof value === "boolean") return [{ key, value: { boolValue: value } }];
    return [{ key, value: { intValue: String(Math.round(value)) } }];
  });
}

function hex(bytes: number): string {
  return [...crypto.getRandomValues(new Uint8Array(bytes))]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
}

const nanos = (ms: number): string => String(BigInt(Math.round(ms * 1000)) * 1000n);

export class SpanExporter {
  readonly #settings: SpanSettings;
  readonly #fetch: typeof globalThis.fetch;
  readonly #warn: (message: string) => void;
  #spans: object[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #sending: Promise<void> = Promise.resolve();
  #isWarned = false;

  /** @param warn told once when spans cannot be sent */
  constructor(
    settings: SpanSettings,
    fetch: typeof globalThis.fetch,
    warn: (message: string) => void,
  ) {
    this.#settings = settings;
    this.#fetch = fetch;
    this.#warn = warn;
  }

  /**
   * The span of a request that has ended.
   * @param now milliseconds since the epoch; `ms` it took
   * @param parent the header `traceparent` of W3C's Trace Context
   */
  add(exchange: Exchange, status: number, now: number, ms: number, parent: string | null): void {
    const [, trace, span] =
      /^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$/.exec(parent ?? "") ?? [];
    const { id, method, route, notes } = exchange;
    this.#spans.push({
      traceId: trace ?? hex(16),
      spanId: hex(8),
      ...(span !== undefined && { parentSpanId: span }),
      name: `${method} ${route}`,
      // A server's.
      kind: 2,
      startTimeUnixNano: nanos(now - ms),
      endTimeUnixNano: nanos(now),
      attributes: attributes({
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status,
        "plasticity.request_id": id,
        "gen_ai.request.model": notes.model,
        "gen_ai.usage.input_tokens": notes.promptTokens,
        "gen_ai.usage.output_tokens": notes.newTokens,
        "error.type": notes.error === undefined ? undefined : "error",
      }),
      status: { code: status >= 500 || notes.error !== undefined ? 2 : 0 },
    });
    if (this.#spans.length > maxWaiting) this.#spans.shift();
    if (this.#spans.length >= batchSize) void this.flush();
    else if (this.#timer === undefined) {
      this.#timer = setTimeout(() => void this.flush(), batchMs);
      (this.#timer as { unref?: () => void }).unref?.();
    }
  }

  /** Sends what waits; resolves when it was sent, or could not be. */
  flush(): Promise<void> {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#sending = this.#sending.then(() => this.#send());
    return this.#sending;
  }

  async #send(): Promise<void> {
    const spans = this.#spans.splice(0, batchSize);
    if (spans.length === 0) return;
    const { url, headers, serviceName } = this.#settings;
    const body = {
      resourceSpans: [
        {
          resource: { attributes: attributes({ "service.name": serviceName }) },
          scopeSpans: [{ scope: { name: "plasticity" }, spans }],
        },
      ],
    };
    try {
      const { ok, status } = await this.#fetch(url, {
        method: "POST",
        headers: { ...headers, "content-type": "application/json" },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(sendMs),
      });
      if (!ok) throw new Error(`it answered ${status}`);
      this.#isWarned = false;
    } catch (error) {
      // Requests go on without spans; they are not sent again.
      if (!this.#isWarned) this.#warn(`spans cannot be sent: ${String(error)}.`);
      this.#isWarned = true;
    }
  }
}
