/** Models from the hub by name, into the cache that other libraries share. */
import { MissingError, OptionError, PlasticityError, StateError } from "../../errors.ts";
import type { Host } from "../../host/host.ts";
import { commitOf, treeOf } from "./api.ts";
import { type Chosen, chooseFiles } from "./choose.ts";
import { checkRevision, isCommit, isSafePath, requireHubId } from "./id.ts";
import { HubRequests, type Patience, patienceOf, type RequestOptions, stopped } from "./request.ts";
import { type HubOptions, type HubSettings, hubSettings } from "./settings.ts";
import { type CacheFiles, etagOf, HubStore, type TreeFile } from "./store.ts";
import { checkSize, showSize, Transfer } from "./transfer.ts";

export interface DownloadProgress {
  /** Bytes of the files so far, with those that were there already. */
  readonly received: number;
  /** Bytes of all files that are needed. */
  readonly total: number;
  /** Of `received`, those that came over the network in this call. */
  readonly transferred: number;
  /** The file that the last bytes belong to. */
  readonly file: string;
}

export interface DownloadOptions extends HubOptions, RequestOptions {
  /** A branch, a tag or a commit; default what the name says, else "main". */
  readonly revision?: string;
  /** Paths in the repository; default what the name says, else those that a model or adapter needs. */
  readonly files?: readonly string[];
  readonly onProgress?: (progress: DownloadProgress) => void;
}

export interface DownloadedFile {
  /** In the repository. */
  readonly path: string;
  readonly bytes: number;
  /** SHA-256 for weights, git's id for small files; missing where only a folder of old says it. */
  readonly etag?: string;
  /** It was in the cache before. */
  readonly cached: boolean;
}

export interface DownloadedModel {
  readonly repo: string;
  readonly revision: string;
  readonly commit: string;
  /** The local folder of the snapshot, to be opened as any other. */
  readonly folder: string;
  /** The local path of the one file that was asked for; else the folder. */
  readonly path: string;
  readonly files: readonly DownloadedFile[];
  /** Nothing was asked of the hub. */
  readonly offline: boolean;
}

/** A host whose files may do more than others: links, names, free space. */
export type HubHost = Omit<Host, "files"> & { readonly files: CacheFiles };

const indexLimit = 2 ** 26;
const atOnce = 4;

/**
 * Fetches what a model needs into the cache of huggingface_hub and returns where it is. Weights are taken
 * as safetensors alone; what is there is not fetched again, and what was interrupted goes on. Every file is
 * checked against the SHA-256, or git's id, that the hub names for it.
 *
 * @param name `org/name`, `org/name@revision`, `org/name:file.gguf`
 * @throws OptionError for a bad name or setting; MissingError where hub or cache have no such repository,
 *   revision or file; FormatError for damaged or impossible answers; UnsupportedError for weights that only
 *   a pickle holds; StateError where access is refused, the network fails or the disk is too small.
 */
export async function downloadModel(
  host: HubHost,
  name: string,
  options: DownloadOptions = {},
): Promise<DownloadedModel> {
  const id = requireHubId(name);
  const revision = options.revision ?? id.revision ?? "main";
  checkRevision(revision, name);
  const asked = options.files ?? (id.file === undefined ? undefined : [id.file]);
  const bad = asked?.find((path) => !isSafePath(path));
  if (bad !== undefined || asked?.length === 0) {
    throw new OptionError(
      `hub: files must be paths in ${id.repo}, as model.safetensors, got ${JSON.stringify(bad ?? [])}.`,
    );
  }
  const settings = await hubSettings(host, options);
  const download = new Download(host, settings, patienceOf(options), {
    repo: id.repo,
    revision,
    asked,
    onProgress: options.onProgress,
  });
  if (settings.isOffline) return download.fromCache();
  if (isCommit(revision)) {
    const kept = await download.ifComplete();
    if (kept) return kept;
  }
  try {
    return await download.fromHub();
  } catch (error) {
    const isAway = error instanceof PlasticityError && error.details["unreachable"] === true;
    const kept = isAway ? await download.ifComplete() : undefined;
    if (!kept) throw error;
    host.log.warn(`${(error as Error).message} Taken from the cache: ${kept.folder}`);
    return kept;
  }
}

interface Asked {
  readonly repo: string;
  readonly revision: string;
  readonly asked: readonly string[] | undefined;
  readonly onProgress: DownloadOptions["onProgress"];
}

class Download {
  readonly #host: HubHost;
  readonly #settings: HubSettings;
  readonly #patience: Patience;
  readonly #asked: Asked;
  readonly #store: HubStore;

  constructor(host: HubHost, settings: HubSettings, patience: Patience, asked: Asked) {
    this.#host = host;
    this.#settings = settings;
    this.#patience = patience;
    this.#asked = asked;
    this.#store = new HubStore(host.files, settings.cacheDir, asked.repo);
  }

  #result(
    commit: string,
    chosen: Chosen,
    files: readonly DownloadedFile[],
    offline: boolean,
  ): DownloadedModel {
    const { repo, revision } = this.#asked;
    const folder = this.#store.snapshot(commit);
    const path =
      chosen.file === undefined ? folder : this.#store.snapshot(commit, ...chosen.file.split("/"));
    return { repo, revision, commit, folder, path, files, offline };
  }

  /** The cache's answer, or `undefined` where it is not whole. */
  async ifComplete(): Promise<DownloadedModel | undefined> {
    try {
      return await this.fromCache();
    } catch (error) {
      if (error instanceof PlasticityError) return undefined;
      throw error;
    }
  }

  /** @throws MissingError where the cache lacks it. */
  async fromCache(): Promise<DownloadedModel> {
    const { repo, revision, asked } = this.#asked;
    const store = this.#store;
    const fetchIt = "fetch it once with a network, and without HF_HUB_OFFLINE";
    const commit = await store.readRef(revision);
    const folder =
      commit === undefined ? undefined : await store.files.info(store.snapshot(commit));
    if (commit === undefined || !folder?.isDirectory) {
      throw new MissingError(
        `hub: ${repo}${revision === "main" ? "" : `@${revision}`} is not in the cache at ${this.#settings.cacheDir} — ${fetchIt}.`,
        { repo, revision },
      );
    }
    const tree = await store.readTree(commit);
    const known = new Map(tree?.map((file) => [file.path, file]));
    const has = new Set(tree ? known.keys() : await this.#names(commit));
    const absent = (path: string): MissingError =>
      new MissingError(
        `hub: the cache at ${this.#settings.cacheDir} has ${repo} without ${path} — ${fetchIt}.`,
        { repo, revision, path },
      );
    for (const path of asked ?? []) {
      if ((tree && !has.has(path)) || (await store.lacks(commit, path))) {
        throw new MissingError(
          `hub: ${repo} has no file "${path}" at revision "${revision}", as the cache knows — check the name.`,
          { repo, revision, path },
        );
      }
    }
    const chosen = await chooseFiles(repo, has, asked, async (path) => {
      if (!(await store.has(commit, path))) throw absent(path);
      return store.files.readBytes(store.snapshot(commit, ...path.split("/")), indexLimit);
    });
    const files: DownloadedFile[] = [];
    for (const path of chosen.paths) {
      const entry = known.get(path);
      if (!(await store.has(commit, path, entry?.bytes))) throw absent(path);
      const { bytes } = (await store.files.info(store.snapshot(commit, ...path.split("/"))))!;
      files.push({ path, bytes, cached: true, ...(entry && { etag: etagOf(entry) }) });
    }
    return this.#result(commit, chosen, files, true);
  }

  /** What a snapshot holds, two folders deep. */
  async #names(commit: string): Promise<readonly string[]> {
    const { files } = this.#store;
    const names: string[] = [];
    const folder = this.#store.snapshot(commit);
    const nameOf = (path: string): string => path.split(/[/\\]/).at(-1)!;
    for (const entry of await files.list(folder)) {
      if (!entry.isDirectory) names.push(nameOf(entry.path));
      else {
        for (const inner of await files.list(entry.path)) {
          if (!inner.isDirectory) names.push(`${nameOf(entry.path)}/${nameOf(inner.path)}`);
        }
      }
    }
    return names.filter(isSafePath);
  }

  async fromHub(): Promise<DownloadedModel> {
    const { repo, revision, asked } = this.#asked;
    const store = this.#store;
    const requests = new HubRequests(this.#host, this.#settings);
    const what = { repo, revision };
    const commit = await commitOf(requests, what, this.#patience);
    const kept = await store.readTree(commit);
    const tree = kept ?? (await treeOf(requests, what, commit, this.#patience));
    const files = new Map(tree.map((file) => [file.path, file]));
    const transfer = new Transfer(requests, store, this.#patience, this.#host.log);
    const wanted = (path: string): TreeFile => {
      const file = files.get(path);
      if (file) return file;
      throw new MissingError(
        `hub: ${repo} has no file "${path}" at revision "${revision}" — see ${this.#settings.endpoint.origin}/${repo}/tree/${revision}.`,
        { ...what, path },
      );
    };
    for (const path of asked ?? []) {
      if (!files.has(path)) await store.writeNoExist(commit, path).catch(() => undefined);
    }
    let early: TreeFile | undefined;
    const missing = new Set<TreeFile>();
    const chosen = await chooseFiles(repo, new Set(files.keys()), asked, async (path) => {
      const file = wanted(path);
      if (!(await store.has(commit, path, file.bytes))) {
        await store.prepare();
        await transfer.fetch({ ...what, commit, file }, () => undefined);
        early = file;
      }
      return store.files.readBytes(store.snapshot(commit, ...path.split("/")), indexLimit);
    });
    const needed = chosen.paths.map(wanted);
    for (const file of needed) {
      checkSize(file, repo);
      if (!(await store.has(commit, file.path, file.bytes))) missing.add(file);
    }
    if (missing.size > 0) {
      await this.#checkSpace([...missing]);
      await store.prepare();
    }
    // Both only spare questions later, and a cache may be a folder that others keep for us.
    if (!kept) await store.writeTree(commit, tree).catch(() => undefined);
    await this.#fetchAll(transfer, commit, needed, missing);
    await store.writeRef(revision, commit).catch(() => undefined);
    const result = needed.map((file) => ({
      path: file.path,
      bytes: file.bytes,
      etag: etagOf(file),
      cached: !missing.has(file) && file !== early,
    }));
    return this.#result(commit, chosen, result, false);
  }

  /** @throws StateError before anything is fetched, where the disk cannot hold it. */
  async #checkSpace(missing: readonly TreeFile[]): Promise<void> {
    const { files, cacheDir } = this.#store;
    let bytes = 0;
    for (const file of missing) {
      const etag = etagOf(file);
      const partial = await files.info(this.#store.partial(etag));
      const blob = await files.info(this.#store.blob(etag));
      bytes += blob ? 0 : Math.max(0, file.bytes - (partial?.bytes ?? 0));
    }
    const free = await files.freeBytes?.(cacheDir);
    if (free === undefined || bytes <= free) return;
    throw new StateError(
      `hub: ${this.#asked.repo} needs ${showSize(bytes)} more, the disk of ${cacheDir} has ${showSize(free)} free — make room, or set HF_HUB_CACHE to a folder on another disk.`,
      { repo: this.#asked.repo, bytes, free },
    );
  }

  async #fetchAll(
    transfer: Transfer,
    commit: string,
    needed: readonly TreeFile[],
    missing: ReadonlySet<TreeFile>,
  ): Promise<void> {
    const { repo, revision, onProgress } = this.#asked;
    const total = needed.reduce((sum, { bytes }) => sum + bytes, 0);
    let received = needed.reduce((sum, file) => sum + (missing.has(file) ? 0 : file.bytes), 0);
    let transferred = 0;
    const queue = [...missing];
    const failures: unknown[] = [];
    const work = async (): Promise<void> => {
      for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
        if (this.#patience.signal?.aborted) throw stopped();
        const current = file;
        await transfer.fetch({ repo, revision, commit, file: current }, (bytes, isNew) => {
          received += bytes;
          if (isNew) transferred += bytes;
          onProgress?.({ received, total, transferred, file: current.path });
        });
      }
    };
    await Promise.all(
      Array.from({ length: Math.min(atOnce, queue.length) }, () =>
        work().catch((error: unknown) => {
          // The others end what they have begun, and begin nothing more.
          queue.length = 0;
          failures.push(error);
        }),
      ),
    );
    if (failures.length > 0) throw failures[0];
  }
}
