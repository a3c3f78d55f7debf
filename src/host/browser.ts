/** The Host of a page or a worker: files in its origin's file system, logs to the console. */
import { UnsupportedError } from "../errors.ts";
import type { Host, Log } from "./host.ts";
import { Opfs } from "./opfs.ts";

export { browserImages } from "./browser-images.ts";
export { type FetchFileOptions, fetchFile } from "./fetch-file.ts";
export { type StorageSpace, storageSpace } from "./opfs.ts";

export interface BrowserHostOptions {
  /** Folder of the origin's file system that paths start from; made when missing. Default: its root. */
  readonly root?: string;
  /** Default: the console. */
  readonly log?: Log;
}

/**
 * The host of this page or worker.
 * @throws UnsupportedError where the browser has no such storage, or the page no secure address.
 */
export function browserHost(options: BrowserHostOptions = {}): Host {
  if (typeof navigator?.storage?.getDirectory !== "function") {
    throw new UnsupportedError(
      "browserHost: there is no file system here — serve the page over https or from localhost, in a browser of 2023 or newer.",
    );
  }
  return {
    files: new Opfs(options.root ?? ""),
    clock: { now: () => Date.now(), monotonic: () => performance.now() },
    env: () => undefined,
    fetch: (input, init) => globalThis.fetch(input, init),
    log: options.log ?? {
      // biome-ignore lint/suspicious/noConsole: the log of a page
      info: (message) => console.info(message),
      // biome-ignore lint/suspicious/noConsole: the log of a page
      warn: (message) => console.warn(message),
    },
  };
}
