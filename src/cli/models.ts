/** Opening what the options of several commands name: a model, a tokenizer, an engine. */
import { fileURLToPath } from "node:url";
import type { OptionDescription } from "./command.ts";
import { wholeFrom } from "./command.ts";
import {
  defaultBackend,
  type Host,
  type LanguageModel,
  type LoadedModel,
  loadModel,
  loadTokenizer,
  type OrtBackend,
  type Tokenizer,
} from "./library.ts";
import type { Output } from "./output.ts";

/** A path inside this package. */
export function packagePath(...parts: readonly string[]): string {
  return fileURLToPath(new URL(`../../${parts.join("/")}`, import.meta.url));
}

/** The folder that a model option names: `builtin` is the one in this package. */
export function modelFolder(name: string): string {
  return name === "builtin" ? packagePath("models", "builtin") : name;
}

export interface OpenedModel extends LoadedModel {
  readonly tokenizer: Tokenizer;
  /** As the user named it. */
  readonly name: string;
}

export async function openModel(host: Host, name: string): Promise<OpenedModel> {
  const path = modelFolder(name);
  const loaded = await loadModel(host.files, path);
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
  about: "a folder in the Hugging Face layout, or the model in this package",
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
