/** What the system refuses, in sentences: every error of a disk, a permission or a limit has one. */
import * as fs from "node:fs/promises";
import { dirname } from "node:path";
import { MissingError, OptionError, StateError } from "../errors.ts";

/** What was tried on a path. */
export type Doing = "read" | "write" | "make" | "remove";

/** Where the system said no: a folder on the way, or the path itself, and what would be needed there. */
export interface Barrier {
  readonly need: "enter" | "read" | "write" | "folder";
  readonly path: string;
}

const participles: Readonly<Record<Doing, string>> = {
  read: "read",
  write: "written",
  make: "made",
  remove: "removed",
};

/** Node's word for a failure, as ENOSPC; `undefined` for errors that are none of the system. */
export function codeOf(error: unknown): string | undefined {
  return error instanceof Error ? (error as NodeJS.ErrnoException).code : undefined;
}

/** A path in a sentence: its two ends, where it is endless. */
function shown(path: string): string {
  return path.length <= 300 ? path : `${path.slice(0, 200)}…${path.slice(-80)}`;
}

/** What permission is lacking, and where, if that is another place than the sentence begins with. */
function permission(doing: Doing, path: string, barrier: Barrier | undefined): string {
  const what =
    barrier === undefined || barrier.path === path
      ? `${barrier?.need ?? doing} it`
      : `${barrier.need === "write" ? "write in" : barrier.need} ${shown(barrier.path)}`;
  return `no permission to ${what} — change the permissions there, or choose another place.`;
}

/** What is wrong and what to do, by the system's word; without the place. */
function sentence(
  code: string,
  doing: Doing,
  path: string,
  barrier: Barrier | undefined,
): string | undefined {
  const cannot = `cannot be ${participles[doing]}`;
  switch (code) {
    case "ENOSPC":
      return `${cannot}, the disk is full — make room and try again; what was there before is unchanged.`;
    case "EDQUOT":
      return `${cannot}, your quota on this disk is used up — make room and try again; what was there before is unchanged.`;
    case "EFBIG":
      return `${cannot}, the file would be larger than its file system or the limit of this process (ulimit -f) allows — raise the limit, or choose another disk; what was there before is unchanged.`;
    case "EACCES":
    case "EPERM":
      return permission(doing, path, barrier);
    case "EROFS":
      return `${cannot}, its file system is read-only — choose a folder on another one.`;
    case "EMFILE":
      return `${cannot}, this process has too many files open — raise the limit (ulimit -n) and try again.`;
    case "ENFILE":
      return `${cannot}, the system has too many files open — end other programs and try again.`;
    case "EIO":
    case "EREMOTEIO":
      return `${cannot}, the disk reports a fault (${code}) — check the disk, and use a copy on another one.`;
    case "ENAMETOOLONG":
      return `the name is too long for the file system — choose a shorter one.`;
    case "ELOOP":
      return `its links lead in a circle, or through too many others — look where they point.`;
    case "EBUSY":
    case "ETXTBSY":
      return `${cannot}, it is in use (${code}) — end what uses it and try again.`;
    case "ENOTEMPTY":
      return `${cannot}, something was put into the folder meanwhile — look at it and try again.`;
    case "EXDEV":
      return `${cannot}, it lies on another file system than its temporary file — choose a plain folder.`;
    case "ESTALE":
    case "ETIMEDOUT":
    case "ENOTCONN":
    case "EHOSTDOWN":
    case "ENODEV":
    case "ENXIO":
      return `${cannot}, the disk or the network behind it does not answer (${code}) — check that it is there and try again.`;
    default:
      return undefined;
  }
}

/**
 * The error of ours for one of the system; others come back as they are.
 * @param barrier where a permission, or a folder, is lacking, if that is known
 */
export function systemError(
  error: unknown,
  path: string,
  doing: Doing,
  barrier?: Barrier,
): unknown {
  const code = codeOf(error);
  if (code === undefined) return error;
  const options = { cause: error };
  const details = { path, errno: code };
  const place = shown(path);
  if (barrier?.need === "folder") {
    const what =
      barrier.path === path
        ? "is a file, a folder is needed"
        : `${shown(barrier.path)} is a file, a folder is needed there`;
    return new MissingError(`${place}: ${what} — choose another path.`, details, options);
  }
  if (code === "ENOENT" || code === "ENOTDIR") {
    return new MissingError(`${place}: no such file or folder — check the path.`, details, options);
  }
  if (code === "EISDIR") {
    return new MissingError(
      `${place}: is a folder, a file is needed — check the path.`,
      details,
      options,
    );
  }
  if (code === "ERR_INVALID_ARG_VALUE" && path.includes("\0")) {
    return new OptionError(
      `${JSON.stringify(place)}: a path holds no NUL character — check the path.`,
      details,
      options,
    );
  }
  const what = sentence(code, doing, path, barrier);
  return what === undefined ? error : new StateError(`${place}: ${what}`, details, options);
}

/** What stands at a path; `undefined` where nothing is, or nothing can be known. */
export async function kindOf(path: string): Promise<"file" | "folder" | undefined> {
  try {
    return (await fs.stat(path)).isDirectory() ? "folder" : "file";
  } catch {
    return undefined;
  }
}

const isAllowed = (path: string, mode: number): Promise<boolean> =>
  fs.access(path, mode).then(
    () => true,
    () => false,
  );

/** Where on the way to a path the system says no. */
async function barrierOf(code: string, path: string, doing: Doing): Promise<Barrier | undefined> {
  const way: string[] = [];
  for (let at = path; way[0] !== at; at = dirname(at)) way.unshift(at);
  if (code === "ENOTDIR" || (code === "EEXIST" && doing === "make")) {
    for (const at of way) if ((await kindOf(at)) === "file") return { need: "folder", path: at };
    return undefined;
  }
  if (code !== "EACCES" && code !== "EPERM") return undefined;
  let last = way[0]!;
  for (const at of way.slice(0, -1)) {
    if ((await kindOf(at)) === undefined) break;
    if (!(await isAllowed(at, fs.constants.X_OK))) return { need: "enter", path: at };
    last = at;
  }
  if (doing === "read") return { need: "read", path };
  return (await isAllowed(last, fs.constants.W_OK))
    ? { need: "write", path }
    : { need: "write", path: last };
}

/** Gives the system's errors a sentence; every other one goes on as it is. */
export async function translate(error: unknown, path: string, doing: Doing): Promise<unknown> {
  const code = codeOf(error);
  // Nothing there is no fault of a folder on the way, where something is to be read.
  const isMissing = code === "ENOTDIR" && doing === "read";
  const barrier = code && !isMissing ? await barrierOf(code, path, doing) : undefined;
  return systemError(error, path, doing, barrier);
}

/** Waits for work on a path; what the system refuses has a sentence then. */
export async function at<T>(path: string, doing: Doing, work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw await translate(error, path, doing);
  }
}

/** A system's error that came past `at`, by what Node notes in it; others come back as they are. */
export function namedBySystem(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  const { path, syscall } = error as NodeJS.ErrnoException;
  if (syscall === undefined) return error;
  const isRead = /^(?:open|read|scandir|l?stat|access)$/.test(syscall);
  return systemError(error, path ?? syscall, isRead ? "read" : "write");
}
