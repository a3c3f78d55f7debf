/** The Host of a Node process: files through node:fs, logs to stderr. */

import * as fs from "node:fs/promises";
import { type FileHandle, open as openHandle } from "node:fs/promises";
import { basename, dirname, join, parse, resolve } from "node:path";
import { FormatError, MissingError, OptionError, StateError } from "../errors.ts";
import type { FileInfo, FileLock, Files, FileWriter, Host, OpenFile } from "./host.ts";
import { type NodeCacheFiles, nodeCacheFiles } from "./node-cache.ts";
import { at, codeOf, kindOf, translate } from "./node-errors.ts";
import { lock } from "./node-lock.ts";
import { decodeUtf8 } from "./utf8.ts";

export { nodeImages } from "./node-images.ts";

/** Bytes that `readBytes` reads when the caller names no limit. */
const defaultBytesLimit = 2 ** 30;
/** Bytes that `readText` reads when the caller names no limit; below V8's longest string. */
const defaultTextLimit = 2 ** 28;
const streamChunk = 2 ** 18;

let nextTemporary = 0;

async function info(path: string): Promise<FileInfo | undefined> {
  try {
    const stat = await fs.stat(path);
    return { path, bytes: stat.isFile() ? stat.size : 0, isDirectory: stat.isDirectory() };
  } catch (error) {
    const code = codeOf(error);
    if (code === "ENOENT" || code === "ENOTDIR") return undefined;
    throw await translate(error, path, "read");
  }
}

async function list(path: string): Promise<readonly FileInfo[]> {
  if ((await kindOf(path)) === "file") {
    throw new MissingError(`${path}: is a file, a folder is needed — check the path.`, { path });
  }
  const names = await at(path, "read", fs.readdir(path));
  const found = await Promise.all(names.sort().map((name) => info(join(path, name))));
  // A file may go, or a link may point nowhere, between the two calls.
  return found.filter((entry) => entry !== undefined);
}

/** Refuses folders, pipes and devices before a handle is open: a pipe would wait for its writer. */
async function openRegular(path: string): Promise<{ handle: FileHandle; bytes: number }> {
  const before = await at(path, "read", fs.stat(path));
  if (!before.isFile()) {
    const kind = before.isDirectory() ? "a folder" : "neither a file nor a folder";
    throw new MissingError(`${path}: is ${kind}, a file is needed — check the path.`, { path });
  }
  const handle = await at(path, "read", openHandle(path, "r"));
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
    const { bytesRead } = await at(path, "read", handle.read(into, done, ask, offset + done));
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
      const { bytesRead } = await at(path, "read", handle.read(chunk, 0, streamChunk, offset));
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

/** A new file beside a path. A process of the same id that was killed may have left names behind. */
async function openTemporary(
  path: string,
  folder: string,
): Promise<{ temporary: string; handle: FileHandle }> {
  for (let attempt = 0; ; attempt++) {
    const temporary = join(folder, `${basename(path)}.tmp-${process.pid}-${nextTemporary++}`);
    try {
      // "wx" fails where the name exists, so a planted link is never followed.
      return { temporary, handle: await openHandle(temporary, "wx") };
    } catch (error) {
      if (codeOf(error) !== "EEXIST" || attempt > 1000) throw await translate(error, path, "write");
    }
  }
}

async function create(path: string): Promise<FileWriter> {
  const folder = dirname(path);
  const { temporary, handle } = await openTemporary(path, folder);
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
      throw await translate(error, path, "write");
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

/** Adds all of it or nothing: what a full disk took of it is cut off again. */
async function append(path: string, content: string | Uint8Array): Promise<void> {
  const handle = await at(path, "write", openHandle(path, "a"));
  try {
    const { size } = await handle.stat();
    try {
      await handle.appendFile(content, "utf8");
    } catch (error) {
      await handle.truncate(size).catch(() => undefined);
      throw await translate(error, path, "write");
    }
  } finally {
    await handle.close();
  }
}

/** Folder by folder: `recursive` says ENOENT where a file system is read-only. */
async function makeDirectory(path: string): Promise<void> {
  const missing: string[] = [];
  for (let at = path; (await kindOf(at)) === undefined && dirname(at) !== at; at = dirname(at)) {
    missing.unshift(at);
  }
  for (const folder of missing) {
    await fs.mkdir(folder).catch(async (error: unknown) => {
      // Another process was quicker.
      if (codeOf(error) !== "EEXIST") throw await translate(error, path, "make");
    });
  }
  if ((await kindOf(path)) === "folder") return;
  await at(path, "make", fs.mkdir(path, { recursive: true }));
}

/** Removes a file, or a folder with all it holds; nothing there is no failure. */
async function remove(path: string): Promise<void> {
  const full = resolve(path);
  if (full === parse(full).root) {
    throw new OptionError(
      `remove: "${path}" is the root of the file system — name a folder in it.`,
    );
  }
  await at(path, "remove", fs.rm(path, { recursive: true, force: true }));
}

async function takeLock(path: string): Promise<FileLock> {
  const taken = await at(path, "write", lock(path));
  return { release: () => at(path, "remove", taken.release()) };
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
  lock: takeLock,
  join,
};

export function nodeHost(): Host & { readonly files: Files & NodeCacheFiles } {
  const isTrue = /^(?:1|on|yes|true)$/i;
  const withLinks = !isTrue.test(process.env["HF_HUB_DISABLE_SYMLINKS"] ?? "");
  return {
    files: { ...files, ...nodeCacheFiles(withLinks) },
    clock: { now: () => Date.now(), monotonic: () => performance.now() },
    env: (name) => process.env[name],
    fetch: globalThis.fetch,
    log: {
      info: (message) => void process.stderr.write(`${message}\n`),
      warn: (message) => void process.stderr.write(`warning: ${message}\n`),
    },
  };
}
