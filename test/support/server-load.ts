/**
 * Load on the server's own process, by the official client: many streams for minutes, then many short requests.
 *
 *   node scripts/run.mjs test:load                                    200 streams for 300 s, 2,000 short requests
 *   node --import tsx test/support/server-load.ts --seconds 30 --streams 50 --short 200
 *
 * It fails where an answer is lost or differs from that of the same request alone, where /health is slow, and where
 * memory grows by more than 5 % after the first fifth of the time.
 */
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { cliPath } from "./run-cli.ts";

/** Different requests; each is asked alone first. */
const kinds = 97;

const requestOf = (kind: number) => ({
  model: "builtin",
  messages: [
    {
      role: "user" as const,
      content: `Tell me of number ${kind}. ${"And then? ".repeat(kind % 11)}`,
    },
  ],
  max_tokens: 8 + ((kind * 7) % 40),
  temperature: kind % 3 === 0 ? 0 : 1,
  seed: kind,
});

async function streamed(client: OpenAI, kind: number): Promise<string> {
  const stream = await client.chat.completions.create({
    ...requestOf(kind),
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let end = "";
  for await (const { choices, usage } of stream) {
    text += choices[0]?.delta.content ?? "";
    end += choices[0]?.finish_reason ?? "";
    if (usage) end += ` ${usage.completion_tokens}`;
  }
  return `${text}|${end}`;
}

async function whole(client: OpenAI, kind: number): Promise<string> {
  const { choices, usage } = await client.chat.completions.create(requestOf(kind));
  return `${choices[0]!.message.content}|${choices[0]!.finish_reason} ${usage!.completion_tokens}`;
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;

interface Started {
  readonly url: string;
  stop(): Promise<number | null>;
}

function start(folder: string): Promise<Started> {
  const child = spawn(
    process.execPath,
    // A small cache is filled soon: its memory is given when it is first written to, and would look like growth.
    [
      ...[cliPath, "serve", "--model", "builtin", "--port", "0", "--no-data", "--quiet"],
      ...["--json", "--cache-memory", "0.1"],
    ],
    { cwd: folder, stdio: ["ignore", "pipe", "inherit"] },
  );
  const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
  return new Promise((resolve, reject) => {
    child.stdout.setEncoding("utf8").once("data", (text: string) => {
      const { url } = JSON.parse(text) as { url: string };
      resolve({
        url: url.replace(/\/v1$/, ""),
        stop: () => {
          child.kill("SIGTERM");
          return ended;
        },
      });
    });
    child.once("close", () => reject(new Error("the server did not start")));
  });
}

async function main(args: readonly string[]): Promise<number> {
  const option = (name: string, missing: number): number => {
    const at = args.indexOf(name);
    return at < 0 ? missing : Number(args[at + 1]);
  };
  const seconds = option("--seconds", 300);
  const streams = option("--streams", 200);
  const short = option("--short", 2000);
  const say = (line: string): void => void process.stdout.write(`${line}\n`);
  const folder = mkdtempSync(join(tmpdir(), "plasticity-load-"));
  const server = await start(folder);
  const failures: string[] = [];
  const fail = (what: string): void => {
    if (failures.length < 20) failures.push(what);
  };
  try {
    const client = new OpenAI({
      baseURL: `${server.url}/v1`,
      apiKey: "none",
      maxRetries: 0,
      timeout: 600_000,
    });
    const metric = async (name: string): Promise<number> => {
      const text = await (await fetch(`${server.url}/metrics`)).text();
      return Number(new RegExp(`^${name} (\\S+)$`, "m").exec(text)?.[1]);
    };
    const alone: string[] = [];
    for (let kind = 0; kind < kinds; kind++) alone.push(await streamed(client, kind));
    say(`${kinds} requests alone: done`);

    const begun = performance.now();
    const isOver = (): boolean => performance.now() - begun > seconds * 1000;
    const memory: { at: number; bytes: number }[] = [];
    const health: number[] = [];
    const watch = async (): Promise<void> => {
      while (!isOver()) {
        const asked = performance.now();
        const { status } = await fetch(`${server.url}/health`);
        health.push(performance.now() - asked);
        if (status !== 200) fail(`/health answered ${status}`);
        const bytes =
          (await metric("process_resident_memory_bytes")) +
          (await metric("plasticity_engine_resident_memory_bytes"));
        memory.push({ at: (performance.now() - begun) / 1000, bytes });
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    };
    let answered = 0;
    let next = 0;
    const compare = async (
      ask: (client: OpenAI, kind: number) => Promise<string>,
      kind: number,
    ): Promise<void> => {
      try {
        const given = await ask(client, kind);
        answered++;
        if (given !== alone[kind]) fail(`request ${kind}: ${given} — alone ${alone[kind]}`);
      } catch (error) {
        fail(`request ${kind} was lost: ${String(error)}`);
      }
    };
    const stream = async (): Promise<void> => {
      while (!isOver()) await compare(streamed, next++ % kinds);
    };
    await Promise.all([watch(), ...Array.from({ length: streams }, stream)]);
    const took = (performance.now() - begun) / 1000;
    const tokens = await metric("plasticity_new_tokens_total");
    say(
      `${streams} streams: ${answered} answers in ${took.toFixed(0)} s; ${(tokens / took).toFixed(0)} tokens/s`,
    );
    const fifth = seconds / 5;
    const early = median(
      memory.filter(({ at }) => at >= fifth && at < 2 * fifth).map(({ bytes }) => bytes),
    );
    const late = median(memory.filter(({ at }) => at >= 4 * fifth).map(({ bytes }) => bytes));
    const growth = late / early - 1;
    say(
      `memory: ${(early / 1e6).toFixed(0)} MB in the second fifth, ${(late / 1e6).toFixed(0)} MB in the last: ${(100 * growth).toFixed(1)} %`,
    );
    if (!(growth <= 0.05)) fail(`memory grew by ${(100 * growth).toFixed(1)} %`);
    const worst = health.sort((a, b) => a - b);
    const at = (share: number): string => worst[Math.floor(share * (worst.length - 1))]!.toFixed(0);
    say(`/health: ${at(0.5)} ms in the middle, ${at(0.95)} of 95 %, ${at(1)} at most`);

    const asked = performance.now();
    const before = answered;
    let left = short;
    const worker = async (): Promise<void> => {
      while (left-- > 0) await compare(whole, next++ % kinds);
    };
    await Promise.all(Array.from({ length: 64 }, worker));
    const span = (performance.now() - asked) / 1000;
    say(`${short} short requests: ${answered - before} answers in ${span.toFixed(0)} s`);
    if (answered - before !== short) fail(`${short - (answered - before)} answers were lost`);
    const open = await metric("plasticity_requests_running");
    if (open !== 0) fail(`the engine still has ${open} requests`);
  } finally {
    const code = await server.stop();
    if (code !== 0) fail(`the server ended with code ${code}`);
    rmSync(folder, { recursive: true, force: true });
  }
  for (const failure of failures) say(failure);
  say(failures.length === 0 ? "nothing lost, every answer that of the request alone" : "FAILED");
  return failures.length === 0 ? 0 : 1;
}

if (process.argv[1]?.endsWith("server-load.ts"))
  process.exitCode = await main(process.argv.slice(2));
