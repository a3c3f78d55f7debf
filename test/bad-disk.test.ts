/** Disks that are full, read-only or closed to us: a sentence, and what was there is there still. */
import { spawn } from "node:child_process";
import {
  chmodSync,
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
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lora } from "../src/adapters/lora.ts";
import { saveAdapter } from "../src/adapters/peft.ts";
import { nodeHost } from "../src/host/node.ts";
import { loadModel } from "../src/models/folder.ts";
import { Rng } from "../src/tensor/rng.ts";
import { loadState } from "../src/train/checkpoint.ts";
import { ended, inMounts, noMounts } from "./support/bad-disk.ts";
import { cliPath, runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-disk-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);
const { files } = nodeHost();
const denied = noMounts();

const training =
  "finetune --model model --data data.jsonl --threads 1 --batch-size 4 --eval-limit 1 --full --steps 20 --save-every 5 --keep 5";
const full =
  "cannot be written, the disk is full — make room and try again; what was there before is unchanged.";

beforeAll(async () => {
  chmodSync(root, 0o755);
  await writeTinyModel(at("model"));
  const { model } = await loadModel(files, at("model"));
  const adapter = lora(model, { rank: 2, targetModules: ["q_proj"] });
  const params = adapter.init(new Rng(1));
  await saveAdapter(files, at("adapter"), adapter, params);
  const lines = Array.from({ length: 40 }, (_, i) => ({ prompt: `say ${i}`, completion: `${i}!` }));
  writeFileSync(at("data.jsonl"), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
});

describe("a disk", () => {
  it("that is full at a checkpoint costs nothing: the run goes on where room is made", async (context) => {
    if (denied) context.skip(denied);
    mkdirSync(at("disk"));
    // A checkpoint takes 134 kB: two fit.
    const script = [
      "mount -t tmpfs -o size=1m none disk",
      "head -c 650000 /dev/zero > disk/ballast",
      `cli ${training} --out disk/run > /dev/null 2> stopped.txt && exit 9 || echo $? > code.txt`,
      "cp -r disk/run stopped",
      "rm disk/ballast",
      "cli finetune --resume disk/run --threads 1 > /dev/null 2> resumed.txt",
      "cp -r disk/run resumed",
    ];
    const [disk, plain] = await Promise.all([
      inMounts(script.join("\n"), root),
      runCli([...training.split(" "), "--out", "plain"], { cwd: root }),
    ]);
    expect([disk, plain.code]).toEqual([{ code: 0, signal: null, stdout: "", stderr: "" }, 0]);
    expect(readFileSync(at("code.txt"), "utf8")).toBe("2\n");
    const said = readFileSync(at("stopped.txt"), "utf8").trimEnd().split("\n");
    expect(said.at(-1)).toBe(`disk/run/checkpoints/step-00000015.safetensors: ${full}`);
    expect(said.join("\n")).not.toContain("fault of plasticity");
    // What was whole stays whole, and nothing half stands beside it.
    const kept = readdirSync(at("stopped", "checkpoints"));
    expect(kept).toEqual(["step-00000005.safetensors", "step-00000010.safetensors"]);
    for (const name of kept) {
      const { optimizer } = await loadState(files, at("stopped", "checkpoints", name));
      expect(optimizer.step).toBe(Number(name.slice(5, 13)));
    }
    expect(readdirSync(at("stopped")).filter((name) => /tmp|result|model/.test(name))).toEqual([]);
    const log = readFileSync(at("stopped", "metrics.jsonl"), "utf8");
    expect(log.endsWith("}\n")).toBe(true);
    expect(
      log
        .trimEnd()
        .split("\n")
        .map((line) => (JSON.parse(line) as { step: number }).step),
    ).toEqual(Array.from({ length: 15 }, (_, i) => i + 1));
    expect(readFileSync(at("resumed.txt"), "utf8")).toMatch(/^step 11\/20 /m);
    const [resumed, undisturbed] = [
      at("resumed", "model.safetensors"),
      at("plain", "model.safetensors"),
    ];
    expect(readFileSync(resumed).equals(readFileSync(undisturbed))).toBe(true);
  });

  it("that is full at the start, or while a model is merged, keeps only what it had", async (context) => {
    if (denied) context.skip(denied);
    mkdirSync(at("small"));
    const script = [
      "mount -t tmpfs -o size=32k none small",
      "mkdir small/run",
      "cli merge-adapter --model model --adapter adapter --out small/merged --threads 1 > /dev/null 2> merge.txt && exit 9 || echo $? > codes.txt",
      "ls -A small >> codes.txt",
      "head -c 100000 /dev/zero > small/ballast || true",
      `cli ${training} --out small/run > /dev/null 2> start.txt && exit 9 || echo $? >> codes.txt`,
      "ls -A small small/run >> codes.txt",
    ];
    const { code, stderr } = await inMounts(script.join("\n"), root);
    expect([code, stderr]).toEqual([0, expect.stringContaining("No space left on device")]);
    expect(readFileSync(at("merge.txt"), "utf8")).toMatch(
      new RegExp(`^/\\S+/small/merged\\.tmp-\\d+/\\S+: ${full}\n$`),
    );
    expect(readFileSync(at("start.txt"), "utf8")).toMatch(
      new RegExp(`^small/run/\\S+: ${full}\n$`),
    );
    expect(readFileSync(at("codes.txt"), "utf8")).toBe(
      "2\nrun\n2\nsmall:\nballast\nrun\n\nsmall/run:\n",
    );
  });

  it("that is read-only is named, for a run, a merge and a run that goes on", async (context) => {
    if (denied) context.skip(denied);
    mkdirSync(at("fixed"));
    const script = [
      "mount -t tmpfs -o size=1m none fixed",
      `cli ${training} --steps 1 --out fixed/done > /dev/null 2>&1`,
      "rm fixed/done/result.json",
      "mount -o remount,ro fixed",
      "for what in 'finetune --model model --data data.jsonl --threads 1 --out fixed/run' 'finetune --resume fixed/done' 'merge-adapter --model model --adapter adapter --out fixed/merged --threads 1'; do",
      "  cli $what > /dev/null 2>> fixed.txt && exit 9 || echo $? >> fixed.txt",
      "done",
      "ls fixed",
    ];
    const shell = await inMounts(script.join("\n"), root);
    expect(shell).toEqual({ code: 0, signal: null, stdout: "done\n", stderr: "" });
    const refused = "its file system is read-only — choose a folder on another one.";
    expect(
      readFileSync(at("fixed.txt"), "utf8").replace(/\/\S+\/fixed\/merged\.tmp-\d+/, "merged"),
    ).toBe(
      [
        `fixed/run: cannot be made, ${refused}`,
        "2",
        `fixed/done/run.lock: cannot be written, ${refused}`,
        "2",
        `merged: cannot be made, ${refused}`,
        "2\n",
      ].join("\n"),
    );
  });
});

describe.skipIf(process.platform === "win32")("a permission", () => {
  /** Runs the command line as somebody without rights, where this process has all of them. */
  const asNobody = (args: readonly string[]) =>
    ended(
      spawn(process.execPath, [cliPath, ...args], {
        cwd: root,
        stdio: ["ignore", "pipe", "pipe"],
        ...(process.getuid!() === 0 && { uid: 65534, gid: 65534 }),
      }),
    );

  it("that is lacking is named with the place where it is", async (context) => {
    const works = await asNobody(["info", "model"]).catch(() => undefined);
    if (works?.code !== 0) context.skip("nobody may read this package here");
    mkdirSync(at("closed", "inner"), { recursive: true });
    writeFileSync(at("closed", "inner", "data.jsonl"), "");
    writeFileSync(at("secret.jsonl"), "{}");
    mkdirSync(at("shut"));
    chmodSync(at("closed", "inner"), 0o000);
    chmodSync(at("secret.jsonl"), 0o000);
    chmodSync(at("shut"), 0o555);
    const where = "change the permissions there, or choose another place.";
    const base = ["finetune", "--model", "model", "--threads", "1"];
    const cases: readonly (readonly [readonly string[], string])[] = [
      [
        [...base, "--data", "closed/inner/data.jsonl", "--out", "no"],
        `closed/inner/data.jsonl: no permission to enter closed/inner — ${where}\n`,
      ],
      [
        [...base, "--data", "secret.jsonl", "--out", "no"],
        `secret.jsonl: no permission to read it — ${where}\n`,
      ],
      [
        [...base, "--data", "data.jsonl", "--out", "shut/run"],
        `shut/run: no permission to write in shut — ${where}\n`,
      ],
    ];
    const all = await Promise.all(cases.map(([args]) => asNobody(args)));
    chmodSync(at("closed", "inner"), 0o755);
    expect(all).toEqual(cases.map(([, stderr]) => ({ code: 2, signal: null, stdout: "", stderr })));
    expect(readdirSync(at("shut"))).toEqual([]);
    expect(existsSync(at("no"))).toBe(false);
  });
});

describe.skipIf(process.platform === "win32")("a limit of the process", () => {
  const host = fileURLToPath(new URL("../dist/host/node.js", import.meta.url));
  /** Runs lines of JavaScript with `files` of a Node host, after a `ulimit`. */
  const limited = (limit: string, code: string) => {
    const script = `const { nodeHost } = await import(${JSON.stringify(host)}); const { files } = nodeHost();
      try { ${code} } catch (error) { console.log(error.name, error.details.errno, error.message); }`;
    const shell = `ulimit ${limit}; exec "$0" --input-type=module -e "$1"`;
    return ended(
      spawn("sh", ["-c", shell, process.execPath, script], {
        cwd: root,
        stdio: ["ignore", "pipe", "pipe"],
      }),
    );
  };

  it("on a file's size leaves a log as it was, and no part of a new file", async () => {
    writeFileSync(at("log"), "old line\n");
    const sentence =
      "cannot be written, the file would be larger than its file system or the limit of this process (ulimit -f) allows — raise the limit, or choose another disk; what was there before is unchanged.";
    const appended = await limited("-f 4", 'await files.append("log", "x".repeat(1e5));');
    expect(appended.stdout).toBe(`StateError EFBIG log: ${sentence}\n`);
    expect(readFileSync(at("log"), "utf8")).toBe("old line\n");
    const written = await limited("-f 4", 'await files.writeText("log", "x".repeat(1e5));');
    expect(written.stdout).toBe(`StateError EFBIG log: ${sentence}\n`);
    expect(readFileSync(at("log"), "utf8")).toBe("old line\n");
    expect(readdirSync(root).filter((name) => name.startsWith("log"))).toEqual(["log"]);
  });

  it("on open files is named", async () => {
    const { stdout } = await limited("-n 40", 'for (;;) await files.open("data.jsonl");');
    expect(stdout).toBe(
      "StateError EMFILE data.jsonl: cannot be read, this process has too many files open — raise the limit (ulimit -n) and try again.\n",
    );
  });
});
