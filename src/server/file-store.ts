/**
 * Uploaded files, in a folder of the server's data:
 *
 *   files/<id>/data.jsonl   as it was sent; the ending is one of those that are known
 *   files/<id>/file.json    its name and size; written last: a folder without it is none
 *
 * Names that clients give are kept as text and never become paths; ids are made here.
 */

import { type Files, FormatError, OptionError, StateError, streamExamples } from "../index.ts";
import { isJsonObject, parseJson } from "../io/json.ts";
import type { FileBody } from "./api-types.ts";
import { newId } from "./ids.ts";
import { memoryFile } from "./memory-file.ts";

const [metaName, maxMetaBytes] = ["file.json", 65536];
const idPattern = /^file-[A-Za-z0-9]{24}$/;
const endings = ["jsonl", "json", "csv", "tsv", "txt", "parquet"] as const;

interface Kept {
  readonly body: FileBody;
  readonly path: string;
}

export interface FileStoreLimits {
  readonly count: number;
  readonly bytes: number;
}

/** The ending of a name, one of those that are known. */
function endingOf(name: string): string {
  const ending = /\.([A-Za-z0-9]{1,12})$/.exec(name)?.[1]?.toLowerCase() ?? "";
  if ((endings as readonly string[]).includes(ending)) return ending;
  throw new OptionError(
    `file: the name must end in ${endings.map((one) => `.${one}`).join(", ")}, got ${JSON.stringify(name.slice(-60))}.`,
  );
}

/** A name without folders and control characters: it is shown, and nothing else. */
function plainName(name: string): string {
  const last = name.split(/[\\/]/).at(-1)!;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out.
  const plain = last.replace(/[\u0000-\u001f\u007f]/g, "").trim();
  if (plain !== "" && plain !== "." && plain !== ".." && plain.length <= 200) return plain;
  throw new OptionError("file: the name must have 1 to 200 characters.");
}

export class FileStore {
  readonly #files: Files;
  readonly #folder: string;
  readonly #limits: FileStoreLimits;
  readonly #kept: Map<string, Kept>;
  /** Bytes of files that are being written. */
  #coming = 0;

  private constructor(
    files: Files,
    folder: string,
    limits: FileStoreLimits,
    kept: Map<string, Kept>,
  ) {
    this.#files = files;
    this.#folder = folder;
    this.#limits = limits;
    this.#kept = kept;
  }

  /** Opens the files of a data folder; what an ended server left half done goes away. */
  static async open(
    files: Files,
    data: string,
    limits: FileStoreLimits = { count: 10_000, bytes: 2 ** 34 },
  ): Promise<FileStore> {
    const folder = files.join(data, "files");
    await files.makeDirectory(folder);
    const kept: Kept[] = [];
    for (const { path, isDirectory } of await files.list(folder)) {
      const id = path.split(/[\\/]/).at(-1)!;
      if (!isDirectory || !idPattern.test(id)) continue;
      const found = await readKept(files, path, id);
      if (found) kept.push(found);
      else await files.remove(path);
    }
    kept.sort((a, b) => a.body.created_at - b.body.created_at);
    return new FileStore(files, folder, limits, new Map(kept.map((one) => [one.body.id, one])));
  }

  /** All files, the oldest first. */
  get list(): readonly FileBody[] {
    return [...this.#kept.values()].map(({ body }) => body);
  }

  get(id: string): FileBody | undefined {
    return this.#kept.get(id)?.body;
  }

  /** Where a file lies. */
  path(id: string): string | undefined {
    return this.#kept.get(id)?.path;
  }

  async content(id: string): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const kept = this.#kept.get(id);
    return kept && this.#files.readBytes(kept.path, kept.body.bytes);
  }

  /**
   * Reads a file as training would, and only then keeps it.
   * @param now milliseconds since the epoch
   * @throws FormatError naming the line that is wrong; OptionError for a name that is none; StateError when
   * there is no room.
   */
  async add(
    name: string,
    purpose: string,
    bytes: Uint8Array<ArrayBuffer>,
    now: number,
  ): Promise<FileBody> {
    const filename = plainName(name);
    const ending = endingOf(filename);
    const held = this.list.reduce((sum, own) => sum + own.bytes, this.#coming);
    if (this.#kept.size >= this.#limits.count || held + bytes.length > this.#limits.bytes) {
      throw new StateError(
        `files: ${this.#kept.size} files of ${held} bytes are kept, and there is no room for ${bytes.length} bytes more — delete some.`,
      );
    }
    this.#coming += bytes.length;
    try {
      await validate(filename, bytes);
      const id = newId("file-");
      const folder = this.#files.join(this.#folder, id);
      const path = this.#files.join(folder, `data.${ending}`);
      const body: FileBody = {
        id,
        object: "file",
        bytes: bytes.length,
        created_at: Math.floor(now / 1000),
        filename,
        purpose,
        status: "processed",
      };
      await this.#files.makeDirectory(folder);
      await this.#files.writeBytes(path, bytes);
      await this.#files.writeText(
        this.#files.join(folder, metaName),
        `${JSON.stringify({ ...body, ending })}\n`,
      );
      this.#kept.set(id, { body, path });
      return body;
    } finally {
      this.#coming -= bytes.length;
    }
  }

  /** False for an id that is nobody's. */
  async remove(id: string): Promise<boolean> {
    if (!this.#kept.delete(id)) return false;
    const folder = this.#files.join(this.#folder, id);
    // First what makes it a file: a folder without it goes away at the next start.
    await this.#files.remove(this.#files.join(folder, metaName));
    await this.#files.remove(folder);
    return true;
  }
}

/** Reads all examples. */
async function validate(name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  for await (const _ of streamExamples(memoryFile(name, bytes), name)) {
    // What cannot be read throws.
  }
}

async function readKept(files: Files, folder: string, id: string): Promise<Kept | undefined> {
  const meta = files.join(folder, metaName);
  if (!(await files.info(meta))) return undefined;
  try {
    const value = parseJson(await files.readText(meta, maxMetaBytes), meta);
    if (!isJsonObject(value)) return undefined;
    const { ending, ...body } = value;
    if (!(endings as readonly unknown[]).includes(ending) || value["id"] !== id) return undefined;
    const path = files.join(folder, `data.${String(ending)}`);
    const info = await files.info(path);
    if (info?.bytes !== value["bytes"]) return undefined;
    return { body: body as unknown as FileBody, path };
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}
