/** `plasticity serve`: a model and its adapters behind one port, for every client of the OpenAI interface. */
import { stat } from "node:fs/promises";
import { keysIn } from "../server/keys.ts";
import { defaultLimits, startServer } from "../server/node-server.ts";
import { SpanExporter, spanSettings } from "../server/spans.ts";
import { type Command, type CommandContext, realFrom, wholeFrom } from "./command.ts";
import { OptionError } from "./library.ts";
import { modelFolder, modelOption, packagePath, threadsOption } from "./models.ts";
import { packageVersion } from "./run-record.ts";

const maxKeyFile = 2 ** 20;

/** Keys of the file and the environment. */
async function keysOf({ host, options, output }: CommandContext): Promise<readonly string[]> {
  const path = options["api-key-file"] as string | undefined;
  const fromEnvironment = host.env("PLASTICITY_API_KEY");
  const own = fromEnvironment === undefined || fromEnvironment === "" ? [] : [fromEnvironment];
  if (path === undefined) return own;
  const keys = keysIn(await host.files.readText(path, maxKeyFile));
  if (keys.length === 0) {
    throw new OptionError(`serve: ${path} holds no key — write one on each line.`);
  }
  if (process.platform !== "win32" && ((await stat(path)).mode & 0o044) !== 0) {
    output.warn(`${path} can be read by others on this machine: "chmod 600" keeps it to you.`);
  }
  return [...own, ...keys];
}

/** `name=folder` as given. */
function adaptersOf(given: readonly string[]): (readonly [string, string])[] {
  return given.map((text) => {
    const at = text.indexOf("=");
    if (at > 0 && at < text.length - 1) return [text.slice(0, at), modelFolder(text.slice(at + 1))];
    throw new OptionError(`serve: --adapter must be <name>=<folder>, got "${text}".`);
  });
}

/** What clients call a model: its name on the hub, or the last part of its folder. */
function nameOf(model: string): string {
  const last = model
    .replace(/[\\/]+$/, "")
    .split(/[\\/]/)
    .at(-1)!;
  return last.replace(/\.gguf$/i, "");
}

/** Resolves at the first signal to end; a second one ends the process. */
function asked(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let isAsked = false;
    const ask = (signal: NodeJS.Signals): void => {
      if (isAsked) process.exit(130);
      isAsked = true;
      resolve(signal);
    };
    process.on("SIGINT", ask);
    process.on("SIGTERM", ask);
    if (process.send) process.once("disconnect", () => ask("SIGTERM"));
    process.channel?.unref();
  });
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options } = context;
  const number = (name: string): number | undefined => options[name] as number | undefined;
  const words = (name: string): readonly string[] =>
    (options[name] as readonly string[] | undefined) ?? [];
  const model = options["model"] as string;
  const embed = options["embed-model"] as string | undefined;
  const name = (options["name"] as string | undefined) ?? nameOf(model);
  const keys = await keysOf(context);
  const adapters = adaptersOf(words("adapter"));
  const slots = Math.max(number("max-adapters")!, adapters.length);
  const ended = asked();
  const isQuiet = options["quiet"] === true;
  const log = (entry: { readonly level: string; readonly [name: string]: unknown }): void => {
    if (isQuiet && entry.level === "info") return;
    const line = { time: new Date(host.clock.now()).toISOString(), ...entry };
    process.stderr.write(`${JSON.stringify(line)}\n`);
  };
  const spansTo = spanSettings(host.env);
  const spans =
    spansTo &&
    new SpanExporter(spansTo, host.fetch, (message) =>
      log({ level: "warn", event: "spans", message }),
    );
  const server = await startServer(host, {
    name,
    ...(embed !== undefined && { embedName: nameOf(embed) }),
    engine: {
      model: modelFolder(model),
      embedModel: embed === undefined ? undefined : modelFolder(embed),
      threads: number("threads"),
      adapters,
      optional: [],
      slots,
      maxRank: number("max-rank")!,
      adapterTargets:
        options["adapter-layer"] === undefined ? "all-linear" : words("adapter-layer"),
      cacheBytes: Math.round(number("cache-memory")! * 1e9),
      engine: {
        running: number("concurrent")!,
        queued: number("queue")!,
        ...(options["per-key-concurrent"] !== undefined && {
          runningPerKey: number("per-key-concurrent")!,
        }),
        ...(options["per-key-queue"] !== undefined && { queuedPerKey: number("per-key-queue")! }),
      },
    },
    host: options["host"] as string,
    port: number("port")!,
    keys,
    isInsecure: options["insecure"] === true,
    allowOrigins: words("allow-origin"),
    dataFolder: options["no-data"] === true ? undefined : (options["data-folder"] as string),
    adaptersFolder: options["adapters"] as string | undefined,
    limits: {
      ...defaultLimits,
      choices: number("max-choices")!,
      ...(options["max-tokens"] !== undefined && { tokens: number("max-tokens")! }),
      bodyBytes: Math.round(number("max-body")! * 1e6),
      fileBytes: Math.round(number("max-file")! * 1e6),
    },
    callers: {
      open: number("open")!,
      openPerKey: number("per-key-open") ?? number("open")!,
      perMinute: number("per-key-rate"),
    },
    headMs: 10_000,
    cliPath: packagePath("dist", "cli", "main.js"),
    version: packageVersion(),
    log,
    ...(spans && {
      onEnd: (exchange, status, ms, request) =>
        spans.add(exchange, status, host.clock.now(), ms, request.headers.get("traceparent")),
    }),
  });
  const base = `${server.url}/v1`;
  const names = server.adapters.models.map(({ id }) => id);
  output.line(
    `${output.style(name, "bold")} listens at ${output.style(base, "cyan")}${keys.length > 0 ? ", for those who have a key" : ""}.`,
  );
  if (names.length > 1) output.line(`With the adapters ${names.slice(1).join(", ")}.`);
  output.line();
  const auth = keys.length > 0 ? ' -H "Authorization: Bearer $PLASTICITY_API_KEY"' : "";
  output.line(
    `  curl ${base}/chat/completions${auth} -H "content-type: application/json" -d '{"model": "${names.at(-1)}", "messages": [{"role": "user", "content": "Hello"}]}'`,
  );
  output.line();
  output.line("Ctrl-C ends it when the open requests are answered.");
  output.json({ url: base, port: server.port, model: name, models: names, pid: process.pid });
  const signal = await ended;
  output.warn(`${signal}: no more requests are taken; those that are open have their time.`);
  await server.close(number("shutdown-seconds")! * 1000);
  await spans?.flush();
}

export const serveCommand: Command = {
  name: "serve",
  summary: "a model and its adapters behind one port, for every client of the OpenAI interface",
  usage: "plasticity serve [--model <folder>] [--adapter <name>=<folder> ...] [--port <number>]",
  example: "plasticity serve --model builtin --adapter orders=runs/orders --port 8000",
  handlesInterrupt: true,
  options: {
    model: modelOption,
    name: { type: "string", about: "what clients call the model (default: its folder's name)" },
    adapter: {
      type: "string",
      value: "name=folder",
      many: true,
      about: "an adapter that is there from the start",
    },
    adapters: {
      type: "string",
      value: "folder",
      about: "adapters in this folder may be loaded by request",
    },
    "embed-model": {
      type: "string",
      value: "folder",
      about: "another model for vectors (default: the model itself)",
    },
    "max-adapters": {
      type: "number",
      default: 8,
      about: "adapters at once; 0 for the model alone",
      check: wholeFrom(0, 1024),
    },
    "max-rank": {
      type: "number",
      default: 16,
      about: "largest rank of an adapter",
      check: wholeFrom(1, 1024),
    },
    "adapter-layer": {
      type: "string",
      value: "name",
      many: true,
      about: "layers that adapters may sit on, as q_proj; fewer are faster (default: all)",
    },
    "cache-memory": {
      type: "number",
      value: "GB",
      default: 0.5,
      about: "for keys and values of all requests",
      check: realFrom(0.001, 4096),
    },
    threads: threadsOption,
    host: {
      type: "string",
      default: "127.0.0.1",
      about: "address to listen at",
      group: "Listening",
    },
    port: {
      type: "number",
      default: 8000,
      about: "0 takes a free one",
      check: wholeFrom(0, 65535),
      group: "Listening",
    },
    "api-key-file": {
      type: "string",
      value: "file",
      about: "keys, one a line; PLASTICITY_API_KEY is one too",
      group: "Listening",
    },
    insecure: {
      type: "flag",
      about: "listen beyond this machine without a key",
      group: "Listening",
    },
    "allow-origin": {
      type: "string",
      value: "origin",
      many: true,
      about: "pages of this origin may ask (default: none)",
      group: "Listening",
    },
    "data-folder": {
      type: "string",
      value: "folder",
      default: "runs/server",
      about: "uploaded files, jobs and their adapters",
      group: "Files and jobs",
    },
    "no-data": { type: "flag", about: "no files and no jobs", group: "Files and jobs" },
    "max-file": {
      type: "number",
      value: "MB",
      default: 128,
      about: "largest upload",
      check: realFrom(0.001, 2048),
      group: "Files and jobs",
    },
    concurrent: {
      type: "number",
      default: 32,
      about: "requests in the batch",
      check: wholeFrom(1, 256),
      group: "Limits",
    },
    queue: {
      type: "number",
      default: 1024,
      about: "requests that wait for the batch",
      check: wholeFrom(1, 1e6),
      group: "Limits",
    },
    open: {
      type: "number",
      default: 2048,
      about: "requests that are open at once",
      check: wholeFrom(1, 1e6),
      group: "Limits",
    },
    "per-key-concurrent": {
      type: "number",
      about: "requests of one key in the batch (default: all)",
      check: wholeFrom(1, 256),
      group: "Limits",
    },
    "per-key-queue": {
      type: "number",
      about: "requests of one key that wait (default: all)",
      check: wholeFrom(1, 1e6),
      group: "Limits",
    },
    "per-key-open": {
      type: "number",
      about: "requests of one key that are open (default: all)",
      check: wholeFrom(1, 1e6),
      group: "Limits",
    },
    "per-key-rate": {
      type: "number",
      about: "requests of one key a minute (default: as many as it likes)",
      check: wholeFrom(1, 1e6),
      group: "Limits",
    },
    "max-tokens": {
      type: "number",
      about: "tokens of an answer at most (default: what the model has room for)",
      check: wholeFrom(1, 1 << 20),
      group: "Limits",
    },
    "max-choices": {
      type: "number",
      default: 16,
      about: "answers to one request",
      check: wholeFrom(1, 128),
      group: "Limits",
    },
    "max-body": {
      type: "number",
      value: "MB",
      default: 4,
      about: "largest request",
      check: realFrom(0.001, 64),
      group: "Limits",
    },
    "shutdown-seconds": {
      type: "number",
      default: 30,
      about: "for open requests after Ctrl-C or SIGTERM",
      check: wholeFrom(0, 3600),
      group: "Running",
    },
    quiet: { type: "flag", about: "log warnings and errors alone", group: "Running" },
  },
  run,
};
