/** Objectives on the command line: each with the data it needs, and a refusal of other data. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { nodeHost } from "../src/host/node.ts";
import { SafetensorsFile } from "../src/io/safetensors.ts";
import { runCli, writeTinyModel } from "./support/run-cli.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-objectives-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (...parts: readonly string[]): string => join(root, ...parts);

function write(name: string, record: (i: number) => unknown): void {
  const lines = Array.from({ length: 30 }, (_, i) => `${JSON.stringify(record(i))}\n`);
  writeFileSync(at(name), lines.join(""));
}

beforeAll(async () => {
  await writeTinyModel(at("model"));
  write("pairs.jsonl", (i) => ({ prompt: `say ${i}`, chosen: `${i}!`, rejected: "no" }));
  write("judged.jsonl", (i) => ({ prompt: `say ${i}`, completion: `${i}`, label: i % 2 === 0 }));
  write("asked.jsonl", (i) => ({ prompt: `say ${i}`, completion: `${i}` }));
  write("texts.jsonl", (i) => ({ text: `some words ${i}` }));
});

const run = (data: string, ...args: readonly string[]) =>
  runCli(
    [
      ...["finetune", "--model", "model", "--data", data, "--threads", "1", "--rank", "2"],
      ...["--batch-size", "4", "--steps", "2", "--eval-limit", "2", "--json", ...args],
    ],
    { cwd: root },
  );

async function tensorsOf(folder: string): Promise<string[]> {
  const path = at(folder, "adapter_model.safetensors");
  const file = await SafetensorsFile.open(nodeHost().files, path);
  const names = [...file.entries.keys()];
  await file.close();
  return names;
}

describe("finetune --objective", () => {
  it.each([
    ["pairs.jsonl", ["dpo", "--reference", "recorded", "--eval-every", "1"]],
    ["judged.jsonl", ["kto", "--beta", "0.3"]],
    ["asked.jsonl", ["sft", "--replay", "texts.jsonl", "--replay-share", "0.3"]],
    ["asked.jsonl", ["gkd", "--teacher", "model", "--max-new-tokens", "4"]],
  ])("learns from %s: %j", async (data, args) => {
    const out = `out-${args[0]}`;
    const { code, stdout, stderr } = await run(data, "--out", out, "--objective", ...args);
    expect(code, stderr).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ objective: args[0], steps: 2 });
    // Nothing of a teacher or a copy is saved with the adapter.
    expect((await tensorsOf(out)).every((name) => /\.lora_[AB]\.weight$/.test(name))).toBe(true);
  });

  it("weighs a training on own answers with the answers", async () => {
    const { code, stdout, stderr } = await run(
      "asked.jsonl",
      ...["--objective", "grpo", "--reward", "number", "--max-new-tokens", "8", "--dry-run"],
    );
    expect(code, stderr).toBe(0);
    const { steps, rollouts, memory, seconds, secondsPerRollout } = JSON.parse(stdout);
    expect([steps, rollouts]).toEqual([2, 2]);
    expect(memory.rolloutBytes).toBeGreaterThan(1e5);
    expect(secondsPerRollout).toBeGreaterThan(0);
    expect(seconds).toBeGreaterThan(2 * secondsPerRollout);
  });

  it("saves a reward model as PEFT keeps one", async () => {
    const { code, stderr } = await run("pairs.jsonl", "--objective", "reward", "--out", "judge");
    expect(code, stderr).toBe(0);
    expect(await tensorsOf("judge")).toContain("base_model.model.score.weight");
    const config = JSON.parse(readFileSync(at("judge", "adapter_config.json"), "utf8"));
    expect(config).toMatchObject({ task_type: "SEQ_CLS", modules_to_save: ["score"] });
  });

  it("logs a policy's rewards, and saves it without its value head", async () => {
    const policy = ["ppo", "--reward", "length", "--reward-length", "2", "--max-new-tokens", "4"];
    const { code, stderr } = await run(
      "asked.jsonl",
      ...["--eval-every", "1", "--out", "ppo", "--objective", ...policy],
    );
    expect(code, stderr).toBe(0);
    expect((await tensorsOf("ppo")).some((name) => name.startsWith("v_head"))).toBe(false);
    const lines = readFileSync(at("ppo", "metrics.jsonl"), "utf8").trim().split("\n");
    const rewards = lines.flatMap((line) => {
      const { reward } = JSON.parse(line) as { reward?: number };
      return reward === undefined ? [] : [reward];
    });
    expect(rewards).toHaveLength(2);
    expect(rewards.every((reward) => reward >= 0 && reward <= 1)).toBe(true);
  });

  it.each([
    ["texts.jsonl", ["dpo"], 'is a text, dpo needs preferences — give "prompt", "chosen" and'],
    ["asked.jsonl", ["kto"], "is a pair without a label, kto needs answers that were judged"],
    ["asked.jsonl", ["grpo"], "finetune: --objective grpo needs --reward: exact, number, json"],
  ])("refuses %s for %j", async (data, args, message) => {
    const { code, stderr } = await run(data, "--out", "refused", "--objective", ...args);
    expect(stderr).toContain(message);
    expect(code).toBe(2);
  });
});
