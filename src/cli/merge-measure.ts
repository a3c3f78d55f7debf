/** What this machine's files and disks give without any merging, to hold a merge's rate against. */
import { constants } from "node:fs";
import { type FileHandle, open, rm, statfs, writeFile } from "node:fs/promises";
import { dirname, resolve } from "node:path";

const chunkBytes = 2 ** 23;

/** Bytes per second of reading and writing as many bytes as a merge does. */
export interface CopyRate {
  readonly bytes: number;
  readonly seconds: number;
}

/**
 * Lets the system forget what it holds of files, where that is allowed (root, Linux).
 * @returns whether it did
 */
export async function dropCaches(): Promise<boolean> {
  try {
    await writeFile("/proc/sys/vm/drop_caches", "3", { flag: "w" });
    return true;
  } catch {
    return false;
  }
}

/** Bytes free where a new path would lie; undefined where the system does not say. */
export async function freeBytes(path: string): Promise<number | undefined> {
  try {
    const { bavail, bsize } = await statfs(dirname(resolve(path)));
    return bavail * bsize;
  } catch {
    return undefined;
  }
}

/** A file of zeros beside a path, for as long as `work` takes. */
async function withTemporary<T>(out: string, work: (file: FileHandle) => Promise<T>): Promise<T> {
  const path = `${resolve(out)}.tmp-${process.pid}-1`;
  const file = await open(path, "w");
  try {
    return await work(file);
  } finally {
    await file.close();
    await rm(path, { force: true });
  }
}

/**
 * Reads bytes of files and writes some beside a path, the next chunk read while one is written, synced at the
 * end.
 * @param readBytes how many at most; @param writtenPerRead bytes written for one that is read
 */
export async function copyRate(
  paths: readonly string[],
  out: string,
  readBytes: number,
  writtenPerRead: number,
  monotonic: () => number,
): Promise<CopyRate> {
  return withTemporary(out, async (target) => {
    const start = monotonic();
    const buffers = [Buffer.alloc(chunkBytes), Buffer.alloc(chunkBytes)];
    let [read, written, turn] = [0, 0, 0];
    let writing: Promise<unknown> = Promise.resolve();
    for (const path of paths) {
      if (read >= readBytes) break;
      const file = await open(path, constants.O_RDONLY);
      try {
        for (;;) {
          const buffer = buffers[turn++ % 2]!;
          const { bytesRead } = await file.read(buffer, 0, chunkBytes);
          if (bytesRead === 0) break;
          read += bytesRead;
          const count = Math.min(Math.round(read * writtenPerRead) - written, chunkBytes);
          await writing;
          if (count > 0) {
            written += count;
            writing = target.write(buffer, 0, count);
          }
          if (read >= readBytes) break;
        }
      } finally {
        await file.close();
      }
    }
    await writing;
    await target.sync();
    return { bytes: read + written, seconds: (monotonic() - start) / 1000 };
  });
}

/** Seconds that writing and syncing some bytes beside a path takes; undefined where that is not possible. */
export async function writeSeconds(
  out: string,
  bytes: number,
  monotonic: () => number,
): Promise<number | undefined> {
  try {
    return await withTemporary(out, async (target) => {
      const start = monotonic();
      const buffer = Buffer.alloc(chunkBytes);
      for (let left = bytes; left > 0; left -= chunkBytes) {
        await target.write(buffer, 0, Math.min(left, chunkBytes));
      }
      await target.sync();
      return (monotonic() - start) / 1000;
    });
  } catch {
    return undefined;
  }
}
