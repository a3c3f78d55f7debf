/**
 * `npm start`, `npm test` and the like on a fresh clone: installs what is missing, builds what is
 * stale, then runs. Plain Node, since nothing is installed yet.
 */
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = join(dirname(fileURLToPath(import.meta.url)), "..");
const stamps = join(root, "node_modules", ".plasticity");

function run(command, args, options = {}) {
  const { status, signal, error } = spawnSync(command, args, {
    cwd: root,
    stdio: "inherit",
    ...options,
  });
  if (error) throw error;
  return signal ? 1 : (status ?? 1);
}

function must(command, args, options) {
  const status = run(command, args, options);
  if (status !== 0) process.exit(status);
}

function npm(args, options) {
  // The npm that runs this script, whatever the PATH holds.
  const path = process.env.npm_execpath;
  if (path) must(process.execPath, [path, ...args], options);
  else must(process.platform === "win32" ? "npm.cmd" : "npm", args, { shell: true, ...options });
}

function hash(...paths) {
  const sum = createHash("sha256");
  for (const path of paths) sum.update(path).update(readFileSync(join(root, path)));
  return sum.digest("hex");
}

function isFresh(name, key) {
  const path = join(stamps, name);
  return existsSync(path) && readFileSync(path, "utf8") === key;
}

function stamp(name, key) {
  mkdirSync(stamps, { recursive: true });
  writeFileSync(join(stamps, name), key);
}

/** Packages as the lock file says; install scripts are not needed, all binaries are in the packages. */
function install() {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major < 20 || (major === 20 && minor < 19)) {
    console.error(`plasticity needs Node 20.19 or newer, this is ${process.versions.node}.`);
    process.exit(1);
  }
  const key = hash("package-lock.json", "package.json");
  if (isFresh("installed", key)) return;
  console.error("Installing packages (once) ...");
  npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
  stamp("installed", key);
}

function sources(folder) {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return sources(path);
    return path.endsWith(".ts") && !path.endsWith(".test.ts") ? [path] : [];
  });
}

function build() {
  const key = hash(
    "package.json",
    "tsconfig.json",
    "tsconfig.build.json",
    join("scripts", "run.mjs"),
    ...sources("src").sort(),
  );
  if (isFresh("built", key) && existsSync(join(root, "dist", "cli", "main.js"))) return;
  console.error("Building ...");
  must(process.execPath, [
    join("node_modules", "typescript", "bin", "tsc"),
    "-p",
    "tsconfig.build.json",
  ]);
  bundle();
  stamp("built", key);
}

/**
 * The library's entries as few files, with what they share once: hundreds of modules take three times
 * as long to load. Packages stay outside; types are those of the modules.
 */
function bundle() {
  const { exports: entries } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  const sources = Object.values(entries).flatMap(({ default: path }) =>
    path === undefined ? [] : [path.replace("./dist/bundle/", "dist/")],
  );
  rmSync(join(root, "dist", "bundle"), { recursive: true, force: true });
  must(process.execPath, [
    join("node_modules", "esbuild", "bin", "esbuild"),
    ...sources,
    ...["--bundle", "--splitting", "--format=esm", "--platform=neutral", "--target=es2022"],
    ...["--packages=external", "--external:node:*", "--log-level=warning"],
    ...["--outbase=dist", `--outdir=${join("dist", "bundle")}`],
  ]);
}

function bin(name, ...path) {
  const file = join(root, "node_modules", ...path);
  if (!existsSync(file) || !statSync(file).isFile()) {
    console.error(`${name} is not installed — run "npm start" or "npm test" once.`);
    process.exit(1);
  }
  return file;
}

const cli = join("dist", "cli", "main.js");
const [task, ...args] = process.argv.slice(2);
const tasks = {
  start: () => {
    install();
    build();
    const given =
      args.length > 0
        ? args
        : ["finetune", "--model", "builtin", "--data", "commands", "--epochs", "2"];
    return run(process.execPath, [cli, ...given]);
  },
  test: () => {
    install();
    build();
    return run(process.execPath, [bin("vitest", "vitest", "vitest.mjs"), "run", ...args]);
  },
  "test:torture": () => {
    install();
    build();
    const [trials = "20"] = args;
    return run(
      process.execPath,
      [
        bin("vitest", "vitest", "vitest.mjs"),
        "run",
        "test/torture.test.ts",
        "src/train/train-run.test.ts",
      ],
      { env: { ...process.env, PLASTICITY_TORTURE: trials } },
    );
  },
  fuzz: () => {
    install();
    // Each format has its fuzzer, and the server; each runs whatever the others find.
    const counts = { safetensors: "200000", gguf: "200000", server: "20000" };
    const statuses = Object.entries(counts).map(([format, count]) => {
      const given = args.length > 0 ? args : ["--count", count, "--seed", "1"];
      return run(process.execPath, ["--import", "tsx", `test/fuzz/${format}.ts`, ...given]);
    });
    return Math.max(...statuses);
  },
  "test:load": () => {
    install();
    build();
    return run(process.execPath, ["--import", "tsx", "test/support/server-load.ts", ...args]);
  },
  "check:real": () => {
    install();
    build();
    return run(process.execPath, ["scripts/check-real.mjs", ...args]);
  },
  build: () => {
    install();
    build();
    return 0;
  },
  check: () => {
    install();
    const tsc = join("node_modules", "typescript", "bin", "tsc");
    must(process.execPath, [tsc, "--noEmit", "-p", "tsconfig.json"]);
    must(process.execPath, [bin("biome", "@biomejs", "biome", "bin", "biome"), "check", "."]);
    return tasks.test();
  },
  bench: () => {
    install();
    build();
    return run(process.execPath, [cli, "bench", ...args]);
  },
  "bench:setup": () => {
    npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"], {
      cwd: join(root, "bench", "peers"),
    });
    return 0;
  },
};

if (!Object.hasOwn(tasks, task)) {
  console.error(`run.mjs: unknown task "${task}" — it knows ${Object.keys(tasks).join(", ")}.`);
  process.exit(2);
}
process.exit(tasks[task]());
