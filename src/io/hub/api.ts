/** The two questions to the hub's API: the commit of a revision, and what a commit holds. */
import { FormatError } from "../../errors.ts";
import { checkInside, isCommit, isSafePath } from "./id.ts";
import { refusal } from "./refusal.ts";
import { type HubRequests, type Patience, shown, Transient } from "./request.ts";
import { type TreeFile, toTreeFile } from "./store.ts";

const answerLimit = 2 ** 26;
const maxFiles = 100_000;
const maxPages = 1000;

/** An address below the endpoint; each part is escaped. */
export function hubUrl(endpoint: URL, ...parts: readonly string[]): URL {
  const url = new URL(endpoint);
  url.pathname = `${endpoint.pathname.replace(/\/$/, "")}/${parts.map(encodeURIComponent).join("/")}`;
  return url;
}

async function readAnswer(response: Response, url: URL): Promise<unknown> {
  const parts: Uint8Array[] = [];
  let bytes = 0;
  const reader = response.body?.getReader();
  try {
    for (;;) {
      const part = await reader?.read();
      if (!part || part.done) break;
      bytes += part.value.length;
      if (bytes > answerLimit) {
        await reader?.cancel();
        throw new FormatError(
          `hub: ${shown(url)} answers with more than ${answerLimit} bytes — is HF_ENDPOINT a hub?`,
        );
      }
      parts.push(part.value);
    }
  } catch (error) {
    if (error instanceof FormatError) throw error;
    throw new Transient(
      new FormatError(`hub: the answer of ${shown(url)} broke off — try again later.`, {
        unreachable: true,
      }),
    );
  }
  const whole = new Uint8Array(bytes);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  try {
    return JSON.parse(new TextDecoder().decode(whole));
  } catch {
    throw new FormatError(`hub: ${shown(url)} does not answer in JSON — is HF_ENDPOINT a hub?`);
  }
}

interface Asked {
  readonly repo: string;
  readonly revision: string;
}

async function ask(
  requests: HubRequests,
  url: URL,
  what: Asked,
  patience: Patience,
): Promise<{ readonly value: unknown; readonly next: string | undefined }> {
  return requests.again(patience, async () => {
    const response = await requests.send(url, { accept: "application/json" }, patience);
    if (!response.ok) {
      await response.body?.cancel().catch(() => undefined);
      throw refusal(response, what, requests.settings);
    }
    const value = await readAnswer(response, url);
    return {
      value,
      next: /<([^>]+)>\s*;\s*rel="?next"?/.exec(response.headers.get("link") ?? "")?.[1],
    };
  });
}

/**
 * The commit that a branch, a tag or a commit is.
 * @throws MissingError where the hub knows no such repository or revision.
 */
export async function commitOf(
  requests: HubRequests,
  what: Asked,
  patience: Patience,
): Promise<string> {
  const { endpoint } = requests.settings;
  const url = hubUrl(endpoint, "api", "models", ...what.repo.split("/"), "revision", what.revision);
  const { value } = await ask(requests, url, what, patience);
  const commit = (value as { sha?: unknown } | null)?.sha;
  if (typeof commit === "string" && isCommit(commit)) return commit;
  throw new FormatError(
    `hub: ${shown(url)} names no commit, sha is ${JSON.stringify(commit ?? null).slice(0, 60)} — is HF_ENDPOINT a hub?`,
  );
}

/** All files of a commit, by path. */
export async function treeOf(
  requests: HubRequests,
  what: Asked,
  commit: string,
  patience: Patience,
): Promise<readonly TreeFile[]> {
  const { endpoint } = requests.settings;
  let url = hubUrl(endpoint, "api", "models", ...what.repo.split("/"), "tree", commit);
  url.searchParams.set("recursive", "true");
  const files = new Map<string, TreeFile>();
  for (let page = 0; page < maxPages; page++) {
    const { value, next } = await ask(requests, url, what, patience);
    if (!Array.isArray(value)) {
      throw new FormatError(`hub: ${shown(url)} answers with no list — is HF_ENDPOINT a hub?`);
    }
    for (const entry of value as readonly Record<string, unknown>[]) {
      if (entry?.["type"] !== "file") continue;
      const file = readEntry(entry, what.repo);
      if (file) files.set(file.path, file);
    }
    if (files.size > maxFiles) {
      throw new FormatError(
        `hub: ${what.repo} holds more than ${maxFiles} files, which no model needs — check the name.`,
      );
    }
    if (next === undefined) return [...files.values()];
    url = new URL(next, url);
    if (url.origin !== endpoint.origin) {
      throw new FormatError(
        `hub: ${endpoint.origin} goes on with its list at ${url.origin} — nothing is asked there.`,
      );
    }
  }
  throw new FormatError(`hub: the list of ${what.repo} has more than ${maxPages} pages.`);
}

/** A file of the list; `undefined` for names that not every system can have, which no model needs. */
function readEntry(entry: Record<string, unknown>, repo: string): TreeFile | undefined {
  const path = entry["path"];
  checkInside(path, repo);
  if (!isSafePath(path)) return undefined;
  const lfs = entry["lfs"] as { oid?: unknown; size?: unknown } | null | undefined;
  const file = toTreeFile(
    path,
    lfs?.size ?? entry["size"],
    entry["oid"],
    lfs?.oid,
    entry["xetHash"] ?? undefined,
  );
  if (file) return file;
  throw new FormatError(
    `hub: ${repo} lists ${path} with size ${JSON.stringify(lfs?.size ?? entry["size"] ?? null)} and id ${JSON.stringify(lfs?.oid ?? entry["oid"] ?? null)}, which cannot be — is HF_ENDPOINT a hub?`,
    { repo, path },
  );
}
