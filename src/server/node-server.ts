/** The server on this machine: a port, an engine in a process of its own, files and jobs on disk, and their end. */
import { realpath, stat } from "node:fs/promises";
import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join, sep } from "node:path";
import { createAdaptorServer } from "@hono/node-server";
import { type Host, MissingError, OptionError, toolFormatOf } from "../index.ts";
import { AdapterTable, checkName, type ServedAdapter } from "./adapter-table.ts";
import { createApp, type LogEntry, type ServerApp } from "./app.ts";
import type { EngineSettings } from "./engine-side.ts";
import { FileStore } from "./file-store.ts";
import { JobStore, readJobs, runFolder } from "./job-store.ts";
import { type CallerLimits, KeyRing } from "./keys.ts";
import { TokenTexts } from "./logprobs.ts";
import { NodeEngine } from "./node-engine.ts";
import { nodeJobs } from "./node-jobs.ts";
import { endsOf } from "./prompt-text.ts";
import { ServerMetrics } from "./server-metrics.ts";
import { type ServerLimits, type Service, seconds } from "./service.ts";

export interface ServerSettings {
  /** The base model's name for clients. */
  readonly name: string;
  /** The name of a model for vectors alone. */
  readonly embedName?: string;
  readonly engine: EngineSettings;
  readonly host: string;
  /** 0 takes a free one. */
  readonly port: number;
  readonly keys: readonly string[];
  /** Listen beyond this machine without a key. */
  readonly isInsecure: boolean;
  readonly allowOrigins: readonly string[];
  /** For files and jobs; without it there are none. */
  readonly dataFolder: string | undefined;
  /** Whose folders may be loaded as adapters by request. */
  readonly adaptersFolder: string | undefined;
  readonly limits: ServerLimits;
  readonly callers: CallerLimits;
  /** Milliseconds until a request's head must be there. */
  readonly headMs: number;
  /** The built command line, which trains. */
  readonly cliPath: string;
  readonly workerUrl?: URL;
  /** As in `NodeEngineOptions`. */
  readonly hangMs?: number;
  readonly version: string;
  readonly log: (entry: LogEntry) => void;
  readonly onEnd?: Parameters<typeof createApp>[1]["onEnd"];
}

export const defaultLimits: ServerLimits = {
  choices: 16,
  tokens: 2 ** 20,
  bodyBytes: 2 ** 22,
  bodyMs: 30_000,
  fileBytes: 2 ** 27,
  fileMs: 300_000,
  texts: 2048,
};

export interface RunningServer {
  readonly url: string;
  readonly port: number;
  readonly engine: NodeEngine;
  readonly adapters: AdapterTable;
  readonly jobs: JobStore | undefined;
  readonly app: ServerApp;
  /**
   * Takes no more requests, lets those that are open end, and tells those that do not in time.
   * @param ms until open requests are ended
   */
  close(ms?: number): Promise<void>;
}

/** Whether only this machine reaches an address. */
export function isLoopback(host: string): boolean {
  const bare = host.replace(/^\[|\]$/g, "").toLowerCase();
  return bare === "localhost" || bare === "::1" || /^127(?:\.\d{1,3}){3}$/.test(bare);
}

/** Finds a folder of the folder of adapters; links that lead out of it are refused. */
function folderFinder(root: string): (name: string) => Promise<string> {
  return async (name) => {
    checkName(name);
    const missing = (): MissingError =>
      new MissingError(`there is no adapter "${name}" in the server's folder of adapters.`);
    const [real, base] = await Promise.all([
      realpath(join(root, name)).catch(() => undefined),
      realpath(root),
    ]);
    if (real === undefined || !real.startsWith(base + sep)) throw missing();
    if (!(await stat(real)).isDirectory()) throw missing();
    return real;
  };
}

async function listen(server: Server, port: number, host: string): Promise<number> {
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why =
        error.code === "EADDRINUSE"
          ? "another program has it — choose another --port"
          : error.code === "EACCES"
            ? "this needs more rights — choose a port from 1024"
            : error.code === "EADDRNOTAVAIL"
              ? "this machine has no such address — choose another --host"
              : error.message;
      reject(new OptionError(`serve: cannot listen on ${host} port ${port}, ${why}.`));
    });
    server.listen(port, host, () => resolve());
  });
  return (server.address() as AddressInfo).port;
}

/**
 * Starts a server; resolves when it listens and the model is loaded.
 * @throws OptionError for an address beyond this machine without a key, and for a port that is taken; as the
 * loading of model and adapters.
 */
export async function startServer(host: Host, settings: ServerSettings): Promise<RunningServer> {
  const { files, clock } = host;
  const { keys: given, dataFolder, log } = settings;
  const keys = await KeyRing.of(given);
  if (!isLoopback(settings.host) && keys.isOpen && !settings.isInsecure) {
    throw new OptionError(
      `serve: ${settings.host} is reached from other machines, and there is no key — give --api-key-file, or --insecure if everybody may ask.`,
    );
  }
  const now = (): number => clock.now();
  const lock = dataFolder === undefined ? undefined : await lockData(host, dataFolder);
  const cleanup: (() => Promise<void>)[] = [];
  try {
    if (lock) cleanup.unshift(() => lock.release());
    const known = dataFolder === undefined ? [] : await readJobs(files, dataFolder);
    const room = settings.engine.slots - settings.engine.adapters.length;
    const kept = known
      .filter((job) => job.status === "succeeded" && job.isServed && job.adapterName !== undefined)
      .slice(-Math.max(0, room) || known.length + 1)
      .map(
        (job): ServedAdapter => ({
          name: job.adapterName!,
          folder: runFolder(files, dataFolder!, job.id),
          source: job.id,
          created: job.finished ?? job.created,
        }),
      );
    const created = seconds(now());
    const named = settings.engine.adapters.map(([name, folder]): ServedAdapter => {
      checkName(name);
      return { name, folder, source: "command line", created };
    });
    const served = [...named, ...(room > 0 ? kept : [])];
    const engine = await NodeEngine.start(
      host,
      {
        ...settings.engine,
        adapters: served.map(({ name, folder }) => [name, folder] as const),
        // What earlier jobs made must not keep the server from starting.
        optional: kept.map(({ name }) => name),
      },
      {
        ...(settings.workerUrl && { workerUrl: settings.workerUrl }),
        ...(settings.hangMs !== undefined && { hangMs: settings.hangMs }),
        onEvent: (event, facts) => log({ level: levels[event] ?? "info", event, ...facts }),
        onLeft: (name) => adapters.drop(name),
      },
    );
    cleanup.unshift(() => engine.close());
    const adapters = new AdapterTable(settings.name, engine, created, served);
    const store = dataFolder === undefined ? undefined : await FileStore.open(files, dataFolder);
    const jobs =
      store && dataFolder !== undefined
        ? new JobStore(
            {
              files,
              folder: dataFolder,
              adapters,
              now,
              dataPath: (id) => store.path(id),
              runner: nodeJobs({
                model: settings.engine.model,
                cliPath: settings.cliPath,
                threads: settings.engine.threads,
              }),
              onEvent: (event, facts) => log({ level: "info", event, ...facts }),
            },
            known,
          )
        : undefined;
    const service: Service = {
      engine,
      adapters,
      embedName: settings.embedName,
      tokens: new TokenTexts(engine.tokenizer),
      toolFormat: toolFormatOf(engine.template.text),
      ends: endsOf(engine),
      files: store,
      jobs,
      adapterFolder:
        settings.adaptersFolder === undefined ? undefined : folderFinder(settings.adaptersFolder),
      limits: settings.limits,
      metrics: new ServerMetrics(),
      memory: () => process.memoryUsage.rss(),
      fingerprint: `plasticity-${settings.version}`,
      now,
    };
    const app = createApp(service, {
      keys,
      callers: settings.callers,
      allowOrigins: settings.allowOrigins,
      // With a key a page cannot ask, whatever name it has made lead here.
      hosts:
        keys.isOpen && isLoopback(settings.host)
          ? ["localhost", "127.0.0.1", "[::1]", settings.host.toLowerCase()]
          : undefined,
      log,
      monotonic: () => clock.monotonic(),
      ...(settings.onEnd && { onEnd: settings.onEnd }),
    });
    const server = createAdaptorServer({
      fetch: app.fetch,
      overrideGlobalObjects: false,
      hostname: settings.host,
      serverOptions: {
        headersTimeout: settings.headMs,
        // Bodies have times of their own; this is for those that nobody reads.
        requestTimeout: Math.max(settings.limits.fileMs, settings.limits.bodyMs) + 10_000,
        connectionsCheckingInterval: Math.min(1000, settings.headMs),
        keepAliveTimeout: 10_000,
        maxHeaderSize: 16_384,
      },
    }) as Server;
    server.maxConnections = settings.callers.open + 256;
    const port = await listen(server, settings.port, settings.host);
    cleanup.unshift(() => closeServer(server));
    await engine.opened();
    jobs?.start();
    const shown = settings.host.includes(":") ? `[${settings.host}]` : settings.host;
    let closing: Promise<void> | undefined;
    return {
      url: `http://${shown}:${port}`,
      port,
      engine,
      adapters,
      jobs,
      app,
      close: (ms = 30_000) => {
        closing ??= closeAll(server, app, jobs, ms).finally(async () => {
          for (const work of cleanup) await work();
        });
        return closing;
      },
    };
  } catch (error) {
    for (const work of cleanup) await work().catch(() => {});
    throw error;
  }
}

const levels: Readonly<Record<string, LogEntry["level"]>> = {
  "engine ended": "error",
  "adapter left out": "warn",
};

async function lockData({ files }: Host, folder: string): Promise<{ release(): Promise<void> }> {
  await files.makeDirectory(folder);
  return files.lock(files.join(folder, "server.lock"));
}

async function closeServer(server: Server): Promise<void> {
  const closed = new Promise<void>((resolve) => {
    server.close(() => resolve());
  });
  server.closeAllConnections();
  await closed;
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** Lets what is open end; what does not in time is told so. */
async function closeAll(
  server: Server,
  app: ServerApp,
  jobs: JobStore | undefined,
  ms: number,
): Promise<void> {
  app.drain();
  server.close();
  server.closeIdleConnections();
  const stopped = jobs?.close();
  const end = performance.now() + ms;
  while (app.open.size > 0 && performance.now() < end) await pause(20);
  for (const exchange of [...app.open]) exchange.abort();
  // What they are told must have its time to be sent.
  for (let i = 0; i < 50 && app.open.size > 0; i++) await pause(20);
  await pause(20);
  await stopped;
}
