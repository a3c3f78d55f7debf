import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { lora } from "../adapters/lora.ts";
import { nodeOrt } from "../backend/ort/node.ts";
import type { Example } from "../data/example.ts";
import { StateError } from "../errors.ts";
import type { Clock, Files, FileWriter } from "../host/host.ts";
import { nodeHost } from "../host/node.ts";
import { Llama } from "../models/llama.ts";
import type { TensorRecord } from "../nn/module.ts";
import { Rng } from "../tensor/rng.ts";
import { loadState } from "./checkpoint.ts";
import { type FinetuneOptions, Finetuner, finetune } from "./finetune.ts";
import { listCheckpoints, Run, readRun } from "./run.ts";
import { type TrainRunOptions, type TrainRunResult, trainRun } from "./train-run.ts";
import { traineeOf } from "./trainee.ts";

const host = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-run-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
let count = 0;
const newFolder = (): string => join(root, `run-${count++}`);

const backend = await nodeOrt({ threads: 1 });
const model = new Llama({
  vocabSize: 20,
  dModel: 8,
  dFeedForward: 16,
  nLayers: 1,
  nHeads: 1,
  maxPositions: 16,
  initializerRange: 0.2,
});
const base = model.init(new Rng(1)).params;
const adapter = lora(model, { rank: 2, dropout: 0.1, targetModules: "all-linear" });
const trainee = () => traineeOf(model, base, { adapter, params: adapter.init(new Rng(2)) });
const rng = new Rng(3);
const examples: Example[] = Array.from({ length: 18 }, (_, i) => ({
  ids: Int32Array.from(rng.fold(i).permutation(2 + (i % 5)), (id) => id + (i % 7)),
  mask: Uint8Array.from({ length: 2 + (i % 5) }, (_v, at) => (at > 0 ? 1 : 0)),
}));
const [train, heldOut] = [examples.slice(0, 13), examples.slice(13)];

const settings: FinetuneOptions = {
  batchSize: 4,
  accumulate: 2,
  packing: 8,
  epochs: 2,
  learningRate: 0.02,
};
const options: TrainRunOptions = { heldOut, evalEvery: 2, saveEvery: 3, keep: 1 };

async function go(
  folder: string,
  files: Files = host.files,
  more: TrainRunOptions = {},
  changed: FinetuneOptions = {},
  clock: Clock = host.clock,
): Promise<TrainRunResult> {
  const isBegun = (await host.files.info(join(folder, "run.json"))) !== undefined;
  const run = isBegun ? await Run.open(files, folder) : await Run.create(files, folder, {});
  const tuner = await Finetuner.create(trainee(), train, backend, { ...settings, ...changed });
  try {
    const result = await trainRun(run, tuner, { files, clock }, { ...options, ...more });
    await run.finish({ steps: result.steps });
    return result;
  } finally {
    await tuner.release();
    await run.release();
  }
}

function bits(params: TensorRecord): Record<string, number[]> {
  return Object.fromEntries(
    Object.entries(params).map(([name, { data }]) => [name, [...(data as Float32Array)]]),
  );
}

/** Lines of the log without what a clock has a say in. */
function logOf(folder: string): unknown[] {
  const lines = readFileSync(join(folder, "metrics.jsonl"), "utf8").trimEnd().split("\n");
  return lines.map((line) => ({ ...(JSON.parse(line) as object), seconds: 0 }));
}

/** Times of the records of an event file: a frame of 12 bytes, the time as field 1, 4 bytes after it. */
function wallTimes(file: Buffer): number[] {
  const times: number[] = [];
  for (let at = 0; at < file.length; at += 16 + Number(file.readBigUInt64LE(at))) {
    expect(file[at + 12]).toBe(0x09);
    times.push(file.readDoubleLE(at + 13));
  }
  return times;
}

/** Every change of the disk in the long form, some of them otherwise. */
const stride = process.env["PLASTICITY_TORTURE"] ? 1 : 7;

class Killed extends Error {}

/** Writers that a death left open: kept, as Node warns of handles that are collected. */
const open: FileWriter[] = [];

/** Files of a process that dies at its n-th change of the disk: nothing it does later happens. */
function dyingFiles(n: number): { files: Files; isDead: () => boolean } {
  let left = n;
  const step = (): void => {
    if (left-- <= 0) throw new Killed("killed");
  };
  const { files } = host;
  const create = async (path: string): Promise<FileWriter> => {
    step();
    const writer = await files.create(path);
    open.push(writer);
    return {
      write: async (bytes) => {
        step();
        await writer.write(bytes);
      },
      commit: async () => {
        step();
        await writer.commit();
      },
      abort: async () => {
        if (left > 0) await writer.abort();
      },
    };
  };
  const writeBytes = async (path: string, bytes: Uint8Array): Promise<void> => {
    const writer = await create(path);
    await writer.write(bytes);
    await writer.commit();
  };
  const dying: Files = {
    ...files,
    create,
    writeBytes,
    writeText: (path, text) => writeBytes(path, new TextEncoder().encode(text)),
    append: async (path, text) => {
      step();
      // Half of what was to be written: a kill in the middle of a line.
      if (left <= 0 && typeof text === "string")
        await files.append(path, text.slice(0, text.length / 2));
      else await files.append(path, text);
    },
    makeDirectory: async (path) => {
      step();
      await files.makeDirectory(path);
    },
    remove: async (path) => {
      step();
      await files.remove(path);
    },
  };
  return { files: dying, isDead: () => left < 0 };
}

/** Files of a disk that is full from its n-th change on, until there is room again. */
function filling(n: number): { files: Files; isFull: () => boolean } {
  let left = n;
  const { files } = host;
  const room = (path: string): void => {
    if (left-- > 0) return;
    throw new StateError(`${path}: the disk is full.`, { path, errno: "ENOSPC" });
  };
  const create = async (path: string): Promise<FileWriter> => {
    const writer = await files.create(path);
    const orAbort = async (work: () => Promise<void>): Promise<void> => {
      try {
        room(path);
        await work();
      } catch (error) {
        await writer.abort();
        throw error;
      }
    };
    return {
      write: (bytes) => orAbort(() => writer.write(bytes)),
      commit: () => orAbort(() => writer.commit()),
      abort: () => writer.abort(),
    };
  };
  const writeBytes = async (path: string, bytes: Uint8Array): Promise<void> => {
    const writer = await create(path);
    await writer.write(bytes);
    await writer.commit();
  };
  const full: Files = {
    ...files,
    create,
    writeBytes,
    writeText: (path, text) => writeBytes(path, new TextEncoder().encode(text)),
    append: async (path, text) => {
      room(path);
      await files.append(path, text);
    },
  };
  return { files: full, isFull: () => left < 0 };
}

describe("a run in a folder", () => {
  it("trains as without one, and leaves its files", async () => {
    const folder = newFolder();
    const result = await go(folder);
    const plain = await finetune(trainee(), train, backend, settings);
    expect(bits(result.params)).toEqual(bits(plain.params));
    expect(result.losses).toEqual(plain.losses);
    expect(result).toMatchObject({ steps: plain.steps, isStopped: false, isEarly: false });
    const names = readdirSync(folder);
    expect(names.filter((name) => !name.startsWith("events"))).toEqual([
      "checkpoints",
      "loss.svg",
      "metrics.jsonl",
      "result.json",
      "run.json",
    ]);
    expect(names.filter((name) => name.startsWith("events.out.tfevents."))).toHaveLength(1);
    expect(readdirSync(join(folder, "checkpoints"))).toEqual([
      "best.safetensors",
      `step-${String(plain.steps).padStart(8, "0")}.safetensors`,
    ]);
    expect(readFileSync(join(folder, "loss.svg"), "utf8")).toMatch(
      /^<svg[\s\S]*held out[\s\S]*<\/svg>\s*$/,
    );
    const { metrics } = await readRun(host.files, folder);
    expect(metrics.filter((line) => "loss" in line).map(({ loss }) => loss)).toEqual(plain.losses);
    // Every second step, and the last.
    const judged = metrics.filter((line) => "heldOutLoss" in line).map(({ step }) => step);
    expect(judged.at(-1)).toBe(plain.steps);
    expect(judged.slice(0, 2)).toEqual([2, 4]);
  });

  it("ends with the same bits wherever it was killed, and leaves no litter", async () => {
    const whole = newFolder();
    const expected = await go(whole);
    let deaths = 0;
    for (let n = 0; ; n += stride) {
      const folder = newFolder();
      const { files, isDead } = dyingFiles(n);
      // A killed process does not free its lock either; this process is alive, so it is freed here.
      const outcome = await go(folder, files).catch((error: unknown) => error);
      rmSync(join(folder, "run.lock"), { force: true });
      if (!isDead()) break;
      expect(outcome).toBeInstanceOf(Killed);
      deaths++;
      const result = await go(folder);
      expect(bits(result.params), `killed at change ${n}`).toEqual(bits(expected.params));
      expect(result.losses).toEqual(expected.losses);
      expect(logOf(folder), `killed at change ${n}`).toEqual(logOf(whole));
      const inside = [folder, join(folder, "checkpoints")].flatMap((path) => readdirSync(path));
      expect(inside.filter((name) => name.includes(".tmp-"))).toEqual([]);
    }
    expect(deaths).toBeGreaterThan(60 / stride);
  });

  it("says that the disk is full wherever it gets full, and goes on to the same bits", async () => {
    const whole = newFolder();
    const expected = await go(whole);
    let failed = 0;
    for (let n = 1; ; n += stride) {
      const folder = newFolder();
      const { files, isFull } = filling(n);
      const error = await go(folder, files).then(
        () => undefined,
        (thrown: unknown) => thrown as Error,
      );
      if (!isFull()) break;
      expect(error?.message).toMatch(/^\S+: the disk is full\.$/);
      failed++;
      const inside = (await host.files.info(join(folder, "checkpoints")))
        ? readdirSync(join(folder, "checkpoints"))
        : [];
      expect([...readdirSync(folder), ...inside].filter((name) => /tmp|lock/.test(name))).toEqual(
        [],
      );
      for (const { path } of await listCheckpoints(host.files, folder)) {
        await loadState(host.files, path);
      }
      const again = await go(folder);
      expect(bits(again.params)).toEqual(bits(expected.params));
      expect(logOf(folder)).toEqual(logOf(whole));
    }
    expect(failed).toBeGreaterThan(40 / stride);
  });

  it("stops after a step when told, and goes on later", async () => {
    const folder = newFolder();
    const abort = new AbortController();
    const stopped = await go(folder, host.files, {
      signal: abort.signal,
      onStep: ({ step }) => {
        if (step === 2) abort.abort();
      },
    });
    expect(stopped).toMatchObject({ steps: 2, isStopped: true });
    expect((await listCheckpoints(host.files, folder)).map(({ step }) => step)).toEqual([2]);
    rmSync(join(folder, "result.json"));
    const [rest, whole] = [await go(folder), await go(newFolder())];
    expect(bits(rest.params)).toEqual(bits(whole.params));
    expect(rest.losses).toEqual(whole.losses);
  });

  it("ends early when evaluations are no better, with the best one's parameters", async () => {
    // A rate that makes held-out examples worse and worse.
    const high = { learningRate: 0.3, epochs: 20, schedule: "constant" };
    const folder = newFolder();
    const result = await go(folder, host.files, { evalEvery: 1, earlyStopping: 3 }, high);
    const { metrics } = await readRun(host.files, folder);
    const scores = metrics.flatMap((line) => line["heldOutLoss"] ?? []);
    const best = scores.indexOf(Math.min(...scores));
    expect(result).toMatchObject({ isEarly: true, isStopped: false, step: best + 1 });
    expect(scores.length).toBe(best + 4);
    expect(result.steps).toBe(best + 4);
    const there = await finetune(trainee(), train, backend, {
      ...settings,
      ...high,
      steps: best + 1,
    });
    expect(bits(result.params)).toEqual(bits(there.params));
  });

  it.each(["cut short", "changed in one bit"])(
    "takes an older checkpoint when the newest is %s",
    async (how) => {
      const folder = newFolder();
      const expected = await go(folder, host.files, { keep: 3, saveEvery: 1 });
      const [newest] = await listCheckpoints(host.files, folder);
      const bytes = readFileSync(newest!.path);
      if (how === "cut short") writeFileSync(newest!.path, bytes.subarray(0, 100));
      else {
        // One bit of the last number.
        bytes[bytes.length - 2]! ^= 1;
        writeFileSync(newest!.path, bytes);
      }
      const warnings: string[] = [];
      const again = await go(folder, host.files, { onWarn: (message) => warnings.push(message) });
      expect(bits(again.params)).toEqual(bits(expected.params));
      expect(warnings).toHaveLength(1);
      expect(warnings[0]).toMatch(/step-\d{8}\.safetensors: .* Taking an older one\.$/);
    },
  );

  it("refuses a folder that is in use, not empty, or holds a run already", async () => {
    const folder = newFolder();
    const run = await Run.create(host.files, folder, {});
    await expect(Run.open(host.files, folder)).rejects.toThrow(
      `${folder}: another process trains in this folder (${process.pid}) — wait until it ends, or stop it first.`,
    );
    await run.release();
    await expect(Run.create(host.files, folder, {})).rejects.toThrow(
      `${folder}: holds a run already — go on with it by --resume ${folder}, or choose another folder.`,
    );
    const other = newFolder();
    await expect(Run.open(host.files, other)).rejects.toThrow(
      `${other}: holds no run, it has no run.json.`,
    );
    await host.files.makeDirectory(other);
    writeFileSync(join(other, "thesis.txt"), "mine");
    await expect(Run.create(host.files, other, {})).rejects.toThrow(
      `${other}: is not empty, it has thesis.txt — choose a new folder.`,
    );
    expect(readdirSync(other)).toEqual(["thesis.txt"]);
    writeFileSync(join(folder, "run.json"), '{"version": 2}');
    await expect(Run.open(host.files, folder)).rejects.toThrow(
      `${folder}: its run.json is of version 2, this package goes on with version 1 — resume with the package that began it.`,
    );
    writeFileSync(join(folder, "run.json"), '{"version": 1');
    await expect(Run.open(host.files, folder)).rejects.toThrow(`${join(folder, "run.json")}: `);
  });

  it("keeps the last good parameters when the loss is not a number", async () => {
    const folder = newFolder();
    await expect(
      go(folder, host.files, { saveEvery: 100 }, { learningRate: 1e30, schedule: "constant" }),
    ).rejects.toThrow(/^finetune: the (loss|norm of the gradient) at step 2 is .*, on examples /);
    expect((await listCheckpoints(host.files, folder)).map(({ step }) => step)).toEqual([1]);
    const { metrics } = await readRun(host.files, folder);
    expect(metrics.filter((line) => "loss" in line).map(({ step }) => step)).toEqual([1]);
  });

  it("keeps a checkpoint of numbers, and marks nothing as finished, when parameters overflow", async () => {
    // Weight decay of 10 at a rate of 1e10 multiplies every number by -1e11 at each step.
    const wild = { optimizer: "sgd", learningRate: 1e10, weightDecay: 10, schedule: "constant" };
    const folder = newFolder();
    const every = { evalEvery: undefined as never, saveEvery: 1, keep: 1 };
    const fails = (steps: number) =>
      expect(go(folder, host.files, every, { ...wild, steps, clipNorm: 1e6 })).rejects;
    await fails(30).toThrow(
      /^finetune: the loss at step \d+ is NaN, on examples [\d, ]+ — lower the learning rate \(10000000000\), or look at these examples\.$/,
    );
    const kept = await listCheckpoints(host.files, folder);
    expect(kept.length).toBeGreaterThan(0);
    const { params, optimizer } = await loadState(host.files, kept[0]!.path);
    for (const { data } of Object.values(params)) {
      expect((data as Float32Array).every(Number.isFinite)).toBe(true);
    }
    const { metrics, result } = await readRun(host.files, folder);
    expect(result).toBeUndefined();
    const steps = metrics.map(({ step }) => step);
    expect(steps).toEqual(steps.map((_, i) => i + 1));
    expect(steps.length).toBeGreaterThanOrEqual(optimizer.step);
    const log = logOf(folder);
    // The same sentence again, and the same log.
    await fails(30).toThrow(/^finetune: the loss at step \d+ is NaN, on examples /);
    expect(logOf(folder)).toEqual(log);
  });

  it("says that the last step's parameters are no numbers", async () => {
    const folder = newFolder();
    const wild = { optimizer: "sgd", learningRate: 1e10, weightDecay: 10, schedule: "constant" };
    const every = { evalEvery: undefined as never };
    await expect(
      go(folder, host.files, every, { ...wild, steps: 1, learningRate: 1e38, clipNorm: 1e6 }),
    ).rejects.toThrow(
      /^finetune: ".*" holds numbers that are none after step 1 — lower the learning rate\.$/,
    );
    expect(readdirSync(folder).filter((name) => !name.startsWith("events"))).toEqual([
      "loss.svg",
      "metrics.jsonl",
      "run.json",
    ]);
  });

  it("is the same when the clock is set back by a day while it trains, and before it goes on", async () => {
    const [whole, folder] = [newFolder(), newFolder()];
    const expected = await go(whole);
    let now = 1_700_000_000_000;
    let ticks = 0;
    const clock = {
      now: () => {
        ticks++;
        if (ticks % 5 === 0) now -= 86_400_000;
        return now++;
      },
      monotonic: () => performance.now(),
    };
    const stop = new AbortController();
    const onStep = ({ step }: { readonly step: number }): void => {
      if (step === 3) stop.abort();
    };
    const first = await go(folder, host.files, { signal: stop.signal, onStep }, {}, clock);
    expect(first).toMatchObject({ isStopped: true, steps: 3 });
    // What this leaves is no finished run: go() says so of every one.
    rmSync(join(folder, "result.json"));
    now -= 365 * 86_400_000;
    const result = await go(folder, host.files, {}, {}, clock);
    expect(bits(result.params)).toEqual(bits(expected.params));
    expect(logOf(folder)).toEqual(logOf(whole));
    const { metrics } = await readRun(host.files, folder);
    const seconds = metrics.flatMap((line) => line["seconds"] ?? []);
    expect(seconds).toEqual([...seconds].sort((a, b) => a - b));
    expect(seconds[0]).toBeGreaterThan(0);
    // TensorBoard reads files by name, and takes an earlier time for a restart.
    const names = readdirSync(folder).filter((name) => name.startsWith("events"));
    expect(names).toHaveLength(2);
    const times = names.flatMap((name) => wallTimes(readFileSync(join(folder, name))));
    expect(times.length).toBeGreaterThan(8);
    expect(times).toEqual([...times].sort((a, b) => a - b));
  });

  it("checks its settings", async () => {
    const cases: [TrainRunOptions, string][] = [
      [{ saveEvery: 0 }, "run: saveEvery must be a whole number from 1, got 0."],
      [{ keep: 1.5 }, "run: keep must be a whole number from 1, got 1.5."],
      [
        { evalEvery: undefined as never, earlyStopping: 2 },
        "run: earlyStopping needs evalEvery — how often to judge.",
      ],
      [{ heldOut: undefined as never }, "run: evalEvery needs held-out examples to judge by."],
    ];
    for (const [more, sentence] of cases) {
      await expect(go(newFolder(), host.files, more)).rejects.toThrow(sentence);
    }
  });
});
