/** What every test of downloads has: a mirror with the example, an empty cache, a log that is kept. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import { nodeHost } from "../../src/host/node.ts";
import {
  type CacheFiles,
  type DownloadedModel,
  type DownloadOptions,
  downloadModel,
  type HubHost,
} from "../../src/index.ts";
import { exampleCommit, exampleName, exampleRepo, HubMirror, sha256 } from "./hub-mirror.ts";

export const shardBytes = 3_000_000;
export const shard = "model-00001-of-00002.safetensors";
export const repo: ReturnType<typeof exampleRepo> = exampleRepo(shardBytes);
export const content: Readonly<Record<string, Uint8Array>> = repo.commits[exampleCommit]!;

/** The error of work that fails. */
export function failure(work: Promise<unknown>): Promise<Error> {
  return work.then(
    () => Promise.reject(new Error("nothing failed")),
    (error: Error) => error,
  );
}

export class HubCase {
  mirror!: HubMirror;
  /** An address at which nothing answers. */
  nowhere = "";
  cacheDir = "";
  logged: string[] = [];
  env: Record<string, string> = {};

  /** Prepares it for the tests of a file, each anew. */
  static inFile(): HubCase {
    const one = new HubCase();
    beforeAll(async () => {
      one.mirror = await HubMirror.open();
      const gone = await HubMirror.open();
      one.nowhere = gone.url;
      await gone.close();
    });
    afterAll(() => one.mirror.close());
    beforeEach(() => one.#reset());
    afterEach(() => rmSync(one.cacheDir, { recursive: true, force: true }));
    return one;
  }

  #reset(): void {
    const { mirror } = this;
    this.cacheDir = mkdtempSync(join(tmpdir(), "plasticity-hub-"));
    this.logged = [];
    this.env = { HF_ENDPOINT: mirror.url, HF_HOME: join(this.cacheDir, "home") };
    mirror.repos.clear();
    mirror.repos.set(exampleName, repo);
    mirror.faults.clear();
    mirror.listing = undefined;
    mirror.pageSize = 1000;
    mirror.forget();
  }

  /** This machine with another environment. */
  host(files: Partial<CacheFiles> = {}): HubHost {
    const tell = (text: string): void => void this.logged.push(text);
    const base = nodeHost();
    return {
      ...base,
      env: (name) => this.env[name],
      log: { info: tell, warn: tell },
      files: { ...base.files, ...files },
    };
  }

  download(
    name: string = exampleName,
    options: DownloadOptions = {},
    host: HubHost = this.host(),
  ): Promise<DownloadedModel> {
    return downloadModel(host, name, { cacheDir: this.cacheDir, retryDelay: 1, ...options });
  }

  get folder(): string {
    return join(this.cacheDir, "models--org--example");
  }

  blob(path: string): string {
    return join(this.folder, "blobs", sha256(content[path]!));
  }

  partial(path: string): string {
    return `${this.blob(path)}.plasticity.incomplete`;
  }

  snapshot(commit: string): string {
    return join(this.folder, "snapshots", commit);
  }
}
