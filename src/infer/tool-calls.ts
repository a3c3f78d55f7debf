/**
 * Calls of tools as models write them, and grammars that hold a model to them. How calls are written is the chat
 * template's affair: a table tells the ways by what stands in the template's text.
 */
import type { ChatMessage, ToolCall } from "../data/example.ts";
import { OptionError } from "../errors.ts";
import type { JsonObject, JsonValue } from "../io/json.ts";
import { Literal, upTo } from "./grammar/dfa.ts";
import { TextBefore, TextWithout } from "./grammar/free-text.ts";
import { Grammar } from "./grammar/grammar.ts";
import { JsonRules, type JsonTextOptions } from "./grammar/json-rules.ts";
import type { Node, Rule } from "./grammar/machine.ts";
import { ruleOfSchema } from "./grammar/schema-rules.ts";
import type { Vocabulary } from "./grammar/vocabulary.ts";

const maxTools = 128;
const maxCalls = 64;

/** A tool as the OpenAI interface has it. */
export interface ChatTool {
  readonly type: "function";
  readonly function: {
    /** Letters, digits, `_` and `-`, at most 64. */
    readonly name: string;
    readonly description?: string;
    /** A JSON Schema of the arguments; default none are taken. */
    readonly parameters?: JsonObject;
    /** Refuse a schema that cannot be held to wholly. Default false. */
    readonly strict?: boolean;
  };
}

/** Whether tools may or must be called, or which one. */
export type ToolChoice =
  | "none"
  | "auto"
  | "required"
  | { readonly type: "function"; readonly function: { readonly name: string } };

/** A way to write calls. */
export interface ToolFormat {
  readonly id: string;
  /** Stand in the text of templates that write calls so. */
  readonly marks: readonly string[];
  /** Begins a call, or a list of them; without it a call is the whole answer. */
  readonly open?: string;
  /** Ends it. */
  readonly close?: string;
  /** Whether calls stand in one JSON array. */
  readonly isArray?: boolean;
  /** The key of a call's arguments. */
  readonly argumentsKey: "arguments" | "parameters";
  /** Characters that a call's id must have, where the template asks for a number of them. */
  readonly idLength?: number;
}

/** The ways that are known; the first whose marks all stand in a template is its own. */
export const toolFormats: readonly ToolFormat[] = [
  {
    id: "mistral",
    marks: ["[TOOL_CALLS]"],
    open: "[TOOL_CALLS]",
    isArray: true,
    argumentsKey: "arguments",
    idLength: 9,
  },
  {
    id: "phi",
    marks: ["<|tool_call|>"],
    open: "<|tool_call|>",
    close: "<|/tool_call|>",
    isArray: true,
    argumentsKey: "arguments",
  },
  {
    id: "hermes",
    marks: ["<tool_call>", "</tool_call>"],
    open: "<tool_call>",
    close: "</tool_call>",
    argumentsKey: "arguments",
  },
  { id: "llama3", marks: ['"parameters":', "tools"], argumentsKey: "parameters" },
  // Templates that know no tools are told of them in the system's message: see `withToolsAsText`.
  { id: "json", marks: [], argumentsKey: "arguments" },
];

/** How a template writes calls. */
export function toolFormatOf(templateText: string): ToolFormat {
  return toolFormats.find(({ marks }) => marks.every((mark) => templateText.includes(mark)))!;
}

/**
 * Checks tools and what is asked of them.
 * @throws OptionError naming the tool that is wrong.
 */
export function checkTools(tools: readonly ChatTool[], choice: ToolChoice = "auto"): void {
  if (tools.length > maxTools) {
    throw new OptionError(`tools: at most ${maxTools} are taken, got ${tools.length}.`);
  }
  const names = new Set<string>();
  tools.forEach((tool, i) => {
    const name = tool?.function?.name;
    if (tool?.type !== "function" || typeof name !== "string") {
      throw new OptionError(
        `tools[${i}]: must have the type "function" and a function with a name.`,
      );
    }
    if (!/^[a-zA-Z0-9_-]{1,64}$/.test(name)) {
      throw new OptionError(
        `tools[${i}]: the name ${JSON.stringify(name.slice(0, 80))} must be 1 to 64 letters, digits, "_" and "-".`,
      );
    }
    if (names.has(name)) throw new OptionError(`tools[${i}]: the name "${name}" is taken already.`);
    names.add(name);
  });
  if (typeof choice === "string" && ["none", "auto", "required"].includes(choice)) {
    if (choice === "required" && tools.length === 0) {
      throw new OptionError("tool_choice: is required, but there are no tools.");
    }
    return;
  }
  const wanted = typeof choice === "object" && choice !== null ? choice.function?.name : undefined;
  if (wanted === undefined || !names.has(wanted)) {
    throw new OptionError(
      `tool_choice: must be none, auto, required, or name one of the tools ${[...names].join(", ")}, got ${JSON.stringify(choice)}.`,
    );
  }
}

export interface ToolGrammarOptions extends Omit<JsonTextOptions, "lenient"> {
  /** Default "auto". */
  readonly choice?: ToolChoice;
  /** Whether several calls may come in one answer; default true. */
  readonly isParallel?: boolean;
  /**
   * What an answer is that calls nothing, by "auto", in place of free text: JSON that fits a schema, `lenient` as
   * in `schemaGrammar`; without a schema any object.
   */
  readonly content?: { readonly schema?: JsonValue; readonly lenient?: boolean };
}

/**
 * What an answer may be where tools may be called: by "auto" free text in which, once a call begins, it is one of
 * a tool there is with arguments that fit, or calls or `content`; else calls alone. Nothing for "none" or without
 * tools.
 * @throws OptionError for tools or schemas that cannot be held to.
 */
export function toolGrammar(
  tools: readonly ChatTool[],
  format: ToolFormat,
  vocabulary: Vocabulary,
  options: ToolGrammarOptions = {},
): Grammar | undefined {
  const { choice = "auto", isParallel = true, content, ...textOptions } = options;
  checkTools(tools, choice);
  if (choice === "none" || tools.length === 0) return undefined;
  const named = typeof choice === "object" ? choice.function.name : undefined;
  const own = tools.filter((tool) => named === undefined || tool.function.name === named);
  const json = new JsonRules("tools", { ...textOptions, lenient: false });
  const { rules } = json;
  const call: Rule = { start: rules.choice(own.map((tool) => callOf(json, tool, format))) };
  const mark = (text: string, next: Node): Node =>
    rules.lex(new Literal(vocabulary.spell(text)), next);
  const breaks = (next: Node): Node => rules.lex(upTo(2, [0x0a, 0x20], "tools"), next);
  const most = isParallel ? maxCalls : 1;
  const { open, close, isArray } = format;
  const end = close === undefined ? rules.done : breaks(mark(close, rules.done));
  /** After the opening mark of the first call. */
  let opened: Node;
  if (isArray) {
    opened = breaks(rules.call({ start: json.arrayOf([], call, 1, most) }, end));
  } else if (open === undefined) {
    opened = rules.call(call);
  } else {
    const another: Rule = { start: mark(open, breaks(rules.call(call, end))) };
    const first = breaks(rules.call(call, end));
    // The first call's mark was read already.
    const ruleAt = (index: number): Rule => (index === 0 ? { start: first } : another);
    opened = rules.list({
      ruleAt,
      distinct: 2,
      least: 1,
      most,
      between: breaks(rules.done),
      close: rules.done,
    });
  }
  const isFree = choice === "auto";
  let start: Node;
  if (isFree && content) {
    const calls = open === undefined ? opened : mark(open, opened);
    const { schema, lenient } = content;
    const text =
      schema === undefined ? json.object() : ruleOfSchema(json, schema, "json schema", lenient);
    start = rules.choice([calls, rules.call(text)]);
  } else if (open === undefined) {
    start = isFree ? rules.choice([rules.lex(new TextWithout([0x7b])), opened]) : opened;
  } else if (isFree) {
    const spelled = vocabulary.spell(open);
    start = rules.choice([
      rules.lex(new TextBefore(spelled, false)),
      rules.lex(new TextBefore(spelled, true), opened),
    ]);
  } else start = mark(open, opened);
  return new Grammar(json, { start }, vocabulary);
}

/** A call of one tool: `{"name": "f", "arguments": {…}}`. */
function callOf(json: JsonRules, tool: ChatTool, { argumentsKey }: ToolFormat): Node {
  const { name, parameters, strict } = tool.function;
  const schema = parameters ?? { type: "object", properties: {}, additionalProperties: false };
  const rule = ruleOfSchema(json, schema, `tool "${name}"`, strict !== true);
  return json.objectOf(
    [
      { name: "name", rule: { start: json.rules.text(JSON.stringify(name)) }, isRequired: true },
      { name: argumentsKey, rule, isRequired: true },
    ],
    undefined,
    "#",
  );
}

/** Special tokens that write a format's marks; text without special tokens does not show them. */
export function markTokens(
  format: ToolFormat,
  vocabulary: Vocabulary,
): ReadonlyMap<number, string> {
  const found = new Map<number, string>();
  for (const text of [format.open, format.close]) {
    if (text === undefined) continue;
    const [symbol, ...others] = vocabulary.spell(text);
    if (symbol !== undefined && symbol >= 256 && others.length === 0) found.set(symbol - 256, text);
  }
  return found;
}

/** Whether a template is given tools and writes calls itself. */
export function knowsTools(templateText: string): boolean {
  return /\btools\b/.test(templateText) && toolFormatOf(templateText).marks.length > 0;
}

/**
 * Messages for a template that knows no tools: the system's message lists them and says how to call one, calls are
 * text of the assistant, and results come from the user.
 */
export function withToolsAsText(
  messages: readonly ChatMessage[],
  tools: readonly ChatTool[],
): ChatMessage[] {
  const [first, ...others] = messages;
  const told = [
    ...(first?.role === "system" ? [first.content, ""] : []),
    "You may call one of these functions:",
    ...tools.map((tool) => JSON.stringify(tool.function)),
    "",
    'To call one, answer with {"name": its name, "arguments": its arguments as JSON} and nothing else.',
  ].join("\n");
  const rest = first?.role === "system" ? others : messages;
  const names = new Map<string, string>();
  const text = (call: ToolCall): string =>
    JSON.stringify({ name: call.name, arguments: call.arguments });
  const plain = rest.map((message): ChatMessage => {
    const { role, content, toolCalls, toolCallId, name, ...kept } = message;
    for (const call of toolCalls ?? []) if (call.id !== undefined) names.set(call.id, call.name);
    if (role === "tool") {
      const own = name ?? (toolCallId === undefined ? undefined : names.get(toolCallId));
      return { ...kept, role: "user", content: `Result${own ? ` of ${own}` : ""}: ${content}` };
    }
    const parts = [...(content === "" ? [] : [content]), ...(toolCalls ?? []).map(text)];
    return { ...kept, role, content: parts.join("\n") };
  });
  return [{ role: "system", content: told }, ...(messages.length === 0 ? [] : plain)];
}
