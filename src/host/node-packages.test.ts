import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type TarEntry, tar } from "../../test/support/tar.ts";
import { nodeCacheFolder, nodePackages } from "./node-packages.ts";
import type { PackageRequest } from "./packages.ts";

let folder: string;
const path = process.env["PATH"];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "plasticity-packages-"));
});
afterEach(() => {
  process.env["PATH"] = path;
  rmSync(folder, { recursive: true, force: true });
});

/** Puts a program in front of all others: the registry's client, without a registry. */
function client(name: string, script: string): void {
  const file = join(folder, name);
  writeFileSync(file, `#!/bin/sh\n${script}\n`);
  chmodSync(file, 0o755);
  process.env["PATH"] = `${folder}${delimiter}${path}`;
}

/** An npm that packs this archive, whatever it is asked for. */
function npmWith(entries: readonly TarEntry[]): PackageRequest {
  const archive = gzipSync(tar(entries));
  writeFileSync(join(folder, "archive"), archive);
  client("npm", `echo "$@" >> "${folder}/asked"; cp "${folder}/archive" ./things-1.2.3.tgz`);
  const integrity = `sha512-${createHash("sha512").update(archive).digest("base64")}`;
  return { registry: "npm", name: "things", version: "1.2.3", integrity };
}

const sha256 = (text: string): string => createHash("sha256").update(text).digest("hex");

describe.skipIf(process.platform === "win32")("npm packages", () => {
  const packages = () => nodePackages(join(folder, "cache"));

  it("are packed without scripts, checked, unpacked, and fetched once", async () => {
    const request = {
      ...npmWith([
        { name: "package/data/a.txt", text: "one" },
        { name: "package/b.txt", text: "two" },
      ]),
      keep: (name: string) => name.startsWith("data/"),
      checksums: { "data/a.txt": sha256("one") },
    };
    expect(await packages().cached(request)).toBeUndefined();
    const found = await packages().fetch(request);
    expect(found).toMatchObject({ source: "npm things 1.2.3", bytes: 3, isCached: false });
    expect(await readFile(join(found.folder, "data", "a.txt"), "utf8")).toBe("one");
    expect(existsSync(join(found.folder, "b.txt"))).toBe(false);
    expect((await packages().fetch(request)).isCached).toBe(true);
    expect(await readFile(join(folder, "asked"), "utf8")).toBe(
      "pack things@1.2.3 --ignore-scripts --silent\n",
    );
    expect(readdirSync(join(folder, "cache", "packages", "npm"))).toEqual(["things@1.2.3"]);
  });

  it("leave nothing where the archive or a file is another than the one expected", async () => {
    const request = npmWith([{ name: "package/a", text: "one" }]);
    await expect(
      packages().fetch({ ...request, integrity: `sha512-${"A".repeat(86)}==` }),
    ).rejects.toThrow(/the archive of things 1\.2\.3 has sha512-.*, expected sha512-AAAA/);
    await expect(packages().fetch({ ...request, checksums: { a: sha256("two") } })).rejects.toThrow(
      `"a" of things has SHA-256 ${sha256("one")}, expected ${sha256("two")}`,
    );
    await expect(packages().fetch({ ...request, checksums: { b: "" } })).rejects.toThrow(
      'things lacks "b"',
    );
    await expect(packages().fetch({ ...request, maxBytes: 10 })).rejects.toThrow(
      "bytes, at most 10 are read",
    );
    expect(readdirSync(join(folder, "cache", "packages", "npm"))).toEqual([]);
  });

  it("do not reach outside their folder", async () => {
    const request = npmWith([{ name: "package/../../../evil", text: "x" }]);
    await expect(packages().fetch(request)).rejects.toThrow("a path that is not taken");
    expect(existsSync(join(folder, "evil"))).toBe(false);
  });

  it("that cannot be reached say why", async () => {
    client(
      "npm",
      'echo "npm error code ENOTFOUND" >&2; echo "npm error network is down" >&2; exit 1',
    );
    const request = {
      registry: "npm",
      name: "things",
      version: "1.2.3",
      integrity: `sha512-${"A".repeat(86)}==`,
    } as const;
    await expect(packages().fetch(request)).rejects.toThrow(
      "packages: npm things 1.2.3 could not be fetched: network is down",
    );
    process.env["PATH"] = join(folder, "nowhere");
    await expect(packages().fetch(request)).rejects.toThrow("npm is not on this machine");
  });

  it.each([
    [{ name: "-x" }, 'packages: "-x" is no name of a npm package.'],
    [{ version: "latest" }, "packages: things needs an exact version, got latest."],
    [{ integrity: "sha1-x" }, "packages: things needs the integrity of its archive, sha512-…."],
    [{ registry: "debian", name: "a;b" }, 'packages: "a;b" is no name of a debian package.'],
  ])("are refused as %j", async (changes, message) => {
    const request = { registry: "npm", name: "things", version: "1.2.3", integrity: "" } as const;
    await expect(packages().fetch({ ...request, ...changes } as PackageRequest)).rejects.toThrow(
      message,
    );
  });
});

describe.skipIf(process.platform === "win32")("Debian packages", () => {
  it("are downloaded and unpacked without root, links left out", async () => {
    client("apt-get", '[ "$1 $2" = "download things" ] && touch things_1_all.deb');
    client(
      "dpkg-deb",
      '[ "$1" = "-x" ] && mkdir -p "$3/usr/share" && printf one > "$3/usr/share/a" && ln -s /etc/passwd "$3/usr/share/b"',
    );
    const packages = nodePackages(join(folder, "cache"));
    const found = await packages.fetch({
      registry: "debian",
      name: "things",
      checksums: { "usr/share/a": sha256("one") },
    });
    expect(found).toMatchObject({ source: "Debian things", bytes: 3 });
    expect(readdirSync(join(found.folder, "usr", "share"))).toEqual(["a"]);
  });
});

describe("the cache", () => {
  it("lies where the environment says", () => {
    const of = (env: Readonly<Record<string, string>>): string =>
      nodeCacheFolder((name) => env[name]);
    expect(of({ PLASTICITY_CACHE: "/a", XDG_CACHE_HOME: "/b" })).toBe("/a");
    expect(of({ XDG_CACHE_HOME: "/b", HOME: "/c" })).toBe(join("/b", "plasticity"));
    expect(of({ HOME: "/c" })).toBe(join("/c", ".cache", "plasticity"));
  });
});
