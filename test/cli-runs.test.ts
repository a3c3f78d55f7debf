/** Runs on the command line: their folders, how they stop and go on, and what is known beforehand. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Ended, runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-runs-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);

beforeAll(async () => {
  await writeTinyModel(at("model"));
  const lines = Array.from({ length: 40 }, (_, i) => ({
    prompt: `say ${i}`,
    completion: `${i}!`.repeat(1 + (i % 4)),
  }));
  writeFileSync(at("data.jsonl"), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
});

const tiny = ["--model", "model", "--data", "data.jsonl", "--threads", "1", "--rank", "2"];
const finetune = ["finetune", ...tiny, "--batch-size", "4", "--eval-limit", "2"];
const cli = (args: readonly string[], watch?: Parameters<typeof runCli>[1]["watch"]) =>
  runCli(args, { cwd: root, ...(watch && { watch }) });
const jsonOf = ({ stdout }: Ended): Record<string, unknown> =>
  JSON.parse(stdout) as Record<string, unknown>;
const bytesOf = (folder: string): Buffer => readFileSync(at(folder, "adapter_model.safetensors"));

describe("a run", () => {
  it("that was stopped goes on to the same bytes, and its folder tells all of it", async () => {
    const whole = await cli([...finetune, "--steps", "40", "--out", "whole", "--eval-every", "10"]);
    expect(whole.code, whole.stderr).toBe(0);
    let isSent = false;
    const stopped = await cli(
      [...finetune, "--steps", "40", "--out", "stopped", "--eval-every", "10"],
      (stderr, child) => {
        if (isSent || !/^step +2\//m.test(stderr)) return;
        isSent = true;
        child.kill("SIGINT");
      },
    );
    // It may have been too fast for us; then there is nothing to go on with.
    if (stopped.code === 130) {
      expect(stopped.stdout).toMatch(
        /Stopped after \d+ of 40 steps\. Go on with:\n\n {2}npx plasticity finetune --resume stopped\n/,
      );
      expect(readdirSync(at("stopped"))).not.toContain("result.json");
    }
    const rest = await cli(["finetune", "--resume", "stopped", "--threads", "1"]);
    expect(rest.code, rest.stderr).toBe(0);
    expect(bytesOf("stopped").equals(bytesOf("whole"))).toBe(true);
    expect(readdirSync(at("stopped")).filter((name) => !name.startsWith("events."))).toEqual([
      "README.md",
      "adapter_config.json",
      "adapter_model.safetensors",
      "before.json",
      "checkpoints",
      "environment.json",
      "loss.svg",
      "metrics.jsonl",
      "result.json",
      "run.json",
      "samples.json",
    ]);
    const again = await cli(["finetune", "--resume", "stopped"]);
    expect([again.code, again.stdout]).toEqual([
      0,
      "stopped is finished, nothing is left to do.\n",
    ]);
    const card = readFileSync(at("stopped", "README.md"), "utf8");
    expect(card).toContain("| batch size | 4 |");
    expect(card).toContain("![Loss over steps](loss.svg)");
    const environment = JSON.parse(readFileSync(at("stopped", "environment.json"), "utf8")) as {
      threads: number;
    }[];
    expect(environment.at(-1)!.threads).toBe(1);

    const table = await cli(["runs", ".", "--chart", "all.svg"]);
    expect(table.code, table.stderr).toBe(0);
    expect(table.stdout).toMatch(/^stopped +finished +model +data\.jsonl +lora r2 +40 /m);
    expect(table.stdout).toMatch(/^whole +finished /m);
    expect(readFileSync(at("all.svg"), "utf8")).toMatch(/^<svg/);
    const listed = jsonOf(await cli(["runs", "whole", "--json"])) as { runs: { steps: number }[] };
    expect(listed.runs).toMatchObject([{ folder: "whole", state: "finished", steps: 40 }]);
  });

  it("refuses what does not belong to it", async () => {
    const base = await cli([...finetune, "--steps", "2", "--out", "base"]);
    expect(base.code, base.stderr).toBe(0);
    rmSync(at("base", "result.json"));
    const cases: [readonly string[], string][] = [
      [
        [...finetune, "--steps", "2", "--out", "base"],
        "base: holds a run already — go on with it by --resume base, or choose another folder.",
      ],
      [
        ["finetune", "--resume", "base", "--rank", "4"],
        "finetune: --rank was 2 when base began, and is 4 now — leave it out, or begin a new run.",
      ],
      [
        ["finetune", "--resume", "base", "--full"],
        "finetune: --full was not given when base began, and is true now — leave it out, or begin a new run.",
      ],
      [
        ["finetune", "--resume", "nowhere"],
        "finetune: nowhere holds no run to go on with, it has no run.json — give --data and the other options, and it is begun.",
      ],
      [
        ["finetune", "--resume", "base", "--out", "other"],
        "finetune: --resume names the run's folder; leave --out away.",
      ],
      [
        ["runs", "nowhere"],
        'runs: nowhere is no folder — name one that holds runs, or begin a run with "plasticity finetune".',
      ],
    ];
    for (const [args, sentence] of cases) {
      const { code, stderr } = await cli(args);
      expect([code, stderr]).toEqual([2, `${sentence}\n`]);
    }
    const kept = readFileSync(at("data.jsonl"));
    writeFileSync(at("data.jsonl"), kept.subarray(0, kept.lastIndexOf(10, kept.length - 2) + 1));
    const { code, stderr } = await cli(["finetune", "--resume", "base"]);
    writeFileSync(at("data.jsonl"), kept);
    expect([code, stderr]).toEqual([
      2,
      "base: the data data.jsonl is not what it was when the run began — put it back, or begin a new run.\n",
    ]);
  });

  it("is of one process at a time", async () => {
    let second: Promise<Ended> | undefined;
    const first = await cli(
      [...finetune, "--steps", "100000", "--out", "taken", "--eval-limit", "0"],
      (stderr, child) => {
        if (second || !/^step +1\//m.test(stderr)) return;
        second = cli(["finetune", "--resume", "taken"]);
        void second.then(() => child.kill("SIGINT"));
      },
    );
    expect(first.code, first.stderr).toBe(130);
    const { code, stderr } = await second!;
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^taken: another process trains in this folder \(\d+\) — wait until it ends, or stop it first\.\n$/,
    );
  });

  it.skipIf(process.platform === "win32")(
    "answers Ctrl-C within 100 ms, in the middle of a step",
    async () => {
      const waits: number[] = [];
      // The processor may be busy with other tests: the best of a few counts.
      for (let i = 0; i < 4 && Math.min(Infinity, ...waits) >= 100; i++) {
        let sent = 0;
        const args = ["--data", "data.jsonl", "--batch-size", "32", "--eval-limit", "0"];
        const { code } = await cli(
          ["finetune", ...args, "--out", `interrupted-${i}`],
          (stderr, child) => {
            if (sent > 0) {
              if (stderr.includes("Stopping after this step")) waits.push(performance.now() - sent);
            } else if (/^step +1\//m.test(stderr)) {
              sent = performance.now();
              child.kill("SIGINT");
            }
          },
        );
        expect(code).toBe(130);
      }
      expect(Math.min(...waits)).toBeLessThan(100);
    },
  );
});

describe("before a run", () => {
  it("--preview shows which tokens carry loss and trains nothing", async () => {
    const { code, stdout } = await cli([...finetune, "--preview", "--out", "previewed"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^First pair \(data\.jsonl:1\): \d+ tokens, \d+ carry loss/m);
    expect(stdout).toMatch(/say 0↵\n⟦0!/);
    expect(readdirSync(root)).not.toContain("previewed");
  });

  it("--dry-run says what it takes, and trains nothing", async () => {
    const { code, stdout } = await cli([...finetune, "--dry-run", "--json", "--out", "dry"]);
    expect(code).toBe(0);
    const estimate = JSON.parse(stdout) as Record<string, number>;
    // 36 or so examples by 4, three times.
    expect(estimate["steps"]).toBeGreaterThan(20);
    expect(estimate["seconds"]).toBeGreaterThan(0);
    expect(estimate["memoryBytes"]).toBeGreaterThan(5e7);
    expect(readdirSync(root)).not.toContain("dry");
  });

  it("--dry-run knows the memory of a real run within a quarter", async () => {
    const args = ["finetune", "--data", "commands", "--steps", "40", "--eval-limit", "0", "--json"];
    const estimate = jsonOf(await cli([...args, "--dry-run"]));
    const report = jsonOf(await cli([...args, "--out", "measured"]));
    const ratio = Number(estimate["memoryBytes"]) / Number(report["peakMemoryBytes"]);
    expect(ratio).toBeGreaterThan(0.75);
    expect(ratio).toBeLessThan(1.25);
  });

  it("refuses what does not fit into memory, and says what would", async () => {
    const big = [
      "finetune",
      "--data",
      "data.jsonl",
      "--full",
      "--batch-size",
      "64",
      "--out",
      "big",
    ];
    const { code, stderr } = await cli([...big, "--memory-limit", "0.3"]);
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^finetune: needs about [\d.]+ [GM]B of memory, 300 MB may be taken — (with --|no setting here brings it below).*\.\n$/,
    );
    expect(readdirSync(root)).not.toContain("big");
  });

  it("--find-learning-rate shows the loss over rates", async () => {
    const { code, stdout, stderr } = await cli([...finetune, "--find-learning-rate", "--json"]);
    expect(code, stderr).toBe(0);
    const { learningRate, trials } = JSON.parse(stdout) as {
      learningRate: number;
      trials: unknown[];
    };
    expect(learningRate).toBeGreaterThan(1e-6);
    expect(learningRate).toBeLessThan(1);
    expect(trials.length).toBeGreaterThan(10);
    expect(readFileSync(at("learning-rates.svg"), "utf8")).toMatch(/^<svg/);
  });
});

describe("--compare", () => {
  it("trains each method on the same steps, and shows which is best", async () => {
    const args = [...finetune, "--steps", "6", "--compare", "lora,lora:rank=4:alpha=4,full"];
    const { code, stdout, stderr } = await cli([...args, "--out", "compared"]);
    expect(code, stderr).toBe(0);
    expect(stdout).toMatch(
      /^method +held-out loss +exact match +trained +ms a step +peak memory$/m,
    );
    for (const name of ["lora", "lora:rank=4:alpha=4", "full"]) {
      expect(stdout).toMatch(new RegExp(`^${name}( \\*)? +[\\d.]+ `, "m"));
    }
    expect(stdout.match(/ \* /g)).toHaveLength(1);
    expect(readdirSync(at("compared"))).toEqual([
      "compare.json",
      "compare.svg",
      "cost.svg",
      "full",
      "lora",
      "lora-rank-4-alpha-4",
    ]);
    const { results } = JSON.parse(readFileSync(at("compared", "compare.json"), "utf8")) as {
      results: { trainedParameters: number; steps: number; peakMemoryBytes: number }[];
    };
    // 2 · (4 · 32 + 3 · 48), twice that, and all.
    expect(results.map((one) => one.trainedParameters)).toEqual([544, 1088, 10832]);
    expect(results.map((one) => one.steps)).toEqual([6, 6, 6]);
    for (const { peakMemoryBytes } of results) expect(peakMemoryBytes).toBeGreaterThan(5e7);
  });

  it.each([
    ["lora,fulll", 'finetune: --compare knows no method "fulll" — did you mean "full"?'],
    ["lora", 'finetune: --compare needs at least two methods, as "lora,full".'],
    ["lora,lora", 'finetune: --compare has "lora" twice.'],
    [
      "lora,lora:rnk=3",
      'finetune: --compare lora:rnk=3: "rnk" is no option that methods may differ in — did you mean "rank"?',
    ],
  ])("refuses %s", async (methods, sentence) => {
    const { code, stderr } = await cli([...finetune, "--compare", methods]);
    expect([code, stderr]).toEqual([2, `${sentence}\n`]);
  });
});
