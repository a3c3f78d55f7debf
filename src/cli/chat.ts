/** `plasticity chat`: talk with a model in the terminal, or with lines that are piped in. */
import { createInterface } from "node:readline";
import { ChatCommands, type ChatState } from "./chat-commands.ts";
import { type Command, type CommandContext, wholeFrom } from "./command.ts";
import {
  Conversation,
  Decoder,
  type LoadedAdapter,
  loadAdapter,
  loadChatTemplate,
  PlasticityError,
} from "./library.ts";
import {
  countParameters,
  modelFolder,
  modelOption,
  type OpenedModel,
  openBackend,
  openModel,
  threadsOption,
} from "./models.ts";
import { type Output, showCount } from "./output.ts";
import { samplingOf, samplingOptions, unescaped } from "./sampling.ts";

const [youMark, moreMark] = ["› ", "… "];

/**
 * Ctrl-C: the first one ends the answer that is being written, and where there is none it says how to
 * quit; the next one, with nothing said in between, quits.
 */
class Interrupts {
  #isWarned = false;
  #answer: AbortController | undefined;
  readonly #hint: () => void;
  readonly #quit: () => void;

  constructor(hint: () => void, quit: () => void) {
    this.#hint = hint;
    this.#quit = quit;
  }

  /** The signal of the answer to come. */
  begin(): AbortSignal {
    this.#isWarned = false;
    this.#answer = new AbortController();
    return this.#answer.signal;
  }

  end(): void {
    this.#answer = undefined;
  }

  get isAnswering(): boolean {
    return this.#answer !== undefined;
  }

  ask(): void {
    if (this.#isWarned) {
      this.#quit();
      return;
    }
    this.#isWarned = true;
    if (this.#answer) this.#answer.abort();
    else this.#hint();
  }

  /** Something was said: the next Ctrl-C is the first again. */
  reset(): void {
    this.#isWarned = false;
  }
}

/** Writes an answer as it comes, without the white space before its first word. */
async function answer(
  state: ChatState,
  output: Output,
  text: string,
  signal: AbortSignal,
): Promise<void> {
  const { options } = state;
  let hasBegun = false;
  const made = await state.conversation.reply(text, {
    ...samplingOf(options),
    // Each answer has numbers of its own, and the whole chat those of one seed.
    seed: (options["seed"] as number) + state.turn++,
    maxNewTokens: options["max-new-tokens"] as number,
    stop: ((options["stop"] as readonly string[] | undefined) ?? []).map(unescaped),
    signal,
    onText: (piece) => {
      const shown = hasBegun ? piece : piece.trimStart();
      hasBegun ||= shown !== "";
      output.write(shown);
    },
  });
  output.line(made.finishReason === "aborted" ? output.style(" (stopped)", "dim") : "");
  if (made.dropped > 0) {
    output.warn(
      `The earliest ${made.dropped} messages no longer fit into the model's positions and are forgotten.`,
    );
  }
  output.json({
    role: "assistant",
    content: made.text.trim(),
    finishReason: made.finishReason,
    tokens: made.tokens.length,
    promptTokens: made.promptTokens,
    dropped: made.dropped,
  });
}

async function openState(context: CommandContext, opened: OpenedModel): Promise<ChatState> {
  const { host, output, options } = context;
  const backend = await openBackend(output, options["threads"] as number | undefined);
  const decoderOf = (adapter: LoadedAdapter | undefined): Decoder =>
    new Decoder(opened.model, opened.params, backend, {
      ...(adapter && { adapter }),
      // One answer at a time, which no batch has to give too.
      batchExact: false,
    });
  const folder = options["adapter"] as string | undefined;
  const adapter =
    folder === undefined ? undefined : await loadAdapter(host.files, folder, opened.model);
  const template = await loadChatTemplate(host.files, modelFolder(options["model"] as string));
  if (template.isPlain && process.stdin.isTTY) {
    output.warn("The model has no chat template; a plain one with names before each turn is used.");
  }
  let decoder = decoderOf(adapter);
  const system = options["system"] as string | undefined;
  const conversation = new Conversation(decoder, {
    tokenizer: opened.tokenizer,
    template,
    maxPositions: decoder.maxPositions,
    ...(system !== undefined && { system }),
  });
  return {
    conversation,
    options: { ...options },
    turn: 0,
    load: async (path) => {
      const next =
        path === undefined ? undefined : await loadAdapter(host.files, path, opened.model);
      await decoder.release();
      decoder = decoderOf(next);
      conversation.use(decoder);
    },
    release: () => decoder.release(),
  };
}

async function run(context: CommandContext): Promise<void> {
  const { host, output, options } = context;
  const isTerminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const opened = await openModel(host, options["model"] as string);
  const state = await openState(context, opened);
  const commands = new ChatCommands(state, output, host.files, chatCommand.options);
  const lines = createInterface({
    input: process.stdin,
    ...(isTerminal && { output: process.stdout, prompt: youMark }),
    terminal: isTerminal,
    crlfDelay: Infinity,
  });
  let hasQuit = false;
  const quit = (): void => {
    hasQuit = true;
    lines.close();
    // An answer may be running: nothing waits for it.
    if (interrupts.isAnswering) process.exit(130);
  };
  const interrupts = new Interrupts(
    () => output.warn("\nPress Ctrl-C again, or Ctrl-D, to quit."),
    quit,
  );
  lines.on("SIGINT", () => interrupts.ask());
  process.on("SIGINT", () => interrupts.ask());
  if (isTerminal) {
    const size = showCount(countParameters(opened.model));
    output.line(
      `${output.style(opened.name, "bold")}, ${size} parameters. /help for commands; Ctrl-C stops an answer, Ctrl-D ends the chat.`,
    );
    lines.prompt();
  }
  let before = "";
  try {
    for await (const line of lines) {
      interrupts.reset();
      // A line that ends with a backslash goes on.
      if (line.endsWith("\\")) {
        before += `${line.slice(0, -1)}\n`;
        if (isTerminal) {
          lines.setPrompt(moreMark);
          lines.prompt();
        }
        continue;
      }
      const text = before + line;
      before = "";
      if (!(await take(text, state, commands, interrupts, output)) || hasQuit) break;
      if (isTerminal) {
        lines.setPrompt(youMark);
        lines.prompt();
      }
    }
  } finally {
    lines.close();
    await state.release();
  }
  if (isTerminal) output.line();
}

/** Does what a line says; false where it ends the chat. Errors of ours are said and the chat goes on. */
async function take(
  text: string,
  state: ChatState,
  commands: ChatCommands,
  interrupts: Interrupts,
  output: Output,
): Promise<boolean> {
  if (text.trim() === "") return true;
  try {
    // "//" begins a message with a slash.
    if (text.startsWith("/") && !text.startsWith("//")) return await commands.run(text);
    const signal = interrupts.begin();
    await answer(state, output, text.startsWith("//") ? text.slice(1) : text, signal);
  } catch (error) {
    if (!(error instanceof PlasticityError)) throw error;
    output.warn(error.message);
  } finally {
    interrupts.end();
  }
  return true;
}

export const chatCommand: Command = {
  name: "chat",
  summary: "talk with a model",
  usage: "plasticity chat [--model <folder>] [--adapter <folder>]",
  example: 'plasticity chat --temperature 0.8 --system "Answer in one sentence."',
  handlesInterrupt: true,
  options: {
    model: modelOption,
    adapter: { type: "string", value: "folder", about: "an adapter folder to use with the model" },
    system: { type: "string", value: "text", about: "what stands before all turns" },
    "max-new-tokens": {
      type: "number",
      default: 256,
      about: "of an answer",
      check: wholeFrom(1, 1 << 20),
    },
    stop: { type: "string", value: "text", about: "end answers before this text", many: true },
    threads: threadsOption,
    ...samplingOptions(0.7),
  },
  run,
};
