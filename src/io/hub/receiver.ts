/** What is there of a blob: bytes that came, in a file that survives the process, and their hash. */
import { gitBlobId, Sha256, type StreamHash } from "./sha256.ts";
import { etagOf, type HubStore, type TreeFile } from "./store.ts";

/** Files inside git are small; they are hashed whole. */
export const maxGitBytes: number = 2 ** 28;

/** Told of bytes as they come; negative where some are thrown away; not new where they were on disk. */
export type OnBytes = (bytes: number, isNew: boolean) => void;

/** The part of a blob on disk, and its hash. */
export class Receiver {
  readonly #store: HubStore;
  readonly #file: TreeFile;
  readonly #path: string;
  readonly #onBytes: OnBytes;
  /** Where each append copies the file, as in a page, few large ones. */
  readonly #flushBytes: number;
  #hash: StreamHash | undefined;
  #waiting: Uint8Array[] = [];
  #waitingBytes = 0;
  /** Bytes on disk. */
  done = 0;

  private constructor(store: HubStore, file: TreeFile, onBytes: OnBytes) {
    this.#store = store;
    this.#file = file;
    this.#path = store.partial(etagOf(file));
    this.#onBytes = onBytes;
    this.#flushBytes = store.files.rename ? 2 ** 20 : 2 ** 26;
    this.#hash = this.#newHash();
  }

  #newHash(): StreamHash | undefined {
    if (this.#file.sha256 === undefined) return undefined;
    return this.#store.files.sha256?.() ?? new Sha256();
  }

  /** Goes on with what is on disk. */
  static async open(store: HubStore, file: TreeFile, onBytes: OnBytes): Promise<Receiver> {
    const state = new Receiver(store, file, onBytes);
    const found = await store.files.info(state.#path);
    if (found !== undefined && found.bytes <= file.bytes) {
      if (state.#hash) {
        for await (const part of store.files.stream(state.#path)) state.#hash.update(part);
      }
      state.done = found.bytes;
      onBytes(found.bytes, false);
    } else if (found !== undefined) await store.files.remove(state.#path);
    // A file of no bytes has to be there too.
    if (state.done === 0) await store.files.writeBytes(state.#path, new Uint8Array(0));
    return state;
  }

  /** Bytes that came, on disk or not. */
  get received(): number {
    return this.done + this.#waitingBytes;
  }

  async add(bytes: Uint8Array): Promise<void> {
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
    this.#onBytes(bytes.length, true);
    if (this.#waitingBytes >= this.#flushBytes) await this.flush();
  }

  async flush(): Promise<void> {
    if (this.#waitingBytes === 0) return;
    const whole = new Uint8Array(this.#waitingBytes);
    let at = 0;
    for (const part of this.#waiting) {
      whole.set(part, at);
      at += part.length;
    }
    this.#waiting = [];
    this.#waitingBytes = 0;
    await this.#store.files.append(this.#path, whole);
    this.#hash?.update(whole);
    this.done += whole.length;
  }

  /** Throws away what is there. */
  async restart(): Promise<void> {
    this.#onBytes(-this.received, false);
    this.#waiting = [];
    this.#waitingBytes = 0;
    this.done = 0;
    this.#hash = this.#newHash();
    await this.#store.files.writeBytes(this.#path, new Uint8Array(0));
  }

  /** The content's name, as the hub gives it; nothing may be added afterwards. */
  async digest(): Promise<string> {
    return (
      this.#hash?.hex() ?? gitBlobId(await this.#store.files.readBytes(this.#path, maxGitBytes))
    );
  }
}
