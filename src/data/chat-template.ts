/**
 * A model's chat template: Jinja text of its tokenizer files, run by `@huggingface/jinja`, with caps,
 * since it is text from outside.
 *
 * Renderings carry marks, characters that no text may hold (Unicode's noncharacters), around every
 * message's content and around what `{% generation %}` encloses; so what is content and what is the
 * template's own text is known exactly, whatever the template does with them.
 */
import { FormatError, OptionError } from "../errors.ts";
import type { Files } from "../host/host.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import type { ChatMessage } from "./example.ts";

const maxTemplateLength = 2 ** 18;
const maxConfigBytes = 2 ** 24;
/** White space in a row: the library's search for tags is quadratic in it. */
const maxBlank = 1024;
/** Expressions evaluated and items visited in one rendering, and the size of any value in it. */
const maxSteps = 1e6;
/** An item costs about as much as so many expressions. */
const stepsPerItem = 10;
const maxSize = 2 ** 23;

const [contentStart, contentEnd, contentBreak] = ["\ufdd0", "\ufdd1", "\ufdd2"];
const [spanStart, spanEnd] = ["\ufdd3", "\ufdd4"];
const marks = /[\ufdd0-\ufdef]/;

/** Part of a rendering. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

export interface Rendering {
  readonly text: string;
  /** Where contents stand; absent where the template changes them so that it cannot be told. */
  readonly contents: readonly (Span & { readonly message: number })[] | undefined;
  /** What `{% generation %}` encloses; absent where the template has none. */
  readonly generated: readonly Span[] | undefined;
}

interface Value {
  readonly type: string;
  readonly value: unknown;
}

interface Statement {
  readonly type: string;
  /** Of a loop; one with a condition has what it runs over as `lhs`. */
  readonly iterable?: { readonly lhs?: object };
}

/** The part of the library used here; its own declarations do not resolve under nodenext. */
interface Jinja {
  readonly Template: new (text: string) => { readonly parsed: object };
  readonly Environment: new () => { set(name: string, value: unknown): void };
  readonly Interpreter: new (
    environment: object,
  ) => {
    run(program: object): Value;
    evaluate(statement: Statement | undefined, environment: object): Value;
  };
}

function sizeOf(value: unknown): number {
  if (typeof value === "string" || Array.isArray(value)) return value.length;
  return value instanceof Map ? value.size : 0;
}

const messageOf = (error: unknown): string =>
  (error instanceof Error ? error.message : String(error)).slice(0, 400);

/** The template with marks where `{% generation %}` opens and closes, all other white space kept. */
function withSpanMarks(text: string): string {
  return text
    .replace(
      /\{%(-?)\s*generation\s*(-?)%\}(\n?)/g,
      (_, left: string, right: string, newline: string) =>
        `{%${left} generation ${right}%}${right ? "" : newline}{{ "${spanStart}" ${right}}}${right ? newline : ""}`,
    )
    .replace(
      /(^[ \t]*)?\{%(-?)\s*endgeneration\s*(-?)%\}/gm,
      (_, _indent: string | undefined, left: string, right: string) =>
        `{{${left} "${spanEnd}" }}{%${left} endgeneration ${right}%}`,
    );
}

const months =
  "January February March April May June July August September October November December".split(
    " ",
  );

/** Python's strftime, for the directives that templates use; in UTC and English. */
function strftime(date: Date, format: string): string {
  const two = (n: number): string => String(n).padStart(2, "0");
  const month = months[date.getUTCMonth()]!;
  const known: Readonly<Record<string, string>> = {
    Y: String(date.getUTCFullYear()),
    y: two(date.getUTCFullYear() % 100),
    m: two(date.getUTCMonth() + 1),
    d: two(date.getUTCDate()),
    H: two(date.getUTCHours()),
    M: two(date.getUTCMinutes()),
    S: two(date.getUTCSeconds()),
    B: month,
    b: month.slice(0, 3),
    "%": "%",
  };
  return format.replace(/%([a-zA-Z%])/g, (whole, letter: string) => known[letter] ?? whole);
}

/** Llama 3's own date where it has no clock: data must not depend on the day it is encoded. */
const defaultDate = new Date(Date.UTC(2024, 6, 26));

/**
 * A content with its marks inside its white space, so that a template may trim it. What an assistant
 * thought is marked apart from what it said, as templates cut contents at these tags.
 */
function marked({ role, content }: ChatMessage, index: number): string {
  const parts = role === "assistant" ? content.split(/(<\/?think>)/) : [content];
  return parts
    .map((part, i) => {
      const core = part.trim();
      if (core === "" || i % 2 === 1) return part;
      const at = part.indexOf(core);
      const [before, after] = [part.slice(0, at), part.slice(at + core.length)];
      return `${before}${contentStart}${index}${contentBreak}${core}${contentEnd}${after}`;
    })
    .join("");
}

/** Takes the marks out; undefined where they are not in pairs. */
function unmark(text: string): Rendering | undefined {
  const contents: (Span & { message: number })[] = [];
  const generated: Span[] = [];
  let plain = "";
  let open: { message: number; start: number } | undefined;
  let span: number | undefined;
  const pattern = /\ufdd0(\d+)\ufdd2|[\ufdd0-\ufdd4]/g;
  let at = 0;
  for (const found of text.matchAll(pattern)) {
    plain += text.slice(at, found.index);
    at = found.index + found[0].length;
    if (found[1] !== undefined) {
      if (open) return undefined;
      open = { message: Number(found[1]), start: plain.length };
    } else if (found[0] === contentEnd) {
      if (!open) return undefined;
      contents.push({ ...open, end: plain.length });
      open = undefined;
    } else if (found[0] === spanStart) {
      if (span !== undefined) return undefined;
      span = plain.length;
    } else if (found[0] === spanEnd) {
      if (span === undefined) return undefined;
      generated.push({ start: span, end: plain.length });
      span = undefined;
    } else return undefined;
  }
  if (open || span !== undefined) return undefined;
  return { text: plain + text.slice(at), contents, generated };
}

/** What a chat looks like where the model has no template. */
export const plainChatTemplate: string =
  "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content | trim }}{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

export class ChatTemplate {
  readonly text: string;
  /** Names the template in errors, usually its file. */
  readonly where: string;
  readonly hasGeneration: boolean;
  /** Whether it is the plain one, which leaves the token for the beginning to the tokenizer. */
  readonly isPlain: boolean;
  readonly #jinja: Jinja;
  readonly #program: object;
  readonly #variables: Readonly<Record<string, unknown>>;

  constructor(
    text: string,
    where: string,
    jinja: Jinja,
    variables: Readonly<Record<string, unknown>>,
  ) {
    this.text = text;
    this.where = where;
    this.#jinja = jinja;
    this.#variables = variables;
    if (text.length > maxTemplateLength || new RegExp(`\\s{${maxBlank}}`).test(text)) {
      throw new FormatError(
        `${where}: the chat template has ${text.length} characters, at most ${maxTemplateLength} are read, and no ${maxBlank} of white space in a row.`,
        { path: where },
      );
    }
    this.isPlain = text === plainChatTemplate;
    this.hasGeneration = /\{%-?\s*generation\s*-?%\}/.test(text);
    try {
      this.#program = new jinja.Template(withSpanMarks(text)).parsed;
    } catch (cause) {
      throw new FormatError(
        `${where}: the chat template cannot be parsed, ${messageOf(cause)}.`,
        { path: where },
        { cause },
      );
    }
  }

  #run(
    messages: readonly object[],
    isPrompt: boolean,
    tools: readonly object[] | undefined,
  ): string {
    const { Environment, Interpreter } = this.#jinja;
    const environment = new Environment();
    const globals: Readonly<Record<string, unknown>> = {
      true: true,
      True: true,
      false: false,
      False: false,
      none: null,
      None: null,
      raise_exception: (message: unknown) => {
        throw new Error(String(message));
      },
      range: (...bounds: readonly number[]) => range(bounds),
      strftime_now: (format: unknown) => strftime(defaultDate, String(format)),
      // transformers passes these as None.
      tools: tools && tools.length > 0 ? tools : null,
      documents: null,
      ...this.#variables,
      messages,
      add_generation_prompt: isPrompt,
    };
    for (const [name, value] of Object.entries(globals)) environment.set(name, value);
    let steps = 0;
    // Loops run over items without evaluating anything, so what they run over is counted.
    const loopedOver = new Set<object>();
    class Capped extends Interpreter {
      override evaluate(statement: Statement | undefined, scope: object): Value {
        if (statement?.type === "For" && statement.iterable) {
          loopedOver.add(statement.iterable.lhs ?? statement.iterable);
        }
        const result = super.evaluate(statement, scope);
        const { value } = result;
        const size = sizeOf(value);
        if (size > maxSize) throw new Error(`it makes a value of ${size} characters or items`);
        steps += 1 + (typeof value === "string" ? size >> 8 : 0);
        if (statement && loopedOver.has(statement)) steps += stepsPerItem * size;
        if (steps > maxSteps) throw new Error(`it takes more than ${maxSteps} steps`);
        return result;
      }
    }
    const { value } = new Capped(environment).run(this.#program);
    return String(value);
  }

  /**
   * The text of messages, without marks.
   * @param isPrompt whether it ends where the assistant is to go on (`add_generation_prompt`).
   * @param tools what it may call, as the OpenAI interface has them
   * @throws FormatError when the template refuses the messages, or takes too long.
   */
  prompt(
    messages: readonly ChatMessage[],
    isPrompt: boolean,
    where: string = "",
    tools?: readonly object[],
  ): string {
    return this.#guard(where, () =>
      this.#run(plainMessages(messages), isPrompt, tools).replace(/[\ufdd3\ufdd4]/g, ""),
    );
  }

  /**
   * The text of messages, and what in it is whose.
   * @param isPrompt whether it ends where the assistant is to go on.
   * @param tools what it may call, as the OpenAI interface has them
   * @throws FormatError when the template refuses the messages, or takes too long.
   */
  render(
    messages: readonly ChatMessage[],
    where: string = "",
    isPrompt = false,
    tools?: readonly object[],
  ): Rendering {
    for (const { content } of messages) {
      const found = marks.exec(content);
      if (!found) continue;
      throw new FormatError(
        `${where || this.where}: a message holds the noncharacter U+${found[0].charCodeAt(0).toString(16).toUpperCase()}, which no text has — remove it.`,
      );
    }
    return this.#guard(where, () => {
      const plain = unmark(this.#run(plainMessages(messages), isPrompt, tools));
      if (!plain) throw new Error("its {% generation %} blocks do not pair");
      const generated = this.hasGeneration ? plain.generated : undefined;
      const withMarks = plainMessages(messages).map((message, i) => ({
        ...message,
        content: marked(messages[i]!, i),
      }));
      let found: Rendering | undefined;
      try {
        found = unmark(this.#run(withMarks, isPrompt, tools));
      } catch {
        // A template may refuse marks, as where it compares contents; then they cannot be told.
      }
      const contents = found?.text === plain.text ? found.contents : undefined;
      return { text: plain.text, contents, generated };
    });
  }

  #guard<T>(where: string, work: () => T): T {
    try {
      return work();
    } catch (cause) {
      throw new FormatError(
        `${where === "" ? "" : `${where}: `}the chat template of ${this.where} fails on these messages: ${messageOf(cause)}.`,
        { path: this.where },
        { cause },
      );
    }
  }
}

/** Messages under the names that templates know. */
function plainMessages(messages: readonly ChatMessage[]): { role: string; content: string }[] {
  return messages.map(({ role, content, name, toolCalls, toolCallId }) => ({
    role,
    content,
    ...(name !== undefined && { name }),
    ...(toolCallId !== undefined && { tool_call_id: toolCallId }),
    // Templates ask whether the key is there.
    ...(toolCalls &&
      toolCalls.length > 0 && {
        tool_calls: toolCalls.map(({ id, ...call }) => ({
          ...(id !== undefined && { id }),
          type: "function",
          function: call,
        })),
      }),
  }));
}

function range(bounds: readonly number[]): number[] {
  const [start, stop] = bounds.length > 1 ? [bounds[0]!, bounds[1]!] : [0, bounds[0] ?? 0];
  const step = bounds[2] ?? 1;
  const size = Math.ceil((stop - start) / step);
  if (!(size < 1e6)) throw new Error(`range has ${size} items`);
  return Array.from({ length: Math.max(0, size) }, (_, i) => start + i * step);
}

const tokenNames = [
  "bos_token",
  "eos_token",
  "pad_token",
  "unk_token",
  "cls_token",
  "sep_token",
  "mask_token",
];

/**
 * Parses a template.
 * @param tokens texts of special tokens that it may name, such as `eos_token`.
 * @throws FormatError when it is no Jinja, or too long.
 */
export async function parseChatTemplate(
  text: string,
  where: string,
  tokens: Readonly<Record<string, string>> = {},
): Promise<ChatTemplate> {
  const jinja = (await import("@huggingface/jinja")) as unknown as Jinja;
  return new ChatTemplate(text, where, jinja, tokens);
}

function templateIn(value: JsonValue | undefined, where: string): string | undefined {
  if (value === undefined || value === null) return undefined;
  if (typeof value === "string") return value;
  const named = (Array.isArray(value) ? (value as readonly JsonValue[]) : []).filter(isJsonObject);
  const chosen = named.find(({ name }) => name === "default") ?? named[0];
  if (typeof chosen?.["template"] === "string") return chosen["template"];
  throw new FormatError(
    `${where}: chat_template must be a text, or a list of objects with name and template.`,
    { path: where },
  );
}

function tokensIn(config: JsonObject): Record<string, string> {
  const found: Record<string, string> = {};
  for (const name of tokenNames) {
    const value = config[name];
    const text = isJsonObject(value) ? value["content"] : value;
    if (typeof text === "string") found[name] = text;
  }
  return found;
}

/**
 * The chat template of a model folder: `chat_template.jinja`, or `chat_template` of
 * tokenizer_config.json (of several the one named "default"); `plainChatTemplate` where it has none.
 * @throws FormatError when it is no Jinja, or too long.
 */
export async function loadChatTemplate(files: Files, folder: string): Promise<ChatTemplate> {
  const path = files.join(folder, "chat_template.jinja");
  const configPath = files.join(folder, "tokenizer_config.json");
  const hasConfig = (await files.info(configPath)) !== undefined;
  const config = hasConfig
    ? parseJson(await files.readText(configPath, maxConfigBytes), configPath)
    : {};
  if (!isJsonObject(config)) {
    throw new FormatError(`${configPath}: must be an object.`, { path: configPath });
  }
  const tokens = tokensIn(config);
  if (await files.info(path)) {
    return parseChatTemplate(await files.readText(path, 4 * maxTemplateLength), path, tokens);
  }
  const text = templateIn(config["chat_template"], configPath);
  return text === undefined
    ? parseChatTemplate(plainChatTemplate, "the plain template", tokens)
    : parseChatTemplate(text, configPath, tokens);
}

/** @throws OptionError where chats are given and no template for them. */
export function needTemplate(template: ChatTemplate | undefined, where: string): ChatTemplate {
  if (template) return template;
  throw new OptionError(
    `${where}: is a chat, and no chat template was given — load the model's with loadChatTemplate.`,
  );
}
