/**
 * A web server for this example: `node examples/browser/serve.mjs [--port 8080] [--plain]`.
 *
 * Pages find packages by bare names through an import map, workers cannot: so the names in scripts are
 * replaced by addresses while they are served, as bundlers do beforehand. Nothing outside the roots is
 * served, and nobody outside this machine is.
 */
import { createReadStream, existsSync, readFileSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, sep } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const repository = fileURLToPath(new URL("../..", import.meta.url));

/** Addresses and the folders that they show. */
const shown = {
  "/": "examples/browser",
  "/dist": "dist",
  "/models/builtin": "models/builtin",
  "/data/commands": "data/commands",
};

const types = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".jsonl": "text/plain; charset=utf-8",
  ".txt": "text/plain; charset=utf-8",
  ".svg": "image/svg+xml",
  ".png": "image/png",
  ".wasm": "application/wasm",
};

/** What a page may ask a package for, the best first. */
const conditions = ["browser", "module", "import", "default"];

const readJson = (path) => JSON.parse(readFileSync(path, "utf8"));

/** The packages that a package needs, their needs included, by name and folder. */
function packagesOf(folder) {
  const found = new Map([[readJson(join(folder, "package.json")).name, folder]]);
  for (const at of found.values()) {
    const { dependencies = {} } = readJson(join(at, "package.json"));
    for (const name of Object.keys(dependencies)) {
      const other = join(folder, "node_modules", name);
      if (!found.has(name) && existsSync(other)) found.set(name, other);
    }
  }
  return found;
}

/** The file that an entry of `exports` stands for; `undefined` where it has none for pages. */
function choose(entry) {
  if (typeof entry !== "object" || entry === null) return entry;
  const condition = Object.keys(entry).find((key) => conditions.includes(key));
  return condition === undefined ? undefined : choose(entry[condition]);
}

/** The address of a bare name, as the package's own package.json resolves it. */
function addressOf(specifier, packages, addresses) {
  const name = /^(@[^/]+\/)?[^/]+/.exec(specifier)[0];
  const folder = packages.get(name);
  if (folder === undefined) return undefined;
  const manifest = readJson(join(folder, "package.json"));
  const inside = `.${specifier.slice(name.length)}`;
  const entry = manifest.exports?.[inside];
  const file = manifest.exports
    ? choose(entry)
    : inside === "."
      ? (manifest.module ?? manifest.main)
      : inside;
  return typeof file === "string" ? addresses.get(name) + file.replace(/^\.\//, "") : undefined;
}

const imports =
  /(\bfrom\s*|\bimport\s*\(?\s*)(["'])((?:@[\w.-]+\/)?[\w-][\w.-]*(?:\/[\w./-]+)?)\2/g;

/**
 * Starts a server on this machine alone.
 * @param {{ port?: number, isolated?: boolean, roots?: Record<string, string> }} options
 *   `port`: default a free one. `isolated`: send the headers that shared memory, and thereby threads,
 *   ask for; default true. `roots`: more addresses and the folders that they show.
 * @returns {Promise<{ url: string, close(): Promise<void> }>}
 */
export async function startServer({ port = 0, isolated = true, roots = {} } = {}) {
  const packages = packagesOf(repository);
  const addresses = new Map();
  const folders = new Map();
  for (const [address, folder] of Object.entries(shown)) {
    folders.set(address, join(repository, folder));
  }
  for (const [name, folder] of packages) {
    const isOwn = folder === repository;
    addresses.set(name, isOwn ? "/" : `/packages/${name}/`);
    if (!isOwn) folders.set(`/packages/${name}`, folder);
  }
  for (const [address, folder] of Object.entries(roots)) folders.set(address, folder);
  // The longest address first: "/" is the last.
  const byLength = [...folders].sort(([a], [b]) => b.length - a.length);

  const fileOf = (address) => {
    const path = decodeURIComponent(address);
    if (path.includes("\0") || path.split(/[\\/]/).some((part) => part.startsWith("."))) return;
    for (const [root, folder] of byLength) {
      const start = root === "/" ? "/" : `${root}/`;
      if (!path.startsWith(start)) continue;
      const rest = path.slice(start.length) || "index.html";
      const file = join(folder, rest);
      const isInside = file.startsWith(folder.endsWith(sep) ? folder : folder + sep);
      return isInside && existsSync(file) && statSync(file).isFile() ? file : undefined;
    }
  };

  const rewrite = (source) =>
    source.replace(imports, (whole, before, quote, specifier) => {
      const address = addressOf(specifier, packages, addresses);
      return address === undefined ? whole : before + quote + address + quote;
    });

  const server = createServer((request, response) => {
    let file;
    try {
      file = fileOf(new URL(request.url, "http://localhost").pathname);
    } catch {
      // An address that cannot be decoded leads nowhere.
    }
    response.setHeader("x-content-type-options", "nosniff");
    response.setHeader("cache-control", "no-cache");
    if (isolated) {
      response.setHeader("cross-origin-opener-policy", "same-origin");
      response.setHeader("cross-origin-embedder-policy", "require-corp");
      response.setHeader("cross-origin-resource-policy", "same-origin");
    }
    if (file === undefined || (request.method !== "GET" && request.method !== "HEAD")) {
      response.writeHead(file === undefined ? 404 : 405).end();
      return;
    }
    const extension = extname(file);
    response.setHeader("content-type", types[extension] ?? "application/octet-stream");
    if (extension === ".js" || extension === ".mjs") {
      const body = Buffer.from(rewrite(readFileSync(file, "utf8")));
      response.setHeader("content-length", body.length);
      response.end(request.method === "HEAD" ? undefined : body);
      return;
    }
    response.setHeader("content-length", statSync(file).size);
    if (request.method === "HEAD") response.end();
    else createReadStream(file).pipe(response);
  });
  await new Promise((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const { values } = (await import("node:util")).parseArgs({
    options: { port: { type: "string", default: "8080" }, plain: { type: "boolean" } },
  });
  if (!existsSync(join(repository, "dist", "index.js"))) {
    console.error('The package is not built — run "npm run build" first.');
    process.exit(2);
  }
  const { url } = await startServer({ port: Number(values.port), isolated: !values.plain });
  console.log(`${url}\n${values.plain ? "one thread" : "threads allowed"}; Ctrl-C ends it.`);
}
