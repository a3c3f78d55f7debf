/**
 * The cache on disk, as huggingface_hub lays it out (https://huggingface.co/docs/hub/local-cache):
 *
 *   models--org--name/blobs/<etag>                    contents, by SHA-256 (LFS) or git's SHA-1
 *   models--org--name/snapshots/<commit>/<file>       links to them
 *   models--org--name/refs/<revision>                 the commit of a branch or tag
 *   models--org--name/trees/<commit>.json             what the repository holds at that commit
 *   models--org--name/.no_exist/<commit>/<file>       files that were asked for and are not there
 *
 * Where there are no links (Windows without the right to make them, a page's own files) the snapshot holds
 * the file itself, as it does in Python.
 */
import type { FileLock, Files } from "../../host/host.ts";
import { isJsonObject, parseJson } from "../json.ts";
import { isCommit, isSafePath } from "./id.ts";
import type { StreamHash } from "./sha256.ts";

/** What a system may do beyond `Files`; each is used where it is there. */
export interface CacheFiles extends Files {
  /** Syncs a file and gives it another name, in place of what had it. */
  rename?(from: string, to: string): Promise<void>;
  /** Makes a symbolic link, in place of what is there; false where the system makes none. */
  symlink?(target: string, path: string): Promise<boolean>;
  /** Bytes that may be written on the disk of a folder, there or not. */
  freeBytes?(path: string): Promise<number | undefined>;
  /** A SHA-256 that is faster than ours. */
  sha256?(): StreamHash;
}

/** A file of a repository at one commit. */
export interface TreeFile {
  readonly path: string;
  readonly bytes: number;
  /** Git's SHA-1 of the file, or of its pointer. */
  readonly blobId: string;
  /** SHA-256 of the content, where it is stored outside of git. */
  readonly sha256?: string;
  readonly xetHash?: string;
}

/** The name of a blob: what the hub gives as ETag. */
export const etagOf = (file: TreeFile): string => file.sha256 ?? file.blobId;

const cachedirTag = `Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by huggingface_hub.
# For information about cache directory tags, see:
#\thttps://bford.info/cachedir/
`;
const treeLimit = 2 ** 26;

function parent(path: string): string {
  return path.replace(/[/\\][^/\\]*$/, "");
}

export class HubStore {
  readonly files: CacheFiles;
  readonly cacheDir: string;
  readonly folder: string;

  constructor(files: CacheFiles, cacheDir: string, repo: string) {
    this.files = files;
    this.cacheDir = cacheDir;
    this.folder = files.join(cacheDir, `models--${repo.replaceAll("/", "--")}`);
  }

  blob(etag: string): string {
    return this.files.join(this.folder, "blobs", etag);
  }

  /**
   * What is there of a blob. Not `<etag>.incomplete`, to which older versions of huggingface_hub append under
   * a lock that Node cannot take; what cleans up there goes by the ending.
   */
  partial(etag: string): string {
    return `${this.blob(etag)}.plasticity.incomplete`;
  }

  snapshot(commit: string, ...path: readonly string[]): string {
    return this.files.join(this.folder, "snapshots", commit, ...path);
  }

  /** The lock of one blob: between processes of ours, as the locks of Python are no files of this kind. */
  async lock(etag: string): Promise<FileLock> {
    const folder = this.files.join(
      this.cacheDir,
      ".locks",
      this.folder.slice(this.cacheDir.length).replace(/^[/\\]+/, ""),
    );
    await this.files.makeDirectory(folder);
    return this.files.lock(this.files.join(folder, `${etag}.plasticity.lock`));
  }

  /** Makes the cache's folder, and marks it for programs that make backups. */
  async prepare(): Promise<void> {
    await this.files.makeDirectory(this.files.join(this.folder, "blobs"));
    const tag = this.files.join(this.cacheDir, "CACHEDIR.TAG");
    if (!(await this.files.info(tag))) await this.files.writeText(tag, cachedirTag);
  }

  /** The commit that a revision had when it was last fetched; `undefined` if never. */
  async readRef(revision: string): Promise<string | undefined> {
    if (isCommit(revision)) return revision;
    const path = this.files.join(this.folder, "refs", ...revision.split("/"));
    const found = await this.files.info(path);
    if (!found || found.isDirectory) return undefined;
    const text = (await this.files.readText(path, 1000)).trim();
    return isCommit(text) ? text : undefined;
  }

  async writeRef(revision: string, commit: string): Promise<void> {
    if (revision === commit || (await this.readRef(revision)) === commit) return;
    const path = this.files.join(this.folder, "refs", ...revision.split("/"));
    await this.files.makeDirectory(parent(path));
    await this.files.writeText(path, commit);
  }

  #tree(commit: string): string {
    return this.files.join(this.folder, "trees", `${commit}.json`);
  }

  /** The listing of a commit, if it is kept and whole. */
  async readTree(commit: string): Promise<readonly TreeFile[] | undefined> {
    const path = this.#tree(commit);
    if (!(await this.files.info(path))) return undefined;
    try {
      const json = parseJson(await this.files.readBytes(path, treeLimit), path);
      if (!isJsonObject(json) || json["format_version"] !== 1) return undefined;
      const files = json["files"];
      if (!isJsonObject(files)) return undefined;
      return Object.entries(files)
        .filter(([name]) => isSafePath(name))
        .map(([name, entry]) => fromCache(name, entry));
    } catch {
      // It is fetched again.
      return undefined;
    }
  }

  /** In the bytes that Python writes. */
  async writeTree(commit: string, files: readonly TreeFile[]): Promise<void> {
    const byName = [...files].sort((a, b) => comparePoints(a.path, b.path));
    const entries = byName.map(({ path, bytes, blobId, sha256, xetHash }) => [
      path,
      {
        size: bytes,
        blob_id: blobId,
        ...(sha256 !== undefined && { lfs_sha256: sha256, lfs_size: bytes }),
        ...(xetHash !== undefined && { xet_hash: xetHash }),
      },
    ]);
    const text = JSON.stringify({ format_version: 1, files: Object.fromEntries(entries) }, null, 1);
    const path = this.#tree(commit);
    await this.files.makeDirectory(parent(path));
    await this.files.writeText(path, asciiOnly(text));
  }

  /** Notes that a commit lacks a file, for those who ask offline. */
  async writeNoExist(commit: string, path: string): Promise<void> {
    const name = this.#noExist(commit, path);
    await this.files.makeDirectory(parent(name));
    await this.files.writeText(name, "");
  }

  async lacks(commit: string, path: string): Promise<boolean> {
    return (await this.files.info(this.#noExist(commit, path))) !== undefined;
  }

  #noExist(commit: string, path: string): string {
    return this.files.join(this.folder, ".no_exist", commit, ...path.split("/"));
  }

  /** Whether a snapshot has a file; by its length too, where that is known. */
  async has(commit: string, path: string, bytes?: number): Promise<boolean> {
    const found = await this.files.info(this.snapshot(commit, ...path.split("/")));
    return found !== undefined && !found.isDirectory && (bytes ?? found.bytes) === found.bytes;
  }

  /**
   * Puts a file into a snapshot: a link to its blob, or itself.
   * @param from the blob, or what was just fetched of it
   */
  async place(commit: string, path: string, etag: string, from: string): Promise<void> {
    const { files } = this;
    const names = path.split("/");
    const pointer = this.snapshot(commit, ...names);
    await files.makeDirectory(parent(pointer));
    const blob = this.blob(etag);
    const isNew = from !== blob;
    if (files.rename && files.symlink) {
      if (isNew) await files.rename(from, blob);
      const up = "../".repeat(names.length + 1);
      if (await files.symlink(`${up}blobs/${etag}`, pointer)) return;
      // No links here: as in Python, a new blob becomes the file.
      if (isNew) await files.rename(blob, pointer);
      else await copy(files, blob, pointer);
      return;
    }
    await copy(files, from, pointer);
    if (isNew) await files.remove(from);
  }
}

async function copy(files: Files, from: string, to: string): Promise<void> {
  const writer = await files.create(to);
  try {
    for await (const part of files.stream(from)) await writer.write(part);
    await writer.commit();
  } catch (error) {
    await writer.abort();
    throw error;
  }
}

function fromCache(path: string, entry: unknown): TreeFile {
  const { size, blob_id, lfs_sha256, xet_hash } = entry as Record<string, unknown>;
  const file = toTreeFile(path, size, blob_id, lfs_sha256 ?? undefined, xet_hash ?? undefined);
  if (!file) throw new TypeError(path);
  return file;
}

/** A file of a listing from outside; `undefined` where it cannot be one. */
export function toTreeFile(
  path: unknown,
  bytes: unknown,
  blobId: unknown,
  sha256: unknown,
  xetHash: unknown,
): TreeFile | undefined {
  if (typeof path !== "string" || !isSafePath(path)) return undefined;
  if (!Number.isSafeInteger(bytes) || (bytes as number) < 0) return undefined;
  if (typeof blobId !== "string" || !/^[0-9a-f]{40}$/.test(blobId)) return undefined;
  if (sha256 !== undefined && !(typeof sha256 === "string" && /^[0-9a-f]{64}$/.test(sha256))) {
    return undefined;
  }
  const isXet = typeof xetHash === "string" && /^[0-9a-f]{64}$/.test(xetHash);
  return {
    path,
    bytes: bytes as number,
    blobId,
    ...(sha256 !== undefined && { sha256: sha256 as string }),
    ...(isXet && { xetHash: xetHash as string }),
  };
}

/** Python sorts by code points, JavaScript by UTF-16 units. */
function comparePoints(a: string, b: string): number {
  const [x, y] = [Array.from(a), Array.from(b)];
  for (let i = 0; i < Math.min(x.length, y.length); i++) {
    const difference = x[i]!.codePointAt(0)! - y[i]!.codePointAt(0)!;
    if (difference !== 0) return difference;
  }
  return x.length - y.length;
}

/** As Python's json writes it: everything beyond ASCII escaped. */
function asciiOnly(text: string): string {
  return text.replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
