/** A hub that refuses, lies or is away; and where the token goes. */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { inspect } from "node:util";
import { describe, expect, it } from "vitest";
import { content, failure, HubCase, repo, shard } from "../../../test/support/hub-case.ts";
import { exampleCommit, exampleFiles, exampleName } from "../../../test/support/hub-mirror.ts";
import type { DownloadOptions } from "./download.ts";

const hub = HubCase.inFile();

describe("what the hub refuses", () => {
  const page = (): string => `${hub.mirror.url}/org/example`;

  it("says what to do for a gated repository, without a token and with one", async () => {
    hub.mirror.repos.set(exampleName, { ...repo, gatedFor: ["hf_good"] });
    await expect(hub.download()).rejects.toThrow(
      `hub: org/example is gated — accept its terms at ${page()}, then set HF_TOKEN to a token of that account.`,
    );
    hub.env["HF_TOKEN"] = "hf_stranger";
    await expect(hub.download()).rejects.toThrow(
      `hub: org/example is gated, and the account of this token has no access — accept its terms at ${page()}`,
    );
    hub.env["HF_TOKEN"] = "hf_good";
    expect((await hub.download()).files.length).toBe(exampleFiles.length);
  });

  it("says it for private and missing repositories alike, and for a bad token", async () => {
    hub.mirror.repos.set("org/private", { ...repo, privateFor: ["hf_good"] });
    for (const name of ["org/private", "org/missing"]) {
      await expect(hub.download(name)).rejects.toThrow(
        `hub: there is no repository "${name}" at ${hub.mirror.url}, or it is private — check the name; for a private one set HF_TOKEN.`,
      );
      await expect(hub.download(name, { token: "hf_stranger" })).rejects.toThrow(
        `hub: there is no repository "${name}" at ${hub.mirror.url}, or it is private — check the name; for a private one see that the token may read it.`,
      );
    }
    await expect(hub.download(exampleName, { token: "revoked" })).rejects.toThrow(
      `hub: ${hub.mirror.url} does not accept the token — make another one and set HF_TOKEN.`,
    );
    expect((await hub.download("org/private", { token: "hf_good" })).commit).toBe(exampleCommit);
  });

  it("names a missing revision and a missing file", async () => {
    await expect(hub.download(`${exampleName}@v9`)).rejects.toThrow(
      `hub: org/example has no revision "v9" — see ${page()}/tree/main for its branches and tags.`,
    );
    await expect(hub.download(`${exampleName}@next:x.gguf`)).rejects.toThrow(
      `hub: org/example has no file "x.gguf" at revision "next" — see ${page()}/tree/next.`,
    );
  });

  it("names a shard that the index knows and the repository lacks", async () => {
    const { [shard]: _, ...rest } = content;
    hub.mirror.repos.set(exampleName, { ...repo, commits: { [exampleCommit]: rest } });
    await expect(hub.download()).rejects.toThrow(`org/example has no file "${shard}"`);
  });
});

describe("the token", () => {
  const token = "hf_SecretSecretSecret";

  it("goes to the hub alone, and into no error, log or file", async () => {
    hub.env["HF_TOKEN"] = token;
    const told: unknown[] = [await hub.download()];
    expect(hub.mirror.requests.some(({ server }) => server === "store")).toBe(true);
    for (const { server, headers } of hub.mirror.requests) {
      expect(headers.authorization).toBe(server === "hub" ? `Bearer ${token}` : undefined);
    }
    hub.mirror.repos.set("org/gated", { ...repo, gatedFor: ["hf_other"] });
    const failing: [string, DownloadOptions][] = [
      ["org/missing", {}],
      ["org/gated", {}],
      [`${exampleName}@v9`, {}],
      [`${exampleName}:x.gguf`, {}],
      [exampleName, { offline: true, cacheDir: join(hub.cacheDir, "empty") }],
      [exampleName, { endpoint: hub.nowhere, cacheDir: join(hub.cacheDir, "empty") }],
      [exampleName, { endpoint: "http://hub.example" }],
      [exampleName, { token: `${token} ü` }],
    ];
    for (const [name, options] of failing) told.push(await failure(hub.download(name, options)));
    for (const faults of [
      { wrongByte: { times: 9 } },
      { cut: { after: 0, times: 99 } },
      { extraBytes: 1 },
    ]) {
      hub.mirror.faults.set(shard, faults);
      told.push(
        await failure(hub.download(exampleName, { cacheDir: join(hub.cacheDir, "another") })),
      );
    }
    const text = inspect([told, hub.logged], {
      depth: 20,
      showHidden: true,
      maxStringLength: null,
    });
    expect(text).toContain("arrived damaged");
    expect(text).not.toContain(token);
    // Nor the signature in the addresses of the store.
    expect(text).not.toContain("secret-of-the-store");
    const files = readdirSync(hub.cacheDir, { recursive: true, withFileTypes: true });
    for (const file of files) {
      if (!file.isFile()) continue;
      expect(readFileSync(join(file.parentPath, file.name)).includes(token)).toBe(false);
    }
  });

  it("follows no redirect of a listing, or of its next page, to another host", async () => {
    hub.mirror.repos.set("org/private", { ...repo, privateFor: [token] });
    hub.mirror.faults.set("api", { redirect: `${hub.mirror.storeUrl}/stolen` });
    await failure(hub.download("org/private", { token }));
    const atStore = hub.mirror.requests.filter(({ server }) => server === "store");
    expect(atStore.length).toBe(1);
    expect(atStore[0]!.headers.authorization).toBeUndefined();
    hub.mirror.forget();
    hub.mirror.faults.set("api", { next: `${hub.mirror.storeUrl}/stolen` });
    await expect(hub.download("org/private", { token })).rejects.toThrow(
      `hub: ${hub.mirror.url} goes on with its list at ${hub.mirror.storeUrl} — nothing is asked there.`,
    );
    expect(hub.mirror.requests.some(({ server }) => server === "store")).toBe(false);
  });

  it("is read from the file that a login writes", async () => {
    hub.mirror.repos.set("org/private", { ...repo, privateFor: [token] });
    mkdirSync(hub.env["HF_HOME"]!);
    writeFileSync(join(hub.env["HF_HOME"]!, "token"), `${token}\n`);
    expect((await hub.download("org/private")).commit).toBe(exampleCommit);
  });
});

describe("an answer that cannot be", () => {
  it.each(
    [
      ["../../evil.json", "/etc/passwd", "a/../../../b", "C:\\evil", "..\\evil", "\\\\host\\share"],
    ].flat(),
  )("names a file outside of its folder: %s", async (path) => {
    hub.mirror.listing = (entries) => [
      ...entries,
      { type: "file", path, size: 1, oid: "0".repeat(40) },
    ];
    await expect(hub.download()).rejects.toThrow(
      `hub: org/example names a file ${JSON.stringify(path)}, which could lie outside its folder — nothing is written; tell the owner of the repository.`,
    );
    expect(readdirSync(hub.cacheDir)).toEqual([]);
  });

  it("has impossible sizes and ids", async () => {
    const base = { type: "file", path: "config.json", size: 1, oid: "0".repeat(40) };
    for (const change of [
      { size: -1 },
      { size: 1.5 },
      { size: "1" },
      { oid: "../../x" },
      { lfs: { oid: "../../x", size: 1 } },
      { lfs: { oid: "0".repeat(64), size: 2 ** 60 } },
    ]) {
      hub.mirror.listing = () => [{ ...base, ...change }];
      await expect(hub.download(), JSON.stringify(change)).rejects.toThrow(
        /which cannot be — is HF_ENDPOINT a hub/,
      );
    }
    hub.mirror.listing = () => [
      { ...base, path: "model.safetensors", lfs: { oid: "0".repeat(64), size: 9e10 } },
    ];
    await expect(hub.download()).rejects.toThrow(
      "hub: org/example lists model.safetensors with 90.00 GB, at most 50.00 GB are fetched.",
    );
  });

  it("leads from this machine to an address that is not https", async () => {
    for (const redirect of [
      "http://hub.example/file",
      "file:///etc/passwd",
      "https://me:pw@hub.example/",
    ]) {
      hub.mirror.faults.set(shard, { redirect });
      await expect(hub.download()).rejects.toThrow(/nothing is fetched from there\.$/);
    }
  });

  it("is no JSON, or no commit", async () => {
    hub.mirror.repos.set(exampleName, { commits: { short: content }, refs: { main: "short" } });
    await expect(hub.download()).rejects.toThrow(
      `${hub.mirror.url}/api/models/org/example/revision/main names no commit, sha is "short" — is HF_ENDPOINT a hub?`,
    );
  });
});

describe("without the hub", () => {
  it("takes a whole model from the cache, and asks nothing", async () => {
    await hub.download();
    hub.mirror.forget();
    hub.env["HF_HUB_OFFLINE"] = "1";
    const found = await hub.download();
    expect([found.folder, found.offline]).toEqual([hub.snapshot(exampleCommit), true]);
    expect(found.files.length).toBe(exampleFiles.length);
    // As older versions of huggingface_hub leave it, which keep no listing.
    rmSync(join(hub.folder, "trees"), { recursive: true });
    expect((await hub.download()).files.length).toBe(exampleFiles.length);
    expect(hub.mirror.requests).toEqual([]);
  });

  it("says what the cache lacks", async () => {
    const offline = { offline: true };
    await expect(hub.download(exampleName, offline)).rejects.toThrow(
      `hub: org/example is not in the cache at ${hub.cacheDir} — fetch it once with a network, and without HF_HUB_OFFLINE.`,
    );
    await hub.download();
    await expect(hub.download(`${exampleName}@next`, offline)).rejects.toThrow(
      `hub: org/example@next is not in the cache at ${hub.cacheDir}`,
    );
    await expect(hub.download(`${exampleName}:README.md`, offline)).rejects.toThrow(
      `hub: the cache at ${hub.cacheDir} has org/example without README.md — fetch it once`,
    );
    await expect(hub.download(`${exampleName}:x.gguf`, offline)).rejects.toThrow(
      'hub: org/example has no file "x.gguf" at revision "main", as the cache knows — check the name.',
    );
    rmSync(join(hub.snapshot(exampleCommit), shard));
    await expect(hub.download(exampleName, offline)).rejects.toThrow(
      `has org/example without ${shard}`,
    );
    rmSync(join(hub.folder, "trees"), { recursive: true });
    await expect(hub.download(exampleName, offline)).rejects.toThrow(
      `has org/example without ${shard}`,
    );
  });

  it("falls back to the cache where nothing answers, and says so", async () => {
    await hub.download();
    expect((await hub.download(exampleName, { endpoint: hub.nowhere })).offline).toBe(true);
    expect(hub.logged[0]).toMatch(
      /^hub: http:\/\/127\.0\.0\.1:\d+ cannot be reached \(ECONNREFUSED\) — check the network, or set HF_HUB_OFFLINE=1 .*Taken from the cache: /,
    );
    rmSync(hub.folder, { recursive: true });
    hub.env["HTTPS_PROXY"] = "http://me:geheim@proxy.example:3128";
    const error = await failure(hub.download(exampleName, { endpoint: hub.nowhere }));
    expect(error.message).toMatch(/HTTPS_PROXY is set: Node 24 .* NODE_USE_ENV_PROXY=1/);
    expect(inspect(error, { depth: 20 })).not.toContain("geheim");
  });
});
