/**
 * Files in the origin private file system (OPFS) of a page, which belongs to the page's address and is
 * seen by no other; locks are Web Locks.
 *
 * WHATWG, "File System", https://fs.spec.whatwg.org.
 */
import { FormatError, MissingError, OptionError, StateError, UnsupportedError } from "../errors.ts";
import type { FileInfo, FileLock, Files, FileWriter, OpenFile } from "./host.ts";
import { decodeUtf8 } from "./utf8.ts";

/** Storage that the browser grants to the page's origin, in bytes. */
export interface StorageSpace {
  readonly used: number;
  readonly available: number;
}

/** What browsers have and the types of TypeScript 7.0 lack. */
interface MovableFile extends FileSystemFileHandle {
  move?(folder: FileSystemDirectoryHandle, name: string): Promise<void>;
}

/** As in Node: bytes that are read whole when the caller names no limit. */
const defaultBytesLimit = 2 ** 30;
const defaultTextLimit = 2 ** 28;
const chunkBytes = 2 ** 20;
/** Bytes of a name in the file systems below OPFS, less room for the ending of a temporary file. */
const maxNameBytes = 255 - 24;
const maxDepth = 64;

let nextTemporary = 0;
/** Tells the temporary files of two pages apart. */
const ownMark = crypto.getRandomValues(new Uint32Array(1))[0]!.toString(36);

function join(...parts: readonly string[]): string {
  const path = parts.filter((part) => part !== "").join("/");
  return path.replace(/\/{2,}/g, "/");
}

/** The names along a path; "/" at its start changes nothing, "." is left out. */
function namesOf(path: string): string[] {
  const names = path.split("/").filter((name) => name !== "" && name !== ".");
  for (const name of names) {
    const bytes = new TextEncoder().encode(name).length;
    // biome-ignore lint/suspicious/noControlCharactersInRegex: those are refused
    if (name === ".." || /[\\\u0000-\u001f]/.test(name) || bytes > maxNameBytes) {
      throw new OptionError(
        `${path}: ${JSON.stringify(name)} cannot name a file — use at most ${maxNameBytes} bytes without "..", "\\" and control characters.`,
        { path },
      );
    }
  }
  if (names.length > maxDepth) {
    throw new OptionError(
      `${path}: is ${names.length} folders deep, at most ${maxDepth} are read.`,
    );
  }
  return names;
}

function nameOf(error: unknown): string | undefined {
  return error instanceof DOMException ? error.name : undefined;
}

/** What the browser says of this origin's storage. */
export async function storageSpace(): Promise<StorageSpace> {
  const { usage = 0, quota = 0 } = await navigator.storage.estimate();
  return { used: usage, available: Math.max(0, quota - usage) };
}

/** Gives the failures of OPFS their kind and sentence. */
async function at<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const name = nameOf(cause);
    if (name === "NotFoundError" || name === "TypeMismatchError") {
      const sentence = `${path}: no such file or folder — check the path.`;
      throw new MissingError(sentence, { path }, { cause });
    }
    if (name === "QuotaExceededError") {
      const { used, available } = await storageSpace();
      throw new StateError(
        `${path}: the browser has no room for it, ${used} bytes are used and ${available} available — remove what this site keeps, or free disk space.`,
        { path, used, available },
        { cause },
      );
    }
    if (name === "NoModificationAllowedError") {
      const sentence = `${path}: another page or worker is writing it — wait until it is done.`;
      throw new StateError(sentence, { path }, { cause });
    }
    if (name === "NotReadableError") {
      const sentence = `${path}: changed while it was open — open it again.`;
      throw new StateError(sentence, { path }, { cause });
    }
    throw cause;
  }
}

export class Opfs implements Files {
  readonly #root: readonly string[];

  constructor(root: string) {
    this.#root = namesOf(root);
  }

  readonly join: Files["join"] = join;

  async #folder(names: readonly string[], create = false): Promise<FileSystemDirectoryHandle> {
    let folder = await navigator.storage.getDirectory();
    for (const name of this.#root) folder = await folder.getDirectoryHandle(name, { create: true });
    for (const name of names) folder = await folder.getDirectoryHandle(name, { create });
    return folder;
  }

  /** The folder that holds a path, and the path's last name. */
  async #parent(path: string): Promise<{ folder: FileSystemDirectoryHandle; name: string }> {
    const names = namesOf(path);
    const name = names.pop();
    if (name === undefined) {
      throw new OptionError(`"${path}" is the root of the file system — name a file in it.`);
    }
    return { folder: await this.#folder(names), name };
  }

  async #find(path: string): Promise<FileSystemHandle | undefined> {
    if (namesOf(path).length === 0) return this.#folder([]);
    try {
      const { folder, name } = await this.#parent(path);
      try {
        return await folder.getFileHandle(name);
      } catch (error) {
        if (nameOf(error) !== "TypeMismatchError") throw error;
        return await folder.getDirectoryHandle(name);
      }
    } catch (error) {
      const name = nameOf(error);
      if (name === "NotFoundError" || name === "TypeMismatchError") return undefined;
      throw error;
    }
  }

  async #file(path: string): Promise<File> {
    const handle = await this.#find(path);
    if (handle?.kind === "directory") {
      const sentence = `${path}: is a folder, a file is needed — check the path.`;
      throw new MissingError(sentence, { path });
    }
    return at(path, () => {
      if (!handle) throw new DOMException("nothing there", "NotFoundError");
      return (handle as FileSystemFileHandle).getFile();
    });
  }

  async info(path: string): Promise<FileInfo | undefined> {
    const handle = await this.#find(path);
    if (!handle) return undefined;
    if (handle.kind === "directory") return { path, bytes: 0, isDirectory: true };
    const { size } = await at(path, () => (handle as FileSystemFileHandle).getFile());
    return { path, bytes: size, isDirectory: false };
  }

  async list(path: string): Promise<readonly FileInfo[]> {
    const names = await at(path, async () => {
      const found: string[] = [];
      for await (const name of (await this.#folder(namesOf(path))).keys()) {
        // Chromium shows where it keeps what is being written.
        if (!name.endsWith(".crswap")) found.push(name);
      }
      return found.sort();
    });
    const found = await Promise.all(names.map((name) => this.info(join(path, name))));
    // A file may go between the two calls.
    return found.filter((entry) => entry !== undefined);
  }

  async open(path: string): Promise<OpenFile> {
    const file = await this.#file(path);
    let isOpen = true;
    return {
      path,
      bytes: file.size,
      read: async (into, offset) => {
        if (!isOpen) throw new StateError(`${path}: is closed — open it again to read.`, { path });
        if (!Number.isSafeInteger(offset) || offset < 0) {
          throw new OptionError(`${path}: offset must be a whole number from 0, got ${offset}.`, {
            path,
            offset,
          });
        }
        await readFully(file, path, into, offset);
      },
      close: async () => {
        isOpen = false;
      },
    };
  }

  async *stream(path: string): AsyncGenerator<Uint8Array> {
    const file = await this.#file(path);
    for (let offset = 0; offset < file.size; offset += chunkBytes) {
      const chunk = new Uint8Array(Math.min(chunkBytes, file.size - offset));
      await readFully(file, path, chunk, offset);
      yield chunk;
    }
  }

  async readBytes(
    path: string,
    limit: number = defaultBytesLimit,
  ): Promise<Uint8Array<ArrayBuffer>> {
    const file = await this.#file(path);
    if (!(file.size <= limit)) {
      throw new FormatError(
        `${path}: holds ${file.size} bytes, at most ${limit} are read whole — raise the limit, or stream it.`,
        { path, bytes: file.size, limit },
      );
    }
    const into = new Uint8Array(file.size);
    await readFully(file, path, into, 0);
    return into;
  }

  async readText(path: string, limit: number = defaultTextLimit): Promise<string> {
    return decodeUtf8(await this.readBytes(path, limit), path);
  }

  async create(path: string): Promise<FileWriter> {
    const { folder, name } = await at(path, () => this.#parent(path));
    const temporary = `${name}.tmp-${ownMark}-${nextTemporary++}`;
    const handle = await at(path, () => folder.getFileHandle(temporary, { create: true }));
    const stream = await at(path, () => openWritable(handle, path));
    let state: "open" | "committed" | "aborted" = "open";

    const discard = async (): Promise<void> => {
      state = "aborted";
      await stream.abort().catch(() => undefined);
      await onceFree(() => folder.removeEntry(temporary)).catch(() => undefined);
    };
    const orDiscard = async (work: () => Promise<void>): Promise<void> => {
      if (state !== "open") {
        throw new StateError(`${path}: this writer is ${state} — create another to write again.`, {
          path,
        });
      }
      try {
        await at(path, work);
      } catch (error) {
        await discard();
        throw error;
      }
    };

    return {
      write: (bytes) => orDiscard(() => stream.write(bytes as Uint8Array<ArrayBuffer>)),
      commit: () =>
        orDiscard(async () => {
          await stream.close();
          await moveInto(handle, folder, name, path);
          state = "committed";
        }),
      abort: async () => {
        if (state === "open") await discard();
      },
    };
  }

  async writeBytes(path: string, bytes: Uint8Array): Promise<void> {
    const writer = await this.create(path);
    await writer.write(bytes);
    await writer.commit();
  }

  writeText(path: string, text: string): Promise<void> {
    return this.writeBytes(path, new TextEncoder().encode(text));
  }

  async append(path: string, content: string | Uint8Array): Promise<void> {
    await at(path, async () => {
      const { folder, name } = await this.#parent(path);
      const handle = await folder.getFileHandle(name, { create: true });
      const stream = await openWritable(handle, path, true);
      await stream.seek((await handle.getFile()).size);
      await stream.write(content as Uint8Array<ArrayBuffer> | string);
      await stream.close();
    });
  }

  async makeDirectory(path: string): Promise<void> {
    await at(path, () => this.#folder(namesOf(path), true));
  }

  /** Removes a file, or a folder with all it holds; nothing there is no failure. */
  async remove(path: string): Promise<void> {
    if (namesOf(path).length === 0) {
      throw new OptionError(
        `remove: "${path}" is the root of the file system — name a folder in it.`,
      );
    }
    if (!(await this.#find(path))) return;
    const { folder, name } = await this.#parent(path);
    await at(path, () => folder.removeEntry(name, { recursive: true }));
  }

  /** A Web Lock: it is free again after `release`, or when the page or worker is gone. */
  async lock(path: string): Promise<FileLock> {
    const key = ["plasticity", ...this.#root, ...namesOf(path)].join("/");
    return new Promise((resolve, reject) => {
      navigator.locks
        .request(key, { ifAvailable: true }, (lock) => {
          if (!lock) {
            const sentence = `${path}: another page or worker has the lock — close it, or wait.`;
            throw new StateError(sentence, { path });
          }
          return new Promise<void>((free) => {
            resolve({
              release: async () => {
                free();
                // Gone once the browser has taken it back.
                while ((await navigator.locks.query()).held?.some(({ name }) => name === key)) {
                  await new Promise((again) => setTimeout(again));
                }
              },
            });
          });
        })
        .catch(reject);
    });
  }
}

/** Works on a file whose stream has just ended: the browser may hold it for a moment longer. */
async function onceFree<T>(work: () => Promise<T>): Promise<T> {
  for (let left = 100; ; left--) {
    try {
      return await work();
    } catch (error) {
      if (nameOf(error) !== "NoModificationAllowedError" || left === 0) throw error;
      await new Promise((again) => setTimeout(again, 10));
    }
  }
}

async function readFully(
  file: File,
  path: string,
  into: Uint8Array,
  offset: number,
): Promise<void> {
  const end = offset + into.length;
  if (end > file.size) {
    throw new FormatError(
      `${path}: ends at byte ${file.size}, ${into.length} bytes from ${offset} were asked — the file is cut short.`,
      { path, offset: file.size },
    );
  }
  into.set(new Uint8Array(await at(path, () => file.slice(offset, end).arrayBuffer())));
}

async function openWritable(
  handle: FileSystemFileHandle,
  path: string,
  keepExistingData = false,
): Promise<FileSystemWritableFileStream> {
  // Safari has it since 26.
  if (typeof handle.createWritable !== "function") {
    throw new UnsupportedError(
      `${path}: this browser cannot write files (createWritable is missing) — use a newer one.`,
      { path },
    );
  }
  return handle.createWritable({ keepExistingData });
}

/** Gives a finished file its name, in place of what had it. */
async function moveInto(
  handle: MovableFile,
  folder: FileSystemDirectoryHandle,
  name: string,
  path: string,
): Promise<void> {
  if (handle.move) {
    await onceFree(() => handle.move!(folder, name));
    return;
  }
  // The stream's content becomes the file's when it is closed, all at once.
  const target = await folder.getFileHandle(name, { create: true });
  await (await handle.getFile()).stream().pipeTo(await openWritable(target, path));
  await onceFree(() => folder.removeEntry(handle.name));
}
