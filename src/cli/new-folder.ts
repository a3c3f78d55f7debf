/** Folders that are there whole or not at all. */
import { existsSync, readdirSync } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { OptionError } from "./library.ts";

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    // EPERM: it is there, and someone else's.
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

/**
 * Removes what processes that are gone left beside a path: `<path>.tmp-<pid>` and
 * `<path>.tmp-<pid>-<n>`.
 * @returns names of what was removed
 */
export async function removeStale(path: string): Promise<string[]> {
  const full = resolve(path);
  const folder = dirname(full);
  if (!existsSync(folder)) return [];
  const start = `${basename(full)}.tmp-`;
  const stale = readdirSync(folder).filter((name) => {
    const pid = name.startsWith(start) && /^(\d{1,10})(-\d+)?$/.exec(name.slice(start.length))?.[1];
    return pid && !isAlive(Number(pid));
  });
  for (const name of stale) await rm(join(folder, name), { recursive: true, force: true });
  return stale;
}

/**
 * Says early that a target is taken, before long work begins.
 * @throws OptionError when something is at `out` that is not an empty folder.
 */
export function checkNew(command: string, out: string): void {
  if (!existsSync(out)) return;
  let isEmpty = false;
  try {
    isEmpty = readdirSync(out).length === 0;
  } catch {
    // A file.
  }
  if (isEmpty) return;
  throw new OptionError(
    `${command}: --out "${out}" exists already — name a new folder, or remove that one first.`,
  );
}

async function syncFolder(folder: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } catch {
    // Some file systems refuse to sync a folder; the rename itself is done.
  } finally {
    await handle.close();
  }
}

/**
 * Lets `write` fill a folder beside the target and renames it when all is there, so that a process
 * that is killed leaves the target absent or complete.
 * @param write gets the temporary folder, which it makes itself
 */
export async function writeFolder<T>(
  out: string,
  write: (folder: string) => Promise<T>,
): Promise<T> {
  const full = resolve(out);
  await removeStale(full);
  const temporary = `${full}.tmp-${process.pid}`;
  try {
    const result = await write(temporary);
    await syncFolder(temporary);
    await rename(temporary, full);
    await syncFolder(dirname(full));
    return result;
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
}
