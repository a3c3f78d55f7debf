/** Tasks and vectors on the command line. */
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import sharp from "sharp";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import { SafetensorsFile } from "../src/io/safetensors.ts";
import { saveModel } from "../src/models/folder.ts";
import { runCli } from "./support/run-cli.ts";
import { clipParams, clipTokenizer, tinyClip } from "./support/tiny-clip.ts";
import { writeTiny } from "./support/tiny-encoder.ts";
import { toyPicture } from "./support/toy-pictures.ts";

const { files } = nodeHost();
let scratch = "";
beforeAll(async () => {
  scratch = await mkdtemp(join(tmpdir(), "plasticity-cli-tasks-"));
  await writeTiny(files, join(scratch, "bert"), "bert");
  const records = ["movie", "book", "film", "story"].flatMap((thing) =>
    ["good", "fine", "great", "bad", "poor", "awful"].flatMap((word, i) =>
      ["the # was *", "a very * #"].map((form) => ({
        text: form.replace("#", thing).replace("*", word),
        label: i < 3 ? "positive" : "negative",
      })),
    ),
  );
  const text = records.map((record) => JSON.stringify(record)).join("\n");
  await writeFile(join(scratch, "opinions.jsonl"), text);
});
afterAll(async () => {
  await rm(scratch, { recursive: true });
});

const run = (...args: readonly string[]) => runCli(args, { cwd: scratch });
const data = ["--data", "opinions.jsonl", "--held-out", "opinions.jsonl"];

describe("plasticity finetune --task", () => {
  test("trains a classifier that eval measures, and goes on with a stopped run", async () => {
    const all = ["--full", "--learning-rate", "2e-3", "--batch-size", "8", "--threads", "1"];
    const task = ["--task", "sequence-classification"];
    const ended = await run(
      ...["finetune", ...task, "--model", "bert", ...data, ...all, "--epochs", "10"],
      ...["--out", "run", "--json"],
    );
    expect(ended.stderr).not.toContain("fault of plasticity");
    expect(ended.code).toBe(0);
    const report = JSON.parse(ended.stdout) as { after: { accuracy: number; loss: number } };
    expect(report.after.accuracy).toBeGreaterThan(0.95);
    const config = JSON.parse(await readFile(join(scratch, "run", "config.json"), "utf8"));
    expect(config).toMatchObject({
      architectures: ["BertForSequenceClassification"],
      id2label: { 0: "negative", 1: "positive" },
      problem_type: "single_label_classification",
    });
    const judged = await run(
      "eval",
      ...task,
      "--model",
      "run",
      "--data",
      "opinions.jsonl",
      "--json",
    );
    const { metrics } = JSON.parse(judged.stdout) as {
      metrics: { accuracy: number; loss: number };
    };
    expect(metrics.accuracy).toBe(report.after.accuracy);
    expect(metrics.loss).toBeCloseTo(report.after.loss, 5);
    const again = await run("finetune", "--resume", "run");
    expect(again.stdout).toContain("run is finished, nothing is left to do.");
  }, 60_000);

  test("keeps an adapter with its head, which eval puts on the base", async () => {
    const task = ["--task", "sequence-classification", "--model", "bert"];
    const ended = await run(
      "finetune",
      ...task,
      ...data,
      "--steps",
      "4",
      "--out",
      "lora",
      "--json",
    );
    expect(ended.code).toBe(0);
    const config = JSON.parse(await readFile(join(scratch, "lora", "adapter_config.json"), "utf8"));
    expect(config).toMatchObject({ task_type: "SEQ_CLS", modules_to_save: ["classifier"] });
    const report = JSON.parse(ended.stdout) as { after: { loss: number } };
    const judged = await run(
      ...["eval", ...task, "--adapter", "lora", "--data", "opinions.jsonl", "--json"],
    );
    const { metrics } = JSON.parse(judged.stdout) as { metrics: { loss: number } };
    expect(metrics.loss).toBeCloseTo(report.after.loss, 5);
  }, 60_000);

  test("trains an adapter beside 8 bits, weighs a run, and looks for a learning rate", async () => {
    const task = ["finetune", "--task", "sequence-classification", "--model", "bert", ...data];
    const packed = await run(
      ...[...task, "--load-in-8bit", "--steps", "3", "--out", "packed", "--json"],
    );
    expect(packed.stderr).not.toContain("fault of plasticity");
    const report = JSON.parse(packed.stdout) as { after: { loss: number }; steps: number };
    expect(report.steps).toBe(3);
    expect(report.after.loss).toBeGreaterThan(0);
    const dry = await run(...[...task, "--epochs", "2", "--dry-run", "--json"]);
    const estimate = JSON.parse(dry.stdout) as Record<string, number>;
    // 48 examples in batches of 16, twice.
    expect(estimate["steps"]).toBe(6);
    expect(estimate["memoryBytes"]).toBeGreaterThan(1e6);
    const found = await run(
      ...[...task, "--full", "--freeze", "embeddings", "--find-learning-rate", "--out", "rates"],
      "--json",
    );
    const { learningRate } = JSON.parse(found.stdout) as { learningRate: number };
    expect(learningRate).toBeGreaterThan(1e-6);
    expect(learningRate).toBeLessThan(1);
  }, 60_000);

  test("says what does not go together", async () => {
    const task = ["finetune", "--task", "masked-lm", "--model", "bert"];
    expect((await run(...task)).stderr).toContain(
      'finetune: --data is missing — masked-lm reads "text".',
    );
    expect((await run(...task, ...data, "--packing")).stderr).toContain(
      "finetune: --packing does not go with --task masked-lm: each example is judged as a whole and stands in a row of its own.",
    );
    expect((await run(...task, ...data, "--full", "--load-in-8bit")).stderr).toContain(
      "quantize: weights of 4 or 8 bits take no gradient — train an adapter beside them.",
    );
    expect((await run("finetune", "--task", "ner", ...data)).stderr).toContain(
      "finetune: --task must be causal-lm or sequence-classification or",
    );
  }, 60_000);
});

describe("plasticity eval --task zero-shot-image-classification", () => {
  test("judges a folder of pictures by the names of its folders", async () => {
    await saveModel(files, join(scratch, "clip"), tinyClip, clipParams, {
      files: { "tokenizer.json": clipTokenizer.json.tokenizer },
    });
    for (const [label, name] of ["cat", "dog"].entries()) {
      await mkdir(join(scratch, "pictures", name), { recursive: true });
      for (let i = 0; i < 3; i++) {
        const { data: pixels, width, height } = toyPicture(label, i, 8);
        const png = sharp(pixels, { raw: { width, height, channels: 3 } }).png();
        await writeFile(join(scratch, "pictures", name, `${i}.png`), await png.toBuffer());
      }
    }
    const task = ["eval", "--task", "zero-shot-image-classification", "--data", "pictures"];
    const ended = await run(
      ...[...task, "--model", "clip", "--label-template", "a photo of a {}", "--top-k", "2"],
      "--json",
    );
    const { metrics, confusion, texts, examples } = JSON.parse(ended.stdout) as {
      metrics: Record<string, number>;
      confusion: number[][];
      texts: string[];
      examples: number;
    };
    expect(texts).toEqual(["a photo of a cat", "a photo of a dog"]);
    expect(examples).toBe(6);
    expect(confusion.map((row) => row[0]! + row[1]!)).toEqual([3, 3]);
    expect(metrics["accuracy"]).toBe((confusion[0]![0]! + confusion[1]![1]!) / 6);
    expect(metrics["top2"]).toBe(1);
    expect((await run(...task, "--model", "bert")).stderr).toContain(
      "eval: a bert does not give pictures and texts vectors of one space — take a CLIP with both towers.",
    );
  }, 60_000);
});

describe("plasticity embed", () => {
  test("writes safetensors and lines of JSON with the same numbers", async () => {
    const first = await run(
      ...["embed", "--model", "bert", "--data", "opinions.jsonl", "--out", "v.safetensors"],
      "--normalize",
    );
    expect(first.stdout).toContain("48 vectors of 32 numbers (mean pooling, normalised)");
    const file = await SafetensorsFile.open(files, join(scratch, "v.safetensors"));
    const tensor = await file.read("embeddings");
    await file.close();
    expect(tensor.shape).toEqual([48, 32]);
    await run(
      "embed",
      "--model",
      "bert",
      "--data",
      "opinions.jsonl",
      "--out",
      "v.jsonl",
      "--normalize",
    );
    const lines = (await readFile(join(scratch, "v.jsonl"), "utf8")).trim().split("\n");
    const rows = lines.map((line) => JSON.parse(line) as { text: string; embedding: number[] });
    expect(rows.map(({ text }) => text)[0]).toBe("the movie was good");
    expect(rows.flatMap(({ embedding }) => embedding)).toEqual([...tensor.data]);
    const printed = await run(
      "embed",
      "--model",
      "bert",
      "--text",
      "the movie was good",
      "--dims",
      "4",
    );
    expect((JSON.parse(printed.stdout) as { embedding: number[] }).embedding.length).toBe(4);
  }, 60_000);

  test("says what is missing", async () => {
    const embed = ["embed", "--model", "bert"];
    expect((await run(...embed)).stderr).toContain("embed: give --data <file>");
    expect((await run(...embed, "--text", "a", "--out", "v.npy")).stderr).toContain(
      'embed: --out must end in .safetensors or .jsonl, got "v.npy".',
    );
    expect((await run(...embed, "--text", "a", "--prompt-name", "query")).stderr).toContain(
      'embed: the folder has no prompt "query" — it has none.',
    );
  }, 60_000);
});
