/** The app: web-standard requests in, responses out. Who listens, and where, is not known here. */
import { Hono } from "hono";
import { matchedRoutes } from "hono/route";
import { ApiError, apiErrorOf, UnavailableError } from "./errors.ts";
import { Exchange } from "./exchange.ts";
import { newId } from "./ids.ts";
import { CallerCounts, type CallerLimits, type KeyRing } from "./keys.ts";
import { adapterRoutes } from "./routes/adapters.ts";
import { chatRoutes } from "./routes/chat.ts";
import { completionRoutes } from "./routes/completions.ts";
import { embeddingRoutes } from "./routes/embeddings.ts";
import { fileRoutes } from "./routes/files.ts";
import { fineTuningRoutes } from "./routes/fine-tuning.ts";
import { healthRoutes } from "./routes/health.ts";
import { modelRoutes } from "./routes/models.ts";
import type { App, Env, Service } from "./service.ts";

/** One line of the log. */
export interface LogEntry {
  readonly level: "info" | "warn" | "error";
  readonly event: string;
  readonly [name: string]: unknown;
}

export interface AppOptions {
  readonly keys: KeyRing;
  readonly callers: CallerLimits;
  /** Pages of these origins may read answers; `*` for all. */
  readonly allowOrigins: readonly string[];
  /** Names under which the server may be asked; undefined for all. */
  readonly hosts: readonly string[] | undefined;
  readonly log: (entry: LogEntry) => void;
  /** Milliseconds that never go back. */
  readonly monotonic: () => number;
  /** Told of every request when it has ended. */
  readonly onEnd?: (exchange: Exchange, status: number, ms: number, request: Request) => void;
}

export interface ServerApp {
  readonly app: App;
  readonly fetch: (request: Request) => Promise<Response>;
  /** Requests whose answer has not ended. */
  readonly open: ReadonlySet<Exchange>;
  /** From now on requests are refused. */
  drain(): void;
}

const groups = [
  healthRoutes,
  modelRoutes,
  chatRoutes,
  completionRoutes,
  embeddingRoutes,
  fileRoutes,
  fineTuningRoutes,
  adapterRoutes,
] as const;

/** The name in a Host header, without its port. */
const hostName = (header: string): string => header.replace(/:\d+$/, "").toLowerCase();

export function createApp(service: Service, options: AppOptions): ServerApp {
  const app: App = new Hono<Env>();
  const { keys, log, monotonic, hosts, allowOrigins } = options;
  const counts = new CallerCounts(options.callers);
  const open = new Set<Exchange>();
  let isDraining = false;

  const isAllowed = (origin: string): boolean =>
    allowOrigins.includes("*") || allowOrigins.includes(origin);

  app.use(async (call, next) => {
    const request = call.req.raw;
    const exchange = new Exchange(newId("req_"), request.method, monotonic(), request.signal);
    call.set("exchange", exchange);
    open.add(exchange);
    service.metrics.open = open.size;
    exchange.onEnd(() => {
      open.delete(exchange);
      service.metrics.open = open.size;
      // What stands for all paths comes first.
      exchange.route = matchedRoutes(call).findLast(({ path }) => path !== "/*")?.path ?? "unknown";
      const ms = monotonic() - exchange.started;
      const { status } = call.res;
      service.metrics.add(exchange.method, exchange.route, status, ms / 1000);
      const { id, method, route, caller, notes } = exchange;
      log({
        level: status >= 500 ? "error" : notes.error === undefined ? "info" : "warn",
        event: "request",
        request: id,
        ...(caller.id !== "" && { key: caller.id }),
        method,
        route,
        status,
        ms: Math.round(ms * 10) / 10,
        ...(exchange.signal.aborted && { isLeft: true }),
        ...notes,
      });
      const { fault } = exchange;
      if (fault && !(fault instanceof UnavailableError)) {
        log({
          level: "error",
          event: "fault",
          request: id,
          message: fault.message,
          stack: fault.stack,
        });
      }
      options.onEnd?.(exchange, status, ms, request);
    });
    try {
      await next();
    } finally {
      call.header("x-request-id", exchange.id);
      call.header("x-content-type-options", "nosniff");
      const origin = call.req.header("origin");
      if (origin !== undefined && isAllowed(origin)) {
        call.header("access-control-allow-origin", allowOrigins.includes("*") ? "*" : origin);
        call.header("access-control-expose-headers", "x-request-id, retry-after");
        call.header("vary", "Origin");
      }
      if (isDraining) call.header("connection", "close");
      if (!exchange.isStreaming) exchange.end();
    }
  });

  app.use(async (call, next) => {
    const exchange = call.get("exchange");
    // A page that a browser shows may not ask by a name that it made lead here.
    if (hosts && !hosts.includes(hostName(call.req.header("host") ?? ""))) {
      throw new ApiError(403, "This server is asked by another name than its own.", {
        code: "wrong_host",
      });
    }
    const origin = call.req.header("origin");
    if (origin !== undefined && !isAllowed(origin)) {
      throw new ApiError(
        403,
        "Pages of this origin may not ask this server: it was started without --allow-origin for it.",
        { code: "wrong_origin" },
      );
    }
    if (call.req.method === "OPTIONS" && origin !== undefined) {
      return call.body(null, 204, {
        "access-control-allow-methods": "GET, POST, DELETE",
        "access-control-allow-headers":
          "authorization, content-type, x-request-id, x-stainless-os, x-stainless-lang, x-stainless-arch, x-stainless-runtime, x-stainless-runtime-version, x-stainless-package-version, x-stainless-retry-count, x-stainless-timeout, x-stainless-helper-method",
        "access-control-max-age": "600",
      });
    }
    if (call.req.path === "/health") return next();
    exchange.caller = await keys.check(call.req.header("authorization"));
    if (isDraining) {
      throw new ApiError(503, "The server is shutting down.", {
        type: "unavailable_error",
        code: "unavailable",
        headers: { "retry-after": "5" },
      });
    }
    exchange.onEnd(counts.enter(exchange.caller, monotonic()));
    return next();
  });

  for (const add of groups) add(app, service);
  refuseMethods(app);

  app.notFound((call) => {
    const { method, path } = call.req;
    const shown = path.length > 200 ? `${path.slice(0, 200)}…` : path;
    const error = new ApiError(404, `Unknown request URL: ${method} ${shown}.`, {
      code: "unknown_url",
    });
    call.get("exchange").notes.error = "unknown url";
    return call.json(error.body, 404);
  });

  app.onError((thrown, call) => {
    const exchange = call.get("exchange");
    const error = apiErrorOf(thrown, exchange.id);
    if (error.status >= 500 && error !== thrown) exchange.fault = thrown;
    // Sentences of errors may hold what was sent: the log has the code alone.
    exchange.notes.error = error.code ?? error.type;
    return call.json(error.body, error.status as 400, error.headers);
  });

  return {
    app,
    fetch: async (request) => app.fetch(request),
    open,
    drain: () => {
      isDraining = true;
    },
  };
}

/** Refuses other methods on paths that are there. */
function refuseMethods(app: App): void {
  const methods = new Map<string, string[]>();
  for (const { path, method } of app.routes) {
    if (method === "ALL") continue;
    methods.set(path, [...(methods.get(path) ?? []), method]);
  }
  for (const [path, known] of methods) {
    app.all(path, (call) => {
      throw new ApiError(405, `Not allowed to ${call.req.method} on ${path}.`, {
        code: "method_not_allowed",
        headers: { allow: known.join(", ") },
      });
    });
  }
}
