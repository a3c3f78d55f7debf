/** `generate`, `chat` and `eval` of the built command line, with the model in this package. */
import { type ChildProcess, spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { lora } from "../src/adapters/lora.ts";
import { saveAdapter } from "../src/adapters/peft.ts";
import type { ChatExample } from "../src/data/example.ts";
import { readExamples } from "../src/data/examples.ts";
import { nodeHost } from "../src/host/node.ts";
import { loadModel } from "../src/models/folder.ts";
import { Rng } from "../src/tensor/rng.ts";

const rootFolder = fileURLToPath(new URL("..", import.meta.url));
const main = join(rootFolder, "dist", "cli", "main.js");
if (!existsSync(main)) {
  throw new Error(`${main} is not there — run "npm test", which builds it, or "npm run build".`);
}

const root = mkdtempSync(join(tmpdir(), "plasticity-infer-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (name: string): string => join(root, name);
const lines = (items: readonly unknown[]): string =>
  items.map((item) => `${JSON.stringify(item)}\n`).join("");

beforeAll(async () => {
  writeFileSync(
    at("pairs.jsonl"),
    lines([
      { prompt: "The old man looked at the", completion: "sea" },
      { prompt: "She opened the", completion: "door" },
      { prompt: "He did not know what to", completion: "do" },
    ]),
  );
  writeFileSync(
    at("choices.jsonl"),
    lines([
      { prompt: "He went to the", choices: [" door", " zqx"], answer: 0 },
      { prompt: "She did not know what to", choices: [" the the", " do"], answer: " do" },
      { prompt: "It was", choices: [" a", " xylophone quartz"], answer: 1 },
    ]),
  );
  writeFileSync(
    at("texts.txt"),
    `${"The ship went down to the sea and was not seen again. ".repeat(60)}\n\nHe said nothing.\n`,
  );
  const { files } = nodeHost();
  const folder = join(rootFolder, "models", "builtin");
  const { model } = await loadModel(files, folder);
  const adapter = lora(model, { rank: 2, targetModules: "all-linear" });
  const params = adapter.init(new Rng(1));
  const rng = new Rng(2);
  for (const [name, tensor] of Object.entries(params)) {
    if (name.includes("lora_B")) (tensor.data as Float32Array).set(rng.normals(tensor.size, 0.3));
  }
  await saveAdapter(files, at("adapter"), adapter, params, { base: folder });
});

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line on what is written to its stdin, which then ends. */
function cli(
  args: readonly string[],
  input = "",
  watch?: (stdout: string, child: ChildProcess) => void,
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [main, ...args], { cwd: root, stdio: "pipe" });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text;
      watch?.(stdout, child);
    });
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text;
    });
    child.on("error", reject);
    child.on("close", (code) => resolve({ code, stdout, stderr }));
    child.stdin.on("error", () => {});
    if (watch) child.stdin.write(input);
    else child.stdin.end(input);
  });
}

const threads = ["--threads", "1"];

describe.concurrent("generate", () => {
  const args = ["generate", ...threads, "--max-new-tokens", "24"];
  const prompt = "The old man looked at the sea";

  it("continues what is piped in, and gives tokens, reason and speed as JSON", async () => {
    const { code, stdout } = await cli([...args, "--json", "--logprobs", "2"], `${prompt}\n`);
    expect(code).toBe(0);
    const report = JSON.parse(stdout) as Record<string, unknown>;
    expect(report).toMatchObject({ prompt, finishReason: "length" });
    expect(report["tokensPerSecond"]).toBeGreaterThan(0);
    const tokens = report["tokens"] as number[];
    const logprobs = report["logprobs"] as { token: number; top: { token: number }[] }[];
    expect(tokens.length).toBe(24);
    expect(logprobs.map(({ token }) => token)).toEqual(tokens);
    // Greedy: the likeliest is the one chosen.
    expect(logprobs.map(({ top }) => top[0]!.token)).toEqual(tokens);
    expect(logprobs.every(({ top }) => top.length === 2)).toBe(true);
  });

  it("ends before the first of several stop texts, and shows the text as it comes", async () => {
    const whole = (await cli([...args, "--prompt", prompt])).stdout.slice(0, -1);
    const stop = whole.slice(10, 13);
    const cut = await cli([...args, "--prompt", prompt, "--stop", "@@", "--stop", stop]);
    expect(cut.stdout).toBe(`${whole.slice(0, whole.indexOf(stop))}\n`);
  });

  it("draws several texts, each of its own, under the penalties and filters", async () => {
    const how = "--temperature 1 --top-k 50 --top-p 0.95 --min-p 0.01 --typical-p 0.95".split(" ");
    const penalties = "--repetition-penalty 1.2 --presence-penalty 0.5 --frequency-penalty 0.5";
    const asked = [...args, ...how, ...penalties.split(" "), "--prompt", prompt, "--n", "3"];
    const { code, stdout } = await cli([...asked, "--json"]);
    expect(code).toBe(0);
    const { samples } = JSON.parse(stdout) as { samples: { text: string }[] };
    expect(new Set(samples.map(({ text }) => text)).size).toBe(3);
    const shown = await cli(asked);
    for (const [i, { text }] of samples.entries()) {
      expect(shown.stdout).toContain(`${i + 1} of 3, ended by `);
      expect(shown.stdout).toContain(text);
    }
  });

  it("puts the prompt into the chat template", async () => {
    const { stdout } = await cli([...args, "--as-chat", "--prompt", "Hello", "--json"]);
    expect(JSON.parse(stdout)).toMatchObject({ prompt: "User: Hello\n\nAssistant:" });
  });

  it.each<[readonly string[], string, string]>([
    [[], "", "generate: --prompt is missing — give the text to continue."],
    [["--prompt", "a", "--stop="], "", "stop: a string must have 1 to 4096 characters, got 0."],
    [
      ["--prompt", "a", "--as-chat", "--as-example"],
      "",
      "generate: --as-chat and --as-example exclude each other.",
    ],
    [
      ["--prompt", "a", "--typical-p", "0"],
      "",
      'generate: --typical-p must be a number from 0.000001 to 1, got "0".',
    ],
    [
      ["--prompt", "a", "--logprobs", "21"],
      "",
      'generate: --logprobs must be a whole number from 0 to 20, got "21".',
    ],
  ])("refuses %j in a sentence", async (extra, input, sentence) => {
    expect(await cli(["generate", ...extra], input)).toEqual({
      code: 2,
      stdout: "",
      stderr: `${sentence}\n`,
    });
  });
});

describe("chat", () => {
  const args = ["chat", ...threads, "--temperature", "0", "--max-new-tokens", "16"];

  it("answers each piped line, goes on after mistakes, and ends with the input", async () => {
    const script = [
      "Where is the ship?",
      "And where\\",
      "is the sea?",
      "/sett temperature=1",
      "/set temprature=1",
      "/set top-k=0",
      "/set max-new-tokens=4",
      "//slash",
      `/save ${at("chat.jsonl")}`,
      "/save chat.jsonl",
    ].join("\n");
    const { code, stdout, stderr } = await cli(args, script);
    expect(code).toBe(0);
    expect(stderr.split("\n")).toEqual([
      'unknown command "/sett" — did you mean "set"? A message may begin with "//".',
      '/set: unknown option "temprature" — did you mean "temperature"?',
      '/set: --top-k must be a whole number from 1 to 1000000000, got "0".',
      `6 messages in ${at("chat.jsonl")}.`,
      "/save: chat.jsonl is there already — give another name.",
      "",
    ]);
    // The chat is data: one record of turns.
    const { files } = nodeHost();
    const [chat] = await readExamples(files, at("chat.jsonl"));
    const { messages } = chat as ChatExample;
    expect(messages.map(({ role }) => role)).toEqual(
      Array.from({ length: 6 }, (_, i) => (i % 2 ? "assistant" : "user")),
    );
    expect(messages.flatMap(({ role, content }) => (role === "user" ? [content] : []))).toEqual([
      "Where is the ship?",
      "And where\nis the sea?",
      "/slash",
    ]);
    const answers = messages.filter(({ role }) => role === "assistant");
    expect(stdout.replace(/\s+/g, " ").trim()).toBe(
      answers.map(({ content }) => content.replace(/\s+/g, " ")).join(" "),
    );
  });

  it("forgets with /reset, changes with /system and /load, and says the same again after", async () => {
    const ask = "Where is the ship?";
    const script = [
      ask,
      "/reset",
      ask,
      "/reset",
      `/load ${at("adapter")}`,
      ask,
      "/reset",
      "/load nowhere",
      "/load none",
      ask,
      "/reset",
      "/system Answer as a pirate.",
      ask,
      "/quit",
      "never",
    ].join("\n");
    const { code, stdout, stderr } = await cli([...args, "--json"], script);
    expect(code).toBe(0);
    const answers = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line) as { content: string; promptTokens: number });
    const [first, again, adapted, back, pirate] = answers;
    expect(answers.length).toBe(5);
    expect(again).toEqual(first);
    expect(adapted!.content).not.toBe(first!.content);
    expect(back).toEqual(first);
    expect(pirate!.promptTokens).toBeGreaterThan(first!.promptTokens);
    expect(stderr).toMatch(/^nowhere: /m);
  });

  it("says when the earliest turns no longer fit", async () => {
    const long = "The ship went down to the sea and was not seen again by any man. ".repeat(5);
    const { code, stderr } = await cli(args, `${`${long}\n`.repeat(9)}`);
    expect(code).toBe(0);
    expect(stderr).toMatch(
      /^The earliest \d+ messages no longer fit into the model's positions and are forgotten\.$/m,
    );
  });

  it.skipIf(process.platform === "win32")(
    "ends the answer at Ctrl-C and not the chat, which a second one ends",
    async () => {
      let step = 0;
      const long = ["chat", ...threads, "--temperature", "1", "--max-new-tokens", "400"];
      const { code, stdout, stderr } = await cli(long, "Tell me a story.\n", (shown, child) => {
        if (step === 0) {
          step = 1;
          child.kill("SIGINT");
        } else if (step === 1 && shown.endsWith(" (stopped)\n")) {
          step = 2;
          child.stdin!.write("/set max-new-tokens=4\nAnd another.\n");
        } else if (step === 2 && /\(stopped\)\n.+\n$/.test(shown)) {
          step = 3;
          child.kill("SIGINT");
          setTimeout(() => child.kill("SIGINT"), 300);
        }
      });
      expect([step, code]).toEqual([3, 0]);
      expect(stdout).toMatch(/ \(stopped\)\n.+\n$/);
      expect(stderr).toContain("Press Ctrl-C again, or Ctrl-D, to quit.");
    },
  );

  it("refuses a wrong option in a sentence", async () => {
    expect(await cli(["chat", "--tempo", "1"])).toEqual({
      code: 2,
      stdout: "",
      stderr: 'chat: unknown option "--tempo" — run "plasticity chat --help" for the list.\n',
    });
  });
});

interface Metric {
  readonly value: number;
  readonly low: number;
  readonly high: number;
}

describe.concurrent("eval", () => {
  const args = ["eval", ...threads];
  const report = async (...extra: string[]) => {
    const { code, stdout, stderr } = await cli([...args, ...extra, "--json"]);
    expect([code, stderr.replace(/^(Reading|Answering).*\n/gm, "")]).toEqual([0, ""]);
    return JSON.parse(stdout) as {
      examples: number;
      answered: number;
      tokens: number | null;
      metrics: Record<string, Metric> & {
        calibration?: { expectedError: number; brier: number; table: { count: number }[] };
        chance?: number;
      };
      answers?: { answer: string; isExact: boolean }[];
    };
  };

  it("measures likelihood and calibration on texts, long ones in windows", async () => {
    const wide = await report("--data", "texts.txt");
    expect(wide.examples).toBe(2);
    expect(Object.keys(wide.metrics)).toEqual([
      "loss",
      "perplexity",
      "bitsPerByte",
      "tokenAccuracy",
      "calibration",
    ]);
    const { loss, perplexity, calibration } = wide.metrics;
    expect(perplexity!.value).toBeCloseTo(Math.exp(loss!.value), 9);
    expect(loss!.low).toBeLessThanOrEqual(loss!.value);
    expect(loss!.high).toBeGreaterThanOrEqual(loss!.value);
    const counted = calibration!.table.reduce((sum, { count }) => sum + count, 0);
    expect(counted).toBe(wide.tokens);
    // Less context is worse on a text that repeats itself, and no token is lost.
    const narrow = await report("--data", "texts.txt", "--stride", "256");
    expect(narrow.tokens).toBe(wide.tokens);
    expect(narrow.metrics["loss"]!.value).toBeGreaterThan(loss!.value);
  });

  it("measures answers too, and gives them when asked", async () => {
    const all = await report("--data", "pairs.jsonl", "--answers", "--template", "{prompt} ");
    expect([all.examples, all.answered, all.answers!.length]).toEqual([3, 3, 3]);
    const exact = all.answers!.filter(({ isExact }) => isExact).length / 3;
    expect(all.metrics["exactMatch"]!.value).toBeCloseTo(exact, 12);
    for (const name of ["normalizedMatch", "f1", "rouge1", "rouge2", "rougeL", "rougeLsum"]) {
      expect(all.metrics[name]!.value).toBeGreaterThanOrEqual(0);
    }
    const some = await report(
      "--data",
      "pairs.jsonl",
      "--metrics",
      "f1,perplexity",
      "--limit",
      "2",
    );
    expect(Object.keys(some.metrics)).toEqual(["loss", "perplexity", "f1"]);
    expect(some.examples).toBe(2);
    const adapted = await report("--data", "pairs.jsonl", "--adapter", "adapter");
    expect(adapted.metrics["loss"]!.value).not.toBe(all.metrics["loss"]!.value);
  });

  it("measures choices by likelihood", async () => {
    const { metrics } = await report("--data", "choices.jsonl", "--template", "{prompt}");
    expect(metrics["accuracy"]!.value).toBeCloseTo(2 / 3, 12);
    expect(metrics.chance).toBe(0.5);
    expect(metrics.calibration!.brier).toBeGreaterThan(0);
  });

  it("shows people a table with intervals and a line of reliability", async () => {
    const { code, stdout, stderr } = await cli([...args, "--data", "commands", "--limit", "6"]);
    expect(code).toBe(0);
    expect(stdout).toMatch(/^builtin on commands: 6 examples, \d+ tokens predicted, \d:\d\d$/m);
    expect(stdout).toMatch(/^perplexity +[\d.]+ +[\d.]+ … [\d.]+$/m);
    expect(stdout).toMatch(/^ROUGE-Lsum +[\d.]+ % +[\d.]+ % … [\d.]+ %$/m);
    expect(stdout).toMatch(/^Reliability {2}right [▁▂▃▄▅▆▇█·]{10} {2}of tokens,$/m);
    expect(stdout).toMatch(/^ {2}expected {2}\S/m);
    expect(stderr).toMatch(/^Answering: 6 of 6 {2}0:00 left$/m);
    const choices = await cli([...args, "--data", "choices.jsonl", "--normalize", "bytes"]);
    expect(choices.stdout).toMatch(/^by chance +50\.0 %$/m);
  });

  it.each<[readonly string[], string]>([
    [
      [],
      'eval: --data is missing — give a file of examples, or "commands", the held-out part of the task in this package.',
    ],
    [["--data", "none.jsonl"], "none.jsonl: no such file or folder — check the path."],
    [
      ["--data", "texts.txt", "--metrics", "rogue"],
      'eval: unknown metric "rogue" — metrics are perplexity, bits-per-byte, token-accuracy, exact-match, f1, rouge, accuracy, calibration.',
    ],
    [
      ["--data", "texts.txt", "--metrics", "f1"],
      'eval: texts.txt has nothing to measure "f1" by — it gives perplexity, bits-per-byte, token-accuracy, calibration.',
    ],
    [
      ["--data", "texts.txt", "--stride", "5000"],
      "score: stride must be a whole number from 1 to the window of 256, got 5000.",
    ],
    [["--data", "texts.txt", "--map", "a"], 'eval: --map must be <column>=<field>, got "a".'],
  ])("refuses %j in a sentence", async (extra, sentence) => {
    expect(await cli(["eval", ...extra])).toEqual({
      code: 2,
      stdout: "",
      stderr: `${sentence}\n`,
    });
  });
});
