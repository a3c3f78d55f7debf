/** Models of the hub on the command line and in a page, against a hub on this machine. */
import { lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import { type DownloadedModel, loadModel, lora, Rng, saveAdapter, Tensor } from "../src/index.ts";
import { chromiumPath, runInPage, withoutChromium } from "./support/chromium.ts";
import {
  exampleCommit,
  exampleFiles,
  exampleName,
  exampleRepo,
  HubMirror,
  type MirrorRepo,
  otherCommit,
  sha256,
} from "./support/hub-mirror.ts";
import { type Ended, runCli, writeTinyModel } from "./support/run-cli.ts";

const shardBytes = 3_000_000;
const shard = "model-00001-of-00002.safetensors";
const example = exampleRepo(shardBytes);
const content = example.commits[exampleCommit]!;
const allBytes = exampleFiles.reduce((sum, path) => sum + content[path]!.length, 0);
const token = "hf_SecretSecretSecret";
const { files } = nodeHost();

let mirror: HubMirror;
let scratch: string;
let models: string;
let tiny: MirrorRepo;
let adapter: MirrorRepo;

function repoOf(folder: string): MirrorRepo {
  const entries = readdirSync(folder).map((name) => [name, readFileSync(join(folder, name))]);
  return {
    commits: { [exampleCommit]: Object.fromEntries(entries) },
    refs: { main: exampleCommit },
  };
}

beforeAll(async () => {
  mirror = await HubMirror.open();
  models = mkdtempSync(join(tmpdir(), "plasticity-hub-models-"));
  await writeTinyModel(join(models, "tiny"));
  const { model } = await loadModel(files, join(models, "tiny"));
  const layers = lora(model, { rank: 2 });
  // Where B is zero an adapter changes nothing.
  const params = Object.fromEntries(
    Object.entries(layers.init(new Rng(1))).map(([name, like], i) => [
      name,
      Tensor.from(
        Float32Array.from({ length: like.size }, (_, k) => Math.sin(k + i)),
        like.shape,
      ),
    ]),
  );
  await saveAdapter(files, join(models, "adapter"), layers, params, { base: "org/tiny" });
  tiny = repoOf(join(models, "tiny"));
  adapter = repoOf(join(models, "adapter"));
});
afterAll(async () => {
  await mirror.close();
  rmSync(models, { recursive: true, force: true });
});
beforeEach(() => {
  scratch = mkdtempSync(join(tmpdir(), "plasticity-hub-cli-"));
  mirror.repos.clear();
  mirror.repos.set(exampleName, example);
  mirror.repos.set("org/tiny", tiny);
  mirror.repos.set("org/adapter", adapter);
  mirror.faults.clear();
  mirror.forget();
});
afterEach(() => rmSync(scratch, { recursive: true, force: true }));

const environment = (): Record<string, string> => ({
  HF_ENDPOINT: mirror.url,
  HF_HOME: join(scratch, "hf"),
  HF_HUB_CACHE: "",
  HF_HUB_OFFLINE: "",
  TRANSFORMERS_OFFLINE: "",
  HF_TOKEN: "",
  HUGGING_FACE_HUB_TOKEN: "",
});

const cli = (
  args: readonly string[],
  env: Record<string, string> = {},
  more: Pick<Parameters<typeof runCli>[1], "onStart" | "watch"> = {},
): Promise<Ended> => runCli(args, { cwd: scratch, env: { ...environment(), ...env }, ...more });

const folder = (): string => join(scratch, "hf", "hub", "models--org--example");

/** Waits for something to be so. */
async function until(isSo: () => boolean): Promise<void> {
  for (let left = 2000; !isSo(); left--) {
    if (left === 0) throw new Error("waited in vain");
    await new Promise((again) => setTimeout(again, 5));
  }
}

describe("plasticity download", () => {
  it("lists what it fetched, for people and for machines", async () => {
    const first = await cli(["download", exampleName]);
    expect([first.code, first.stdout.split("\n").slice(-3)]).toEqual([
      0,
      [`org/example at ${exampleCommit}`, join(folder(), "snapshots", exampleCommit), ""],
    ]);
    expect(first.stdout).toMatch(/^model-00001-of-00002\.safetensors +3\.00 MB +fetched$/m);
    expect(first.stderr).toMatch(/org\/example {2}█+ {2}100 % {2}3\.00 MB of 3\.00 MB/);
    const second = await cli(["download", `${exampleName}@next`, "--json"]);
    const found = JSON.parse(second.stdout) as DownloadedModel;
    expect(found).toMatchObject({ repo: exampleName, revision: "next", commit: otherCommit });
    expect(found.files).toContainEqual({
      path: shard,
      bytes: shardBytes,
      etag: sha256(content[shard]!),
      cached: false,
    });
    const third = await cli(["download", exampleName, "--file", "README.md", "--json"]);
    expect((JSON.parse(third.stdout) as DownloadedModel).files.map(({ path }) => path)).toEqual([
      "README.md",
    ]);
    const offline = await cli([
      "download",
      exampleName,
      "--offline",
      "--revision",
      "next",
      "--json",
    ]);
    expect((JSON.parse(offline.stdout) as DownloadedModel).offline).toBe(true);
  });

  it("ends with a sentence", async () => {
    for (const [args, sentence] of [
      [
        ["download"],
        "download: nothing named — give a name on the hub: plasticity download org/name.",
      ],
      [
        ["download", "name"],
        '"name" is no name on the hub — give org/name, org/name@revision or org/name:file.gguf.',
      ],
      [
        ["download", exampleName, "--offline"],
        `hub: org/example is not in the cache at ${join(scratch, "hf", "hub")} — fetch it once with a network, and without HF_HUB_OFFLINE.`,
      ],
    ] as const) {
      const { code, stderr } = await cli(args);
      expect([code, stderr]).toEqual([2, `${sentence}\n`]);
    }
  });

  it("goes on after kill -9, and fetches only the rest", async () => {
    mirror.faults.set(shard, { slow: 10 });
    const partial = join(folder(), "blobs", `${sha256(content[shard]!)}.plasticity.incomplete`);
    const size = (): number => lstatSync(partial, { throwIfNoEntry: false })?.size ?? 0;
    const killed = await cli(
      ["download", exampleName],
      {},
      {
        onStart: (child) => {
          void until(() => size() >= 2 ** 20).then(() => child.kill("SIGKILL"));
        },
      },
    );
    expect(killed.signal).toBe("SIGKILL");
    const kept = size();
    expect(kept).toBeGreaterThanOrEqual(2 ** 20);
    mirror.faults.clear();
    mirror.forget();
    const { code, stderr } = await cli(["download", exampleName]);
    expect([code, mirror.sent(shard)], stderr).toEqual([0, shardBytes - kept]);
    expect(sha256(readFileSync(join(folder(), "snapshots", exampleCommit, shard)))).toBe(
      sha256(content[shard]!),
    );
  });

  it("fetches once what two processes want at once", async () => {
    mirror.faults.set(shard, { slow: 2 });
    const both = await Promise.all([1, 2].map(() => cli(["download", exampleName, "--json"])));
    expect(both.map(({ code }) => code)).toEqual([0, 0]);
    expect(mirror.sent(shard)).toBe(shardBytes);
    expect(mirror.sent()).toBe(allBytes);
    const [one, two] = both.map(({ stdout }) => (JSON.parse(stdout) as DownloadedModel).folder);
    expect(one).toBe(two);
    const left = readdirSync(join(scratch, "hf", "hub", ".locks", "models--org--example"));
    expect(left).toEqual([]);
  });

  it("stops on Ctrl-C, and says that it can go on", async () => {
    mirror.faults.set(shard, { slow: 10 });
    const { code, stderr } = await cli(
      ["download", exampleName],
      {},
      {
        onStart: (child) => {
          void until(() => mirror.sent(shard) > 500_000).then(() => child.kill("SIGINT"));
        },
      },
    );
    expect(code).toBe(2);
    expect(stderr).toMatch(/hub: stopped — run it again, it goes on where it was\.\n$/);
  });

  it("shows no token, whatever goes wrong", async () => {
    mirror.repos.set("org/gated", { ...example, gatedFor: ["hf_other"] });
    mirror.repos.set("org/private", { ...example, privateFor: [token] });
    const said: string[] = [];
    for (const name of ["org/gated", "org/missing", "org/private", "org/private@v9"]) {
      const { stdout, stderr } = await cli(["download", name, "--debug"], { HF_TOKEN: token });
      said.push(stdout, stderr);
    }
    const doctor = await cli(["doctor", "--skip-webgpu"], { HF_TOKEN: token });
    said.push(doctor.stdout, doctor.stderr);
    expect(said.join("\n")).toContain("the account of this token has no access");
    expect(said.join("\n")).not.toContain("SecretSecret");
    const toStore = mirror.requests.filter(({ server }) => server === "store");
    expect(toStore.length).toBeGreaterThan(0);
    expect(toStore.every(({ headers }) => headers.authorization === undefined)).toBe(true);
  });
});

describe("commands that read a model", () => {
  const generate = ["generate", "--prompt", "hello", "--max-new-tokens", "6", "--temperature", "0"];

  it("take names on the hub for models and adapters, and then need no network", async () => {
    const here = await cli([
      ...generate,
      "--model",
      join(models, "tiny"),
      "--adapter",
      join(models, "adapter"),
      "--json",
    ]);
    const named = [...generate, "--model", "org/tiny", "--adapter", "org/adapter", "--json"];
    const fetched = await cli(named);
    const text = (JSON.parse(here.stdout) as { text: string }).text;
    expect((JSON.parse(fetched.stdout) as { text: string }).text).toBe(text);
    mirror.forget();
    const offline = await cli(named, { HF_HUB_OFFLINE: "1" });
    expect((JSON.parse(offline.stdout) as { text: string }).text).toBe(text);
    expect(mirror.requests).toEqual([]);
    const info = await cli(["info", "org/tiny"], { HF_HUB_OFFLINE: "1" });
    expect([info.code, info.stderr]).toEqual([0, ""]);
    expect(info.stdout).toContain("llama");
  });

  it("take a folder here before a name there, and say what neither has", async () => {
    mkdirSync(join(scratch, "org"));
    await writeTinyModel(join(scratch, "org", "tiny"));
    const local = await cli([...generate, "--model", "org/tiny"]);
    expect([local.code, mirror.requests]).toEqual([0, []]);
    const { code, stderr } = await cli([...generate, "--model", "runs/missing"]);
    expect([code, stderr]).toEqual([
      2,
      `hub: there is no repository "runs/missing" at ${mirror.url}, or it is private — check the name; for a private one set HF_TOKEN.\n`,
    ]);
  });
});

it.skipIf(chromiumPath === undefined)(
  `a page keeps whole files, resumes, and shows other hosts no token${withoutChromium}`,
  async () => {
    mirror.repos.set("org/private", { ...example, privateFor: [token] });
    mirror.faults.set(shard, { stall: { after: 1_000_000, times: 1 } });
    const told = await runInPage<{
      folder: string;
      sizes: number[];
      offline: boolean;
      cached: boolean[];
    }>(
      `import { browserHost } from "plasticity/browser";
       import { downloadModel } from "plasticity";
       export default async ({ endpoint, token }) => {
         const host = browserHost({ root: "hub-test" });
         const options = { endpoint, token, retryDelay: 1, stallTimeout: 1000 };
         const { folder, files } = await downloadModel(host, "org/private", options);
         const sizes = [];
         for (const { path } of files) {
           sizes.push((await host.files.info(host.files.join(folder, path))).bytes);
         }
         const again = await downloadModel(host, "org/private", { ...options, offline: true });
         return { folder, sizes, offline: again.offline, cached: again.files.map((file) => file.cached) };
       };`,
      { endpoint: mirror.url, token },
    );
    expect(told.folder).toBe(`huggingface/hub/models--org--private/snapshots/${exampleCommit}`);
    expect(told.sizes.reduce((a, b) => a + b, 0)).toBe(allBytes);
    expect([told.offline, told.cached.every(Boolean)]).toEqual([true, true]);
    const toStore = mirror.requests.filter(
      ({ server, method }) => server === "store" && method === "GET",
    );
    expect(toStore.map(({ headers }) => headers.range)).toContain("bytes=1000000-");
    expect(toStore.every(({ headers }) => headers.authorization === undefined)).toBe(true);
  },
  120_000,
);
