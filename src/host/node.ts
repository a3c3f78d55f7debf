/** The Host of a Node process: files through node:fs, logs to stderr. */

import * as fs from "node:fs/promises";
import { type FileHandle, open as openHandle } from "node:fs/promises";
import { basename, dirname, join, parse, resolve } from "node:path";
import { FormatError, MissingError, OptionError, StateError } from "../errors.ts";
import type { FileInfo, Files, FileWriter, Host, OpenFile } from "./host.ts";
import { lock } from "./node-lock.ts";
import { decodeUtf8 } from "./utf8.ts";

/** Bytes that `readBytes` reads when the caller names no limit. */
const defaultBytesLimit = 2 ** 30;
/** Bytes that `readText` reads when the caller names no limit; below V8's longest string. */
const defaultTextLimit = 2 ** 28;
const streamChunk = 2 ** 18;

let nextTemporary = 0;

function codeOf(error: unknown): string | undefined {
  return error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
}

/** Gives "nothing there" its own kind; every other failure goes on as Node reports it. */
function translate(error: unknown, path: string): unknown {
  const code = codeOf(error);
  if (code !== "ENOENT" && code !== "ENOTDIR") return error;
  return new MissingError(
    `${path}: no such file or folder — check the path.`,
    { path },
    { cause: error },
  );
}

async function at<T>(path: string, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw translate(error, path);
  }
}

async function info(path: string): Promise<FileInfo | undefined> {
  try {
    const stat = await fs.stat(path);
    return { path, bytes: stat.isFile() ? stat.size : 0, isDirectory: stat.isDirectory() };
  } catch (error) {
    const missing = translate(error, path);
    if (missing instanceof MissingError) return undefined;
    throw missing;
  }
}

async function list(path: string): Promise<readonly FileInfo[]> {
  const names = await at(path, fs.readdir(path));
  const found = await Promise.all(names.sort().map((name) => info(join(path, name))));
  // A file may go, or a link may point nowhere, between the two calls.
  return found.filter((entry) => entry !== undefined);
}

/** Refuses folders, pipes and devices before a handle is open: a pipe would wait for its writer. */
async function openRegular(path: string): Promise<{ handle: FileHandle; bytes: number }> {
  const before = await at(path, fs.stat(path));
  if (!before.isFile()) {
    const kind = before.isDirectory() ? "a folder" : "neither a file nor a folder";
    throw new MissingError(`${path}: is ${kind}, a file is needed — check the path.`, { path });
  }
  const handle = await at(path, openHandle(path, "r"));
  try {
    return { handle, bytes: (await handle.stat()).size };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

async function readFully(
  handle: FileHandle,
  path: string,
  into: Uint8Array,
  offset: number,
): Promise<void> {
  let done = 0;
  while (done < into.length) {
    // Linux reads at most 2^31 - 4096 bytes a call.
    const ask = Math.min(into.length - done, 2 ** 30);
    const { bytesRead } = await handle.read(into, done, ask, offset + done);
    if (bytesRead === 0) {
      throw new FormatError(
        `${path}: ends at byte ${offset + done}, ${into.length} bytes from ${offset} were asked — the file is cut short.`,
        { path, offset: offset + done },
      );
    }
    done += bytesRead;
  }
}

async function open(path: string): Promise<OpenFile> {
  const { handle, bytes } = await openRegular(path);
  let isOpen = true;
  return {
    path,
    bytes,
    async read(into, offset) {
      if (!isOpen) throw new StateError(`${path}: is closed — open it again to read.`, { path });
      if (!Number.isSafeInteger(offset) || offset < 0) {
        throw new OptionError(`${path}: offset must be a whole number from 0, got ${offset}.`, {
          path,
          offset,
        });
      }
      await readFully(handle, path, into, offset);
    },
    async close() {
      if (!isOpen) return;
      isOpen = false;
      await handle.close();
    },
  };
}

async function* stream(path: string): AsyncGenerator<Uint8Array> {
  const { handle } = await openRegular(path);
  try {
    let offset = 0;
    while (true) {
      const chunk = new Uint8Array(streamChunk);
      const { bytesRead } = await handle.read(chunk, 0, streamChunk, offset);
      if (bytesRead === 0) return;
      offset += bytesRead;
      yield chunk.subarray(0, bytesRead);
    }
  } finally {
    await handle.close();
  }
}

async function readBytes(
  path: string,
  limit: number = defaultBytesLimit,
): Promise<Uint8Array<ArrayBuffer>> {
  const { handle, bytes } = await openRegular(path);
  try {
    if (!(bytes <= limit)) {
      throw new FormatError(
        `${path}: holds ${bytes} bytes, at most ${limit} are read whole — raise the limit, or stream it.`,
        { path, bytes, limit },
      );
    }
    const into = new Uint8Array(bytes);
    await readFully(handle, path, into, 0);
    return into;
  } finally {
    await handle.close();
  }
}

async function readText(path: string, limit: number = defaultTextLimit): Promise<string> {
  return decodeUtf8(await readBytes(path, limit), path);
}

/** Makes a rename in the folder outlive a power cut, where the system can sync folders. */
async function syncFolder(folder: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await openHandle(folder, "r");
  try {
    await handle.sync();
  } catch (error) {
    // Some network and FUSE file systems refuse to sync a folder; the rename itself is done.
    if (codeOf(error) !== "EINVAL" && codeOf(error) !== "ENOTSUP") throw error;
  } finally {
    await handle.close();
  }
}

async function create(path: string): Promise<FileWriter> {
  const folder = dirname(path);
  const temporary = join(folder, `${basename(path)}.tmp-${process.pid}-${nextTemporary++}`);
  // "wx" fails where the name exists, so a planted link is never followed.
  const handle = await at(path, openHandle(temporary, "wx"));
  let state: "open" | "committed" | "aborted" = "open";

  const discard = async (): Promise<void> => {
    state = "aborted";
    await handle.close().catch(() => undefined);
    await fs.rm(temporary, { force: true });
  };
  const orDiscard = async (work: () => Promise<void>): Promise<void> => {
    if (state !== "open") {
      throw new StateError(`${path}: this writer is ${state} — create another to write again.`, {
        path,
      });
    }
    try {
      await work();
    } catch (error) {
      await discard().catch(() => undefined);
      throw error;
    }
  };

  return {
    write: (bytes) =>
      orDiscard(async () => {
        let done = 0;
        while (done < bytes.length) {
          const ask = Math.min(bytes.length - done, 2 ** 30);
          done += (await handle.write(bytes, done, ask)).bytesWritten;
        }
      }),
    commit: () =>
      orDiscard(async () => {
        await handle.sync();
        await handle.close();
        await fs.rename(temporary, path);
        state = "committed";
        await syncFolder(folder);
      }),
    async abort() {
      if (state === "open") await discard();
    },
  };
}

async function writeBytes(path: string, bytes: Uint8Array): Promise<void> {
  const writer = await create(path);
  await writer.write(bytes);
  await writer.commit();
}

async function append(path: string, content: string | Uint8Array): Promise<void> {
  await at(path, fs.appendFile(path, content, "utf8"));
}

async function makeDirectory(path: string): Promise<void> {
  await at(path, fs.mkdir(path, { recursive: true }));
}

/** Removes a file, or a folder with all it holds; nothing there is no failure. */
async function remove(path: string): Promise<void> {
  const full = resolve(path);
  if (full === parse(full).root) {
    throw new OptionError(
      `remove: "${path}" is the root of the file system — name a folder in it.`,
    );
  }
  await fs.rm(path, { recursive: true, force: true });
}

const files: Files = {
  info,
  list,
  open,
  stream,
  readBytes,
  readText,
  writeText: (path, text) => writeBytes(path, new TextEncoder().encode(text)),
  writeBytes,
  append,
  create,
  makeDirectory,
  remove,
  lock: (path) => at(path, lock(path)),
  join,
};

export function nodeHost(): Host {
  return {
    files,
    clock: { now: () => Date.now(), monotonic: () => performance.now() },
    env: (name) => process.env[name],
    fetch: globalThis.fetch,
    log: {
      info: (message) => void process.stderr.write(`${message}\n`),
      warn: (message) => void process.stderr.write(`warning: ${message}\n`),
    },
  };
}
