/** A GGUF file from the command line: written, looked at, trained beside, used. */
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, describe, expect, it } from "vitest";

const rootFolder = fileURLToPath(new URL("..", import.meta.url));
const main = join(rootFolder, "dist", "cli", "main.js");
if (!existsSync(main)) {
  throw new Error(`${main} is not there — run "npm test", which builds it, or "npm run build".`);
}
const root = mkdtempSync(join(tmpdir(), "plasticity-cli-gguf-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const at = (name: string): string => join(root, name);

function cli(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [main, ...args], {
    cwd: root,
    encoding: "utf8",
    timeout: 100_000,
  });
}

function json(...args: string[]): Record<string, unknown> {
  const { status, stdout, stderr } = cli(...args, "--json");
  expect([status, stderr]).toEqual([0, expect.any(String)]);
  return JSON.parse(stdout) as Record<string, unknown>;
}

describe("a GGUF file", () => {
  it("goes through export, info, finetune, generate, merge and export again", () => {
    const model = at("m.gguf");
    expect(json("export", "--format", "gguf", "--out", model)).toMatchObject({
      ...{ dtype: "f16", architecture: "llama", types: { F16: 43, F32: 13 }, hasTokenizer: true },
    });
    expect(json("info", model)).toMatchObject({ version: 3 });
    // The weights in this package are float16, so the file holds the same ones.
    const same = ["--prompt", "turn on the lights", "--max-new-tokens", "8", "--temperature", "0"];
    const { stdout } = cli("generate", ...same);
    expect(cli("generate", "--model", model, ...same).stdout).toBe(stdout);
    const lines = Array.from({ length: 60 }, (_, i) => `{"text":"a b ${i} c ${i * i} d"}\n`);
    writeFileSync(at("d.jsonl"), lines.join(""));
    const tuned = cli(
      ...["finetune", "--model", model, "--data", "d.jsonl", "--steps", "1", "--out", "run"],
      ...["--rank", "2", "--load-in-4bit"],
    );
    expect([tuned.status, tuned.stderr]).toEqual([0, expect.any(String)]);
    const beside = ["--model", model, "--adapter", "run"];
    expect(json("export", "--format", "gguf-lora", ...beside, "--out", "l.gguf")).toMatchObject({
      ...{ architecture: "llama", dtype: "float32" },
    });
    const merged = cli("merge-adapter", ...beside, "--out", "merged");
    expect([merged.status, merged.stderr]).toEqual([0, expect.any(String)]);
    expect(
      json("export", "--format", "gguf", "--model", "merged", "--dtype", "q4_0", "--out", "q.gguf"),
    ).toMatchObject({ types: { Q4_0: 42, Q8_0: 1, F32: 13 } });
    expect(cli("generate", "--model", "q.gguf", ...same).status).toBe(0);
  }, 120_000);

  it.each([
    [["--out", "x.bin"], '--out "x.bin" must end in .gguf'],
    [["--out", "x.gguf", "--dtype", "float16"], '--dtype "float16" is no form of a GGUF model'],
    [["--out", "x.gguf", "--adapter", "run"], "merge it first (plasticity merge-adapter)"],
  ])("is refused where options do not fit: %j", (args, sentence) => {
    const { status, stderr } = cli("export", "--format", "gguf", ...args);
    expect(status).toBe(2);
    expect(stderr).toContain(sentence);
  });
});
