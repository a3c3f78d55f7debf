/** What the routes are given, and the types of their app. */
import type { Context, Hono } from "hono";
import type { ToolFormat } from "../index.ts";
import type { AdapterTable, Target } from "./adapter-table.ts";
import { unknownModel } from "./errors.ts";
import type { Exchange } from "./exchange.ts";
import type { FileStore } from "./file-store.ts";
import type { GenerationLimits } from "./generation.ts";
import type { JobStore } from "./job-store.ts";
import type { TokenTexts } from "./logprobs.ts";
import type { ServedEngine } from "./served.ts";
import type { ServerMetrics } from "./server-metrics.ts";

export interface ServerLimits extends GenerationLimits {
  /** Bytes of a body in JSON. */
  readonly bodyBytes: number;
  /** Milliseconds until a body must be there. */
  readonly bodyMs: number;
  /** Bytes of an uploaded file. */
  readonly fileBytes: number;
  /** Milliseconds until it must be there. */
  readonly fileMs: number;
  /** Texts of one request for vectors. */
  readonly texts: number;
}

export interface Service {
  readonly engine: ServedEngine;
  readonly adapters: AdapterTable;
  /** The name of a model for vectors alone. */
  readonly embedName: string | undefined;
  readonly tokens: TokenTexts;
  readonly toolFormat: ToolFormat;
  /** Tokens that end an answer. */
  readonly ends: { readonly chat: readonly number[]; readonly text: readonly number[] };
  /** Absent where nothing is kept on disk. */
  readonly files: FileStore | undefined;
  readonly jobs: JobStore | undefined;
  /** Finds the folder of an adapter by its name in the folder of adapters. */
  readonly adapterFolder: ((name: string) => Promise<string>) | undefined;
  readonly limits: ServerLimits;
  readonly metrics: ServerMetrics;
  /** Bytes of memory that the process holds, where it can be told. */
  readonly memory?: () => number;
  /** Names model and package in answers. */
  readonly fingerprint: string;
  /** Milliseconds since the epoch. */
  readonly now: () => number;
}

export type Env = { Variables: { exchange: Exchange } };
export type App = Hono<Env>;
export type Call = Context<Env>;

/** Adds the routes of a group. */
export type Routes = (app: App, service: Service) => void;

/** @throws ApiError 404 for a name that is nobody's. */
export function targetOf({ adapters }: Service, model: string): Target {
  const target = adapters.resolve(model);
  if (!target) throw unknownModel(model);
  return target;
}

export const seconds = (ms: number): number => Math.floor(ms / 1000);
