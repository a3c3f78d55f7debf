/** The data that options name: read, split, encoded. */
import type { OptionValues } from "./command.ts";
import {
  type ChatTemplate,
  type DataFormat,
  type Host,
  loadChatTemplate,
  OptionError,
  type PromptOptions,
  promptText,
  type RawExample,
  type ReadExamplesOptions,
} from "./library.ts";
import { packagePath } from "./models.ts";
import { unescaped } from "./sampling.ts";

/** Files of data and how to read them. */
export interface Source {
  /** As the user named it. */
  readonly name: string;
  readonly path: string;
  readonly heldOutPath: string | undefined;
  readonly read: ReadExamplesOptions;
}

/** `column=field` as given, as a record. */
export function pairsOf(option: string, given: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    given.map((text) => {
      const at = text.indexOf("=");
      if (at > 0 && at < text.length - 1) return [text.slice(0, at), text.slice(at + 1)];
      throw new OptionError(`finetune: --${option} must be <name>=<value>, got "${text}".`);
    }),
  );
}

/** What options say of the data. */
export function sourceOf(options: OptionValues): Source {
  const name = options["data"] as string | undefined;
  if (name === undefined) {
    throw new OptionError(
      'finetune: --data is missing — give a .jsonl, .csv, .parquet or .txt file, or "commands", the task in this package.',
    );
  }
  const isShipped = name === "commands";
  const shipped = (file: string): string => packagePath("data", "commands", file);
  return {
    name,
    path: isShipped ? shipped("train.jsonl") : name,
    heldOutPath: isShipped ? shipped("heldout.jsonl") : (options["held-out"] as string | undefined),
    read: {
      map: pairsOf("map", (options["map"] as readonly string[] | undefined) ?? []),
      format: options["format"] as DataFormat | "auto",
    },
  };
}

/** How prompts are shown to the model. */
export async function promptOptions(
  host: Host,
  modelPath: string,
  options: OptionValues,
): Promise<PromptOptions> {
  const chat: ChatTemplate | undefined = await loadChatTemplate(host.files, modelPath);
  return {
    template: unescaped(options["template"] as string),
    ...(chat && { chat }),
    pairsAsChats: options["chat-format"] === true,
  };
}

/** Start of the first held-out text: what a person sees of an example. */
export function sampleOf(example: RawExample): string {
  return example.kind === "pair" ? example.prompt : promptText(example).slice(0, 40);
}
