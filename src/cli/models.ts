/** Opening what the options of several commands name: a model, a tokenizer, an engine. */
import { fileURLToPath } from "node:url";
import type { Command, CommandContext, OptionDescription } from "./command.ts";
import { wholeFrom } from "./command.ts";
import { downloadShown } from "./download.ts";
import {
  defaultBackend,
  type Host,
  type LanguageModel,
  type LoadedModel,
  type LoadModelOptions,
  loadModel,
  loadTokenizer,
  type OrtBackend,
  parseHubId,
  type Tokenizer,
} from "./library.ts";
import type { Output } from "./output.ts";

/** A path inside this package. */
export function packagePath(...parts: readonly string[]): string {
  return fileURLToPath(new URL(`../../${parts.join("/")}`, import.meta.url));
}

/** Names on the hub, and where the cache has them. */
const fetched = new Map<string, string>();
/** Who shows how a download goes. */
let viewer: Pick<CommandContext, "output" | "signal"> | undefined;

/** The folder that a model option names: `builtin` is the one in this package. */
export function modelFolder(name: string): string {
  return name === "builtin" ? packagePath("models", "builtin") : (fetched.get(name) ?? name);
}

/** Fetches a model or an adapter that a name on the hub stands for; what is here stays as it is. */
async function fetchNamed(host: Host, name: string): Promise<void> {
  if (!viewer || fetched.has(name) || !name.includes("/") || (await host.files.info(name))) return;
  if (!parseHubId(name)) return;
  const { output, signal } = viewer;
  fetched.set(name, (await downloadShown(host, output, name, { signal })).path);
}

/**
 * Fetches what a command is to read and a name on the hub stands for: models and adapters among its options,
 * and what its usage calls a folder or a file. Models keep the name they were given.
 */
export async function withHubNames(
  command: Command,
  context: CommandContext,
): Promise<CommandContext> {
  viewer = context;
  const { host, positionals } = context;
  const options = { ...context.options };
  for (const name of ["model", "adapter"]) {
    const value = options[name];
    if (command.options[name]?.value !== "folder" || typeof value !== "string") continue;
    await fetchNamed(host, value);
    if (name === "adapter") options[name] = modelFolder(value);
  }
  if (/^plasticity \S+ <folder\|file>/.test(command.usage)) {
    for (const name of positionals) await fetchNamed(host, name);
  }
  return { ...context, options };
}

export interface OpenedModel extends LoadedModel {
  readonly tokenizer: Tokenizer;
  /** As the user named it. */
  readonly name: string;
}

export async function openModel(
  host: Host,
  name: string,
  options: LoadModelOptions = {},
): Promise<OpenedModel> {
  await fetchNamed(host, name);
  const path = modelFolder(name);
  const loaded = await loadModel(host.files, path, options);
  return { ...loaded, tokenizer: await loadTokenizer(host.files, path), name };
}

export function openBackend(output: Output, threads: number | undefined): Promise<OrtBackend> {
  return defaultBackend({
    ...(threads !== undefined && { threads }),
    warn: (message) => output.warn(message),
  });
}

export const modelOption: OptionDescription = {
  type: "string",
  value: "folder",
  default: "builtin",
  about:
    "a folder in the Hugging Face layout, a GGUF file, org/name on the hub, or the model in this package",
};

export const threadsOption: OptionDescription = {
  type: "number",
  about: "threads of the engine (default: all for large models, one for small)",
  check: wholeFrom(1, 1024),
};

export function countParameters(model: LanguageModel): number {
  let count = 0;
  for (const [, slot] of model.slots()) count += slot.shape.reduce((a, b) => a * b, 1);
  return count;
}
