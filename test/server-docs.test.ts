/** The guide "Serve many adapters" and the command line: what they show runs as written. */
import { execFile, spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { cliPath } from "./support/run-cli.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const guide = readFileSync(join(root, "docs", "serving.md"), "utf8");
const run = promisify(execFile);

const blocks = (language: string): string[] =>
  [...guide.matchAll(/^```(\w*)\n([\s\S]*?)^```$/gm)]
    .filter(([, found]) => found === language)
    .map(([, , code]) => code!);

const place = mkdtempSync(join(tmpdir(), "plasticity-serving-"));
let base = "";
let stderr = "";
let ended: Promise<number | null>;
let child: ReturnType<typeof spawn>;

/** A block of the guide, on the port that was free. */
const here = (code: string): string => {
  expect(code).toContain("http://127.0.0.1:8000");
  return code.replaceAll("http://127.0.0.1:8000", base);
};

beforeAll(async () => {
  symlinkSync(join(root, "node_modules"), join(place, "node_modules"), "junction");
  writeFileSync(join(place, "package.json"), '{ "type": "module" }');
  const lines = Array.from({ length: 12 }, (_, i) =>
    JSON.stringify({ prompt: `${i} tea`, completion: `tea(${i})` }),
  );
  writeFileSync(join(place, "orders.jsonl"), lines.join("\n"));
  const own = spawn(
    process.execPath,
    [cliPath, "serve", "--model", "builtin", "--port", "0", "--threads", "1", "--json"],
    { cwd: place, stdio: ["ignore", "pipe", "pipe"] },
  );
  child = own;
  own.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  ended = new Promise((resolve) => own.on("close", (code) => resolve(code)));
  const said = await new Promise<string>((resolve, reject) => {
    own.stdout.setEncoding("utf8").once("data", resolve);
    own.once("close", () => reject(new Error(stderr)));
  });
  const { url, models, pid } = JSON.parse(said) as { url: string; models: string[]; pid: number };
  expect([models, pid]).toEqual([["builtin"], own.pid]);
  base = url.replace(/\/v1$/, "");
});

afterAll(() => {
  child.kill("SIGKILL");
  rmSync(place, { recursive: true, force: true });
});

it("answers the curl of the guide", async () => {
  const [chat, upload] = blocks("sh");
  const { stdout } = await run("bash", ["-c", here(chat!)], { cwd: place });
  expect(JSON.parse(stdout)).toMatchObject({
    object: "chat.completion",
    choices: [{ message: { role: "assistant" } }],
    usage: { completion_tokens: 16 },
  });
  const { stdout: file } = await run("bash", ["-c", here(upload!)], { cwd: place });
  expect(JSON.parse(file)).toMatchObject({ object: "file", filename: "orders.jsonl" });
});

it("runs the program of the guide", async () => {
  const [chat, job] = blocks("ts");
  writeFileSync(join(place, "program.ts"), here(chat!) + job!);
  const tsx = import.meta.resolve("tsx");
  const { stdout } = await run(process.execPath, ["--import", tsx, "program.ts"], { cwd: place });
  expect(stdout.endsWith("queued\n")).toBe(true);
  expect(stdout.length).toBeGreaterThan(15);
});

it("refuses a port that is taken and other machines without a key, in a sentence", async () => {
  const port = base.split(":").at(-1)!;
  const args = ["serve", "--port", port, "--no-data", "--threads", "1"];
  await expect(run(process.execPath, [cliPath, ...args])).rejects.toMatchObject({
    code: 2,
    stderr: expect.stringContaining(
      `serve: cannot listen on 127.0.0.1 port ${port}, another program has it — choose another --port.`,
    ),
  });
  await expect(
    run(process.execPath, [cliPath, "serve", "--host", "0.0.0.0", "--no-data"]),
  ).rejects.toMatchObject({ code: 2, stderr: expect.stringContaining("give --api-key-file") });
});

it("ends at SIGTERM: what runs is stopped where it can go on", async () => {
  child.kill("SIGTERM");
  expect(await ended).toBe(0);
  const lines = stderr.split("\n").filter((line) => line.startsWith("{"));
  const entries = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
  expect(entries.filter(({ event }) => event === "request").length).toBeGreaterThan(3);
  expect(entries.every(({ time }) => typeof time === "string")).toBe(true);
});
