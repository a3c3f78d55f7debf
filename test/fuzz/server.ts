/**
 * Sends random requests to the server's app, with a real engine behind it, and holds every answer to the interface.
 *
 *   node --import tsx test/fuzz/server.ts --count 20000 --seed 1
 *   node --import tsx test/fuzz/server.ts --only 4711 --seed 1      one case, with its request and answer
 *
 * A case passes where it is answered in time with a status that says what happened, in JSON: an error has a
 * sentence, a type, a param and a code, and is no fault of the server; a stream ends with [DONE] or an error. After
 * all of them the engine has nothing to do and nothing is open.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { JobRunner } from "../../src/server/job-store.ts";
import { Rng } from "../../src/tensor/rng.ts";
import { tinyModel } from "../support/server.ts";
import { type LocalApp, localApp } from "../support/server-local.ts";

const maxMs = 20_000;
/** Statuses that say what a client did; 500 is a fault. */
const fair: ReadonlySet<number> = new Set([
  ...[200, 201, 204, 400, 401, 403, 404, 405, 408, 409, 413, 415, 429, 501, 503, 507],
]);

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

const say = (content: Json): Json => [{ role: "user", content }];
const tool: Json = {
  type: "function",
  function: {
    name: "get",
    parameters: { type: "object", properties: { a: { enum: ["x", "y"] } }, required: ["a"] },
  },
};

const bases: readonly (readonly [path: string, body: Json])[] = [
  ["/v1/chat/completions", { model: "tiny", messages: say("hi"), max_tokens: 3 }],
  [
    "/v1/chat/completions",
    {
      ...{ model: "tiny", messages: say([{ type: "text", text: "hi" }]), max_completion_tokens: 4 },
      ...{ stream: true, stream_options: { include_usage: true }, n: 2, seed: 7, stop: ["a", "b"] },
      ...{ temperature: 0.7, top_p: 0.9, presence_penalty: 1, frequency_penalty: -1 },
      ...{
        logprobs: true,
        top_logprobs: 2,
        logit_bias: { 50: 5 },
        user: "u",
        metadata: { a: "b" },
      },
    },
  ],
  [
    "/v1/chat/completions",
    {
      ...{ model: "tiny", messages: say("w"), max_tokens: 8, tools: [tool], tool_choice: "auto" },
      ...{ parallel_tool_calls: false, stream: true },
    },
  ],
  [
    "/v1/chat/completions",
    {
      model: "tiny",
      max_tokens: 3,
      messages: [
        { role: "system", content: "s" },
        {
          role: "assistant",
          content: null,
          tool_calls: [{ id: "1", type: "function", function: { name: "get", arguments: "{}" } }],
        },
        { role: "tool", tool_call_id: "1", content: "y" },
      ],
    },
  ],
  [
    "/v1/chat/completions",
    {
      ...{ model: "tiny", messages: say("j"), max_tokens: 12 },
      response_format: {
        type: "json_schema",
        json_schema: {
          name: "s",
          strict: true,
          schema: {
            type: "object",
            properties: {
              a: { type: "integer", minimum: 0, maximum: 99 },
              b: { type: "array", items: { type: "string", pattern: "^[a-c]{1,3}$" }, maxItems: 2 },
            },
            required: ["a"],
            additionalProperties: false,
          },
        },
      },
    },
  ],
  [
    "/v1/chat/completions",
    { model: "tiny", messages: say("o"), max_tokens: 6, response_format: { type: "json_object" } },
  ],
  ["/v1/completions", { model: "tiny", prompt: "ab", max_tokens: 3, echo: true, n: 2 }],
  [
    "/v1/completions",
    { model: "tiny", prompt: [[1, 2], [3]], max_tokens: 2, logprobs: 2, stream: true },
  ],
  [
    "/v1/embeddings",
    { model: "tiny", input: ["a", "b"], encoding_format: "base64", dimensions: 4 },
  ],
  [
    "/v1/fine_tuning/jobs",
    {
      model: "tiny",
      training_file: "file-x",
      seed: 1,
      suffix: "s",
      hyperparameters: { n_epochs: 1 },
    },
  ],
  [
    "/v1/fine_tuning/jobs",
    {
      ...{ model: "tiny", training_file: "file-x" },
      method: { type: "dpo", dpo: { hyperparameters: { beta: 0.1, n_epochs: "auto" } } },
    },
  ],
  ["/v1/adapters", { name: "x", source: "ftjob-x" }],
];

const paths = [
  ..."/health /metrics /v1/models /v1/models/tiny /v1/files /v1/files/file-x /v1/adapters".split(
    " ",
  ),
  ..."/v1/files/file-x/content /v1/fine_tuning/jobs /v1/fine_tuning/jobs/ftjob-x".split(" "),
  ..."/v1/fine_tuning/jobs/ftjob-x/events /v1/fine_tuning/jobs/ftjob-x/cancel / /v1 //".split(" "),
  ..."/v1/models/../../x /v1/files/%2e%2e%2f /v1/files?limit=-1 /v1/files?after=a&limit=99999".split(
    " ",
  ),
  ..."/v1/fine_tuning/jobs?limit=1e3 /v1/adapters/%00 /v1/models/%ff%fe".split(" "),
] as const;

const pick = <T>(rng: Rng, list: readonly T[]): T => list[rng.integer(list.length)]!;

const odd: readonly Json[] = [
  ...[
    null,
    true,
    false,
    0,
    1,
    -1,
    2,
    0.5,
    -0.5,
    1e308,
    -1e308,
    2 ** 31,
    2 ** 53,
    -(2 ** 53),
    1e-320,
  ],
  ...[
    "",
    "a",
    "auto",
    "none",
    "tiny",
    "\u0000",
    "\ufdd0",
    "😀",
    "../../etc/passwd",
    "<|endoftext|>",
  ],
  ...["x".repeat(5000), [], {}, [[]], [{}], [null], { type: "function" }, { a: { b: { c: [] } } }],
  ...[
    { $ref: "#" },
    { type: "string", pattern: "((((" },
    { enum: [] },
    { anyOf: [{}, { not: {} }] },
  ],
];

/** A value with one place of it changed. */
function mutated(rng: Rng, value: Json): Json {
  const isDeep = typeof value === "object" && value !== null;
  if (!isDeep || rng.integer(8) === 0) return structuredClone(pick(rng, odd));
  const keys = Object.keys(value);
  if (keys.length === 0) return structuredClone(pick(rng, odd));
  const key = pick(rng, keys);
  if (Array.isArray(value)) {
    const at = Number(key);
    switch (rng.integer(4)) {
      case 0:
        return value.filter((_, i) => i !== at);
      case 1:
        return [...value, ...value];
      default:
        return value.map((one, i) => (i === at ? mutated(rng, one) : one));
    }
  }
  switch (rng.integer(8)) {
    case 0: {
      const { [key]: _, ...rest } = value;
      return rest;
    }
    case 1:
      return {
        ...value,
        [pick(rng, ["x", "__proto__", "constructor", "n", "stop", "seed", "suffix"])]: pick(
          rng,
          odd,
        ),
      };
    default:
      return { ...value, [key]: mutated(rng, value[key]!) };
  }
}

/** Text with some characters changed, left out or said twice. */
function garbled(rng: Rng, text: string): string {
  let own = text;
  for (let i = 0; i <= rng.integer(3); i++) {
    const at = rng.integer(own.length + 1);
    const end = at + rng.integer(12);
    switch (rng.integer(3)) {
      case 0:
        own = own.slice(0, at) + own.slice(end);
        break;
      case 1:
        own =
          own.slice(0, at) +
          pick(rng, ['"', "{", "]", ",", "\\u", "1e", "\u0000", "é"]) +
          own.slice(at);
        break;
      default:
        own = own.slice(0, at) + own.slice(at, end).repeat(1 + rng.integer(40)) + own.slice(end);
    }
  }
  return own;
}

const fileLines = [
  '{"prompt": "a", "completion": "b"}',
  '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
  '{"text": "a"}',
] as const;

function uploadOf(rng: Rng): RequestInit {
  const form = new FormData();
  const text = Array.from({ length: 1 + rng.integer(3) }, () => pick(rng, fileLines)).join("\n");
  const name = pick(rng, [
    "a.jsonl",
    "a.json",
    "a.csv",
    "a.parquet",
    "../a.jsonl",
    "a",
    "a.txt",
    "\u0001.tsv",
  ]);
  if (rng.integer(6) > 0) {
    form.set("file", new File([rng.integer(2) ? text : garbled(rng, text)], name));
  }
  if (rng.integer(6) > 0) form.set("purpose", pick(rng, ["fine-tune", "user_data", "", "x"]));
  return { method: "POST", body: form };
}

interface Case {
  readonly path: string;
  readonly init: RequestInit;
}

/** Case `i` of a seed; it depends on the two alone. */
export function requestOf(rng: Rng): Case {
  const kind = rng.integer(12);
  if (kind === 0) {
    const method = pick(rng, ["GET", "GET", "DELETE", "PUT", "PATCH", "OPTIONS", "HEAD", "POST"]);
    return { path: pick(rng, paths), init: { method } };
  }
  if (kind === 1) return { path: "/v1/files", init: uploadOf(rng) };
  const [path, base] = pick(rng, bases);
  let body = base;
  for (let i = 0; i < rng.integer(4); i++) body = mutated(rng, body);
  const text = JSON.stringify(body);
  const type =
    rng.integer(40) === 0
      ? pick(rng, ["text/plain", "", "application/json; charset=utf-8"])
      : "application/json";
  return {
    path: rng.integer(30) === 0 ? pick(rng, paths) : path,
    init: {
      method: "POST",
      headers: type === "" ? {} : { "content-type": type },
      body: rng.integer(6) === 0 ? garbled(rng, text) : text,
    },
  };
}

function checkError(body: unknown): void {
  const { error } = (body ?? {}) as { error?: Record<string, unknown> };
  if (typeof error !== "object" || error === null) throw new Error("no error object");
  const { message, type, param, code } = error;
  if (typeof message !== "string" || message.length === 0) throw new Error("no message");
  if (message.length > 2000) throw new Error(`a sentence of ${message.length} characters`);
  if (typeof type !== "string" || param === undefined || code === undefined)
    throw new Error("no type, param or code");
}

/** How a request was answered. @throws Error where that is wrong. */
async function answer(app: LocalApp, { path, init }: Case): Promise<string> {
  const given = await app.app.request(path, init);
  const { status } = given;
  const type = given.headers.get("content-type") ?? "";
  const text = await given.text();
  if (!fair.has(status)) throw new Error(`status ${status}: ${text.slice(0, 500)}`);
  if (type.startsWith("text/event-stream")) {
    const events = text.split("\n\n").filter((event) => event.startsWith("data: "));
    const last = events.at(-1);
    if (last === "data: [DONE]") return "200 stream";
    checkError(JSON.parse(last!.slice(6)));
    const { error } = JSON.parse(last!.slice(6)) as { error: { type: string; message: string } };
    if (error.type === "server_error") throw new Error(`a fault in a stream: ${error.message}`);
    return "200 stream with an error";
  }
  if (init.method === "HEAD" || status === 204) return String(status);
  if (path === "/metrics" || type.startsWith("application/octet-stream")) return String(status);
  const body: unknown = JSON.parse(text);
  if (status >= 400) checkError(body);
  return String(status);
}

export interface ServerFuzzReport {
  readonly cases: number;
  readonly answers: Readonly<Record<string, number>>;
  /** Sentences about cases that went wrong, at most twenty. */
  readonly failures: readonly string[];
  readonly slowestMs: number;
}

/** Trains nothing: a job ends at once. */
const noTraining: JobRunner = () => ({
  outcome: Promise.resolve({ kind: "failed", message: "nothing is trained here." }),
  stop: () => {},
});

async function withApp<T>(use: (app: LocalApp) => Promise<T>): Promise<T> {
  const model = await tinyModel();
  const data = mkdtempSync(join(tmpdir(), "plasticity-fuzz-"));
  const app = await localApp(model, {
    data,
    runner: noTraining,
    limits: { tokens: 8, choices: 4, bodyBytes: 2 ** 18, fileBytes: 2 ** 16 },
  });
  try {
    return await use(app);
  } finally {
    await app.close();
    rmSync(model, { recursive: true, force: true });
    rmSync(data, { recursive: true, force: true });
  }
}

/** Runs cases 0 to `count` of a seed, some at once. */
export async function fuzzServer(
  count: number,
  seed: number,
  width = 8,
): Promise<ServerFuzzReport> {
  const root = new Rng(seed).fold("server");
  return withApp(async (app) => {
    const answers: Record<string, number> = {};
    const failures: string[] = [];
    let slowestMs = 0;
    let next = 0;
    const work = async (): Promise<void> => {
      while (next < count) {
        const i = next++;
        const start = performance.now();
        let timer: NodeJS.Timeout | undefined;
        try {
          const late = new Promise<never>((_, reject) => {
            timer = setTimeout(() => reject(new Error(`no answer in ${maxMs} ms`)), maxMs);
          });
          const kind = await Promise.race([answer(app, requestOf(root.fold(i))), late]);
          answers[kind] = (answers[kind] ?? 0) + 1;
        } catch (error) {
          if (failures.length < 20) failures.push(`case ${i}: ${String(error)}`);
        } finally {
          clearTimeout(timer);
        }
        slowestMs = Math.max(slowestMs, performance.now() - start);
        // Files that were taken must not fill the store.
        for (const { id } of app.service.files!.list.slice(0, -5))
          await app.service.files!.remove(id);
      }
    };
    await Promise.all(Array.from({ length: width }, work));
    await new Promise((resolve) => setTimeout(resolve, 200));
    const { metrics } = await app.engine.stats();
    if (metrics.running + metrics.queued > 0) failures.push("the engine still works");
    if (metrics.cache.used > 0) failures.push(`${metrics.cache.used} pages are still used`);
    if (app.open.size > 0) failures.push(`${app.open.size} requests are still open`);
    return { cases: count, answers, failures, slowestMs };
  });
}

async function main(args: readonly string[]): Promise<number> {
  const option = (name: string, missing: number): number => {
    const at = args.indexOf(name);
    return at < 0 ? missing : Number(args[at + 1]);
  };
  const [count, seed, only] = [
    option("--count", 20_000),
    option("--seed", 1),
    option("--only", -1),
  ];
  const print = (line: string): void => void process.stdout.write(`${line}\n`);
  if (only >= 0) {
    const own = requestOf(new Rng(seed).fold("server").fold(only));
    print(`${own.init.method} ${own.path} ${String(own.init.body)}`);
    print(
      await withApp((app) => answer(app, own)).catch(
        (error: Error) => error.stack ?? error.message,
      ),
    );
    return 0;
  }
  const start = performance.now();
  const report = await fuzzServer(count, seed);
  const seconds = (performance.now() - start) / 1000;
  for (const failure of report.failures) print(failure);
  print(
    `server: ${report.cases} requests in ${seconds.toFixed(1)} s, seed ${seed}; the slowest took ${report.slowestMs.toFixed(0)} ms, peak memory ${(process.resourceUsage().maxRSS / 1024).toFixed(0)} MiB`,
  );
  for (const [kind, times] of Object.entries(report.answers).sort()) {
    print(`${String(times).padStart(8)}  ${kind}`);
  }
  print(report.failures.length === 0 ? "no failure" : "FAILED");
  return report.failures.length === 0 ? 0 : 1;
}

if (process.argv[1]?.endsWith("test/fuzz/server.ts")) {
  process.exitCode = await main(process.argv.slice(2));
}
