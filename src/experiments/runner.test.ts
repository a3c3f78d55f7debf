import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { runScript } from "../../test/support/child.ts";
import { claim, experiment } from "../../test/support/robust-mean.ts";
import { reference } from "../backend/reference/reference.ts";
import { nodeHost } from "../host/node.ts";
import { nodePackages } from "../host/node-packages.ts";
import type { CellResult } from "./experiment.ts";
import { readCommitted, resultChart, resultsTable, writeResult } from "./report.ts";
import type { ExperimentResult } from "./result.ts";
import { listExperiments, loadExperiment, type ReproduceOptions, reproduce } from "./runner.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "plasticity-experiment-"));
  writeClaim({});
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function writeClaim(changes: object): void {
  writeFileSync(join(folder, "claim.json"), JSON.stringify({ ...claim, ...changes }));
}

const run = (options: Partial<ReproduceOptions> = {}): Promise<ExperimentResult | undefined> =>
  reproduce({
    experiment,
    claimFile: join(folder, "claim.json"),
    budget: "full",
    host: nodeHost(),
    packages: nodePackages(join(folder, "cache")),
    openBackend: async () => reference(),
    provenance: { machine: { cores: 1 }, packageVersion: "0" },
    ...options,
  });

/** The same without times. */
const timeless = (result: unknown): unknown =>
  JSON.parse(JSON.stringify(result, (key, value) => (key === "seconds" ? 0 : value)) ?? "null");

describe("a run", () => {
  it("tunes on tuning seeds first, and judges on the others with what it chose", async () => {
    const seen: CellResult[] = [];
    const result = (await run({ onCell: (cell) => void seen.push(cell) }))!;
    // 3 candidates × 2 tasks × 1 tuning seed, then 3 arms × 2 tasks × 4 seeds.
    expect(seen.map(({ phase }) => phase)).toEqual([
      ...new Array(6).fill("tuning"),
      ...new Array(24).fill("verdict"),
    ]);
    for (const { phase, seed } of seen) {
      expect(phase === "tuning" ? claim.tuningSeeds : claim.seeds).toContain(seed);
    }
    const [chosen] = result.tuned;
    expect(chosen!.candidates[0]).toMatchObject({
      score: null,
      failed: "robust-mean: nothing is left after trimming.",
    });
    // The rule: the best mean over tuning cells.
    const scores = chosen!.candidates.map(({ score }) => score ?? Infinity);
    const best = scores.indexOf(Math.min(...scores));
    expect(chosen!.settings).toEqual({ trim: [0.5, 0.01, 0.2][best] });
    for (const { arm, settings } of result.cells) {
      expect(settings).toEqual(arm === "trimmed" ? chosen!.settings : {});
    }
  });

  it("gives means over seeds that a reader can check, and the verdict by rule", async () => {
    const result = (await run())!;
    const bySeed = claim.seeds.map((seed) => {
      const own = result.cells.filter((cell) => cell.arm === "mean" && cell.seed === seed);
      return own.reduce((sum, { metrics }) => sum + metrics["error"]!, 0) / own.length;
    });
    const centre = bySeed.reduce((a, b) => a + b, 0) / 4;
    const found = result.arms.find(({ name }) => name === "mean")!.metrics["error"]!;
    expect(found.mean).toBeCloseTo(centre, 12);
    expect(found.n).toBe(4);
    expect(result.arms[0]!.tasks!["few"]!["samples"]).toEqual({ mean: 40, sd: 0, n: 4 });
    // One in ten at 8 moves the mean by about 0.8, and trimming takes most of it away.
    expect(found.mean).toBeGreaterThan(0.5);
    expect(result.verdict).toBe("holds");
    expect(result.claimSha256).toMatch(/^[0-9a-f]{64}$/);
    expect(result.data).toHaveLength(1);
    expect(result.arms.map(({ cost }) => cost.examples)).toEqual([200, 200, 200]);
    expect(resultChart(result)).toContain("trimmed");
  });

  it("runs no cell twice, and logs every run", async () => {
    const first = await run();
    const again: boolean[] = [];
    const second = await run({ onCell: (_, isCached) => void again.push(isCached) });
    expect(again).toEqual(new Array(30).fill(true));
    expect(second).toEqual(first);
    const fresh: boolean[] = [];
    expect(
      timeless(await run({ isFresh: true, onCell: (_, isCached) => void fresh.push(isCached) })),
    ).toEqual(timeless(first));
    expect(fresh).toEqual(new Array(30).fill(false));
    const log = readFileSync(join(folder, "cache/experiments/robust-mean/runs.jsonl"), "utf8");
    const events = log
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line).event);
    expect(events).toEqual(["begin", "end", "begin", "end", "begin", "end"]);
  });

  it("runs fewer seeds under the quick budget, whose cells are its own", async () => {
    const full = (await run())!;
    const cached: boolean[] = [];
    const quick = await run({ budget: "quick", onCell: (_, is) => void cached.push(is) });
    expect(quick!.seeds).toEqual([1, 2]);
    expect(quick!.budget).toBe("quick");
    expect(cached).not.toContain(true);
    expect(full.seeds).toEqual([1, 2, 3, 4]);
  });

  it("stops by the signal, and goes on to the same result", async () => {
    const whole = timeless(await run());
    rmSync(join(folder, "cache"), { recursive: true });
    const abort = new AbortController();
    let made = 0;
    const onCell = (): void => {
      if (++made === 20) abort.abort();
    };
    expect(await run({ signal: abort.signal, onCell })).toBeUndefined();
    expect(made).toBe(20);
    const cached: boolean[] = [];
    expect(timeless(await run({ onCell: (_, is) => void cached.push(is) }))).toEqual(whole);
    expect(cached.filter(Boolean)).toHaveLength(20);
  });

  it("goes on after kill -9 with the cells that are left, to the same result", async () => {
    const whole = timeless(await run());
    rmSync(join(folder, "cache"), { recursive: true });
    await expect(runScript("run-robust-mean.ts", { args: [folder, "17"] })).rejects.toMatchObject({
      signal: "SIGKILL",
    });
    const { stdout } = await runScript("run-robust-mean.ts", { args: [folder] });
    const { made, result } = JSON.parse(stdout) as { made: number; result: unknown };
    expect(made).toBe(30 - 17);
    expect(timeless(result)).toEqual(whole);
  });
});

describe("the claim file", () => {
  it("may not change under a run that is not finished", async () => {
    const abort = new AbortController();
    await run({ signal: abort.signal, onCell: () => abort.abort() });
    writeClaim({ minimumEffect: 0.01 });
    await expect(run()).rejects.toThrow(
      /claim\.json has changed since this run began \(SHA-256 [0-9a-f]{12}…, now [0-9a-f]{12}…\) — put it back to go on, or begin anew with --fresh\./,
    );
    expect((await run({ isFresh: true }))!.verdict).toBe("holds");
  });

  it("may not change while a run goes on", async () => {
    await expect(run({ onCell: () => writeClaim({ minimumEffect: 0.01 }) })).rejects.toThrow(
      "claim.json was changed while this run went on",
    );
  });

  it("makes cells of another claim void", async () => {
    await run();
    writeClaim({ minimumEffect: 0.9 });
    const cached: boolean[] = [];
    const result = await run({ onCell: (_, is) => void cached.push(is) });
    expect(cached).not.toContain(true);
    expect(result!.verdict).toBe("undecided");
  });

  it("must be that of the experiment and name its arms", async () => {
    writeClaim({ id: "other" });
    await expect(run()).rejects.toThrow('is the claim of "other", not of "robust-mean"');
    writeClaim({ predicted: { says: "x", rules: [{ left: "mode", right: "mean" }] } });
    await expect(run()).rejects.toThrow('a rule names arm "mode"');
  });
});

describe("cells", () => {
  it("end the run when a verdict cell's training fails, and are refused undeclared metrics", async () => {
    const failing = {
      ...experiment,
      plan: () => ({
        ...experiment.plan("full"),
        tuning: undefined as never,
        arms: [...experiment.plan("full").arms].map((arm) => ({ ...arm, settings: { trim: 0.6 } })),
      }),
    };
    await expect(run({ experiment: failing })).rejects.toThrow("nothing is left after trimming");
    const wordy = { ...experiment, run: async () => ({ error: 1, mood: 2 }) };
    await expect(run({ experiment: wordy })).rejects.toThrow(
      'cell trimmed, seed 101, task few: gave the metric "mood", which the experiment does not declare',
    );
  });

  it("are not shared between data of other checksums", async () => {
    await run();
    const other = {
      ...experiment,
      open: async (context: Parameters<typeof experiment.open>[0]) => {
        context.recordData({ name: "samples", source: "x", checksum: "1", licence: "x" });
        return { wild: 8 };
      },
    };
    const cached: boolean[] = [];
    await run({ experiment: other, onCell: (_, is) => void cached.push(is) });
    expect(cached).not.toContain(true);
  });

  it("may not open data by themselves", async () => {
    const late = {
      ...experiment,
      run: async (...[cell, shared, context, rng]: Parameters<typeof experiment.run>) => {
        context.recordData({ name: "late", source: "x", checksum: "1", licence: "x" });
        return experiment.run(cell, shared, context, rng);
      },
    };
    await expect(run({ experiment: late, isFresh: true })).rejects.toThrow(
      '"late" was opened in a cell — open data and bases in the experiment\'s open.',
    );
  });

  it("are run by one process at a time", async () => {
    let second: Promise<unknown> | undefined;
    await run({
      onCell: () => {
        second ??= run().catch((error: Error) => error.message);
      },
    });
    expect(await second).toMatch(/lock/);
  });
});

describe("experiments on disk", () => {
  it("are found by claim and file, and loaded by id", async () => {
    const files = nodeHost().files;
    const [code, claims] = [join(folder, "code"), join(folder, "claims")];
    for (const name of ["one", "two"]) await files.makeDirectory(join(claims, name));
    await files.makeDirectory(code);
    await files.writeText(join(claims, "one", "claim.json"), "{}");
    for (const name of ["one.ts", "two.js", "runner.ts"]) {
      await files.writeText(join(code, name), "");
    }
    expect(await listExperiments(files, code, claims)).toEqual(["one"]);
    await expect(loadExperiment("../one", ["one"])).rejects.toThrow(
      'an experiment\'s id has lower-case letters, digits and "-", got "../one".',
    );
    await expect(loadExperiment("three", ["one"])).rejects.toThrow(
      'unknown experiment "three" — there are one.',
    );
  });
});

describe("committed results", () => {
  it("make a table, and must belong to the claim beside them", async () => {
    const { files } = nodeHost();
    const own = join(folder, "reproduce", "robust-mean");
    await files.makeDirectory(own);
    await files.makeDirectory(join(folder, "reproduce", "open"));
    await files.writeText(
      join(folder, "reproduce", "open", "claim.json"),
      JSON.stringify({ ...claim, id: "open" }),
    );
    await files.writeText(
      join(own, "claim.json"),
      readFileSync(join(folder, "claim.json"), "utf8"),
    );
    await files.writeText(join(own, "notes.md"), "# Notes\n\nTrim a fifth\n| of it.\n\nMore.\n");
    await writeResult(files, own, (await run())!);
    expect(readdirSync(own)).toContain("chart.svg");
    const table = await resultsTable(files, join(folder, "reproduce"));
    expect(table).toMatch(
      /\| \[Robust means\]\(robust-mean\/result\.json\) \| Trimming makes the mean stand outliers\. \| \*\*holds\*\* \| 0\.\d+ ± 0\.\d+ \| 4 \| \d+ s \| Trim a fifth \\\| of it\. \|/,
    );
    expect(table).toContain("- `open`: Trimming makes");
    await files.writeText(join(own, "claim.json"), JSON.stringify({ ...claim, minimumEffect: 0 }));
    await expect(readCommitted(files, own)).rejects.toThrow("is the result of another claim");
  });

  it("are full runs", async () => {
    const { files } = nodeHost();
    await writeResult(files, folder, (await run({ budget: "quick" }))!);
    await expect(readCommitted(files, folder)).rejects.toThrow(
      "must be the result of a full run with a verdict",
    );
  });
});
