/** `plasticity merge`, as a person runs it: by options and by mergekit's files, stopped, killed, on full disks. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lora } from "../src/adapters/lora.ts";
import { saveAdapter } from "../src/adapters/peft.ts";
import { nodeHost } from "../src/host/node.ts";
import { loadModel, saveModel } from "../src/models/folder.ts";
import { Llama } from "../src/models/llama.ts";
import { Rng } from "../src/tensor/rng.ts";
import { inMounts, noMounts } from "./support/bad-disk.ts";
import { runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-cli-merge-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);
const { files } = nodeHost();
const denied = noMounts();

/** Numbers enough for a merge to take a moment. */
const wide = new Llama({
  vocabSize: 257,
  dModel: 256,
  dFeedForward: 1024,
  nLayers: 6,
  nHeads: 4,
  maxPositions: 32,
});

beforeAll(async () => {
  for (const name of ["base", "a"]) await writeTinyModel(at(name));
  const { model, params } = await loadModel(files, at("base"));
  const moved = Object.entries(params).map(([name, tensor]) => [name, tensor.clone()] as const);
  for (const [, { data }] of moved) (data as Float32Array)[0]! += 0.5;
  await saveModel(files, at("b"), model, Object.fromEntries(moved));
  const adapter = lora(model, { rank: 2, targetModules: ["q_proj"] });
  await saveAdapter(files, at("adapter"), adapter, adapter.init(new Rng(1)));
  for (const [seed, name] of ["wide-1", "wide-2"].entries()) {
    await saveModel(files, at(name), wide, wide.init(new Rng(seed)).params);
  }
});

interface Printed {
  readonly out: string;
  readonly method: string;
  readonly weights: readonly { model: string; relative: number }[];
  readonly outputs: readonly { model: string; maxRelative: number }[];
  readonly mergeRate: number;
  readonly copy?: { rate: number; areCachesDropped: boolean };
}

describe("plasticity merge", () => {
  it("takes options, prints how far apart models are and how fast it was", async () => {
    const args =
      "merge --method task_arithmetic --base base --models a b --set weight=0.5+1 --out sum";
    const { code, stdout, stderr } = await runCli(args.split(" "), { cwd: root });
    expect([code, stderr]).toEqual([
      0,
      expect.stringMatching(/^Note: "b" has no tokenizer\.json: .*\nmerging {2}\d+ %/),
    ]);
    expect(stdout).toMatch(
      /^Wrote sum: \d+ tensors, [\d.]+ k numbers as F32; read back, and every one is finite and as merged\.$/m,
    );
    expect(stdout).toMatch(/^base +\d\.\d\de-\d+ +\d\.\d\de-\d+ +\d+\.\d %$/m);
    expect(stdout).toMatch(
      /^The merged model loads, and its outputs on the probe inputs are finite\.$/m,
    );
    expect(stdout).toMatch(
      /^Merged .* read and written; checked in [\d.]+ s, tried in [\d.]+ s\.$/m,
    );
    expect(stdout).toMatch(
      /^Copying .* here: .*\/s \(files perhaps cached by the system, caches not dropped\); the merge ran at \d+ % of that\.$/m,
    );
    // "a" is the base itself, so that the sum is "b".
    const [sum, b] = await Promise.all(["sum", "b"].map((name) => loadModel(files, at(name))));
    expect(sum!.params).toEqual(b!.params);
    expect(readdirSync(root).filter((name) => name.includes(".tmp-"))).toEqual([]);
    expect(readdirSync(at("sum"))).toContain("tokenizer.json");
  });

  it("takes mergekit's file, with a LoRA written in on the way, and prints JSON", async () => {
    writeFileSync(
      at("merge.yml"),
      `merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 1]}
      - {model: base+adapter, layer_range: [0, 1]}
parameters:
  t:
    - {filter: self_attn, value: [0, 1]}
    - value: 0.5
dtype: bfloat16
`,
    );
    const { code, stdout } = await runCli(
      ["merge", "merge.yml", "--out", "arc", "--json", "--measure", "none"],
      { cwd: root },
    );
    expect(code).toBe(0);
    const printed = JSON.parse(stdout) as Printed;
    expect(printed.method).toBe("slerp");
    expect(printed.outputs.map(({ model }) => model)).toEqual(["base", "base+adapter"]);
    expect(printed.copy).toBeUndefined();
    const config = JSON.parse(readFileSync(at("arc", "config.json"), "utf8"));
    expect(config.dtype).toBe("bfloat16");
  });

  it("says in a dry run what would be read and written, and writes nothing", async () => {
    const before = readdirSync(root);
    const args = "merge --method ties --base wide-1 --models wide-2 --dry-run --json";
    const { code, stdout } = await runCli(args.split(" "), { cwd: root });
    expect(code).toBe(0);
    const bytes =
      4 * Object.values(wide.init(new Rng(0)).params).reduce((n, { size }) => n + size, 0);
    expect(JSON.parse(stdout)).toMatchObject({
      dryRun: true,
      bytesRead: 2 * bytes,
      bytesWritten: bytes,
      models: ["wide-1", "wide-2"],
    });
    expect(readdirSync(root)).toEqual(before);
  });

  it.each([
    [
      "merge --out x",
      "merge: give one configuration in mergekit's form, or --method with --models.",
    ],
    ["merge --method ties --out x", "merge: --models is missing — name the models to merge."],
    ["merge --method ties --models a", "merge: --out is missing — name the folder to write."],
    ["merge --method tie --models a --out x", 'merge: unknown method "tie" — did you mean "ties"?'],
    [
      "merge --method ties --models a --out base",
      'merge: --out "base" exists already — name a new folder, or remove that one first.',
    ],
    [
      "merge --method ties --base base --models a b --set density=0.1+0.2+0.3 --out x",
      'merge: --set "density=0.1+0.2+0.3" has 3 values for 2 models — give one for each, or one for all.',
    ],
    [
      "merge --method ties --base base --models a b --set lambda=1+2 --out x",
      'merge: --set "lambda=1+2" is one for all models — give one value.',
    ],
    [
      "merge --method ties --base base --models a --set density --out x",
      'merge: --set "density" must be name=value, each name once, as --set density=0.2.',
    ],
    [
      "merge c.yml --base base --out x",
      "merge: --base, --models and --set go with --method — name one, or give a configuration alone.",
    ],
    [
      "merge --method linear --models a wide-1 --out x",
      'linear: tensor "lm_head.weight" of "wide-1" has shape (257, 256), that of "a" (257, 16) — models must have one architecture and size.',
    ],
  ])("%s: is refused in a sentence", async (args, said) => {
    const { code, stderr } = await runCli(args.split(" "), { cwd: root });
    expect(stderr.trimEnd().split("\n").at(-1)).toBe(said);
    expect(code).toBe(2);
    expect(existsSync(at("x"))).toBe(false);
  });

  const long =
    "merge --method ties --base wide-1 --models wide-2 --threads 1 --measure none --out killed";

  it("killed in the middle leaves no folder that loads, and the next merge clears up", async () => {
    let isKilled = false;
    const { signal } = await runCli(long.split(" "), {
      cwd: root,
      watch: (stderr, child) => {
        if (!/^merging /m.test(stderr)) return;
        isKilled = true;
        child.kill("SIGKILL");
      },
    });
    expect([signal, isKilled]).toEqual(["SIGKILL", true]);
    expect(existsSync(at("killed"))).toBe(false);
    const left = readdirSync(root).filter((name) => name.startsWith("killed.tmp-"));
    expect(left).toHaveLength(1);
    expect(readdirSync(at(left[0]!))).not.toContain("config.json");
    const { code } = await runCli(long.split(" "), { cwd: root });
    expect(code).toBe(0);
    expect(readdirSync(root).filter((name) => name.startsWith("killed"))).toEqual(["killed"]);
    await loadModel(files, at("killed"));
  });

  it("stops at Ctrl-C between two tensors and leaves nothing", async () => {
    let isAsked = false;
    const { code, stderr } = await runCli(long.replace("killed", "stopped").split(" "), {
      cwd: root,
      watch: (stderr, child) => {
        if (isAsked || !/^merging /m.test(stderr)) return;
        child.kill("SIGINT");
        isAsked = true;
      },
    });
    expect(stderr).toMatch(/Stopped; nothing was written\.\n$/);
    expect(code).toBe(130);
    expect(readdirSync(root).filter((name) => name.startsWith("stopped"))).toEqual([]);
  });

  it("refuses a disk that is too small before it begins, and one that fills up meanwhile", async (context) => {
    if (denied) context.skip(denied);
    for (const name of ["small", "filling"]) mkdirSync(at(name));
    const tiny = "cli merge --method linear --models base b --measure none";
    const script = [
      "mount -t tmpfs -o size=32k none small",
      `${tiny} --out small/merged > /dev/null 2> small.txt && exit 9 || echo $? > codes.txt`,
      "ls -A small >> codes.txt",
      // Enough for the weights, and not for the tokenizer beside them.
      "mount -t tmpfs -o size=28k none filling",
      `${tiny} --dtype float16 --out filling/merged > /dev/null 2> filling.txt && exit 9 || echo $? >> codes.txt`,
      "ls -A filling >> codes.txt",
    ];
    const { code, stderr } = await inMounts(script.join("\n"), root);
    expect([code, stderr]).toEqual([0, ""]);
    expect(readFileSync(at("small.txt"), "utf8")).toMatch(
      /merge: the merged model takes [\d.]+ kB, [\d.]+ kB are free where small\/merged would lie — make room, choose another disk, or a smaller type \(--dtype bfloat16\)\.\n$/,
    );
    expect(readFileSync(at("filling.txt"), "utf8")).toMatch(
      /filling\/merged\.tmp-\d+\/\S+: cannot be written, the disk is full — make room and try again; what was there before is unchanged\.\n$/,
    );
    expect(readFileSync(at("codes.txt"), "utf8")).toBe("2\n2\n");
  });
});
