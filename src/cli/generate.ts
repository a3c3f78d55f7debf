/** `plasticity generate`: continue a text, as it comes. */
import { type JsonValue, parseJson } from "../io/json.ts";
import { type Command, type CommandContext, wholeFrom } from "./command.ts";
import { draftingOptions, namedDrafter, openDrafter, passesJson, showPasses } from "./drafting.ts";
import {
  checkStops,
  Decoder,
  encodeChatPrompt,
  type GeneratedText,
  generateTexts,
  loadAdapter,
  loadChatTemplate,
  OptionError,
  PassCount,
  questionOf,
  schemaGrammar,
  stopIdsOf,
  type Tokenizer,
  vocabularyOf,
} from "./library.ts";
import { modelFolder, modelOption, openBackend, openModel, threadsOption } from "./models.ts";
import { showCount } from "./output.ts";
import { samplingOf, samplingOptions, unescaped } from "./sampling.ts";

/** Bytes read from stdin at most: far beyond what any model reads. */
const maxPromptBytes = 2 ** 24;
const maxSchemaBytes = 2 ** 20;

/** The prompt that was given, or what is piped in, its last line break left out. */
async function readPrompt(given: string | undefined): Promise<string> {
  if (given !== undefined) return given;
  const parts: Buffer[] = [];
  let size = 0;
  if (!process.stdin.isTTY) {
    for await (const part of process.stdin as AsyncIterable<Buffer>) {
      parts.push(part);
      size += part.length;
      if (size > maxPromptBytes) {
        throw new OptionError(
          `generate: the text on stdin is longer than ${maxPromptBytes} bytes.`,
        );
      }
    }
  }
  if (size === 0) {
    throw new OptionError("generate: --prompt is missing — give the text to continue.");
  }
  try {
    const text = new TextDecoder("utf-8", { fatal: true }).decode(Buffer.concat(parts));
    return text.replace(/\r?\n$/, "");
  } catch {
    throw new OptionError("generate: the text on stdin is not UTF-8 — convert it.");
  }
}

/** The JSON Schema that a text must fit, where one is named. */
async function readSchema({ host, options }: CommandContext): Promise<JsonValue | undefined> {
  const path = options["json-schema"] as string | undefined;
  if (path === undefined) return undefined;
  return parseJson(await host.files.readText(path, maxSchemaBytes), path);
}

interface Asked {
  /** As it stands before the answer. */
  readonly text: string;
  readonly ids: Int32Array;
  readonly stopIds: readonly number[];
}

/** The prompt's tokens: as it is, in the template that finetune uses, or as the turn of a chat. */
async function ask(
  { host, options }: CommandContext,
  tokenizer: Tokenizer,
  prompt: string,
): Promise<Asked> {
  const plain = stopIdsOf(tokenizer);
  if (options["as-chat"] === true) {
    const folder = modelFolder(options["model"] as string);
    const template = await loadChatTemplate(host.files, folder);
    const messages = [{ role: "user", content: prompt }];
    const ids = Int32Array.from(encodeChatPrompt(messages, template, tokenizer, "generate"));
    return {
      text: template.prompt(messages, true),
      ids,
      stopIds: stopIdsOf(tokenizer, template),
    };
  }
  if (options["as-example"] === true) {
    const template = unescaped(options["template"] as string);
    const { ids } = questionOf({ kind: "pair", prompt, completion: "" }, tokenizer, { template })!;
    return { text: template.replace("{prompt}", () => prompt), ids, stopIds: plain };
  }
  const ids = Int32Array.from([...tokenizer.beginning, ...tokenizer.encode(prompt)]);
  return { text: prompt, ids, stopIds: plain };
}

const ends = { stop: "stop", length: "its length", aborted: "Ctrl-C" } as const;

async function run(context: CommandContext): Promise<void> {
  const { host, output, options, signal } = context;
  if (options["as-chat"] === true && options["as-example"] === true) {
    throw new OptionError("generate: --as-chat and --as-example exclude each other.");
  }
  const prompt = await readPrompt(options["prompt"] as string | undefined);
  const count = options["n"] as number;
  const stop = ((options["stop"] as readonly string[] | undefined) ?? []).map(unescaped);
  checkStops(stop);
  const named = namedDrafter(context, "generate");
  const schema = await readSchema(context);
  const opened = await openModel(host, options["model"] as string);
  const { tokenizer } = opened;
  const asked = await ask(context, tokenizer, prompt);
  // Before the engine starts: a schema that cannot be held to is refused at once.
  const grammar = schema === undefined ? undefined : schemaGrammar(schema, vocabularyOf(tokenizer));
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const folder = options["adapter"] as string | undefined;
  const adapter =
    folder === undefined ? undefined : await loadAdapter(host.files, folder, opened.model);
  const drafter =
    named && (await openDrafter(context, named, opened.model.sizes.vocabSize, tokenizer));
  const passes = new PassCount();
  const decoder = new Decoder(opened.model, opened.params, backend, {
    ...(adapter && { adapter }),
    // A single answer needs no second row to be the one that a batch gives.
    batchExact: count > 1 || drafter !== undefined,
  });
  const started = host.clock.monotonic();
  let made: GeneratedText[];
  try {
    made = await generateTexts(
      decoder,
      tokenizer,
      Array.from({ length: count }, () => asked.ids),
      {
        ...samplingOf(options),
        maxNewTokens: options["max-new-tokens"] as number,
        ...(options["logprobs"] !== undefined && { logprobs: options["logprobs"] as number }),
        stop,
        stopIds: asked.stopIds,
        signal,
        ...(grammar && { constraints: Array.from({ length: count }, () => grammar.start()) }),
        ...(drafter && { drafter, onPass: (_, pass) => passes.add(pass) }),
        // Several texts grow together, and are shown when they are whole.
        onText: (text) => {
          if (count === 1) output.write(text);
        },
      },
    );
  } finally {
    await decoder.release();
  }
  const seconds = (host.clock.monotonic() - started) / 1000;
  const total = made.reduce((sum, { tokens }) => sum + tokens.length, 0);
  if (count === 1) output.line();
  else {
    made.forEach(({ text, finishReason }, i) => {
      if (i > 0) output.line();
      const title = `${i + 1} of ${count}, ended by ${ends[finishReason]}`;
      output.line(output.style(title, "bold"));
      output.line(text);
    });
  }
  const pace = `${total} tokens, ${showCount(total / seconds)} tokens/s`;
  output.warn(drafter ? `${pace}, ${showPasses(passes)}` : pace);
  const samples = made.map((one) => ({
    text: one.text,
    tokens: [...one.tokens],
    finishReason: one.finishReason,
    ...(one.stop !== undefined && { stop: one.stop }),
    ...(one.logprobs && { logprobs: one.logprobs }),
  }));
  output.json({
    prompt: asked.text,
    ...samples[0],
    promptTokens: asked.ids.length,
    seconds,
    tokensPerSecond: total / seconds,
    ...(drafter && passesJson(passes, drafter)),
    ...(count > 1 && { samples }),
  });
}

export const generateCommand: Command = {
  name: "generate",
  summary: "continue a text",
  usage: "plasticity generate --prompt <text> [--model <folder>] [--adapter <folder>]",
  example: 'plasticity generate --prompt "It was a dark night" --temperature 0.8 --seed 7',
  options: {
    prompt: { type: "string", value: "text", about: "the text to continue (default: stdin)" },
    model: modelOption,
    adapter: { type: "string", value: "folder", about: "an adapter folder to use with the model" },
    "as-example": { type: "flag", about: "put the prompt into the template that finetune uses" },
    template: { type: "string", value: "text", default: "{prompt}\\n", about: "that template" },
    "as-chat": { type: "flag", about: "put the prompt into the model's chat template" },
    "max-new-tokens": {
      type: "number",
      default: 64,
      about: "tokens to make",
      check: wholeFrom(1, 1 << 20),
    },
    stop: {
      type: "string",
      value: "text",
      about: "end before this text, \\n for a line",
      many: true,
    },
    "json-schema": {
      type: "string",
      value: "file",
      about: "make JSON that fits this schema; an answer cut short by its length is not whole",
    },
    n: { type: "number", default: 1, about: "texts to make", check: wholeFrom(1, 256) },
    logprobs: {
      type: "number",
      about: "with --json: log-probabilities, and so many likeliest",
      check: wholeFrom(0, 20),
    },
    threads: threadsOption,
    ...samplingOptions(),
    ...draftingOptions,
  },
  run,
};
