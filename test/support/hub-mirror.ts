/**
 * A hub on this machine: repositories of files in memory, spoken to as the real one. Two servers stand for
 * two hosts: the hub, which knows tokens, and the store of large files that it redirects to, which must never
 * see one. Faults are switched on by the test.
 */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface MirrorRepo {
  /** Commit → path → content. */
  readonly commits: Readonly<Record<string, Readonly<Record<string, Uint8Array>>>>;
  /** Branch or tag → commit. */
  readonly refs: Readonly<Record<string, string>>;
  /** Files can be read only with a token of these; others see that the repository is there. */
  readonly gatedFor?: readonly string[];
  /** The repository is there only for tokens of these. */
  readonly privateFor?: readonly string[];
}

/** What goes wrong, for each path; all is well without. */
export interface MirrorFaults {
  /** The connection is cut after so many bytes of an answer, as often as the count says. */
  readonly cut?: { readonly after: number; readonly times: number };
  /** The first answers to anything about it are this status, as often as the count says. */
  readonly status?: { readonly code: number; readonly times: number };
  /** A byte in the middle is another one, in as many answers. */
  readonly wrongByte?: { readonly times: number };
  /** So many bytes more (or fewer) than the list says are sent, and said in content-length. */
  readonly extraBytes?: number;
  /** So many milliseconds between pieces of 16 KiB. */
  readonly slow?: number;
  /** Ranges are ignored: the answer is always the whole. */
  readonly noRange?: true;
  /** Sends some bytes, then nothing more, as often as the count says. */
  readonly stall?: { readonly after: number; readonly times: number };
  /** Redirects there instead of to the store. */
  readonly redirect?: string;
  /** Where a listing goes on. */
  readonly next?: string;
}

export interface MirrorRequest {
  readonly server: "hub" | "store";
  readonly method: string;
  readonly url: string;
  readonly headers: IncomingMessage["headers"];
  /** Of the content that were handed to the connection. */
  sent: number;
}

export const sha256 = (bytes: Uint8Array): string =>
  createHash("sha256").update(bytes).digest("hex");
export const gitId = (bytes: Uint8Array): string =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");

/** As the hub's .gitattributes have it: weights are outside of git. */
const isLarge = (path: string): boolean => /\.(?:safetensors|gguf|bin|onnx)$/.test(path);

function pointerOf(bytes: Uint8Array): Uint8Array {
  return new TextEncoder().encode(
    `version https://git-lfs.github.com/spec/v1\noid sha256:${sha256(bytes)}\nsize ${bytes.length}\n`,
  );
}

/** Bytes that look like none in particular, the same each time. */
export function someBytes(count: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(count);
  let state = seed;
  for (let i = 0; i < count; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) | 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);

export const exampleName = "org/example";
export const exampleCommit = "0123456789abcdef0123456789abcdef01234567";
export const otherCommit = "fedcba9876543210fedcba9876543210fedcba98";
/** What a model needs of the example, in order. */
export const exampleFiles: readonly string[] = [
  "config.json",
  "tokenizer.json",
  "model.safetensors.index.json",
  "model-00001-of-00002.safetensors",
  "model-00002-of-00002.safetensors",
];

/** A sharded model with files that no model needs; on the branch "next" one shard is another. */
export function exampleRepo(shardBytes = 3_000_000): MirrorRepo {
  const [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  const files = {
    ".gitattributes": utf8("*.safetensors filter=lfs diff=lfs merge=lfs -text\n"),
    "README.md": utf8("# Example\n"),
    "config.json": utf8('{"model_type":"llama"}\n'),
    "größe/notes.txt": utf8("Größe\n"),
    [first!]: someBytes(shardBytes, 1),
    [second!]: someBytes(1000, 2),
    "model.safetensors.index.json": utf8(
      JSON.stringify({ metadata: { total_size: 1 }, weight_map: { a: first, b: second } }),
    ),
    "onnx/model.onnx": someBytes(100, 3),
    "pytorch_model.bin": someBytes(100, 4),
    "tokenizer.json": utf8('{"version":"1.0"}\n'),
  };
  return {
    commits: {
      [exampleCommit]: files,
      [otherCommit]: { ...files, [second!]: someBytes(1000, 5) },
    },
    refs: {
      main: exampleCommit,
      "v1.0": exampleCommit,
      "refs/pr/1": otherCommit,
      next: otherCommit,
    },
  };
}

export class HubMirror {
  readonly repos: Map<string, MirrorRepo> = new Map();
  readonly faults: Map<string, MirrorFaults> = new Map();
  readonly requests: MirrorRequest[] = [];
  /** Replaces the entries of a listing, for hubs that lie. */
  listing: ((entries: unknown[]) => unknown) | undefined;
  /** Entries per page of a listing. */
  pageSize = 1000;
  readonly #hub: Server;
  readonly #store: Server;
  readonly #left = new Map<string, number>();

  private constructor() {
    this.#hub = createServer((request, response) => this.#answer("hub", request, response));
    this.#store = createServer((request, response) => this.#answer("store", request, response));
  }

  static async open(): Promise<HubMirror> {
    const mirror = new HubMirror();
    for (const server of [mirror.#hub, mirror.#store]) {
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    }
    return mirror;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#hub.address() as AddressInfo).port}`;
  }

  get storeUrl(): string {
    return `http://127.0.0.1:${(this.#store.address() as AddressInfo).port}`;
  }

  /** Bytes of contents that were sent since `forget`, all files or those whose address ends so. */
  sent(ending = ""): number {
    return this.requests
      .filter(({ url }) => url.split("?")[0]!.endsWith(ending))
      .reduce((sum, { sent }) => sum + sent, 0);
  }

  forget(): void {
    this.requests.length = 0;
    this.#left.clear();
  }

  async close(): Promise<void> {
    for (const server of [this.#hub, this.#store]) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  /** Whether a fault that happens some times happens now. */
  #takes(key: string, fault: { readonly times: number } | undefined): boolean {
    if (!fault) return false;
    const left = this.#left.get(key) ?? fault.times;
    if (left > 0) this.#left.set(key, left - 1);
    return left > 0;
  }

  #answer(server: "hub" | "store", message: IncomingMessage, response: ServerResponse): void {
    const request: MirrorRequest = {
      server,
      method: message.method!,
      url: message.url!,
      headers: message.headers,
      sent: 0,
    };
    this.requests.push(request);
    // Pages of another origin may read all this, as they may from the hub.
    response.setHeader("access-control-allow-origin", "*");
    response.setHeader("access-control-allow-headers", "*, authorization, range");
    response.setHeader("access-control-expose-headers", "*");
    if (message.method === "OPTIONS") {
      response.writeHead(204).end();
      return;
    }
    const url = new URL(message.url!, "http://mirror");
    const parts = url.pathname.split("/").slice(1).map(decodeURIComponent);
    if (server === "store") {
      // Signed, as the real one's addresses: without the signature there is nothing.
      if (url.searchParams.get("signature") !== "secret-of-the-store") {
        response.writeHead(403).end();
        return;
      }
      const [commit, repoOwner, repoName, ...path] = parts;
      const content = this.repos.get(`${repoOwner}/${repoName}`)?.commits[commit!]?.[
        path.join("/")
      ];
      response.setHeader("etag", `"${sha256(content!)}"`);
      this.#content(request, response, path.join("/"), content!);
      return;
    }
    if (parts[0] === "api" && parts[1] === "models")
      this.#api(request, response, parts.slice(2), url);
    else this.#resolve(request, response, parts);
  }

  #error(response: ServerResponse, status: number, code: string, text: string): void {
    response.setHeader("x-error-code", code);
    response.setHeader("x-error-message", text);
    response.writeHead(status, { "content-type": "application/json" });
    response.end(JSON.stringify({ error: text }));
  }

  /** The repository, or an answer that says why not. */
  #repo(request: MirrorRequest, response: ServerResponse, name: string): MirrorRepo | undefined {
    const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1];
    if (token === "revoked") {
      const text = "Invalid credentials in Authorization header";
      this.#error(response, 401, "", text);
      return undefined;
    }
    const repo = this.repos.get(name);
    if (!repo || (repo.privateFor && !repo.privateFor.includes(token ?? ""))) {
      // Who is not known is not told whether it is there.
      const status = token === undefined ? 401 : 404;
      this.#error(response, status, "RepoNotFound", "Repository not found");
      return undefined;
    }
    return repo;
  }

  #commit(response: ServerResponse, repo: MirrorRepo, revision: string): string | undefined {
    const commit = repo.refs[revision] ?? (repo.commits[revision] ? revision : undefined);
    if (commit === undefined) {
      this.#error(response, 404, "RevisionNotFound", `Invalid rev id: ${revision}`);
    }
    return commit;
  }

  #fails(key: string, response: ServerResponse): boolean {
    const { status } = this.faults.get(key) ?? {};
    if (!this.#takes(`${key} status`, status)) return false;
    response.writeHead(status!.code, { "content-type": "text/plain" }).end("out of order");
    return true;
  }

  #api(request: MirrorRequest, response: ServerResponse, parts: string[], url: URL): void {
    const [owner, name, what = "revision", revision = "main"] = parts;
    if (this.#fails("api", response)) return;
    const repo = this.#repo(request, response, `${owner}/${name}`);
    const commit = repo && this.#commit(response, repo, revision);
    if (!repo || commit === undefined) return;
    const { redirect } = this.faults.get("api") ?? {};
    if (redirect !== undefined) {
      response.writeHead(307, { location: redirect }).end();
      return;
    }
    const json = (value: unknown): void => {
      response.writeHead(200, { "content-type": "application/json" });
      response.end(JSON.stringify(value));
    };
    if (what === "revision") {
      json({
        _id: "0",
        id: `${owner}/${name}`,
        modelId: `${owner}/${name}`,
        sha: commit,
        private: repo.privateFor !== undefined,
        gated: repo.gatedFor ? "auto" : false,
        disabled: false,
        downloads: 0,
        likes: 0,
        tags: [],
        siblings: Object.keys(repo.commits[commit]!).map((rfilename) => ({ rfilename })),
      });
      return;
    }
    const entries: unknown[] = Object.entries(repo.commits[commit]!).map(([path, bytes]) =>
      isLarge(path)
        ? {
            type: "file",
            oid: gitId(pointerOf(bytes)),
            size: bytes.length,
            path,
            lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: pointerOf(bytes).length },
          }
        : { type: "file", oid: gitId(bytes), size: bytes.length, path },
    );
    const all = (this.listing?.(entries) ?? entries) as unknown[];
    const { next } = this.faults.get("api") ?? {};
    if (next !== undefined) response.setHeader("link", `<${next}>; rel="next"`);
    const page = Number(url.searchParams.get("cursor") ?? 0);
    if ((page + 1) * this.pageSize < all.length) {
      const next = new URL(url.pathname + url.search, this.url);
      next.searchParams.set("cursor", String(page + 1));
      response.setHeader("link", `<${next.href}>; rel="next"`);
    }
    json(all.slice(page * this.pageSize, (page + 1) * this.pageSize));
  }

  #resolve(request: MirrorRequest, response: ServerResponse, parts: string[]): void {
    const [owner, name, word, revision = "main", ...rest] = parts;
    const path = rest.join("/");
    const repo = this.#repo(request, response, `${owner}/${name}`);
    if (!repo) return;
    if (word !== "resolve") {
      this.#error(response, 404, "", "Not found");
      return;
    }
    if (this.#fails(path, response)) return;
    const commit = this.#commit(response, repo, revision);
    if (commit === undefined) return;
    response.setHeader("x-repo-commit", commit);
    const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1];
    if (repo.gatedFor && !repo.gatedFor.includes(token ?? "")) {
      const text = `Access to model ${owner}/${name} is restricted.`;
      this.#error(response, token === undefined ? 401 : 403, "GatedRepo", text);
      return;
    }
    const content = repo.commits[commit]![path];
    if (content === undefined) {
      this.#error(response, 404, "EntryNotFound", "Entry not found");
      return;
    }
    if (!isLarge(path)) {
      response.setHeader("etag", `"${gitId(content)}"`);
      this.#content(request, response, path, content);
      return;
    }
    response.setHeader("x-linked-etag", `"${sha256(content)}"`);
    response.setHeader("x-linked-size", String(content.length));
    const { redirect } = this.faults.get(path) ?? {};
    const escaped = [commit, owner!, name!, ...rest].map(encodeURIComponent).join("/");
    const location = redirect ?? `${this.storeUrl}/${escaped}?signature=secret-of-the-store`;
    response.writeHead(302, { location }).end();
  }

  #content(
    request: MirrorRequest,
    response: ServerResponse,
    path: string,
    content: Uint8Array,
  ): void {
    const faults = this.faults.get(path) ?? {};
    let body = content;
    if (this.#takes(`${path} wrongByte`, faults.wrongByte)) {
      body = content.slice();
      body[content.length >> 1]! ^= 1;
    }
    const extra = faults.extraBytes ?? 0;
    if (extra !== 0) {
      body = new Uint8Array(content.length + extra);
      body.set(content.subarray(0, body.length));
    }
    const asked = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
    const range = faults.noRange ? null : asked;
    const start = Number(range?.[1] ?? 0);
    const end = Math.min(body.length, Number(range?.[2] || body.length) + 1);
    response.setHeader("accept-ranges", "bytes");
    if (start > 0 && start >= body.length) {
      response.writeHead(416, { "content-range": `bytes */${body.length}` }).end();
      return;
    }
    if (range) response.setHeader("content-range", `bytes ${start}-${end - 1}/${body.length}`);
    response.setHeader("content-length", end - start);
    response.writeHead(range ? 206 : 200);
    if (request.method === "HEAD") {
      response.end();
      return;
    }
    const rest = body.subarray(start, end);
    const cut = this.#takes(`${path} cut`, faults.cut) ? faults.cut!.after : undefined;
    const stall = this.#takes(`${path} stall`, faults.stall) ? faults.stall!.after : undefined;
    void this.#send(request, response, rest.subarray(0, cut ?? stall), faults.slow ?? 0).then(
      () => {
        if (cut !== undefined) response.destroy();
        else if (stall === undefined) response.end();
      },
    );
  }

  async #send(
    request: MirrorRequest,
    response: ServerResponse,
    bytes: Uint8Array,
    slow: number,
  ): Promise<void> {
    const piece = slow > 0 ? 2 ** 14 : 2 ** 18;
    for (let at = 0; at < bytes.length && !response.destroyed; at += piece) {
      const part = bytes.subarray(at, at + piece);
      await new Promise<void>((resolve) => response.write(part, () => resolve()));
      request.sent += part.length;
      if (slow > 0) await new Promise((resolve) => setTimeout(resolve, slow));
    }
  }
}
