/**
 * Runs that are killed at random moments, by a signal that no process can answer, and taken up again:
 * they end with the bytes of a run that nobody disturbed. Three moments here, twenty and more by
 * `npm run test:torture`.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Rng } from "../src/tensor/rng.ts";
import { runCli, writeTinyModel } from "./support/run-cli.ts";

const trials = Number(process.env["PLASTICITY_TORTURE"] ?? 3);
const seed = Number(process.env["PLASTICITY_TORTURE_SEED"] ?? 1);

const root = mkdtempSync(join(tmpdir(), "plasticity-torture-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const [model, data] = [join(root, "model"), join(root, "data.jsonl")];

beforeAll(async () => {
  await writeTinyModel(model);
  const lines = Array.from({ length: 60 }, (_, i) => ({
    prompt: `say ${i}`,
    completion: "ab ".repeat(1 + (i % 5)) + i,
  }));
  writeFileSync(data, lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
});

const shared = [
  ["--model", model, "--data", data, "--threads", "1", "--json"],
  ["--batch-size", "4", "--accumulate", "2", "--packing", "--max-length", "48", "--epochs", "6"],
  ["--eval-every", "7", "--save-every", "5", "--eval-limit", "2"],
].flat();

const lora = {
  args: [...shared, "--rank", "4", "--dropout", "0.1"],
  weights: "adapter_model.safetensors",
};
const full = { args: [...shared, "--full"], weights: "model.safetensors" };

/** How long the run takes whole, and what it ends with. */
async function undisturbed({ args, weights }: typeof lora, folder: string) {
  const start = performance.now();
  const { code, stderr } = await runCli(["finetune", ...args, "--out", folder], { cwd: root });
  expect(code, stderr).toBe(0);
  return { milliseconds: performance.now() - start, bytes: readFileSync(join(folder, weights)) };
}

describe.each([
  ["an adapter", lora],
  ["all parameters", full],
])("killing a training of %s", (name, method) => {
  it(`at ${trials} random moments changes no bit of its result`, async () => {
    const { milliseconds, bytes } = await undisturbed(method, join(root, `${name} whole`));
    const rng = new Rng(seed).fold(name);
    let kills = 0;
    for (let trial = 0; trial < trials; trial++) {
      const folder = join(root, `${name} ${trial}`);
      const args = ["finetune", ...method.args, "--resume", folder];
      // Twice, as a run may be killed while it is taken up.
      for (let death = 0; death < 2; death++) {
        // Most of the time goes before the first step: half of the moments lie after it.
        const share = (trial + rng.uniform()) / trials;
        const { signal, code } = await runCli(args, {
          cwd: root,
          onStart: (child) => {
            const timer = setTimeout(() => child.kill("SIGKILL"), share * 1.05 * milliseconds);
            child.on("close", () => clearTimeout(timer));
          },
        });
        if (signal === "SIGKILL") kills++;
        else expect(code).toBe(0);
      }
      const { code, stderr } = await runCli(args, { cwd: root });
      expect(code, stderr).toBe(0);
      expect(readFileSync(join(folder, method.weights)).equals(bytes), `trial ${trial}`).toBe(true);
      const inside = [folder, join(folder, "checkpoints")].flatMap((path) => readdirSync(path));
      expect(inside.filter((file) => file.includes(".tmp-"))).toEqual([]);
    }
    expect(kills).toBeGreaterThan(0);
  }, 1_200_000);
});
