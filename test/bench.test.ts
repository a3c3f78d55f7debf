import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";
import { Arm } from "../src/cli/bench/arm.ts";
import type { ContestOptions, Place } from "../src/cli/bench/contest.ts";
import type { Machine } from "../src/cli/bench/machine.ts";
import { placeOf as benchPlace } from "../src/cli/bench/place.ts";
import { type Contest, contests, contestsOf, type Peer } from "../src/cli/bench/plan.ts";
import { RealModel, type RealTask, realFiles, realModelRemedy } from "../src/cli/bench/real.ts";
import { report } from "../src/cli/bench/report.ts";
import { judge, median, showRow } from "../src/cli/bench/results.ts";
import { runAll } from "../src/cli/bench/run.ts";
import { writeWeights } from "../src/cli/bench/weights.ts";
import { productOf } from "../src/cli/bench/works/products.ts";
import { serving } from "../src/cli/bench/works/serving.ts";
import { shapeAt } from "../src/cli/bench/works/shapes.ts";
import { nodeHost } from "../src/host/node.ts";
import { loadModel } from "../src/models/folder.ts";

const folder = mkdtempSync(join(tmpdir(), "plasticity-bench-test-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** Answers the protocol with given numbers, after a greeting on the same stream; logs its turns. */
const fakeSource = `
const { name, ms, loss, tokens, firstMs, peakRssMb, log, extra } = JSON.parse(process.argv[1]);
const print = (message) => console.log(JSON.stringify(message));
console.log("hello from " + name);
print({ ready: true, version: "1.2.3", threads: 2, extra });
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const { steps, exit } = JSON.parse(line);
  if (exit) { print({ peakRssMb }); process.exit(0); }
  require("node:fs").appendFileSync(log, name + steps + " ");
  const all = (value) => value === undefined ? undefined : Array(steps).fill(value);
  print({ ms: all(ms), loss: tokens ? [] : all(loss), tokens, firstMs: all(firstMs) });
});`;

interface Fake {
  readonly ms?: number;
  readonly loss?: number;
  readonly tokens?: readonly number[];
  readonly firstMs?: number;
  readonly peakRssMb?: number;
  readonly extra?: object;
}

let logs = 0;

function placeOf(
  ours: Fake,
  theirs: Fake | readonly string[] | undefined,
): Place & { log: string } {
  const log = join(folder, `log-${logs++}`);
  const command = (name: string, fake: Fake): string[] => [
    process.execPath,
    "-e",
    fakeSource,
    JSON.stringify({ name, ms: 400, loss: 7.5, peakRssMb: 100, log, ...fake }),
  ];
  return {
    log,
    ours: () => command("a", ours),
    theirs: () => (theirs && "length" in theirs ? theirs : theirs && command("b", theirs)),
    weights: async () => "weights",
  };
}

const npm: Peer = {
  kind: "npm",
  name: "fake wasm",
  library: "fake",
  script: "fake.mjs",
  work: "work",
  remedy: "install it.",
};
const python: Peer = { ...npm, kind: "python", name: "snake", library: "" };

const contest: Contest = {
  group: "gpt",
  work: "a step",
  ours: "step",
  weights: "none",
  threads: "all",
  peer: npm,
  rows: [
    { unit: "ms", limit: 4 },
    { unit: "MB", limit: 0.7 },
  ],
};

const options: ContestOptions = {
  threads: 2,
  rounds: 2,
  withPeers: true,
  roundMs: 800,
  pauseMs: 0,
};
const programs = { main: "", library: "" };

const runOne = (place: Place, changes: Partial<Contest> = {}): ReturnType<typeof runAll> =>
  runAll(place, programs, { ...options, contests: [{ ...contest, ...changes }] });

const machine: Machine = {
  cpu: "a processor",
  cores: 2,
  memoryGb: 24,
  platform: "linux x64",
  node: "v20.19.0",
  onnxruntime: "1.30.0",
  peers: [],
  commit: null,
  threads: 2,
  rounds: 2,
  date: "2026-01-01T00:00:00.000Z",
};

/** The exit code and JSON that a run ends with. */
function reported(outcome: Awaited<ReturnType<typeof runAll>>): { code: unknown; json: unknown } {
  const before = process.exitCode;
  process.exitCode = undefined;
  let json: unknown;
  try {
    report(
      {
        line: () => undefined,
        table: () => undefined,
        style: (text) => text,
        json: (value) => {
          json = JSON.parse(JSON.stringify(value));
        },
      },
      machine,
      outcome,
    );
    return { code: process.exitCode, json };
  } finally {
    process.exitCode = before;
  }
}

describe("judge", () => {
  const facts = { work: "w", peer: "p", limit: 2 } as const;

  it("takes a speed-up from times, at the limit as good", () => {
    const row = judge({ ...facts, unit: "ms", ours: 10, theirs: 20 });
    expect(row).toEqual({
      ...facts,
      unit: "ms",
      ours: 10,
      theirs: 20,
      ratio: 2,
      bound: "atLeast",
      holds: true,
    });
    expect(judge({ ...facts, unit: "ms", ours: 10, theirs: 19 }).holds).toBe(false);
  });

  it("takes a speed-up from rates", () => {
    const row = judge({ ...facts, unit: "tokens/s", ours: 30, theirs: 20, limit: 1.6 });
    expect([row.ratio, row.bound, row.holds]).toEqual([1.5, "atLeast", false]);
    expect(judge({ ...facts, unit: "GFLOP/s", ours: 86, theirs: 100, limit: 0.85 }).holds).toBe(
      true,
    );
  });

  it("takes a share from memory, which may be at most the limit", () => {
    const row = judge({ ...facts, unit: "MB", ours: 70, theirs: 100, limit: 0.7 });
    expect([row.ratio, row.bound, row.holds]).toEqual([0.7, "atMost", true]);
    expect(judge({ ...facts, unit: "MB", ours: 71, theirs: 100, limit: 0.7 }).holds).toBe(false);
  });

  it("judges the number itself where there is no peer", () => {
    const own = { work: "w", peer: null, theirs: null } as const;
    const row = judge({ ...own, unit: "s", ours: 0.31, limit: 0.3 });
    expect([row.ratio, row.bound, row.holds]).toEqual([null, "atMost", false]);
    expect(judge({ ...own, unit: "%", ours: -3, limit: 5 }).holds).toBe(true);
  });

  it("gives no verdict without a limit or a number", () => {
    expect(judge({ ...facts, unit: "ms", ours: 1, theirs: 9, limit: null }).holds).toBeNull();
    const row = judge({ ...facts, unit: "ms", ours: 1, theirs: null });
    expect([row.ratio, row.holds]).toEqual([null, null]);
  });

  it("shows a row for people", () => {
    const row = judge({ ...facts, unit: "ms", ours: 10, theirs: 35.6 });
    expect(showRow(row)).toEqual(["w", "10.0 ms", "35.6 ms (p)", "3.56×", "≥ 2×", "yes"]);
    const own = judge({ work: "w", peer: null, theirs: null, unit: "s", ours: 0.1234, limit: 0.3 });
    expect(showRow(own)).toEqual(["w", "0.123 s", "", "", "≤ 0.3 s", "yes"]);
  });
});

it("takes the middle of odd counts and the mean of the two middles of even ones", () => {
  expect(median([9, 1, 5])).toBe(5);
  expect(median([9, 1, 5, 7])).toBe(6);
});

describe("a contest", () => {
  it("reports both sides, ratios and verdicts", async () => {
    const place = placeOf({ ms: 400, peakRssMb: 60 }, { ms: 2000, loss: 7.50009, peakRssMb: 100 });
    const outcome = await runOne(place);
    expect(reported(outcome)).toEqual({
      code: undefined,
      json: {
        machine,
        results: [
          {
            work: "a step",
            unit: "ms",
            ours: 400,
            peer: "fake wasm",
            theirs: 2000,
            ratio: 5,
            bound: "atLeast",
            limit: 4,
            holds: true,
            note: "ours: 2 threads; theirs: 2 threads",
          },
          {
            work: "a step, peak resident memory",
            unit: "MB",
            ours: 60,
            peer: "fake wasm",
            theirs: 100,
            ratio: 0.6,
            bound: "atMost",
            limit: 0.7,
            holds: true,
          },
        ],
      },
    });
    expect(outcome.peers).toEqual(["fake 1.2.3"]);
    // Two warm-up steps a side; then rounds by turns, as many steps as fill 0.8 s.
    expect(readFileSync(place.log, "utf8")).toBe("a1 a1 b1 b1 a2 b1 a2 b1 ");
  });

  it("ends with 1 when a limit does not hold", async () => {
    const outcome = await runOne(placeOf({ ms: 600 }, { ms: 2000 }));
    expect(outcome.results.map(({ holds }) => holds)).toEqual([false, false]);
    expect(reported(outcome).code).toBe(1);
  });

  it("states memory without the import of torch beside the plain one", async () => {
    const theirs = { ms: 2000, peakRssMb: 150, extra: { importRssMb: 50 } };
    const { results } = await runOne(placeOf({ peakRssMb: 60 }, theirs));
    expect(results[1]).toMatchObject({
      ratio: 0.4,
      note: "importing torch alone takes 50 MB; 0.60× without it",
    });
  });

  it("gives null and fails when a peer from npm is missing", async () => {
    const outcome = await runOne(placeOf({}, undefined));
    expect(outcome.results[0]).toMatchObject({
      ours: 400,
      peer: "fake wasm",
      theirs: null,
      ratio: null,
      holds: null,
    });
    expect(outcome.results[0]!.note).toContain("fake wasm is not installed — install it.");
    expect(reported(outcome).code).toBe(1);
  });

  it("takes a package that cannot be imported as missing", async () => {
    const absent = [
      process.execPath,
      "--input-type=module",
      "-e",
      'await import("not-there-at-all")',
    ];
    const outcome = await runOne(placeOf({}, absent));
    expect(outcome.results[0]!.theirs).toBeNull();
    expect(outcome.isFailure).toBe(true);
  });

  it("gives null and does not fail when Python or a package of it is missing", async () => {
    const says = "console.error(\"ModuleNotFoundError: No module named 'torch'\"); process.exit(1)";
    for (const theirs of [undefined, [process.execPath, "-e", says], ["/nowhere/python"]]) {
      const outcome = await runOne(placeOf({}, theirs), { peer: python });
      expect(outcome.results.map(({ theirs: theirNumber, holds }) => [theirNumber, holds])).toEqual(
        [
          [null, null],
          [null, null],
        ],
      );
      expect(reported(outcome).code).toBeUndefined();
    }
  });

  it("refuses to compare sides whose first losses differ", async () => {
    const outcome = await runOne(placeOf({ loss: 7.5 }, { loss: 7.5002 }));
    expect(outcome.results.map(({ ours, theirs, holds }) => [ours, theirs, holds])).toEqual([
      [null, null, null],
      [null, null, null],
    ]);
    expect(outcome.results[0]!.note).toBe(
      "bench: a step: the first loss of plasticity is 7.5, of fake wasm 7.5002 — they must agree within 0.0001.",
    );
    expect(reported(outcome).code).toBe(1);
    const none = await runOne(placeOf({ loss: 7.5 }, { loss: Number.NaN }));
    expect(none.results[0]!.note).toContain("of fake wasm null");
  });

  it("refuses to compare sides that decode other tokens, and counts the same ones", async () => {
    const rows = [{ unit: "tokens/s", limit: 1.3 }] as const;
    const changes = { rows, tokensPerStep: 10 };
    const ours = { tokens: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], ms: 400 };
    const late = { tokens: [1, 2, 3, 4, 5, 6, 7, 8, 0, 0], ms: 800 };
    const { results } = await runOne(placeOf(ours, late), changes);
    expect(results[0]).toMatchObject({ unit: "tokens/s", ours: 25, theirs: 12.5, ratio: 2 });
    expect(results[0]!.note).toContain("the first 8 of 10 tokens are the same");
    const early = { tokens: [1, 2, 0, 4, 5, 6, 7, 8, 9, 10] };
    const wrong = await runOne(placeOf(ours, early), changes);
    expect(wrong.results[0]!.note).toContain("do not compute the same");
    expect(wrong.isFailure).toBe(true);
  });

  it("tells times to the first token beside rates, where steps are waves of streams", async () => {
    const rows = [
      { unit: "tokens/s", limit: 1 },
      { unit: "ms", limit: 1, isFirst: true },
    ] as const;
    const tokens = [1, 2, 3, 4];
    const place = placeOf({ tokens, ms: 2000, firstMs: 300 }, { tokens, ms: 4000, firstMs: 240 });
    const { results } = await runOne(place, { rows, tokensPerStep: 8, sureTokens: 4 });
    expect(results).toMatchObject([
      { work: "a step", unit: "tokens/s", ours: 4, theirs: 2, ratio: 2, holds: true },
      { unit: "ms", ours: 300, theirs: 240, ratio: 0.8, holds: false },
    ]);
    expect(results[1]!.work).toBe("a step, first token of the middle stream");
  });

  it("compares forms of other precision by time alone, and says how many tokens are the same", async () => {
    const rows = [{ unit: "tokens/s", limit: 1 }] as const;
    const changes = { rows, tokensPerStep: 4, sureTokens: 0 };
    const place = placeOf({ tokens: [1, 2, 3, 4] }, { tokens: [1, 9, 9, 9] });
    const { results } = await runOne(place, changes);
    expect(results[0]!.note).toContain("the first 1 of 4 tokens are the same");
  });

  it("judges a number of our own, with and without peers", async () => {
    const rows = [{ unit: "MB", limit: 90, isOwn: true }] as const;
    const { peer: _, ...alone } = contest;
    for (const [peakRssMb, holds] of [
      [90, true],
      [91, false],
    ] as const) {
      const contests = [{ ...alone, rows }];
      const place = placeOf({ peakRssMb }, undefined);
      const outcome = await runAll(place, programs, { ...options, contests });
      expect(outcome.results).toMatchObject([{ ours: peakRssMb, peer: null, limit: 90, holds }]);
      expect(outcome.isFailure).toBe(!holds);
    }
  });

  it("skips what the user gave no model for, with the reason, and starts nothing", async () => {
    const place = { ...placeOf({}, {}), lacks: () => "no model was given" };
    const outcome = await runOne(place, { weights: "smollm2", about: "sizes" });
    expect(outcome.results.map(({ ours, theirs, holds }) => [ours, theirs, holds])).toEqual([
      [null, null, null],
      [null, null, null],
    ]);
    expect(outcome.results[0]!.note).toBe("sizes; no model was given");
    expect(reported(outcome).code).toBeUndefined();
    expect(existsSync(place.log)).toBe(false);
  });

  it("names a side that ends early", async () => {
    const dies = [process.execPath, "-e", 'console.error("out of luck"); process.exit(3)'];
    const outcome = await runOne(placeOf({}, dies));
    expect(outcome.results[0]!.note).toBe("bench: fake wasm ended early (code 3): out of luck");
    expect(outcome.isFailure).toBe(true);
  });

  it("runs alone, and judges nothing, without peers", async () => {
    const place = placeOf({}, undefined);
    const [alone] = contestsOf("cnn", false);
    const outcome = await runAll(place, programs, {
      ...options,
      withPeers: false,
      contests: [alone!],
    });
    expect(outcome.results).toMatchObject([{ peer: null, limit: null, holds: null, ours: 400 }]);
    expect(outcome.isFailure).toBe(false);
  });
});

describe("a model that the user gives", () => {
  const { files } = nodeHost();
  const builtin = fileURLToPath(new URL("../models/builtin", import.meta.url));

  it("becomes a folder, GGUF files and a task of equal tokens for every side", async () => {
    const real = new RealModel(nodeHost(), builtin, join(folder, "real"));
    const path = await real.withGguf();
    expect(await real.weights()).toBe(path);
    const task = JSON.parse(readFileSync(join(path, realFiles.task), "utf8")) as RealTask;
    expect(task.prompt.length).toBe(128);
    expect(task.rows.map((row) => row.length)).toEqual([257, 257, 257, 257]);
    const bytes = async (where: string): Promise<readonly (readonly [string, Buffer])[]> =>
      Object.entries((await loadModel(files, where)).params).map(([name, { data }]) => [
        name,
        Buffer.from(data.buffer, data.byteOffset, data.byteLength),
      ]);
    const given = new Map(await bytes(builtin));
    for (const where of [path, join(path, realFiles.f32)]) {
      const found = await bytes(where);
      expect(found.map(([name]) => name).toSorted()).toEqual([...given.keys()].toSorted());
      expect(found.filter(([name, own]) => !own.equals(given.get(name)!))).toEqual([]);
    }
    expect(task.gguf).toBe(join(path, realFiles.q4));
    expect(existsSync(task.gguf)).toBe(true);
    expect(task.prompts.map((prompt) => prompt.length)).toEqual(new Array(512).fill(128));
    expect(new Set(task.prompts.map(([first]) => first)).size).toBe(512);
  });

  it("is served in waves of streams, with adapters and through HTTP", async () => {
    const path = await new RealModel(nodeHost(), builtin, join(folder, "waves")).weights();
    const tokens: Record<string, readonly number[]> = {};
    for (const name of ["serve-1", "serve-8", "serve-8-one", "serve-8-mixed", "serve-8-8bit"]) {
      const { step } = await serving(name)(1, path);
      const wave = await step();
      expect(wave.firstMs).toBeGreaterThan(0);
      expect(wave.tokens).toHaveLength(128);
      tokens[name] = wave.tokens!;
    }
    // The first stream is alone what it is in a batch, and with its adapter whatever the others have.
    expect(tokens["serve-8"]).toEqual(tokens["serve-1"]);
    expect(tokens["serve-8-mixed"]).toEqual(tokens["serve-8-one"]);
    expect(tokens["serve-8-one"]).not.toEqual(tokens["serve-8"]);
    const work = await serving("serve-8-http")(1, path);
    try {
      expect((await work.step()).tokens).toHaveLength(128);
    } finally {
      await work.end!();
    }
  });

  it("is refused by its path when nothing is there", async () => {
    const real = new RealModel(nodeHost(), "/nowhere/model.gguf", join(folder, "none"));
    await expect(real.weights()).rejects.toThrow(
      "bench: /nowhere/model.gguf is not there — name SmolLM2-135M-Instruct as a .gguf file or a folder by --model or PLASTICITY_BENCH_SMOLLM2.",
    );
  });

  it("is not needed where others are measured", () => {
    const place = benchPlace(nodeHost(), folder, undefined);
    const lack = nodeHost().env("PLASTICITY_BENCH_SMOLLM2") ? undefined : realModelRemedy;
    expect(place.lacks!("smollm2-onnx")).toBe(lack);
    expect(place.lacks!("gpt-tiny")).toBeUndefined();
  });
});

describe("the plan", () => {
  it("measures each work of ours once when there are no peers", () => {
    const own = contestsOf(undefined, false);
    expect(own.every(({ peer }) => peer === undefined)).toBe(true);
    expect(new Set(own.map(({ ours, threads }) => `${ours} ${threads}`)).size).toBe(own.length);
    expect(contestsOf(undefined, true)).toEqual(contests);
  });

  it("visits every shape twice, and the same eight before both readings of memory", () => {
    const visits = Array.from({ length: 400 }, (_, visit) => shapeAt(visit));
    expect(new Set(visits.slice(0, 200)).size).toBe(200);
    expect(new Set(visits.slice(200)).size).toBe(200);
    expect(visits.slice(392)).toEqual(visits.slice(72, 80));
  });
});

describe("products in a profile", () => {
  const event = (op: string, a: number[], out: number[]): Parameters<typeof productOf>[0] => ({
    args: {
      op_name: op,
      input_type_shape: [{ float: a }],
      output_type_shape: [{ float: out }],
    },
  });

  it("counts 2 M N K whether the first input is transposed or not", () => {
    // 2 · 256 · 768 · 512 = 201,326,592
    for (const a of [
      [256, 512],
      [512, 256],
    ]) {
      expect(productOf(event("Gemm", a, [256, 768]))).toEqual({ flops: 201326592, least: 256 });
    }
  });

  it("counts every matrix of a batch, and nothing else than products", () => {
    // 2 · (2 · 3) · 8 · 8 · 4 = 3,072
    expect(productOf(event("FusedMatMul", [2, 3, 8, 4], [2, 3, 8, 8]))).toEqual({
      flops: 3072,
      least: 4,
    });
    expect(productOf(event("Add", [8, 8], [8, 8]))).toBeUndefined();
    expect(productOf({})).toBeUndefined();
  });
});

it("answers the protocol with our own worker", async () => {
  const weights = await writeWeights(nodeHost(), folder, "cnn");
  const worker = fileURLToPath(new URL("../src/cli/bench/worker.ts", import.meta.url));
  const command = [process.execPath, "--import", "tsx", worker, "cnn-sgd", "1", weights];
  const arm = await Arm.start("ours", command);
  expect(arm.ready.version).toMatch(/^onnxruntime-node cpu \d/);
  const { ms, loss } = await arm.steps(3);
  expect(ms.every((time) => time > 0)).toBe(true);
  // Ten classes: near ln 10 = 2.303 before training, and lower from the same batch again.
  expect(Math.abs(loss[0]! - Math.log(10))).toBeLessThan(0.2);
  expect(loss[2]!).toBeLessThan(loss[0]!);
  expect((await arm.end()).peakRssMb).toBeGreaterThan(30);
});
