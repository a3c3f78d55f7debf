/** Wrong paths, damaged and hostile files, impossible options: each is one sentence, and nothing changes. */
import { createHash } from "node:crypto";
import {
  cpSync,
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
import { loadModel } from "../src/models/folder.ts";
import { Rng } from "../src/tensor/rng.ts";
import { loadState } from "../src/train/checkpoint.ts";
import { listCheckpoints, readRun } from "../src/train/run.ts";
import { adapters, models } from "./support/bad-folders.ts";
import { runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-bad-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);
const { files } = nodeHost();

type Json = Readonly<Record<string, unknown>>;

const json = (value: unknown): string => JSON.stringify(value);
const line = (prompt: string, completion: string): string => `${json({ prompt, completion })}\n`;
const lines = (count: number): string =>
  Array.from({ length: count }, (_, i) => line(`say ${i}`, `${i}!`)).join("");

const aFolder = 'give a folder in the Hugging Face layout, or "builtin"';

const layouts =
  'use "text"; "prompt" and "completion"; "messages" (role, content); "conversations" (from, value); "instruction" and "output" (Alpaca); "prompt", "chosen" and "rejected", or name your columns with --map column=field.';

const data: readonly (readonly [file: string, content: string | Buffer, sentence: string])[] = [
  ["empty.jsonl", "", "empty.jsonl: holds no examples."],
  ["empty.csv", "", "empty.csv: holds no examples."],
  ["blank.jsonl", "\n\n  \n", "blank.jsonl: holds no examples."],
  [
    "long.jsonl",
    line("a", "b") + line("x".repeat(5e6), "y"),
    "long.jsonl:2: the line is longer than 4194304 bytes — is it a file of lines?",
  ],
  [
    "latin.jsonl",
    Buffer.from(`${line("a", "b")}{"prompt":"\xff","completion":"x"}\n`, "latin1"),
    "latin.jsonl:2: byte 11 (0xff) is not UTF-8 — save the file as UTF-8 text.",
  ],
  [
    "utf16.jsonl",
    Buffer.from(`\ufeff${line("a", "b")}`, "utf16le"),
    "utf16.jsonl:1: byte 0 (0xff) is not UTF-8 — save the file as UTF-8 text.",
  ],
  [
    "broken.jsonl",
    `${line("a", "b")}{"prompt": "a", "completion": }\n`,
    'broken.jsonl:2: invalid JSON at byte 30: a value is needed, got "}".',
  ],
  [
    "deep.jsonl",
    `${"[".repeat(5000)}\n`,
    "deep.jsonl:1: invalid JSON at byte 32: nested deeper than 32 levels.",
  ],
  ["list.jsonl", "[1]\n", "list.jsonl:1: must be an object with named fields, got a list."],
  [
    "layout.jsonl",
    '{"question":"a","answer":"b"}\n',
    `layout.jsonl:1: the fields question, answer make no layout that is understood — ${layouts}`,
  ],
  [
    "silent.jsonl",
    '{"text":""}\n'.repeat(40),
    "data: no token carries loss in any of 40 examples — are the completions empty, or maxLength 65 too short?",
  ],
  ["nul.txt", "abc\0def\n", "nul.txt:1: holds a NUL character — save the file as UTF-8 text."],
  [
    "quote.csv",
    'prompt,completion\n"a,b\nc,d\n',
    "quote.csv:2: a quote that opens in this row is not closed — close it, or double the quotes inside a cell.",
  ],
  [
    "cut.json",
    '[{"prompt":"a","completion":"b"}',
    'cut.json:1: the array has no end — is the file cut short? It must close with "]".',
  ],
  [
    "cut.parquet",
    "PAR1abc",
    'cut.parquet: does not end with "PAR1", as a Parquet file does — is it whole, and is it one?',
  ],
];

const longName = "x".repeat(300);
const options: readonly (readonly [args: string, sentence: string])[] = [
  ["--model nowhere", `nowhere: not a model folder, it has no config.json — ${aFolder}.`],
  ["--model data.jsonl", `data.jsonl: is a file and no model folder — ${aFolder}.`],
  ["--rank 1e99", 'finetune: --rank must be a whole number from 1 to 65536, got "1e99".'],
  ["--steps 1.5", 'finetune: --steps must be a whole number from 1 to 1000000000, got "1.5".'],
  ["--stepz 3", 'finetune: unknown option "--stepz" — did you mean "steps"?'],
  ["--learning-rate -1", 'finetune: --learning-rate must be a number from 0 to 10, got "-1".'],
  ["--alpha nan", 'finetune: --alpha must be a number, got "nan".'],
  ["--out", "finetune: --out needs a value: --out <folder>."],
  ["--out=", "finetune: --out needs a value: --out <folder>."],
  [
    "--schedule linaer",
    'unknown schedule "linaer" — did you mean "linear"? schedules are constant, constant_with_warmup, linear, cosine, cosine_with_min_lr, cosine_with_restarts, polynomial, inverse_sqrt, warmup_stable_decay.',
  ],
  [
    "--targets q_prj",
    "targetModules [q_prj] match no layer of this llama — it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
  ],
  [
    "--full --load-in-4bit",
    "quantize: weights of 4 or 8 bits take no gradient — train an adapter beside them.",
  ],
  [
    "--load-in-4bit --load-in-8bit",
    "finetune: --load-in-4bit and --load-in-8bit exclude each other.",
  ],
  [
    "--task masked-lm --objective dpo",
    "finetune: --task brings an objective of its own — leave --objective out, or --task.",
  ],
  [
    "--full --adapter lora",
    "finetune: --adapter trains an adapter and --full all parameters — leave one of them out.",
  ],
  [
    "--freeze layers.0",
    "freeze: an adapter leaves the whole model as it is — leave out layers.0, or train without an adapter.",
  ],
  [
    "--full --freeze nothing",
    'freeze: "nothing" is part of no parameter\'s path — paths are like model.embed_tokens.weight.',
  ],
  ["--early-stopping 3", "finetune: --early-stopping needs --eval-every — how often to judge."],
  ["--batch-size 3 --accumulate 2", "finetune: batchSize 3 must be a multiple of accumulate 2."],
  ["--held-out none.jsonl", "none.jsonl: no such file or folder — check the path."],
  ["--memory-limit 0.01", "finetune: needs about "],
  ["--out data.jsonl", "data.jsonl: is a file, a folder is needed — choose another path."],
  [
    "--out data.jsonl/run",
    "data.jsonl/run: data.jsonl is a file, a folder is needed there — choose another path.",
  ],
  [
    "--out model",
    "model: is not empty, it has config.json, model.safetensors, tokenizer.json — choose a new folder.",
  ],
  [
    `--out ${longName}`,
    `${longName}: the name is too long for the file system — choose a shorter one.`,
  ],
];

const records: readonly (readonly [name: string, record: Json, sentence: string])[] = [
  [
    "r-empty",
    { version: 1 },
    'r-empty: its run.json is not one of "plasticity finetune" — name the folder of a fine-tuning.',
  ],
  [
    "r-rank",
    { version: 1, kind: "finetune", options: { data: "data.jsonl", rank: "x" } },
    'r-rank/run.json: its option "rank" cannot be "x" — resume with the package that began the run, or begin a new one.',
  ],
  [
    "r-freeze",
    { version: 1, kind: "finetune", options: { data: "data.jsonl", freeze: "x" } },
    'r-freeze/run.json: its option "freeze" cannot be "x" — resume with the package that began the run, or begin a new one.',
  ],
  [
    "r-odd",
    { version: 1, kind: "finetune", options: { bogus: 4 } },
    'r-odd/run.json: its option "bogus" cannot be 4 — resume with the package that began the run, or begin a new one.',
  ],
  [
    "r-nul",
    { version: 1, kind: "finetune", options: { model: "a\0b", data: "data.jsonl" } },
    '"a\\u0000b": a path holds no NUL character — check the path.',
  ],
];

/** Every file below the root with a hash of its bytes. */
function snapshot(folder = root): string[] {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return [path, ...snapshot(path)];
    return [`${path} ${createHash("sha256").update(readFileSync(path)).digest("hex")}`];
  });
}
let before: readonly string[] = [];

beforeAll(async () => {
  await writeTinyModel(at("model"));
  const { model } = await loadModel(files, at("model"));
  const adapter = lora(model, { rank: 2, targetModules: ["q_proj", "v_proj"] });
  await saveAdapter(files, at("adapter"), adapter, adapter.init(new Rng(1)));
  for (const [base, cases] of [
    ["model", models],
    ["adapter", adapters],
  ] as const) {
    for (const [name, change] of cases) {
      cpSync(at(base), at(name), { recursive: true });
      change(at(name));
    }
  }
  writeFileSync(at("data.jsonl"), lines(40));
  for (const [file, content] of data) writeFileSync(at(file), content);
  for (const [name, record] of records) {
    mkdirSync(at(name));
    writeFileSync(at(name, "run.json"), json(record));
  }
  before = snapshot();
});

let running = 0;
const waiting: (() => void)[] = [];

/** Runs the command line, four at a time. */
async function cli(args: readonly string[]): ReturnType<typeof runCli> {
  if (running === 4) await new Promise<void>((resolve) => waiting.push(resolve));
  else running++;
  try {
    return await runCli(args, { cwd: root });
  } finally {
    const next = waiting.shift();
    if (next) next();
    else running--;
  }
}

async function refuses(args: readonly string[], sentence: string): Promise<void> {
  const ended = await cli(args);
  // A sentence that ends in a space goes on with numbers of the machine.
  const stderr = sentence.endsWith(" ") ? expect.stringContaining(sentence) : `${sentence}\n`;
  expect(ended).toEqual({ code: 2, signal: null, stdout: "", stderr });
}

const generate = ["generate", "--prompt", "a", "--max-new-tokens", "1", "--threads", "1"];
const finetune = ["finetune", "--threads", "1", "--steps", "1", "--eval-limit", "1"];

describe.concurrent("a model folder that is", () => {
  it.each(models)("%s is refused", (name, _, sentence) =>
    refuses([...generate, "--model", name], sentence),
  );
});

describe.concurrent("an adapter folder that is", () => {
  it.each(adapters)("%s is refused", (name, _, sentence) =>
    refuses([...generate, "--model", "model", "--adapter", name], sentence),
  );
});

describe.concurrent("data in", () => {
  it.each(data)("%s is refused", (file, _, sentence) =>
    refuses([...finetune, "--model", "model", "--data", file, "--out", "out"], sentence),
  );
});

describe.concurrent("finetune with", () => {
  it.each(options)("%s is refused", (args, sentence) => {
    const given = args.split(" ");
    const model = given.includes("--model") ? [] : ["--model", "model"];
    const out = args.includes("--out") ? [] : ["--out", "out"];
    return refuses([...finetune, "--data", "data.jsonl", ...model, ...out, ...given], sentence);
  });

  it.each(records)("--resume %s is refused", (name, _, sentence) =>
    refuses(["finetune", "--resume", name], sentence),
  );
});

describe("a training whose loss is no number", () => {
  it("ends, names the examples, keeps its last good checkpoint, and says the same again", async () => {
    const folder = mkdtempSync(join(tmpdir(), "plasticity-nan-"));
    try {
      for (const name of ["model", "data.jsonl"]) {
        cpSync(at(name), join(folder, name), { recursive: true });
      }
      const wild = "--optimizer sgd --learning-rate 10 --weight-decay 10 --schedule constant";
      const run = `--model model --data data.jsonl --full --batch-size 4 --save-every 6 --keep 1 ${wild}`;
      const args = ["finetune", "--threads", "1", "--eval-limit", "1", "--steps", "99"];
      const first = await runCli([...args, ...run.split(" "), "--out", "run"], { cwd: folder });
      const sentence = first.stderr.trimEnd().split("\n").at(-1)!;
      expect(first.code).toBe(2);
      expect(sentence).toMatch(
        /^finetune: the loss at step \d+ is NaN, on examples \d+(, \d+){0,3} — lower the learning rate \(10\), or look at these examples\.$/,
      );
      const failed = Number(/step (\d+)/.exec(sentence)![1]);
      const [newest, ...older] = await listCheckpoints(files, join(folder, "run"));
      expect(older).toEqual([]);
      // Weight decay multiplies by -99 a step, so numbers overflow in the steps before the loss does.
      expect(newest!.step).toBe(6 * Math.floor((failed - 2) / 6));
      const { params } = await loadState(files, newest!.path);
      for (const { data } of Object.values(params)) {
        expect((data as Float32Array).every(Number.isFinite)).toBe(true);
      }
      const { metrics } = await readRun(files, join(folder, "run"));
      expect(metrics.map(({ step }) => step)).toEqual(
        Array.from({ length: failed - 1 }, (_, i) => i + 1),
      );
      const unfinished = /^(result\.json|config\.json|model\.safetensors|README\.md|.*tmp.*)$/;
      const names = (): string[] => readdirSync(join(folder, "run"));
      expect(names().filter((name) => unfinished.test(name))).toEqual([]);
      const again = await runCli(["finetune", "--resume", "run", "--threads", "1"], {
        cwd: folder,
      });
      expect(again.code).toBe(2);
      expect(again.stderr.trimEnd().split("\n").at(-1)).toBe(sentence);
      expect(names().filter((name) => unfinished.test(name))).toEqual([]);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
});

describe("after all this", () => {
  it("not a file or folder was made, changed or lost", () => {
    expect(before.length).toBeGreaterThan(200);
    expect(snapshot()).toEqual(before);
  });

  it("a byte order mark is no fault, nothing is left at home, and the reader of a pipe may go", async () => {
    writeFileSync(at("bom.jsonl"), `\ufeff${lines(40)}`);
    const args = [...finetune, "--model", "model", "--data", "bom.jsonl", "--out", "bom", "--json"];
    // The engine would note an id of the machine in the home folder, and send reports.
    const env = { HOME: at("home"), XDG_CACHE_HOME: at("home", "cache") };
    mkdirSync(at("home"));
    const { code, stderr } = await runCli(args, { cwd: root, env });
    expect([code, stderr]).toEqual([0, expect.stringMatching(/^step 1\/1 /)]);
    await runCli([...generate, "--model", "model"], { cwd: root, env });
    expect(readdirSync(at("home"))).toEqual([]);
    let isGone = false;
    const ended = await runCli(["info", "model"], {
      cwd: root,
      onStart: (child) => {
        child.stdout!.destroy();
        isGone = true;
      },
    });
    expect([isGone, ended.code, ended.stderr]).toEqual([true, 0, ""]);
  });
});
