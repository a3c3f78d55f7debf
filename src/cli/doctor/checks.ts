/** One look each at what this package needs of a machine. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, statfs, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { availableParallelism, cpus, freemem, release, totalmem } from "node:os";
import { join } from "node:path";
import { compile, dot, nodeOrt, spec, Tensor, type Value } from "../library.ts";

export type State = "ok" | "warn" | "fail";

/** What was found. `fail` is for what is needed, `warn` for what is slower or missing without harm. */
export interface Check {
  readonly name: string;
  readonly state: State;
  readonly found: string;
  /** What to do, unless all is well. */
  readonly advice?: string;
}

const giga = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;

export function checkNode(version: string): Check {
  const [major, minor] = version.replace(/^v/, "").split(".").map(Number) as [number, number];
  const isEnough = major > 20 || (major === 20 && minor >= 19);
  return {
    name: "Node",
    state: isEnough ? "ok" : "fail",
    found: version,
    ...(!isEnough && { advice: "install Node 20.19 or newer" }),
  };
}

export function checkPlatform(platform: string, arch: string): Check {
  const found = `${platform}/${arch}, ${release()}`;
  const has = ["linux/x64", "linux/arm64", "darwin/arm64", "win32/x64", "win32/arm64"].includes(
    `${platform}/${arch}`,
  );
  return has
    ? { name: "platform", state: "ok", found }
    : {
        name: "platform",
        state: "warn",
        found,
        advice: "onnxruntime-node has no binary here; it runs as WebAssembly, several times slower",
      };
}

export function checkMemory(): Check {
  const [free, total] = [freemem(), totalmem()];
  const isLow = free < 1e9;
  return {
    name: "memory",
    state: isLow ? "warn" : "ok",
    found: `${giga(free)} free of ${giga(total)}`,
    ...(isLow && {
      advice: "close other programs; models of more than about 100 M parameters will not fit",
    }),
  };
}

/** glibc's version; nothing on other systems and with musl. */
export function checkLibc(): Check[] {
  if (process.platform !== "linux") return [];
  const { header } = process.report.getReport() as unknown as {
    header: { glibcVersionRuntime?: string };
  };
  const version = header.glibcVersionRuntime;
  if (version === undefined) {
    return [
      {
        name: "C library",
        state: "warn",
        found: "not glibc",
        advice: "onnxruntime-node is built for glibc; use an image based on Debian, or WebAssembly",
      },
    ];
  }
  const [major, minor] = version.split(".").map(Number) as [number, number];
  const isEnough = major > 2 || minor >= 28;
  return [
    {
      name: "C library",
      state: isEnough ? "ok" : "warn",
      found: `glibc ${version}`,
      ...(!isEnough && { advice: "onnxruntime-node needs glibc 2.28 or newer" }),
    },
  ];
}

/** Instruction sets that the engine's kernels ask for. */
const features = [
  "avx2",
  "fma",
  "avx512f",
  "avx512_vnni",
  "avx512_bf16",
  "amx_tile",
  "asimd",
  "asimddp",
];

export async function checkCpu(): Promise<Check> {
  const model = cpus()[0]?.model.trim() ?? "unknown processor";
  const found = `${availableParallelism()} threads, ${model}`;
  let flags: readonly string[];
  try {
    const text = await readFile("/proc/cpuinfo", "utf8");
    flags = /^(?:flags|Features)\s*:\s*(.*)$/m.exec(text)?.[1]?.split(/\s+/) ?? [];
  } catch {
    return { name: "processor", state: "ok", found };
  }
  const has = features.filter((feature) => flags.includes(feature));
  const isSlow = process.arch === "x64" && !has.includes("avx2");
  return {
    name: "processor",
    state: isSlow ? "warn" : "ok",
    found: `${found}; ${has.join(" ") || "none of the known instruction sets"}`,
    ...(isSlow && { advice: "without AVX2 products run several times slower" }),
  };
}

const require = createRequire(import.meta.url);

/** The version of an installed package, found without running it. */
async function versionOf(name: string): Promise<string | undefined> {
  for (const folder of require.resolve.paths(name) ?? []) {
    try {
      const text = await readFile(join(folder, name, "package.json"), "utf8");
      return (JSON.parse(text) as { version: string }).version;
    } catch {
      // The next folder.
    }
  }
  return undefined;
}

/** Why a package does not load; nothing where it does. */
async function faultOf(name: string): Promise<string | undefined> {
  try {
    await import(name);
    return undefined;
  } catch (error) {
    return (error as Error).message.split("\n")[0]!;
  }
}

/** @param wanted the versions in this package's package.json, by name */
export async function checkPackages(wanted: Readonly<Record<string, string>>): Promise<Check[]> {
  return Promise.all(
    Object.entries(wanted).map(async ([name, range]): Promise<Check> => {
      const version = await versionOf(name);
      if (version === undefined) {
        return {
          name,
          state: name === "onnxruntime-web" ? "warn" : "fail",
          found: "not installed",
          advice: `npm install ${name}@${range} --ignore-scripts`,
        };
      }
      // The engine's binding is tried by the measurement.
      const fault = name === "onnxruntime-node" ? undefined : await faultOf(name);
      if (fault !== undefined) {
        return {
          name,
          state: name === "onnxruntime-web" ? "warn" : "fail",
          found: `${version}, and does not load: ${fault}`,
          advice: `npm install ${name}@${range} --ignore-scripts`,
        };
      }
      // Versions without ^ are pinned: the engine's binding is used beyond its public interface.
      const isOther = /^\d/.test(range) && version !== range;
      return {
        name,
        state: isOther ? "warn" : "ok",
        found: version,
        ...(isOther && {
          advice: `tested with ${range}: npm install ${name}@${range} --ignore-scripts`,
        }),
      };
    }),
  );
}

/** Rows and columns of the matrices whose product is timed. */
const side = 1024;

async function gflops(threads: number, milliseconds: number): Promise<number> {
  const backend = await nodeOrt({ threads });
  const shape = [side, side];
  const product = await compile(
    ((a: Value, b: Value) => dot(a, b)) as never,
    [spec(shape), spec(shape)],
    { backend },
  );
  const [a, b] = [0, 1].map(() =>
    Tensor.from(
      Float32Array.from({ length: side * side }, (_, i) => (i % 7) - 3),
      shape,
    ),
  ) as [Tensor, Tensor];
  try {
    await product.run(a, b);
    const started = performance.now();
    let runs = 0;
    while (performance.now() - started < milliseconds) {
      product.runSync(a, b);
      runs++;
    }
    return (2 * side ** 3 * runs) / (performance.now() - started) / 1e6;
  } finally {
    await product.release();
  }
}

export async function checkEngine(): Promise<{ checks: Check[]; speeds: Record<string, number> }> {
  const threads = availableParallelism();
  const speeds: Record<string, number> = {};
  try {
    for (const n of new Set([1, threads])) speeds[n] = await gflops(n, 1000);
  } catch (error) {
    const found = (error as Error).message.split("\n")[0]!;
    return {
      checks: [
        {
          name: "engine",
          state: "fail",
          found,
          advice:
            "npm install onnxruntime-node@1.30.0 --ignore-scripts; commands fall back to WebAssembly until then",
        },
      ],
      speeds,
    };
  }
  const one = speeds[1]!;
  const all = speeds[threads]!;
  const isShared = threads > 1 && all < 1.2 * one;
  return {
    checks: [
      {
        name: "speed",
        state: isShared ? "warn" : "ok",
        found: `product of ${side} × ${side}: ${one.toFixed(0)} GFLOPS on 1 thread${threads > 1 ? `, ${all.toFixed(0)} on ${threads}` : ""}`,
        ...(isShared && {
          advice:
            "more threads bring little: other programs are busy, or the container has fewer cores than it shows",
        }),
      },
    ],
    speeds,
  };
}

/** Tried in a process of its own: a driver may end the process. */
export function checkWebGpu(timeout = 20_000): Promise<Check> {
  const library = new URL(`../library${import.meta.url.slice(-3)}`, import.meta.url).href;
  const script = `import { add, compile, nodeOrt, spec, Tensor } from ${JSON.stringify(library)};
const backend = await nodeOrt({ provider: "webgpu" });
const f = await compile((a) => add(a, 1), [spec([2])], { backend });
const [x] = (await f.run(Tensor.from([1, 2]))).data;
process.stdout.write(x === 2 ? "works" : "gives wrong numbers");
process.exit(0);`;
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      ["--input-type=module", "-e", script],
      { timeout, killSignal: "SIGKILL" },
      (error, stdout, stderr) => {
        const advice =
          'nothing is lost unless you want provider "webgpu": it needs a GPU and its driver (Vulkan, Metal, or D3D12)';
        if (stdout === "works") {
          resolve({ name: "WebGPU", state: "ok", found: "an adapter is there and computes" });
          return;
        }
        const why = error?.killed
          ? `no answer in ${timeout / 1000} s`
          : stdout ||
            /no WebGPU adapter|no binary/.exec(stderr)?.[0] ||
            `the engine ended with ${error?.signal ?? error?.code ?? "an error"}`;
        resolve({ name: "WebGPU", state: "warn", found: why, advice });
      },
    );
  });
}

export async function checkDisk(folder: string): Promise<Check[]> {
  const checks: Check[] = [];
  try {
    const { bavail, bsize } = await statfs(folder);
    const free = bavail * bsize;
    checks.push({
      name: "disk",
      state: free < 2e9 ? "warn" : "ok",
      found: `${giga(free)} free here`,
      ...(free < 2e9 && {
        advice: "checkpoints and merged models need room; free some, or work elsewhere",
      }),
    });
  } catch {
    // Not known on this file system.
  }
  try {
    const scratch = await mkdtemp(join(folder, ".plasticity-doctor-"));
    await writeFile(join(scratch, "file"), "x");
    await rm(scratch, { recursive: true, force: true });
    checks.push({ name: "this folder", state: "ok", found: `${folder} can be written to` });
  } catch (error) {
    checks.push({
      name: "this folder",
      state: "fail",
      found: `${folder} cannot be written to (${(error as NodeJS.ErrnoException).code ?? "error"})`,
      advice: "change to a folder of yours; runs and models are written below it",
    });
  }
  return checks;
}

const shown = ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE"] as const;
const secret = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] as const;

/** Tokens are told as set or unset; an address is shown without what may be a password in it. */
export function checkEnvironment(env: (name: string) => string | undefined): Check {
  const parts = [
    ...shown.map((name) => {
      const value = env(name);
      return value === undefined ? undefined : `${name}=${value.replace(/\/\/[^/@]*@/, "//…@")}`;
    }),
    ...secret.map((name) => (env(name) === undefined ? undefined : `${name} is set`)),
  ].filter((part) => part !== undefined);
  return {
    name: "Hugging Face",
    state: "ok",
    found: parts.join(", ") || "no HF_ variables are set",
  };
}
