/** The built command line, run as a person or a script runs it. */
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { loadAdapter } from "../src/adapters/peft.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../src/data/bpe.ts";
import { loadTokenizer } from "../src/data/tokenizer.ts";
import { nodeHost } from "../src/host/node.ts";
import { loadModel, saveModel } from "../src/models/folder.ts";
import { Llama } from "../src/models/llama.ts";
import { Rng } from "../src/tensor/rng.ts";

const rootFolder = fileURLToPath(new URL("..", import.meta.url));
const main = join(rootFolder, "dist", "cli", "main.js");
if (!existsSync(main)) {
  throw new Error(`${main} is not there — run "npm test", which builds it, or "npm run build".`);
}

const { files } = nodeHost();
const root = mkdtempSync(join(tmpdir(), "plasticity-cli-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (name: string): string => join(root, name);
const model = at("model");
const data = at("data.jsonl");

// The hash of "say red" is below a tenth, those of the others are not: one of twelve is held out.
const words = ["red", "sea", "oak", "ink", "tin", "elm", "ash", "fog", "map", "box", "jar", "cup"];

beforeAll(async () => {
  const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
  const llama = new Llama({
    vocabSize: 257,
    dModel: 16,
    dFeedForward: 32,
    nLayers: 1,
    nHeads: 2,
    maxPositions: 64,
    initializerRange: 0.3,
  });
  await saveModel(files, model, llama, llama.init(new Rng(1)).params, {
    files: {
      "tokenizer.json": toTokenizerJson(bpe),
      "tokenizer_config.json": toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }),
    },
  });
  const lines = words.map((word) => ({ prompt: `say ${word}`, completion: `${word}!` }));
  writeFileSync(data, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
  writeFileSync(at("two.jsonl"), '{"text":"one"}\n{"text":"two"}\n');
});

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line; `watch` sees what it has written to stderr so far. */
function cli(
  args: readonly string[],
  watch?: (stderr: string, child: ChildProcess) => void,
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [main, ...args], {
      cwd: root,
      stdio: ["ignore", "pipe", "pipe"],
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
      watch?.(stderr, child);
    });
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
  });
}

/** Sends Ctrl-C once when stderr shows what is waited for. */
function interruptAt(pattern: RegExp): (stderr: string, child: ChildProcess) => void {
  let isSent = false;
  return (stderr, child) => {
    if (isSent || !pattern.test(stderr)) return;
    isSent = true;
    child.kill("SIGINT");
  };
}

const tiny = ["--threads", "1", "--rank", "2", "--batch-size", "4"];
const finetuneArgs = ["finetune", "--model", model, "--data", data, ...tiny];

/** What codes for colours and for the cursor begin with. */
const escapeCode = "\u001b";

/** What fine-tuning prints as JSON. */
interface Report {
  readonly losses: readonly number[];
  readonly before: Readonly<Record<string, number>>;
  readonly after: Readonly<Record<string, number>>;
  readonly steps: number;
  readonly isStopped: boolean;
}

describe.concurrent("help", () => {
  it.each([[[]], [["--help"]], [["-h"]], [["help"]]])(
    "%j lists every command and an example, on a screen of 80 by 24",
    async (args) => {
      const { code, stdout, stderr } = await cli(args);
      expect([code, stderr]).toEqual([0, ""]);
      const lines = stdout.trimEnd().split("\n");
      expect(lines.length).toBeLessThanOrEqual(24);
      expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(80);
      for (const command of ["finetune", "generate", "pretrain", "bench"]) {
        expect(stdout).toMatch(new RegExp(`^ {2}${command} +\\w`, "m"));
      }
      expect(lines.at(-1)).toMatch(/^Example: plasticity finetune /);
    },
  );

  it("of a command lists its options with their defaults, and an example", async () => {
    const { code, stdout, stderr } = await cli(["generate", "--bogus", "--help"]);
    expect([code, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(/^plasticity generate: continue a text\n\nUsage: plasticity generate /);
    expect(stdout).toMatch(/^ {2}--max-new-tokens <number> +tokens to make \(default 64\)$/m);
    expect(stdout).toMatch(/^ {2}--as-example {2}/m);
    expect(stdout).toMatch(/^ {2}--json {2}/m);
    expect(stdout).toMatch(/\nExample: plasticity generate --prompt .*\n$/);
  });

  it("of --version is the package's", async () => {
    const { version } = JSON.parse(readFileSync(join(rootFolder, "package.json"), "utf8")) as {
      version: string;
    };
    expect(await cli(["--version"])).toEqual({ code: 0, stdout: `${version}\n`, stderr: "" });
  });
});

describe.concurrent("a mistake", () => {
  it.each<[string, readonly string[], string]>([
    [
      "in the command",
      ["finetun"],
      'unknown command "finetun" — did you mean "finetune"? Run "plasticity --help" for the list.',
    ],
    [
      "for a command",
      ["constructor"],
      'unknown command "constructor" — run "plasticity --help" for the list.',
    ],
    [
      "in an option",
      ["finetune", "--stepz", "3"],
      'finetune: unknown option "--stepz" — did you mean "steps"?',
    ],
    [
      "for an option",
      ["finetune", "--constructor"],
      'finetune: unknown option "--constructor" — run "plasticity finetune --help" for the list.',
    ],
    [
      "without a value",
      ["generate", "--prompt"],
      "generate: --prompt needs a value: --prompt <text>.",
    ],
    [
      "with an option for a value",
      ["finetune", "--rank", "--full"],
      "finetune: --rank needs a value: --rank <number>.",
    ],
    [
      "with a value outside its range",
      ["finetune", "--rank", "0"],
      'finetune: --rank must be a whole number from 1 to 65536, got "0".',
    ],
    [
      "with a word for a number",
      ["finetune", "--learning-rate=fast"],
      'finetune: --learning-rate must be a number, got "fast".',
    ],
    [
      "with a value for a flag",
      ["finetune", "--json=yes"],
      'finetune: --json takes no value, got "yes".',
    ],
    [
      "with a word that belongs nowhere",
      ["finetune", "commands"],
      'finetune: does not know what to do with "commands" — options start with "--".',
    ],
    [
      "that leaves the data out",
      ["finetune"],
      'finetune: --data is missing — give a .jsonl, .csv, .parquet or .txt file, or "commands", the task in this package.',
    ],
    [
      "that leaves the prompt out",
      ["generate"],
      "generate: --prompt is missing — give the text to continue.",
    ],
    [
      "that leaves a file out",
      ["pretrain", "--data", "train.txt", "--out", "out"],
      "pretrain: --held-out is missing.",
    ],
    [
      "in the data's path",
      ["finetune", "--data", "none.jsonl"],
      "none.jsonl: no such file or folder — check the path.",
    ],
    [
      "in the data's kind",
      ["finetune", "--model", "model", "--data", "data.xml"],
      "data.xml: the file's ending says no known format — data is .jsonl, .ndjson, .json, .txt, .md, .csv, .tsv, .parquet, or name the format.",
    ],
    [
      "of too little data",
      ["finetune", "--data", "two.jsonl"],
      "two.jsonl: has 2 examples, too few to hold some back — give a file to judge by (--held-out <file>).",
    ],
    [
      "in the model",
      ["generate", "--prompt", "a", "--model", "."],
      '.: not a model folder, it has no config.json — give a folder in the Hugging Face layout, or "builtin".',
    ],
    [
      "in the adapter",
      ["generate", "--prompt", "a", "--model", "model", "--adapter", "model"],
      "model: not an adapter folder, it has no adapter_config.json.",
    ],
    [
      "in the optimizer",
      ["finetune", "--model", "model", "--data", "data.jsonl", "--optimizer", "lionn"],
      'unknown optimizer "lionn" — did you mean "lion"? optimizers are adam, adamw, sgd, lion, adafactor, muon.',
    ],
    [
      "in the template",
      ["finetune", "--model", "model", "--data", "data.jsonl", "--template", "Q:"],
      'template "Q:" must contain {prompt}.',
    ],
  ])("%s is one sentence on stderr, with exit code 2", async (_, args, sentence) => {
    expect(await cli(args)).toEqual({ code: 2, stdout: "", stderr: `${sentence}\n` });
  });

  it("shows its place with --debug", async () => {
    const { code, stdout, stderr } = await cli(["finetune", "--debug"]);
    expect([code, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(/^OptionError: finetune: --data is missing — .*\n {4}at /);
  });
});

describe("finetune", () => {
  const out = at("adapter");
  /** The run with JSON, to hold the others against. */
  let first: Report;

  it("prints one line of JSON and writes an adapter that loads", async () => {
    const args = [...finetuneArgs, "--steps", "3", "--out", out, "--json"];
    const { code, stdout, stderr } = await cli(args);
    expect([code, stdout.split("\n").length]).toEqual([0, 2]);
    const report = JSON.parse(stdout) as Report;
    first = report;
    const score = {
      loss: expect.any(Number),
      perplexity: expect.any(Number),
      tokenAccuracy: expect.any(Number),
      exactMatch: expect.any(Number),
      answered: 1,
    };
    // Rank 2: four projections of 16 by 16 and three of 16 by 32: 2 · (4 · 32 + 3 · 48) parameters.
    expect(report).toEqual({
      model,
      data,
      out,
      objective: "sft",
      adapter: "lora",
      init: null,
      steps: 3,
      bestStep: 3,
      isStopped: false,
      isEarly: false,
      seconds: expect.any(Number),
      tokensPerSecond: expect.any(Number),
      trainedParameters: 544,
      peakMemoryBytes: expect.any(Number),
      heldOut: 1,
      before: score,
      after: score,
      nearestNeighbourExactMatch: 0,
      losses: [expect.any(Number), expect.any(Number), expect.any(Number)],
    });
    expect(report.before["perplexity"]).toBeCloseTo(Math.exp(report.before["loss"]!), 6);
    expect(report.after["loss"]).not.toBe(report.before["loss"]);
    // Progress is for people, so it is not among the results.
    expect(stderr).toMatch(/^step 1\/3 {2}loss /);

    const loaded = await loadModel(files, model);
    const { adapter, params } = await loadAdapter(files, out, loaded.model);
    expect(adapter.targets.length).toBe(7);
    const b = Object.entries(params).find(([name]) => name.includes("lora_B"))![1];
    expect((b.data as Float32Array).some((x) => x !== 0)).toBe(true);
    const card = readFileSync(join(out, "README.md"), "utf8");
    expect(card).toContain(`base_model: ${model}\nlibrary_name: peft\n`);
    expect(card).toContain(
      `| loss per token | ${report.before["loss"]!.toFixed(3)} | ${report.after["loss"]!.toFixed(3)} |`,
    );
  });

  it("shows people the held-out results before and after, without codes for colour", async () => {
    const again = at("again");
    const args = [...finetuneArgs, "--steps", "3", "--out", again];
    const { code, stdout, stderr } = await cli(args);
    expect(code).toBe(0);
    const [before, after] = [first.before["loss"]!, first.after["loss"]!];
    expect(stdout).toMatch(/^held out +before +after$/m);
    expect(stdout).toMatch(
      new RegExp(`^loss per token +${before.toFixed(3)} +${after.toFixed(3)}$`, "m"),
    );
    expect(stdout).toMatch(/^tokens right +[\d.]+ % +[\d.]+ %$/m);
    expect(stdout).toMatch(/^exact match \(1\) +0\.0 % +0\.0 %$/m);
    expect(stdout).toMatch(/^copying the nearest example +0\.0 %$/m);
    expect(stdout).toContain("▸ say red\n");
    expect(stdout).toContain(
      `Adapter in ${again} (loads in PEFT too), with the log, samples and loss.svg.\n`,
    );
    expect(stderr).toMatch(/^step 1\/3 /);
    expect(stdout + stderr).not.toContain(escapeCode);
    // The same seed: the same bytes.
    const weights = "adapter_model.safetensors";
    expect(readFileSync(join(again, weights))).toEqual(readFileSync(join(out, weights)));
  });

  it("writes a whole model with --full", async () => {
    const whole = at("whole");
    const args = [...finetuneArgs, "--full", "--steps", "2", "--out", whole, "--json"];
    const { code, stdout } = await cli(args);
    expect(code).toBe(0);
    const [before, after] = [await loadModel(files, model), await loadModel(files, whole)];
    expect(after.config).toEqual(before.config);
    const sizes = Object.values(after.params).map(({ size }) => size);
    expect(JSON.parse(stdout)).toMatchObject({
      out: whole,
      steps: 2,
      trainedParameters: sizes.reduce((a, b) => a + b, 0),
    });
    expect(after.params["model.norm.weight"]).not.toEqual(before.params["model.norm.weight"]);
    const tokenizer = await loadTokenizer(files, whole);
    expect(tokenizer.json).toEqual((await loadTokenizer(files, model)).json);
  });

  it("does not answer held-out prompts beyond the model's positions, and says so", async () => {
    const long = at("long.jsonl");
    const line = (prompt: string): string => `${JSON.stringify({ prompt, completion: "x" })}\n`;
    writeFileSync(long, line("a") + line("a".repeat(70)));
    const args = [...finetuneArgs, "--held-out", long, "--steps", "1", "--json"];
    const { code, stdout, stderr } = await cli([...args, "--out", at("long")]);
    expect(stderr).toMatch(
      /^1 held-out prompts are longer than the model takes and are not answered\.$/m,
    );
    expect(code).toBe(0);
    expect((JSON.parse(stdout) as Report).before["answered"]).toBe(1);
  });

  it.skipIf(process.platform === "win32")(
    "stops after the step in which Ctrl-C comes, and writes what that step made",
    async () => {
      const stopped = at("stopped");
      const args = [...finetuneArgs, "--steps", "1000000", "--out", stopped, "--json"];
      const { code, stdout, stderr } = await cli(args, interruptAt(/^step +1\//m));
      expect(stderr).toContain("Stopping after this step; press Ctrl-C again to quit at once.\n");
      expect(code).toBe(130);
      const report = JSON.parse(stdout) as Report;
      expect(report.isStopped).toBe(true);
      expect(report.steps).toBeGreaterThanOrEqual(1);
      expect(report.steps).toBeLessThan(100_000);
      expect(report.losses.length).toBe(report.steps);
      const loaded = await loadAdapter(files, stopped, (await loadModel(files, model)).model);
      expect(loaded.adapter.kind).toBe("LORA");
    },
  );

  // A terminal of util-linux's `script`; other systems' takes other options.
  const hasTerminal =
    process.platform === "linux" &&
    (spawnSync("script", ["--version"]).stdout ?? "").toString().includes("util-linux");

  it.skipIf(!hasTerminal).each([
    ["", true],
    ["1", false],
  ])("colours its table on a terminal unless NO_COLOR says no (NO_COLOR=%j)", (value, isStyled) => {
    const args = [
      ...finetuneArgs,
      "--steps",
      "1",
      "--eval-limit",
      "0",
      "--out",
      at(`colour${value}`),
    ];
    const command = [process.execPath, main, ...args].join(" ");
    const { stdout, status } = spawnSync("script", ["-qec", command, "/dev/null"], {
      cwd: root,
      env: { ...process.env, NO_COLOR: value },
      encoding: "utf8",
    });
    expect(status).toBe(0);
    expect(stdout).toContain("loss per token");
    expect(stdout.includes(`${escapeCode}[1mheld out`)).toBe(isStyled);
    expect(new RegExp(`${escapeCode}\\[\\d+m`).test(stdout)).toBe(isStyled);
  });
});

describe("generate", () => {
  const args = ["generate", "--model", model, "--threads", "1", "--max-new-tokens", "12"];
  const example = [...args, "--adapter", at("adapter"), "--as-example", "--prompt", "say red"];
  const warm = [...example, "--temperature", "1", "--json"];

  it("draws the same text through the adapter from the same seed, and another from another", async () => {
    const [first, again, other] = await Promise.all([
      cli([...warm, "--seed", "7"]),
      cli([...warm, "--seed", "7"]),
      cli([...warm, "--seed", "8"]),
    ]);
    const results = [first, again, other].map(({ code, stdout }) => {
      expect(code).toBe(0);
      const { seconds, tokensPerSecond, ...rest } = JSON.parse(stdout) as Record<string, unknown>;
      expect(seconds).toBeGreaterThan(0);
      expect(tokensPerSecond).toBeGreaterThan(0);
      return rest;
    });
    // "say red" and the template's newline, a byte a token.
    expect(results[0]).toMatchObject({ prompt: "say red\n", promptTokens: 8 });
    expect((results[0]!["tokens"] as number[]).length).toBeLessThanOrEqual(12);
    expect(results[1]).toEqual(results[0]);
    expect(results[2]!["tokens"]).not.toEqual(results[0]!["tokens"]);
  });

  it("writes the text to stdout and how fast it was to stderr", async () => {
    const { code, stdout, stderr } = await cli([...args, "--prompt", "say red"]);
    expect(code).toBe(0);
    expect(stdout.endsWith("\n")).toBe(true);
    expect(stderr).toMatch(/^\d+ tokens, [\d.]+( [kM])? tokens\/s\n$/);
    expect(stdout + stderr).not.toContain(escapeCode);
  });
});

describe("pretrain", () => {
  it.skipIf(process.platform === "win32")(
    "stops after the step in which Ctrl-C comes, and goes on from there to a model",
    async () => {
      const text = "the cat sat on the mat and the rat sat on the cat. ".repeat(30);
      writeFileSync(at("train.txt"), text);
      const out = at("pretrained");
      const sizes = { "vocab-size": 257, "d-model": 8, "d-feed-forward": 8, layers: 1, heads: 1 };
      const more = { "kv-heads": 1, "max-positions": 16, "seq-len": 8, "batch-size": 2 };
      const run = { "eval-every": 0, "save-every": 0, threads: 1, init: "plain" };
      const args = [
        ...["pretrain", "--data", "train.txt", "--held-out", "train.txt", "--out", out, "--json"],
        ...Object.entries({ ...sizes, ...more, ...run }).flatMap(([k, v]) => [`--${k}`, `${v}`]),
      ];
      const stopped = await cli([...args, "--steps", "1000000"], interruptAt(/^step 100\//m));
      expect(stopped.code).toBe(0);
      const { isStopped, steps } = JSON.parse(stopped.stdout) as Report;
      expect(isStopped).toBe(true);
      expect(steps).toBeGreaterThanOrEqual(100);
      expect(existsSync(join(out, "config.json"))).toBe(false);

      const rest = await cli([...args, "--steps", String(steps + 2)]);
      expect(rest.code).toBe(0);
      expect(JSON.parse(rest.stdout)).toMatchObject({
        isStopped: false,
        steps: steps + 2,
        evals: [{ step: steps + 2, perplexity: expect.any(Number) }],
      });
      const loaded = await loadModel(files, out);
      expect((await loadTokenizer(files, out)).vocabSize).toBe(loaded.model.sizes.vocabSize);
      expect(existsSync(join(out, "pretrain-state.safetensors"))).toBe(false);
    },
  );
});
