#!/usr/bin/env node
/** The command line: finds the command, reads its options, reports errors in a sentence. */
import { readFileSync } from "node:fs";
import type { Command, CommandContext } from "./command.ts";

/** Name → what it is for, and where it is; a command is loaded only when it is used. */
const commands: Readonly<Record<string, readonly [about: string, load: () => Promise<Command>]>> = {
  finetune: [
    "adapt a model to your data",
    async () => (await import("./finetune.ts")).finetuneCommand,
  ],
  generate: ["continue a text", async () => (await import("./generate.ts")).generateCommand],
  pretrain: [
    "train a model from scratch on a long text",
    async () => (await import("./pretrain.ts")).pretrainCommand,
  ],
  bench: [
    "time this engine, beside others if asked",
    async () => (await import("./bench.ts")).bench,
  ],
};

function version(): string {
  const path = new URL("../../package.json", import.meta.url);
  return (JSON.parse(readFileSync(path, "utf8")) as { version: string }).version;
}

function help(): string {
  const width = Math.max(...Object.keys(commands).map((name) => name.length));
  return [
    "plasticity: adaptive models in TypeScript",
    "",
    "Usage: plasticity <command> [options]",
    "",
    ...Object.entries(commands).map(([name, [about]]) => `  ${name.padEnd(width)}  ${about}`),
    "",
    "  plasticity <command> --help   its options and an example",
    "  plasticity --version",
    "",
    "Example: plasticity finetune --model builtin --data commands --adapter lora",
  ].join("\n");
}

function commandHelp(command: Command): string {
  const entries: [string, string][] = Object.entries(command.options).map(([name, option]) => [
    `--${name}${option.type === "flag" ? "" : ` <${option.value ?? option.type}>`}`,
    option.about + (option.default === undefined ? "" : ` (default ${option.default})`),
  ]);
  entries.push(["--json", "print the result as one line of JSON"]);
  const width = Math.max(...entries.map(([left]) => left.length));
  return [
    `plasticity ${command.name}: ${command.summary}`,
    "",
    `Usage: ${command.usage}`,
    "",
    ...entries.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`),
    "",
    `Example: ${command.example}`,
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
  const { parseOptions, suggestion } = await import("./command.ts");
  const { OptionError, nodeHost } = await import("./library.ts");
  const entry = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!entry) {
    const near = suggestion(name, Object.keys(commands));
    throw new OptionError(
      `unknown command "${name}"${near ? `${near} Run` : " — run"} "plasticity --help" for the list.`,
    );
  }
  const command = await entry[1]();
  if (rest.includes("--help") || rest.includes("-h")) {
    process.stdout.write(`${commandHelp(command)}\n`);
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
  const output = new Output({
    isJson: json === true,
    isTerminal: process.stderr.isTTY === true && json !== true,
    hasColor: process.stdout.isTTY === true && !process.env["NO_COLOR"],
    columns: process.stderr.columns ?? 80,
  });
  const abort = new AbortController();
  process.on("SIGINT", () => {
    if (abort.signal.aborted) process.exit(130);
    abort.abort();
    output.warn("Stopping after this step; press Ctrl-C again to quit at once.");
  });
  const context: CommandContext = {
    host: nodeHost(),
    output,
    options,
    positionals: parsed.positionals,
    signal: abort.signal,
  };
  await command.run(context);
}

let isDebug = false;

main(process.argv.slice(2)).catch((error: unknown) => {
  const isOurs = error instanceof Error && "code" in error && "details" in error;
  const message = error instanceof Error ? error.message : String(error);
  process.stderr.write(isDebug && error instanceof Error ? `${error.stack}\n` : `${message}\n`);
  if (!isOurs && !isDebug) {
    process.stderr.write("This is a fault of plasticity. Run again with --debug for its place.\n");
  }
  process.exitCode = isOurs ? 2 : 1;
});
