/** What begins with a slash in a chat. */
import { type OptionTable, type OptionValue, parseOptions, suggestion } from "./command.ts";
import { type Conversation, type Files, OptionError } from "./library.ts";
import type { Output } from "./output.ts";

/** A chat as it goes on. */
export interface ChatState {
  readonly conversation: Conversation;
  /** Options as they are now. */
  options: Record<string, OptionValue>;
  /** Answers so far. */
  turn: number;
  /** Goes on with an adapter, or with the model alone. */
  readonly load: (folder: string | undefined) => Promise<void>;
  readonly release: () => Promise<void>;
}

const about: Readonly<Record<string, string>> = {
  "/help": "this list",
  "/reset": "forget all turns",
  "/system <text>": "what stands before all turns; without a text, nothing",
  "/save <file.jsonl>": "write the chat as data that finetune reads",
  "/load <folder>": 'use an adapter; "none" for the model alone',
  "/set temperature=0.8": "change an option of the command; without one, show them",
  "/quit": "end the chat, as Ctrl-D",
};

/** Options that can be set while a chat goes on. */
const fixed = ["model", "adapter", "system", "threads", "stop"];

/** The commands of a chat, one a line. */
export function chatHelp(): string {
  const width = Math.max(...Object.keys(about).map((name) => name.length));
  return Object.entries(about)
    .map(([name, text]) => `  ${name.padEnd(width)}  ${text}`)
    .join("\n");
}

export class ChatCommands {
  readonly #state: ChatState;
  readonly #output: Output;
  readonly #files: Files;
  readonly #table: OptionTable;

  constructor(state: ChatState, output: Output, files: Files, options: OptionTable) {
    this.#state = state;
    this.#output = output;
    this.#files = files;
    this.#table = Object.fromEntries(
      Object.entries(options).filter(([name]) => !fixed.includes(name)),
    );
  }

  /**
   * Does what a line says.
   * @returns false where it ends the chat
   * @throws OptionError for an unknown command or a wrong value.
   */
  async run(line: string): Promise<boolean> {
    const [, name = "", rest = ""] = /^\/(\S*)\s*([\s\S]*?)\s*$/.exec(line) ?? [];
    const { conversation } = this.#state;
    switch (name) {
      case "quit":
      case "exit":
        return false;
      case "help":
        this.#say(chatHelp());
        return true;
      case "reset":
        conversation.reset();
        this.#say("All turns are forgotten.");
        return true;
      case "system":
        conversation.system = rest === "" ? undefined : rest;
        return true;
      case "save":
        await this.#save(rest);
        return true;
      case "load":
        if (rest === "") throw new OptionError('/load: name an adapter folder, or "none".');
        await this.#state.load(rest === "none" ? undefined : rest);
        this.#say(rest === "none" ? "The model goes on alone." : `The adapter ${rest} is in use.`);
        return true;
      case "set":
        this.#set(rest);
        return true;
      default: {
        const known = Object.keys(about).map((text) => text.slice(1).split(" ", 1)[0]!);
        const near = suggestion(name, known);
        throw new OptionError(
          `unknown command "/${name}"${near || " — /help lists them."} A message may begin with "//".`,
        );
      }
    }
  }

  /** What is no answer goes to stderr, so that stdout holds answers alone. */
  #say(text: string): void {
    this.#output.warn(text);
  }

  async #save(path: string): Promise<void> {
    if (path === "") throw new OptionError("/save: name a file, as chat.jsonl.");
    const { messages } = this.#state.conversation;
    if (!messages.some(({ role }) => role === "assistant")) {
      throw new OptionError("/save: nothing was answered yet.");
    }
    if (await this.#files.info(path)) {
      throw new OptionError(`/save: ${path} is there already — give another name.`);
    }
    await this.#files.writeText(path, `${JSON.stringify({ messages })}\n`);
    this.#say(`${messages.length} messages in ${path}.`);
  }

  #set(text: string): void {
    const { options } = this.#state;
    if (text === "") {
      const shown = Object.keys(this.#table).filter((name) => options[name] !== undefined);
      this.#say(shown.map((name) => `  ${name}=${String(options[name])}`).join("\n"));
      return;
    }
    const [, name, value] = /^(?:--)?([\w-]+)\s*[=\s]\s*(.+)$/.exec(text) ?? [];
    if (name === undefined || value === undefined) {
      throw new OptionError(`/set: must be as temperature=0.8, got "${text}".`);
    }
    if (!Object.hasOwn(this.#table, name)) {
      const near = suggestion(name, Object.keys(this.#table));
      throw new OptionError(
        `/set: unknown option "${name}"${near || " — /set without a name lists them."}`,
      );
    }
    const { options: parsed } = parseOptions({ name: "/set", options: this.#table }, [
      `--${name}=${value}`,
    ]);
    this.#state.options = { ...options, [name]: parsed[name] };
  }
}
