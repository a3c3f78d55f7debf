/** Servers for tests: real ones on a port of this machine, with the built worker, and their clients. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { nodeHost } from "../../src/host/node.ts";
import type { LogEntry } from "../../src/server/app.ts";
import {
  defaultLimits,
  type RunningServer,
  type ServerSettings,
  startServer,
} from "../../src/server/node-server.ts";
import { cliPath, writeTinyModel } from "./run-cli.ts";

export const builtin: string = fileURLToPath(new URL("../../models/builtin", import.meta.url));
const workerUrl = new URL("../../dist/server/node-worker.js", import.meta.url);

type Changes = Partial<Omit<ServerSettings, "engine">> & {
  readonly engine?: Partial<ServerSettings["engine"]>;
};

/** Settings of a small server without keys, files and jobs. */
export function settingsWith(changes: Changes = {}): ServerSettings {
  return {
    name: "builtin",
    host: "127.0.0.1",
    port: 0,
    keys: [],
    isInsecure: false,
    allowOrigins: [],
    dataFolder: undefined,
    adaptersFolder: undefined,
    limits: defaultLimits,
    callers: { open: 2048, openPerKey: 2048 },
    headMs: 10_000,
    cliPath,
    workerUrl,
    version: "test",
    log: () => {},
    ...changes,
    engine: {
      model: builtin,
      embedModel: undefined,
      threads: 1,
      adapters: [],
      optional: [],
      slots: 0,
      maxRank: 8,
      adapterTargets: "all-linear",
      cacheBytes: 2 ** 26,
      engine: { prefillTokens: 256 },
      ...changes.engine,
    },
  };
}

export interface TestServer extends RunningServer {
  readonly client: OpenAI;
  readonly log: readonly LogEntry[];
  /** A folder that goes away with the server. */
  readonly folder: string;
}

/** A server that listens, with a client that tries nothing twice. */
export async function serve(changes: Changes = {}, hasData = false): Promise<TestServer> {
  if (!existsSync(workerUrl)) {
    throw new Error('dist is not there — run "npm test", which builds it, or "npm run build".');
  }
  const folder = mkdtempSync(join(tmpdir(), "plasticity-server-"));
  const log: LogEntry[] = [];
  try {
    const server = await startServer(
      nodeHost(),
      settingsWith({
        log: (entry) => log.push(entry),
        ...(hasData && { dataFolder: join(folder, "data") }),
        ...changes,
      }),
    );
    const client = new OpenAI({
      baseURL: `${server.url}/v1`,
      apiKey: changes.keys?.[0] ?? "none",
      maxRetries: 0,
      timeout: 60_000,
    });
    return {
      ...server,
      client,
      log,
      folder,
      close: async (ms = 0) => {
        await server.close(ms);
        rmSync(folder, { recursive: true, force: true });
      },
    };
  } catch (error) {
    rmSync(folder, { recursive: true, force: true });
    throw error;
  }
}

/** A tiny random model in a folder that goes away with the process's own. */
export async function tinyModel(): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "plasticity-tiny-"));
  await writeTinyModel(folder);
  return folder;
}

/** Waits until something is so. */
export async function until(
  isSo: () => boolean | Promise<boolean>,
  what: string,
  ms = 30_000,
): Promise<void> {
  const end = performance.now() + ms;
  while (!(await isSo())) {
    if (performance.now() > end) throw new Error(`not so after ${ms} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** What a raw request is answered. */
export async function post(
  url: string,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): Promise<{
  readonly status: number;
  readonly body: Record<string, unknown>;
  readonly headers: Headers;
}> {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await answer.text();
  return {
    status: answer.status,
    body: JSON.parse(text) as Record<string, unknown>,
    headers: answer.headers,
  };
}
