/** A model's new version on the command line: train on from an adapter, hold it against the old model. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-updates-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);

beforeAll(async () => {
  await writeTinyModel(at("model"));
  const lines = Array.from({ length: 30 }, (_, i) =>
    JSON.stringify({ prompt: `say ${i}`, completion: `${i % 3}` }),
  );
  writeFileSync(at("asked.jsonl"), lines.join("\n"));
});

const finetune = (out: string, ...args: readonly string[]) =>
  runCli(
    [
      ...["finetune", "--model", "model", "--data", "asked.jsonl", "--threads", "1", "--out", out],
      ...["--batch-size", "4", "--eval-limit", "2", "--json", ...args],
    ],
    { cwd: root },
  );
const weights = (folder: string): Buffer => readFileSync(at(folder, "adapter_model.safetensors"));

it("trains on from an adapter with MUSCLE, and counts flips against the old model", async () => {
  for (const [out, seed] of [
    ["old", "1"],
    ["new", "2"],
  ] as const) {
    const { code, stderr } = await finetune(out, "--rank", "2", "--steps", "3", "--seed", seed);
    expect(code, stderr).toBe(0);
  }
  const still = await finetune(
    "same",
    "--from-adapter",
    "new",
    "--steps",
    "1",
    "--learning-rate",
    "1e-12",
  );
  expect(still.code, still.stderr).toBe(0);
  expect(JSON.parse(readFileSync(at("same", "adapter_config.json"), "utf8"))).toMatchObject({
    r: 2,
  });
  const made = await finetune(
    "muscle",
    ...["--from-adapter", "new", "--steps", "3", "--objective", "muscle"],
    ...["--old-model", "model+old", "--new-model", "model+new"],
  );
  expect(made.code, made.stderr).toBe(0);
  expect(weights("muscle").equals(weights("new"))).toBe(false);
  const judged = await runCli(
    [
      ...[
        "eval",
        "--model",
        "model",
        "--adapter",
        "muscle",
        "--data",
        "asked.jsonl",
        "--limit",
        "6",
      ],
      ...["--against", "model+old", "--metrics", "exact-match", "--max-new-tokens", "4", "--json"],
    ],
    { cwd: root },
  );
  expect(judged.code, judged.stderr).toBe(0);
  const { against, compatibility } = JSON.parse(judged.stdout) as {
    against: string;
    compatibility: { exact: Record<string, { value: number } | number> };
  };
  expect(against).toBe("model+old");
  expect(compatibility.exact["items"]).toBe(6);
  const value = (name: string): number => (compatibility.exact[name] as { value: number }).value;
  expect(value("new") - value("old")).toBeCloseTo(
    value("positiveFlips") - value("negativeFlips"),
    9,
  );
});

it("finds no flip against itself, and shows a table for people", async () => {
  const { code, stdout, stderr } = await runCli(
    [
      ...[
        "eval",
        "--model",
        "model",
        "--data",
        "asked.jsonl",
        "--limit",
        "4",
        "--against",
        "model",
      ],
      ...["--metrics", "exact-match", "--max-new-tokens", "4"],
    ],
    { cwd: root },
  );
  expect(code, stderr).toBe(0);
  expect(stdout).toContain("Against model, which it replaces:");
  expect(stdout).toMatch(/exact match\s+became wrong \(negative flips\)\s+0\.0 %/);
});

it.each([
  [["--from-adapter", "old", "--adapter", "lora"], "leave --adapter out"],
  [["--from-adapter", "old", "--full"], "leave --full out"],
  [["--from-adapter", "nowhere"], "nowhere: not an adapter folder"],
])("refuses %j", async (args, sentence) => {
  const { code, stderr } = await finetune("refused", "--steps", "1", ...args);
  expect(code).toBe(2);
  expect(stderr).toContain(sentence);
});
