/** The app with its engine in this thread: requests in, responses out, without a port and a worker. */

import { nodeHost } from "../../src/host/node.ts";
import type { ServeHandle, WireRequest } from "../../src/index.ts";
import { toolFormatOf } from "../../src/index.ts";
import { AdapterTable } from "../../src/server/adapter-table.ts";
import { type AppOptions, createApp, type ServerApp } from "../../src/server/app.ts";
import { EngineLink } from "../../src/server/engine-link.ts";
import { type EngineSide, openEngineSide, type ToSide } from "../../src/server/engine-side.ts";
import { FileStore } from "../../src/server/file-store.ts";
import { type JobRunner, JobStore } from "../../src/server/job-store.ts";
import { KeyRing } from "../../src/server/keys.ts";
import { TokenTexts } from "../../src/server/logprobs.ts";
import { defaultLimits } from "../../src/server/node-server.ts";
import { encodeAsk, endsOf, openTextSide } from "../../src/server/prompt-text.ts";
import type { EncodeAsk, ServedEngine } from "../../src/server/served.ts";
import { ServerMetrics } from "../../src/server/server-metrics.ts";
import type { Service } from "../../src/server/service.ts";
import { settingsWith } from "./server.ts";

export interface LocalApp extends ServerApp {
  readonly engine: ServedEngine;
  readonly service: Service;
  close(): Promise<void>;
}

/**
 * An app over a model's folder.
 * @param data a folder for files and jobs; `runner` trains
 */
export async function localApp(
  model: string,
  options: Partial<AppOptions> & {
    readonly limits?: Partial<Service["limits"]>;
    readonly data?: string;
    readonly runner?: JobRunner;
    readonly keys?: KeyRing;
  } = {},
): Promise<LocalApp> {
  const host = nodeHost();
  const { engine: settings } = settingsWith({ engine: { model, slots: 2 } });
  const text = await openTextSide(host.files, model);
  let side: EngineSide | undefined;
  const link = new EngineLink((message: ToSide) => {
    // Copied as between threads, and answered later.
    const copy = structuredClone(message);
    queueMicrotask(() => side!.receive(copy));
  });
  side = await openEngineSide(host, settings, (message) => link.receive(structuredClone(message)));
  const facts = await link.ready;
  const engine: ServedEngine = {
    ...text,
    ...facts,
    state: "ready",
    encode: async (ask: EncodeAsk) => encodeAsk(text, ask),
    submit: (request: WireRequest): Promise<ServeHandle> => link.submit(request),
    embed: (texts) => link.client.call("embed", { texts }),
    loadAdapter: async (name, source) => void (await link.client.call("load", { name, source })),
    unloadAdapter: async (name) => void (await link.client.call("unload", { name })),
    stats: () => link.client.call("stats"),
  };
  const adapters = new AdapterTable("tiny", engine, 1);
  const files =
    options.data === undefined ? undefined : await FileStore.open(host.files, options.data);
  const jobs =
    files && options.data !== undefined && options.runner
      ? new JobStore(
          {
            files: host.files,
            folder: options.data,
            runner: options.runner,
            adapters,
            dataPath: (id) => files.path(id),
            now: () => host.clock.now(),
          },
          [],
        )
      : undefined;
  const service: Service = {
    engine,
    adapters,
    embedName: undefined,
    tokens: new TokenTexts(text.tokenizer),
    toolFormat: toolFormatOf(text.template.text),
    ends: endsOf(text),
    files,
    jobs,
    adapterFolder: undefined,
    limits: { ...defaultLimits, ...options.limits },
    metrics: new ServerMetrics(),
    fingerprint: "test",
    now: () => host.clock.now(),
  };
  const app = createApp(service, {
    keys: await KeyRing.of([]),
    callers: { open: 1000, openPerKey: 1000 },
    allowOrigins: [],
    hosts: undefined,
    log: () => {},
    monotonic: () => host.clock.monotonic(),
    ...options,
  });
  return {
    ...app,
    engine,
    service,
    close: async () => {
      await jobs?.close();
      await side?.close();
    },
  };
}
