/**
 * Packages on Node: `npm pack` with the user's npm settings, and `apt-get download` without root. Archives are
 * read here or by `dpkg-deb -x`; nothing in a package is ever run.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import * as fs from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, relative, sep } from "node:path";
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { FormatError, MissingError, OptionError } from "../errors.ts";
import type { FetchedPackage, PackageRequest, Packages } from "./packages.ts";
import { readTar } from "./tar.ts";

const npmName = /^(?:@[a-z0-9][a-z0-9._-]{0,100}\/)?[a-z0-9][a-z0-9._-]{0,200}$/;
const debianName = /^[a-z0-9][a-z0-9+.-]{1,100}$/;
const exactVersion = /^\d{1,9}\.\d{1,9}\.\d{1,9}(?:-[0-9A-Za-z.-]{1,60})?$/;
const defaultMaxBytes = 2 ** 28;
/** Unpacked bytes at most, and files. */
const unpackedLimit = 2 ** 30;
const fileLimit = 50_000;
const fetchTimeout = 240_000;
/** Beside the files: written last, so that a folder that has it is whole. */
const marker = ".plasticity-package.json";

/** `PLASTICITY_CACHE`, `XDG_CACHE_HOME/plasticity`, or `~/.cache/plasticity`. */
export function nodeCacheFolder(env: (name: string) => string | undefined): string {
  const given = (name: string): string | undefined => env(name) || undefined;
  const own = given("PLASTICITY_CACHE");
  if (own !== undefined) return own;
  const cache = given("XDG_CACHE_HOME");
  if (cache !== undefined) return join(cache, "plasticity");
  const home = given("HOME") ?? given("USERPROFILE");
  return home === undefined ? join(tmpdir(), "plasticity") : join(home, ".cache", "plasticity");
}

function check({ registry, name, version, integrity }: PackageRequest): void {
  const isNpm = registry === "npm";
  if (!(isNpm ? npmName : debianName).test(name)) {
    throw new OptionError(`packages: ${JSON.stringify(name)} is no name of a ${registry} package.`);
  }
  if (isNpm && !(version !== undefined && exactVersion.test(version))) {
    throw new OptionError(`packages: ${name} needs an exact version, got ${version ?? "none"}.`);
  }
  if (isNpm && !/^sha512-[A-Za-z0-9+/]{86}==$/.test(integrity ?? "")) {
    throw new OptionError(`packages: ${name} needs the integrity of its archive, sha512-….`);
  }
}

/** What was printed by a command that ended well. */
function command(
  program: string,
  args: readonly string[],
  cwd: string,
  signal: AbortSignal | undefined,
): Promise<string> {
  return new Promise((resolve, reject) => {
    let child: ChildProcess;
    try {
      child = spawn(program, args, {
        cwd,
        stdio: ["ignore", "pipe", "pipe"],
        timeout: fetchTimeout,
        // npm is a script there; names and versions have been checked.
        shell: process.platform === "win32",
        ...(signal && { signal }),
      });
    } catch (error) {
      reject(error);
      return;
    }
    let [out, err] = ["", ""];
    child.stdout!.on("data", (bytes: Buffer) => {
      if (out.length < 2 ** 20) out += bytes.toString("utf8");
    });
    child.stderr!.on("data", (bytes: Buffer) => {
      if (err.length < 2 ** 16) err += bytes.toString("utf8");
    });
    child.on("error", reject);
    child.on("close", (code, killed) => {
      if (code === 0) resolve(out);
      else reject(new Error(reason(err, killed ? `it was ended by ${killed}` : `exit ${code}`)));
    });
  });
}

/** The line that says most of what a package client printed. */
function reason(text: string, fallback: string): string {
  const lines = text
    .split("\n")
    .map((line) => line.replace(/^npm (?:error|ERR!) ?/, "").trim())
    .filter((line) => line !== "" && !/^A complete log|^code E\w+$/.test(line));
  return (lines[0] ?? fallback).slice(0, 200);
}

async function exists(path: string): Promise<boolean> {
  return fs.stat(path).then(
    () => true,
    () => false,
  );
}

async function onlyFile(folder: string, ending: string): Promise<string> {
  const names = (await fs.readdir(folder)).filter((name) => name.endsWith(ending));
  if (names.length === 1) return join(folder, names[0]!);
  throw new MissingError(`packages: ${names.length} files end in ${ending}, one was expected.`);
}

async function readCapped(path: string, limit: number): Promise<Buffer> {
  const { size } = await fs.stat(path);
  if (size > limit) {
    throw new FormatError(`packages: ${path} has ${size} bytes, at most ${limit} are read.`);
  }
  return fs.readFile(path);
}

/** Downloads and unpacks an npm package into `into`. */
async function fromNpm(request: PackageRequest, temporary: string, into: string): Promise<void> {
  const { name, version, integrity, signal, maxBytes = defaultMaxBytes } = request;
  await command(
    "npm",
    ["pack", `${name}@${version}`, "--ignore-scripts", "--silent"],
    temporary,
    signal,
  );
  const archive = await readCapped(await onlyFile(temporary, ".tgz"), maxBytes);
  const found = `sha512-${createHash("sha512").update(archive).digest("base64")}`;
  if (found !== integrity) {
    throw new FormatError(
      `packages: the archive of ${name} ${version} has ${found}, expected ${integrity} — the registry serves something else.`,
    );
  }
  const tar = await promisify(gunzip)(archive, { maxOutputLength: unpackedLimit });
  for (const { path, bytes } of readTar(tar, `${name} ${version}`, { maxFiles: fileLimit })) {
    // npm puts all files into one folder, mostly "package".
    const inner = path.slice(path.indexOf("/") + 1);
    if (inner === "" || !(request.keep?.(inner) ?? true)) continue;
    const target = join(into, ...inner.split("/"));
    await fs.mkdir(dirname(target), { recursive: true });
    await fs.writeFile(target, bytes);
  }
}

/** Regular files below a folder, links left out. */
async function* filesBelow(folder: string): AsyncGenerator<string> {
  for (const entry of await fs.readdir(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesBelow(path);
    else if (entry.isFile()) yield path;
  }
}

/** Downloads a Debian package and moves the files that are kept into `into`. */
async function fromDebian(request: PackageRequest, temporary: string, into: string): Promise<void> {
  const { name, signal, maxBytes = defaultMaxBytes } = request;
  await command("apt-get", ["download", name], temporary, signal);
  const archive = await onlyFile(temporary, ".deb");
  await readCapped(archive, maxBytes);
  const unpacked = join(temporary, "unpacked");
  await command("dpkg-deb", ["-x", archive, unpacked], temporary, signal);
  let count = 0;
  for await (const path of filesBelow(unpacked)) {
    const inner = relative(unpacked, path).split(sep).join("/");
    if (!(request.keep?.(inner) ?? true)) continue;
    if (++count > fileLimit)
      throw new FormatError(`packages: ${name} has over ${fileLimit} files.`);
    const target = join(into, ...inner.split("/"));
    await fs.mkdir(dirname(target), { recursive: true });
    await fs.copyFile(path, target);
  }
}

async function checkFiles(request: PackageRequest, folder: string): Promise<void> {
  for (const [path, expected] of Object.entries(request.checksums ?? {})) {
    const full = join(folder, ...path.split("/"));
    if (!(await exists(full))) {
      throw new FormatError(`packages: ${request.name} lacks "${path}" — its layout has changed.`);
    }
    const found = createHash("sha256")
      .update(await readCapped(full, unpackedLimit))
      .digest("hex");
    if (found === expected) continue;
    throw new FormatError(
      `packages: "${path}" of ${request.name} has SHA-256 ${found}, expected ${expected} — this release has other data.`,
    );
  }
}

async function sizeOf(folder: string): Promise<number> {
  let bytes = 0;
  for await (const path of filesBelow(folder)) bytes += (await fs.stat(path)).size;
  return bytes;
}

function sourceOf({ registry, name, version }: PackageRequest): string {
  return [registry === "npm" ? "npm" : "Debian", name, version].filter(Boolean).join(" ");
}

/**
 * @param cacheFolder default `nodeCacheFolder` of this process's environment
 */
export function nodePackages(
  cacheFolder: string = nodeCacheFolder((name) => process.env[name]),
): Packages {
  const folderOf = ({ registry, name, version }: PackageRequest): string =>
    join(
      cacheFolder,
      "packages",
      registry,
      `${name.replace("/", "+")}${version ? `@${version}` : ""}`,
    );

  async function cached(request: PackageRequest): Promise<FetchedPackage | undefined> {
    check(request);
    const folder = folderOf(request);
    const text = await fs.readFile(join(folder, marker), "utf8").catch(() => undefined);
    if (text === undefined) return undefined;
    const { bytes } = JSON.parse(text) as { bytes: number };
    return { folder, source: sourceOf(request), bytes, isCached: true };
  }

  async function fetch(request: PackageRequest): Promise<FetchedPackage> {
    const before = await cached(request);
    if (before) return before;
    const folder = folderOf(request);
    await fs.mkdir(dirname(folder), { recursive: true });
    // Beside the final place, so that the last step is a rename.
    const temporary = await fs.mkdtemp(`${folder}.tmp-`);
    try {
      const [work, files] = [join(temporary, "work"), join(temporary, "files")];
      await fs.mkdir(work);
      await fs.mkdir(files);
      await (request.registry === "npm" ? fromNpm : fromDebian)(request, work, files).catch(
        (error: unknown) => {
          request.signal?.throwIfAborted();
          if (error instanceof FormatError || error instanceof MissingError) throw error;
          const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
          const client = request.registry === "npm" ? "npm is" : "apt-get or dpkg-deb is";
          const hint = request.registry === "npm" ? "" : " (has apt-get update been run?)";
          const why = missing
            ? `${client} not on this machine`
            : `${(error as Error).message}${hint}`;
          throw new MissingError(
            `packages: ${sourceOf(request)} could not be fetched: ${why}`,
            { why },
            { cause: error },
          );
        },
      );
      await checkFiles(request, files);
      const bytes = await sizeOf(files);
      await fs.writeFile(join(files, marker), `${JSON.stringify({ bytes })}\n`);
      await fs.rename(files, folder).catch(async (error: unknown) => {
        // Another process was quicker, or an unmarked folder lies there.
        if (await cached(request)) return;
        await fs.rm(folder, { recursive: true, force: true });
        await fs.rename(files, folder).catch(() => {
          throw error;
        });
      });
      return { folder, source: sourceOf(request), bytes, isCached: false };
    } finally {
      await fs.rm(temporary, { recursive: true, force: true });
    }
  }

  return { cacheFolder, fetch, cached };
}
