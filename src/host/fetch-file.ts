/** Files from the network into the files of a host. */
import { FormatError, MissingError, StateError } from "../errors.ts";
import type { Host } from "./host.ts";

export interface FetchFileOptions {
  /** Told after every part; `total` is missing where the server does not tell. */
  readonly onProgress?: (progress: { readonly received: number; readonly total?: number }) => void;
  readonly signal?: AbortSignal;
  /** Longest file that is taken; default 4 GiB. */
  readonly maxBytes?: number;
}

/**
 * Fetches a file into the host's files, part by part. It has its name once it is whole.
 * @returns its bytes
 * @throws MissingError where the server has no such file; FormatError where it is longer than maxBytes or
 *   shorter than the server said; StateError where the server fails or cannot be reached.
 */
export async function fetchFile(
  host: Host,
  url: string,
  path: string,
  options: FetchFileOptions = {},
): Promise<number> {
  const { onProgress, signal, maxBytes = 2 ** 32 } = options;
  let response: Response;
  try {
    response = await host.fetch(url, signal ? { signal } : {});
  } catch (cause) {
    signal?.throwIfAborted();
    throw new StateError(
      `${url}: cannot be reached — is the network there, and does the server allow this page?`,
      { url },
      { cause },
    );
  }
  if (!response.ok || !response.body) {
    const status = `${response.status} ${response.statusText}`.trim();
    if (response.status === 404 || response.status === 410) {
      throw new MissingError(
        `${url}: the server has no such file (${status}) — check the address.`,
      );
    }
    throw new StateError(`${url}: the server answered ${status} — try again later.`, { url });
  }
  // Of a compressed answer the header counts what was sent.
  const isPlain = (response.headers.get("content-encoding") ?? "identity") === "identity";
  const length = response.headers.get("content-length");
  const total = isPlain && length !== null ? Number(length) : undefined;
  const tooLong = (bytes: number): FormatError =>
    new FormatError(`${url}: holds ${bytes} bytes or more, at most ${maxBytes} are taken.`, {
      url,
      maxBytes,
    });
  if (total !== undefined && total > maxBytes) {
    await response.body.cancel();
    throw tooLong(total);
  }
  const writer = await host.files.create(path);
  const reader = response.body.getReader();
  try {
    let received = 0;
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      received += part.value.length;
      if (received > maxBytes) throw tooLong(received);
      await writer.write(part.value);
      onProgress?.(total === undefined ? { received } : { received, total });
    }
    if (total !== undefined && received !== total) {
      throw new FormatError(
        `${url}: ended after ${received} of ${total} bytes — the connection was cut, try again.`,
        { url, received, total },
      );
    }
    await writer.commit();
    return received;
  } catch (error) {
    await reader.cancel().catch(() => undefined);
    await writer.abort();
    throw error;
  }
}
