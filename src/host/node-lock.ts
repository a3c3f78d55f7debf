/**
 * Locks as small files that say which process has them. A lock whose process is gone is taken over:
 * no clock is read, so that a clock that goes backwards changes nothing.
 */
import { randomBytes } from "node:crypto";
import * as fs from "node:fs/promises";
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { StateError } from "../errors.ts";
import type { FileLock } from "./host.ts";
import { codeOf } from "./node-errors.ts";

interface Holder {
  readonly pid: number;
  readonly host: string;
  /** When the process started, in the system's own count; a later process may have the same pid. */
  readonly start: string;
}

/** Field 22 of /proc/<pid>/stat; empty where there is no such file. */
async function startOf(pid: number): Promise<string> {
  try {
    const stat = await fs.readFile(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19] ?? "";
  } catch {
    return "";
  }
}

async function isAlive({ pid, host, start }: Holder): Promise<boolean> {
  // Of another machine on a shared disk nothing is known.
  if (host !== hostname()) return true;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if (codeOf(error) === "ESRCH") return false;
  }
  const now = await startOf(pid);
  return now === "" || start === "" || now === start;
}

function parse(text: string): Holder | undefined {
  try {
    const { pid, host, start } = JSON.parse(text) as Record<string, unknown>;
    return Number.isSafeInteger(pid) && typeof host === "string" && typeof start === "string"
      ? { pid: pid as number, host, start }
      : undefined;
  } catch {
    return undefined;
  }
}

async function readLock(path: string): Promise<string | undefined> {
  try {
    return (await fs.readFile(path, "utf8")).slice(0, 4096);
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

/** Puts a complete lock file at the path, unless there is one. */
async function place(path: string, text: string): Promise<boolean> {
  const own = `${path}.${process.pid}-${randomBytes(4).toString("hex")}`;
  try {
    await fs.writeFile(own, text, { flag: "wx" });
    await fs.link(own, path);
    return true;
  } catch (error) {
    if (codeOf(error) === "EEXIST") return false;
    // Some file systems have no links.
    if (codeOf(error) !== "EPERM" && codeOf(error) !== "ENOTSUP") throw error;
    try {
      await fs.writeFile(path, text, { flag: "wx" });
      return true;
    } catch (second) {
      if (codeOf(second) === "EEXIST") return false;
      throw second;
    }
  } finally {
    await fs.rm(own, { force: true });
  }
}

/**
 * Removes the lock of a process that is gone. Only who holds the guard beside it may, and a lock that is
 * there is never replaced: so what is removed is what was read.
 */
async function clear(path: string, stale: string, text: string): Promise<void> {
  const guard = `${path}.guard`;
  if (!(await place(guard, text))) {
    // Another one is at it, unless it died in these microseconds.
    const holder = parse((await readLock(guard)) ?? text);
    if (holder && !(await isAlive(holder))) await fs.rm(guard, { force: true });
    await delay(5);
    return;
  }
  try {
    if ((await readLock(path)) === stale) await fs.rm(path, { force: true });
  } finally {
    await fs.rm(guard, { force: true });
  }
}

/**
 * Takes the lock at `path`.
 * @throws StateError naming the process that has it.
 */
export async function lock(path: string): Promise<FileLock> {
  const own: Holder = { pid: process.pid, host: hostname(), start: await startOf(process.pid) };
  const text = `${JSON.stringify({ ...own, key: randomBytes(8).toString("hex") })}\n`;
  for (let attempt = 0; attempt < 200; attempt++) {
    if (await place(path, text)) {
      return {
        async release() {
          if ((await readLock(path)) === text) await fs.rm(path, { force: true });
        },
      };
    }
    const found = await readLock(path);
    if (found === undefined) continue;
    const holder = parse(found);
    if (holder && (await isAlive(holder))) {
      const where = holder.host === own.host ? "" : ` on ${holder.host}`;
      throw new StateError(
        `${path}: held by process ${holder.pid}${where} — wait until it ends, or stop it first.${where ? " If it is gone, remove this file." : ""}`,
        { path, pid: holder.pid, host: holder.host },
      );
    }
    await clear(path, found, text);
  }
  throw new StateError(`${path}: others take this lock again and again — try later.`, { path });
}
