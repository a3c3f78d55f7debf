#!/usr/bin/env node
/** The command line: finds the command, reads its options, reports errors in a sentence. */
import { readFileSync } from "node:fs";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { codeOf, namedBySystem, systemError } from "../host/node-errors.ts";
import type { Command, CommandContext } from "./command.ts";
import type { OutputOptions } from "./output.ts";

/** Name → what it is for, and where it is; a command is loaded only when it is used. */
const commands: Readonly<Record<string, readonly [about: string, load: () => Promise<Command>]>> = {
  finetune: [
    "adapt a model to your data",
    async () => (await import("./finetune.ts")).finetuneCommand,
  ],
  generate: ["continue a text", async () => (await import("./generate.ts")).generateCommand],
  chat: ["talk with a model", async () => (await import("./chat.ts")).chatCommand],
  serve: [
    "answer clients of the OpenAI interface, with many adapters",
    async () => (await import("./serve.ts")).serveCommand,
  ],
  eval: [
    "measure a model on data: likelihood, answers, calibration",
    async () => (await import("./eval.ts")).evalCommand,
  ],
  embed: [
    "vectors of texts, for search and comparison",
    async () => (await import("./embed.ts")).embedCommand,
  ],
  pretrain: [
    "train a model from scratch on a long text",
    async () => (await import("./pretrain.ts")).pretrainCommand,
  ],
  merge: ["several models into one", async () => (await import("./merge.ts")).mergeCommand],
  "merge-adapter": [
    "write an adapter into its base model",
    async () => (await import("./merge-adapter.ts")).mergeAdapterCommand,
  ],
  adapter: [
    "combine LoRA adapters, or convert others to LoRA",
    async () => (await import("./adapter.ts")).adapterCommand,
  ],
  export: [
    "write a model for transformers.js or llama.cpp, or an adapter",
    async () => (await import("./export.ts")).exportCommand,
  ],
  download: [
    "fetch a model or an adapter from the hub",
    async () => (await import("./download.ts")).downloadCommand,
  ],
  info: [
    "what is in a model, an adapter or a file",
    async () => (await import("./info.ts")).infoCommand,
  ],
  plan: [
    "settings for your model, data and deadline",
    async () => (await import("./plan.ts")).plan,
  ],
  runs: ["list and compare runs", async () => (await import("./runs.ts")).runs],
  methods: [
    "the catalogue of methods, and how to use each",
    async () => (await import("./methods.ts")).methodsCommand,
  ],
  reproduce: [
    "put a published claim to the test",
    async () => (await import("./reproduce.ts")).reproduceCommand,
  ],
  doctor: [
    "look at this machine and say what is amiss",
    async () => (await import("./doctor.ts")).doctorCommand,
  ],
  bench: [
    "time this engine, beside others if asked",
    async () => (await import("./bench.ts")).bench,
  ],
};

/**
 * Commands whose engine runs in a worker, as a step cannot be interrupted: so that Ctrl-C is answered
 * at once, and takes effect when the step ends.
 */
const inWorker: ReadonlySet<string> = new Set([
  "finetune",
  "pretrain",
  "plan",
  "eval",
  "embed",
  "reproduce",
]);

function version(): string {
  const path = new URL("../../package.json", import.meta.url);
  return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version;
}

function help(): string {
  const width = Math.max(...Object.keys(commands).map((name) => name.length));
  return [
    "plasticity: adaptive models in TypeScript. Usage: plasticity <command> [options]",
    "",
    ...Object.entries(commands).map(([name, [about]]) => `  ${name.padEnd(width)}  ${about}`),
    "",
    "plasticity <command> --help   its options and an example; plasticity --version",
    "Example: plasticity finetune --model builtin --data commands --adapter lora",
  ].join("\n");
}

async function main(args: readonly string[]): Promise<void> {
  const [name, ...rest] = args;
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    process.stdout.write(`${help()}\n`);
    return;
  }
  if (name === "--version") {
    process.stdout.write(`${version()}\n`);
    return;
  }
  const wantsHelp = rest.includes("--help") || rest.includes("-h");
  if (isMainThread && inWorker.has(name) && !wantsHelp) {
    runInWorker(args);
    return;
  }
  const { commandHelp, parseOptions, suggestion } = await import("./command.ts");
  const { OptionError, nodeHost, withGguf } = await import("./library.ts");
  const host = nodeHost();
  const entry = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!entry) {
    const near = suggestion(name, Object.keys(commands));
    throw new OptionError(
      `unknown command "${name}"${near ? `${near} Run` : " — run"} "plasticity --help" for the list.`,
    );
  }
  const command = await entry[1]();
  if (wantsHelp) {
    process.stdout.write(`${commandHelp(command, process.stdout.columns)}\n`);
    return;
  }
  const { Output } = await import("./output.ts");
  const flag = { type: "flag", about: "" } as const;
  const parsed = parseOptions(
    { ...command, options: { ...command.options, json: flag, debug: flag } },
    rest,
  );
  const { json, debug, ...options } = parsed.options;
  isDebug = debug === true;
  const surface = isMainThread ? surfaceOf() : (workerData as Surface);
  const output = new Output({
    ...surface,
    isJson: json === true,
    isTerminal: surface.isTerminal && json !== true,
  });
  const abort = new AbortController();
  if (isMainThread) {
    if (!command.handlesInterrupt) onInterrupt(() => abort.abort());
  } else {
    parentPort!.once("message", () => abort.abort());
    // Waiting for Ctrl-C keeps nothing alive.
    parentPort!.unref();
  }
  const context: CommandContext = {
    // A GGUF file is a model folder to every command.
    host: { ...host, files: withGguf(host.files) },
    output,
    options,
    positionals: parsed.positionals,
    given: parsed.given,
    signal: abort.signal,
  };
  const { withHubNames } = await import("./models.ts");
  await command.run(await withHubNames(command, context));
}

type Surface = Omit<OutputOptions, "isJson">;

/** What the terminal can do. */
function surfaceOf(): Surface {
  return {
    isTerminal: process.stderr.isTTY === true,
    hasColor: process.stdout.isTTY === true && !process.env["NO_COLOR"],
    columns: process.stderr.columns ?? 80,
  };
}

/** The first Ctrl-C asks to stop, the second one ends the process. */
function onInterrupt(stop: () => void): void {
  let isAsked = false;
  const ask = (): void => {
    if (isAsked) process.exit(130);
    isAsked = true;
    process.stderr.write(
      `${process.stderr.isTTY ? "\r\u001b[2K" : ""}Stopping after this step; press Ctrl-C again to quit at once.\n`,
    );
    stop();
  };
  process.on("SIGINT", ask);
  // A parent that started this process may ask as well, and asks by its end.
  if (process.send) {
    process.on("message", (message) => {
      if (message === "stop") ask();
    });
    process.once("disconnect", ask);
    process.channel?.unref();
  }
}

/** Runs the same command line in a worker; this thread only passes on what is said. */
function runInWorker(args: readonly string[]): void {
  // As `backend/ort/node.ts` does: a worker cannot change the environment that the engine reads.
  process.env["ORT_DISABLE_TELEMETRY"] ??= "1";
  const worker = new Worker(new URL(import.meta.url), {
    argv: [...args],
    workerData: surfaceOf(),
  });
  onInterrupt(() => worker.postMessage("stop"));
  worker.on("error", (error) => {
    process.stderr.write(`${error.stack ?? error.message}\n`);
    process.exitCode = 1;
  });
  worker.on("exit", (code) => {
    process.exitCode ||= code;
    // Nothing waits for signals any more.
    process.removeAllListeners("SIGINT");
  });
}

let isDebug = false;

/** A reader that went away, as of `| head`, stops no work; what else fails in the output is told. */
function watchOutput(): void {
  process.stderr.on("error", () => {});
  process.stdout.on("error", (error) => {
    if (codeOf(error) === "EPIPE" || process.exitCode === 2) return;
    const named = systemError(error, "standard output", "write") as Error;
    process.stderr.write(`${named.message}\n`);
    process.exitCode = 2;
  });
}

if (isMainThread) watchOutput();

main(process.argv.slice(2)).catch((thrown: unknown) => {
  const error = namedBySystem(thrown);
  const isOurs = error instanceof Error && "code" in error && "details" in error;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(isDebug && error instanceof Error ? `${error.stack}\n` : `${message}\n`);
  if (!isOurs && !isDebug) {
    process.stderr.write("This is a fault of plasticity. Run again with --debug for its place.\n");
  }
  process.exitCode = isOurs ? 2 : 1;
});
