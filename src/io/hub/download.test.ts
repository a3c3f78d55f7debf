/** Downloads against a hub on this machine: what is fetched, resumed and checked. */
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { join, relative } from "node:path";
import { describe, expect, it } from "vitest";
import { content, failure, HubCase, shard, shardBytes } from "../../../test/support/hub-case.ts";
import {
  exampleCommit,
  exampleFiles,
  exampleName,
  exampleRepo,
  otherCommit,
  sha256,
} from "../../../test/support/hub-mirror.ts";
import { nodeHost } from "../../host/node.ts";

const hub = HubCase.inFile();
const allBytes = exampleFiles.reduce((sum, path) => sum + content[path]!.length, 0);

describe("a download", () => {
  it("fetches what a model needs, checks it, and says where it is", async () => {
    const shares: number[] = [];
    const found = await hub.download(exampleName, {
      onProgress: ({ received, total }) => shares.push(received / total),
    });
    expect(found).toMatchObject({
      repo: exampleName,
      revision: "main",
      commit: exampleCommit,
      folder: hub.snapshot(exampleCommit),
      path: hub.snapshot(exampleCommit),
      offline: false,
    });
    expect(found.files.map(({ path }) => path).sort()).toEqual([...exampleFiles].sort());
    for (const path of exampleFiles) {
      const there = readFileSync(join(found.folder, path));
      expect(Buffer.compare(there, content[path]!), path).toBe(0);
    }
    expect(shares.at(-1)).toBe(1);
    expect(hub.mirror.sent()).toBe(allBytes);
    expect(readdirSync(join(hub.folder, "blobs")).some((name) => name.includes("."))).toBe(false);
  });

  it("asks one question when all is there, and none for a commit", async () => {
    await hub.download();
    hub.mirror.forget();
    const again = await hub.download();
    expect(again.files.every(({ cached }) => cached)).toBe(true);
    expect(hub.mirror.requests.map(({ url }) => url)).toEqual([
      "/api/models/org/example/revision/main",
    ]);
    hub.mirror.forget();
    expect((await hub.download(`${exampleName}@${exampleCommit}`)).offline).toBe(true);
    expect(hub.mirror.requests).toEqual([]);
  });

  it("fetches only what another revision changes", async () => {
    await hub.download();
    hub.mirror.forget();
    const next = await hub.download(`${exampleName}@next`);
    expect(next.commit).toBe(otherCommit);
    expect(next.files.filter(({ cached }) => !cached).length).toBe(exampleFiles.length);
    expect(hub.mirror.sent()).toBe(1000);
  });

  it("reads a listing of several pages", async () => {
    hub.mirror.pageSize = 3;
    expect((await hub.download()).files.length).toBe(exampleFiles.length);
    expect(hub.mirror.requests.filter(({ url }) => url.includes("cursor")).length).toBe(3);
  });

  it("takes the file that the name says, and the paths that the call says", async () => {
    const gguf = { "q4.gguf": content[shard]!, "config.json": content["config.json"]! };
    hub.mirror.repos.set("org/quantized", {
      commits: { [exampleCommit]: gguf },
      refs: { main: exampleCommit },
    });
    const one = await hub.download("org/quantized:q4.gguf");
    expect(one.path).toBe(join(one.folder, "q4.gguf"));
    expect(readdirSync(one.folder)).toEqual(["q4.gguf"]);
    const some = await hub.download(exampleName, { files: ["README.md", "größe/notes.txt"] });
    expect(readFileSync(join(some.folder, "größe", "notes.txt"), "utf8")).toBe("Größe\n");
    expect(readlinkSync(join(some.folder, "größe", "notes.txt"))).toMatch(
      /^\.\.\/\.\.\/\.\.\/blobs\//,
    );
    expect(some.path).toBe(some.folder);
  });

  it("makes the cache that huggingface_hub makes", async () => {
    const fixture = JSON.parse(
      readFileSync(new URL("../../../test/parity/hub-cache.json", import.meta.url), "utf8"),
    ) as { entries: Record<string, { link?: string; text?: string; bytes?: number }> };
    hub.mirror.repos.set(exampleName, exampleRepo(100_000));
    const cache = join(hub.cacheDir, "cache");
    await hub.download(exampleName, { cacheDir: cache });
    await hub.download(`${exampleName}@refs/pr/1`, { cacheDir: cache });
    await failure(hub.download(`${exampleName}:missing.json`, { cacheDir: cache }));
    const found: typeof fixture.entries = {};
    const walk = (folder: string): void => {
      for (const entry of readdirSync(folder)) {
        const path = join(folder, entry);
        const name = relative(cache, path);
        const stat = lstatSync(path);
        if (stat.isSymbolicLink()) found[name] = { link: readlinkSync(path) };
        else if (stat.isDirectory()) {
          found[`${name}/`] = {};
          walk(path);
        } else if (stat.size < 5000 && !name.includes("/blobs/")) {
          found[name] = { text: readFileSync(path, "utf8") };
        } else found[name] = { bytes: stat.size };
      }
    };
    walk(cache);
    expect(found).toEqual(fixture.entries);
  });
});

describe("an interrupted download", () => {
  it("goes on where the connection broke", async () => {
    hub.mirror.faults.set(shard, { cut: { after: 1_000_000, times: 2 } });
    await hub.download();
    const starts = hub.mirror.requests
      .filter(({ server, url }) => server === "store" && url.includes("model-00001"))
      .map(({ headers }) => Number(/^bytes=(\d+)-$/.exec(headers.range ?? "")?.[1] ?? 0));
    // What was not read when the connection broke may be lost with it.
    expect(starts.length).toBe(3);
    expect(starts[1]).toBeGreaterThan(0);
    expect(starts[1]).toBeLessThanOrEqual(1_000_000);
    expect(starts[2]).toBeGreaterThan(starts[1]!);
    expect(sha256(readFileSync(hub.blob(shard)))).toBe(sha256(content[shard]!));
  });

  it("says how far it came when no try helps, and the next run fetches the rest", async () => {
    hub.mirror.faults.set(shard, { cut: { after: 0, times: 1000 } });
    writeFileSync(join(hub.cacheDir, "x"), "");
    mkdirSync(join(hub.folder, "blobs"), { recursive: true });
    writeFileSync(hub.partial(shard), content[shard]!.subarray(0, 1_234_567));
    const error = await failure(hub.download());
    expect(error.message).toMatch(
      `hub: ${shard} of org/example was interrupted at 1.2 MB of 3.0 MB, and 5 tries did not help — run it again, it goes on from there.`,
    );
    hub.mirror.faults.clear();
    hub.mirror.forget();
    await hub.download();
    expect(hub.mirror.sent(shard)).toBe(shardBytes - 1_234_567);
  });

  it("goes on when the connection stands still", async () => {
    hub.mirror.faults.set(shard, { stall: { after: 500_000, times: 1 } });
    await hub.download(exampleName, { stallTimeout: 300 });
    expect(hub.mirror.sent(shard)).toBe(shardBytes);
  });

  it("begins again where the server ignores ranges", async () => {
    hub.mirror.faults.set(shard, { cut: { after: 1_000_000, times: 1 }, noRange: true });
    await hub.download();
    expect(hub.mirror.sent(shard)).toBe(1_000_000 + shardBytes);
  });

  it("stops on demand, and keeps what came", async () => {
    hub.mirror.faults.set(shard, { slow: 5 });
    const abort = new AbortController();
    const error = await failure(
      hub.download(exampleName, {
        signal: abort.signal,
        onProgress: ({ file, received }) => {
          if (file === shard && received > 1_200_000) abort.abort();
        },
      }),
    );
    expect(error.message).toBe("hub: stopped — run it again, it goes on where it was.");
    const kept = lstatSync(hub.partial(shard)).size;
    expect(kept).toBeGreaterThan(1_000_000);
    hub.mirror.faults.clear();
    hub.mirror.forget();
    await hub.download();
    expect(hub.mirror.sent(shard)).toBe(shardBytes - kept);
  });

  it("tries again after a busy server, and names one that stays so", async () => {
    hub.mirror.faults.set("api", { status: { code: 503, times: 2 } });
    hub.mirror.faults.set(shard, { status: { code: 503, times: 2 } });
    await hub.download();
    rmSync(hub.folder, { recursive: true });
    hub.mirror.forget();
    hub.mirror.faults.set("api", { status: { code: 502, times: 100 } });
    const error = await failure(hub.download());
    expect(error.message).toBe(
      `hub: ${hub.mirror.url}/api/models/org/example/revision/main answers 502 — the hub has a fault, try again later; or set HF_HUB_OFFLINE=1 to use what the cache has.`,
    );
    expect(hub.mirror.requests.length).toBe(5);
  });

  it("waits for too many requests as long as asked, and says so in the end", async () => {
    hub.mirror.faults.set("api", { status: { code: 429, times: 100 } });
    await expect(hub.download(exampleName, { tries: 2 })).rejects.toThrow(
      "answers that there were too many requests (429) — wait some minutes",
    );
  });
});

describe("a damaged download", () => {
  it("is removed and told", async () => {
    hub.mirror.faults.set(shard, { wrongByte: { times: 1 } });
    const error = await failure(hub.download());
    expect(error.message).toMatch(
      new RegExp(
        `^hub: ${shard} of org/example arrived damaged, its SHA-256 is [0-9a-f]{64} and should be ${sha256(content[shard]!)} — what was fetched is removed; try again\\.$`,
      ),
    );
    expect([existsSync(hub.blob(shard)), existsSync(hub.partial(shard))]).toEqual([false, false]);
    expect(existsSync(join(hub.snapshot(exampleCommit), shard))).toBe(false);
    await hub.download();
    expect(sha256(readFileSync(hub.blob(shard)))).toBe(sha256(content[shard]!));
  });

  it("is told for small files by git's id", async () => {
    hub.mirror.faults.set("config.json", { wrongByte: { times: 1 } });
    await expect(hub.download()).rejects.toThrow(
      /config\.json of org\/example arrived damaged, its git id is [0-9a-f]{40} and should be/,
    );
  });

  it("is fetched anew where an earlier run left the damage", async () => {
    mkdirSync(join(hub.folder, "blobs"), { recursive: true });
    writeFileSync(hub.partial(shard), new Uint8Array(2_000_000));
    await hub.download();
    expect(hub.logged).toEqual([`hub: ${shard} is damaged after resuming, it is fetched anew.`]);
    expect(hub.mirror.sent(shard)).toBe(1_000_000 + shardBytes);
  });

  it("is refused where its length is another than the list says", async () => {
    for (const extraBytes of [7, -7]) {
      hub.mirror.faults.set(shard, { extraBytes });
      await expect(hub.download()).rejects.toThrow(
        `hub: the server sends ${shard} of org/example with ${shardBytes + extraBytes} bytes, the list says ${shardBytes} — nothing of it is kept in the cache; try again later.`,
      );
      expect(existsSync(hub.blob(shard))).toBe(false);
    }
  });

  it("is mended where a blob of the cache has another length", async () => {
    await hub.download();
    writeFileSync(hub.blob(shard), "short");
    hub.mirror.forget();
    await hub.download();
    expect(hub.mirror.sent()).toBe(shardBytes);
    expect(hub.logged[0]).toMatch(/has 5 bytes and not 3000000, it is fetched again\.$/);
  });
});

describe("the disk", () => {
  it("is asked for room before anything is fetched", async () => {
    const host = hub.host({ freeBytes: () => Promise.resolve(2_000_000) });
    await expect(hub.download(exampleName, {}, host)).rejects.toThrow(
      `hub: org/example needs 3.0 MB more, the disk of ${hub.cacheDir} has 2.0 MB free — make room, or set HF_HUB_CACHE to a folder on another disk.`,
    );
    expect(hub.mirror.sent(shard)).toBe(0);
  });

  it("has a whole file in the snapshot where it takes no links", async () => {
    const host = hub.host({ symlink: () => Promise.resolve(false) });
    const { folder } = await hub.download(exampleName, {}, host);
    for (const path of exampleFiles) {
      expect(lstatSync(join(folder, path)).isFile()).toBe(true);
      expect(Buffer.compare(readFileSync(join(folder, path)), content[path]!)).toBe(0);
    }
    hub.mirror.forget();
    expect((await hub.download(exampleName, {}, host)).files.every(({ cached }) => cached)).toBe(
      true,
    );
    expect(hub.mirror.sent()).toBe(0);
  });

  it("has it too where a host's files can neither link nor rename", async () => {
    const { rename: _, symlink: __, freeBytes: ___, sha256: ____, ...files } = nodeHost().files;
    const host = { ...hub.host(), files };
    hub.mirror.faults.set(shard, { stall: { after: 1_000_000, times: 1 } });
    const { folder } = await hub.download(exampleName, { stallTimeout: 300 }, host);
    expect(Buffer.compare(readFileSync(join(folder, shard)), content[shard]!)).toBe(0);
    expect(lstatSync(join(folder, shard)).isSymbolicLink()).toBe(false);
    expect(readdirSync(join(hub.folder, "blobs"))).toEqual([]);
    expect(hub.mirror.sent(shard)).toBe(shardBytes);
  });
});

it("refuses what is no name on the hub", async () => {
  await expect(hub.download("./org/name")).rejects.toThrow(
    '"./org/name" is no name on the hub — give org/name, org/name@revision or org/name:file.gguf.',
  );
  await expect(hub.download(exampleName, { files: ["../x"] })).rejects.toThrow(
    'hub: files must be paths in org/example, as model.safetensors, got "../x".',
  );
});
