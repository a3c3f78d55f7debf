/** One file from the hub into the cache: in parts, resumed where it stopped, and checked. */
import { FormatError, StateError } from "../../errors.ts";
import type { Log } from "../../host/host.ts";
import { hubUrl } from "./api.ts";
import { maxGitBytes, type OnBytes, Receiver } from "./receiver.ts";
import { refusal } from "./refusal.ts";
import { type HubRequests, type Patience, pause, stopped, Transient } from "./request.ts";
import { etagOf, type HubStore, type TreeFile } from "./store.ts";

/** The hub serves no longer files over plain HTTP. */
const maxFileBytes = 50e9;
const lockDelay = 200;

export interface Wanted {
  readonly repo: string;
  readonly revision: string;
  readonly commit: string;
  readonly file: TreeFile;
}

export const showSize = (bytes: number): string =>
  bytes >= 1e9
    ? `${(bytes / 1e9).toFixed(2)} GB`
    : bytes >= 1e6
      ? `${(bytes / 1e6).toFixed(1)} MB`
      : `${bytes} bytes`;

/** @throws UnsupportedError, or FormatError, for sizes that are not fetched. */
export function checkSize({ path, bytes, sha256 }: TreeFile, repo: string): void {
  const limit = sha256 === undefined ? maxGitBytes : maxFileBytes;
  if (bytes <= limit) return;
  throw new FormatError(
    `hub: ${repo} lists ${path} with ${showSize(bytes)}, at most ${showSize(limit)} are fetched.`,
    { repo, path, bytes },
  );
}

export class Transfer {
  readonly #requests: HubRequests;
  readonly #store: HubStore;
  readonly #patience: Patience;
  readonly #log: Log;

  constructor(requests: HubRequests, store: HubStore, patience: Patience, log: Log) {
    this.#requests = requests;
    this.#store = store;
    this.#patience = patience;
    this.#log = log;
  }

  /** Puts a file into the snapshot of its commit; another process may do it meanwhile. */
  async fetch(wanted: Wanted, onBytes: OnBytes): Promise<void> {
    const store = this.#store;
    const { commit, file } = wanted;
    const etag = etagOf(file);
    checkSize(file, wanted.repo);
    const lock = await this.#lock(etag, file.path);
    try {
      if (await store.has(commit, file.path, file.bytes)) {
        onBytes(file.bytes, false);
        return;
      }
      const blob = store.blob(etag);
      const found = await store.files.info(blob);
      if (found !== undefined && found.bytes === file.bytes) {
        await store.place(commit, file.path, etag, blob);
        onBytes(file.bytes, false);
        return;
      }
      if (found !== undefined) {
        this.#log.warn(
          `hub: ${blob} has ${found.bytes} bytes and not ${file.bytes}, it is fetched again.`,
        );
        await store.files.remove(blob);
      }
      await store.place(commit, file.path, etag, await this.#receive(wanted, onBytes));
    } finally {
      await lock.release();
    }
  }

  async #lock(etag: string, path: string): Promise<{ release(): Promise<void> }> {
    for (let isTold = false; ; isTold = true) {
      try {
        return await this.#store.lock(etag);
      } catch (error) {
        // What the disk refuses has its number; a lock that another one has is none of that.
        if (!(error instanceof StateError) || "errno" in error.details) throw error;
        if (!isTold) this.#log.info(`hub: waiting for ${path} — ${error.message}`);
        await pause(lockDelay, this.#patience.signal);
        if (this.#patience.signal?.aborted) throw stopped();
      }
    }
  }

  /** Fetches what is missing of a blob. @returns the path of the whole, checked content */
  async #receive(wanted: Wanted, onBytes: OnBytes): Promise<string> {
    const { files } = this.#store;
    const { file } = wanted;
    const partial = this.#store.partial(etagOf(file));
    for (;;) {
      const state = await Receiver.open(this.#store, file, onBytes);
      const resumed = state.done;
      await this.#fill(wanted, state);
      const found = await state.digest();
      if (found === etagOf(file)) return partial;
      onBytes(-state.done, false);
      await files.remove(partial);
      const kind = file.sha256 === undefined ? "git id" : "SHA-256";
      // What an earlier run left may be the damaged part: once more, from the start.
      if (resumed > 0) {
        this.#log.warn(`hub: ${file.path} is damaged after resuming, it is fetched anew.`);
        continue;
      }
      throw new FormatError(
        `hub: ${file.path} of ${wanted.repo} arrived damaged, its ${kind} is ${found} and should be ${etagOf(file)} — what was fetched is removed; try again.`,
        { repo: wanted.repo, path: file.path, found, expected: etagOf(file) },
      );
    }
  }

  /** Asks until all is there; tries start anew whenever something came. */
  async #fill(wanted: Wanted, state: Receiver): Promise<void> {
    const { tries, retryDelay, signal } = this.#patience;
    const { file } = wanted;
    for (let tried = 0; state.done < file.bytes; ) {
      const before = state.done;
      try {
        await this.#attempt(wanted, state);
      } catch (error) {
        if (signal?.aborted) throw stopped();
        if (!(error instanceof Transient)) throw error;
        tried = state.done > before ? 1 : tried + 1;
        if (tried >= tries) {
          throw new StateError(
            `hub: ${file.path} of ${wanted.repo} was interrupted at ${showSize(state.done)} of ${showSize(file.bytes)}, and ${tries} tries did not help — run it again, it goes on from there. ${error.last.message}`,
            { ...error.last.details, path: file.path, received: state.done },
          );
        }
        await pause(Math.max(error.wait, retryDelay * 2 ** (tried - 1)), signal);
        if (signal?.aborted) throw stopped();
      }
    }
  }

  async #attempt(wanted: Wanted, state: Receiver): Promise<void> {
    const { repo, revision, commit, file } = wanted;
    const requests = this.#requests;
    const [owner, name] = repo.split("/") as [string, string];
    const url = hubUrl(
      requests.settings.endpoint,
      owner,
      name,
      "resolve",
      commit,
      ...file.path.split("/"),
    );
    const headers: Record<string, string> = state.done > 0 ? { range: `bytes=${state.done}-` } : {};
    const response = await requests.send(url, headers, this.#patience);
    const drop = (): Promise<void> =>
      response.body?.cancel().catch(() => undefined) ?? Promise.resolve();
    if (response.status === 416) {
      await drop();
      await state.restart();
      throw new Transient(
        new FormatError(`hub: ${url.host} has not as much of ${file.path} as was fetched before.`),
      );
    }
    if (!response.ok || !response.body) {
      await drop();
      throw refusal(response, { repo, revision, file: file.path }, requests.settings);
    }
    const isPlain = (response.headers.get("content-encoding") ?? "identity") === "identity";
    const isRest =
      response.status === 206 && isPlain && isRangeFrom(response, state.done, file.bytes);
    if (state.done > 0 && !isRest) {
      // The server sends all of it, or another part: no part may be taken for another.
      await state.restart();
      if (response.status === 206) {
        await drop();
        throw new Transient(new FormatError(`hub: ${url.host} sent another part of ${file.path}.`));
      }
    }
    const length = response.headers.get("content-length");
    if (isPlain && length !== null && Number(length) !== file.bytes - state.done) {
      await drop();
      throw this.#wrongLength(wanted, state.done + Number(length));
    }
    await this.#pour(wanted, state, response.body.getReader());
  }

  #wrongLength({ repo, file }: Wanted, bytes: number): FormatError {
    return new FormatError(
      `hub: the server sends ${file.path} of ${repo} with ${bytes} bytes, the list says ${file.bytes} — nothing of it is kept in the cache; try again later.`,
      { repo, path: file.path, bytes, expected: file.bytes },
    );
  }

  async #pour(
    wanted: Wanted,
    state: Receiver,
    reader: ReadableStreamDefaultReader<Uint8Array>,
  ): Promise<void> {
    const { bytes, path } = wanted.file;
    try {
      for (;;) {
        const part = await within(reader.read(), this.#patience.stallTimeout);
        if (part === undefined || part.done) break;
        await state.add(part.value);
        if (state.received > bytes) break;
      }
    } catch (error) {
      await state.flush();
      if (!(error instanceof ReadFailure)) throw error;
      throw new Transient(
        new StateError(`hub: the connection for ${path} broke off — check the network.`),
      );
    } finally {
      await reader.cancel().catch(() => undefined);
    }
    if (state.received > bytes) {
      const { received } = state;
      await state.restart();
      throw this.#wrongLength(wanted, received);
    }
    await state.flush();
    if (state.done < bytes) {
      throw new Transient(
        new StateError(
          `hub: the connection for ${path} ended early or stood still — check the network.`,
        ),
      );
    }
  }
}

/** The connection failed, and not the disk. */
class ReadFailure extends Error {}

/** What comes in time; `undefined` where nothing does. */
async function within<T>(work: Promise<T>, milliseconds: number): Promise<T | undefined> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    return await Promise.race([
      work.catch(() => {
        throw new ReadFailure();
      }),
      new Promise<undefined>((resolve) => {
        timer = setTimeout(resolve, milliseconds, undefined);
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}

function isRangeFrom(response: Response, start: number, total: number): boolean {
  const range = response.headers.get("content-range");
  const match = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(range ?? "");
  // A page sees the header only where the server lets it; then the check of the whole must do.
  if (range === null) return true;
  return match !== null && Number(match[1]) === start && Number(match[3]) === total;
}
