/** Names on the hub: repositories, revisions, files, all from outside and all checked. */
import { FormatError, OptionError } from "../../errors.ts";

/** `org/name`, a branch, tag or commit of it, and one file in it. */
export interface HubId {
  readonly repo: string;
  readonly revision?: string;
  readonly file?: string;
}

const part = /^(?![-.])[A-Za-z0-9_.-]{1,96}(?<![-.])$/;
const maxRevision = 200;
const maxPath = 512;

/** Whether a word may name a repository: two parts of letters, digits, "-", "_" and ".". */
function isRepo(text: string): boolean {
  const parts = text.split("/");
  return (
    parts.length === 2 && parts.every((name) => part.test(name)) && !/--|\.\.|\.git$/.test(text)
  );
}

/**
 * Reads `org/name`, `org/name@revision` and `org/name:file`, together `org/name@revision:file`.
 * @returns `undefined` for words that cannot be such a name: paths that begin with ".", "/" or "~", or
 *   have another number of parts.
 * @throws OptionError for a name whose revision or file cannot be one.
 */
export function parseHubId(text: string): HubId | undefined {
  const match = /^([^@:]+)(?:@([^:]*))?(?::(.*))?$/s.exec(text);
  const [, repo, revision, file] = match ?? [];
  if (repo === undefined || !isRepo(repo)) return undefined;
  if (revision !== undefined) checkRevision(revision, text);
  if (file !== undefined && !isSafePath(file)) {
    throw new OptionError(
      `${text}: "${file}" cannot name a file of a repository — give a path in it, as model.gguf.`,
    );
  }
  return { repo, ...(revision !== undefined && { revision }), ...(file !== undefined && { file }) };
}

/** The same, for callers that know that it must be one. */
export function requireHubId(text: string): HubId {
  const id = parseHubId(text);
  if (id) return id;
  throw new OptionError(
    `"${text.slice(0, 200)}" is no name on the hub — give org/name, org/name@revision or org/name:file.gguf.`,
  );
}

/** @throws OptionError where a branch, tag or commit cannot have this name. */
export function checkRevision(revision: string, where: string): void {
  const isGood =
    revision.length <= maxRevision &&
    /^[A-Za-z0-9_][A-Za-z0-9_./+-]*$/.test(revision) &&
    revision.split("/").every((name) => name !== "" && !name.startsWith(".")) &&
    !revision.includes("..");
  if (isGood) return;
  throw new OptionError(
    `${where}: "${revision.slice(0, 80)}" cannot name a revision — give a branch, a tag or a commit.`,
  );
}

/** Whether a path from a server stays inside the folder that it is joined to, on every system. */
export function isSafePath(path: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: those are refused
  if (path.length > maxPath || /[\\:*?"<>|\u0000-\u001f\u007f]/.test(path)) return false;
  return path
    .split("/")
    .every((name) => name !== "" && name !== "." && name !== ".." && name.length <= 200);
}

/** @throws FormatError where a name from the server would leave the cache's folder. */
export function checkInside(path: unknown, repo: string): asserts path is string {
  const isInside =
    typeof path === "string" &&
    !/^(?:[/\\]|[A-Za-z]:)/.test(path) &&
    !path.split(/[/\\]/).includes("..");
  if (isInside) return;
  throw new FormatError(
    `hub: ${repo} names a file ${JSON.stringify(path)?.slice(0, 120)}, which could lie outside its folder — nothing is written; tell the owner of the repository.`,
    { repo },
  );
}

const commit = /^[0-9a-f]{40}$/;

export function isCommit(text: string): boolean {
  return commit.test(text);
}
