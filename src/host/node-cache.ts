/**
 * What Node offers a shared cache beyond `Files`: renames of files that are already written, symbolic
 * links, room on the disk, a fast SHA-256.
 */
import { createHash } from "node:crypto";
import * as fs from "node:fs/promises";
import { dirname } from "node:path";
import { at, codeOf } from "./node-errors.ts";

/** Syncs a file, renames it, and syncs the folder where the system can. */
async function rename(from: string, to: string): Promise<void> {
  const handle = await fs.open(from, "r+");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
  await fs.rename(from, to);
  if (process.platform === "win32") return;
  const folder = await fs.open(dirname(to), "r");
  try {
    await folder.sync();
  } catch (error) {
    // Some network and FUSE file systems refuse to sync a folder; the rename itself is done.
    if (codeOf(error) !== "EINVAL" && codeOf(error) !== "ENOTSUP") throw error;
  } finally {
    await folder.close();
  }
}

/** Systems without links, or users without the right to make them. */
const noLinks = new Set(["EPERM", "EACCES", "ENOSYS", "ENOTSUP", "EOPNOTSUPP"]);

async function symlink(target: string, path: string): Promise<boolean> {
  const temporary = `${path}.tmp-${process.pid}`;
  try {
    await fs.rm(temporary, { force: true });
    await fs.symlink(target, temporary);
  } catch (error) {
    if (noLinks.has(codeOf(error) ?? "")) return false;
    throw error;
  }
  await fs.rename(temporary, path);
  return true;
}

/** Of the disk that holds the first folder that is there. */
async function freeBytes(path: string): Promise<number | undefined> {
  for (let folder = path; ; folder = dirname(folder)) {
    try {
      const { bavail, bsize } = await fs.statfs(folder);
      return bavail * bsize;
    } catch (error) {
      if (codeOf(error) !== "ENOENT" || dirname(folder) === folder) return undefined;
    }
  }
}

export interface NodeCacheFiles {
  rename(from: string, to: string): Promise<void>;
  symlink(target: string, path: string): Promise<boolean>;
  freeBytes(path: string): Promise<number | undefined>;
  sha256(): { update(bytes: Uint8Array): void; hex(): string };
}

/** @param withLinks whether the user wants symbolic links */
export function nodeCacheFiles(withLinks: boolean): NodeCacheFiles {
  return {
    rename: (from, to) => at(to, "write", rename(from, to)),
    symlink: async (target, path) => withLinks && at(path, "write", symlink(target, path)),
    freeBytes,
    sha256: () => {
      const hash = createHash("sha256");
      return { update: (bytes) => void hash.update(bytes), hex: () => hash.digest("hex") };
    },
  };
}
