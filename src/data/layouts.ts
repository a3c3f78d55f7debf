/** Which layout a record has, and the example that it is. */
import { FormatError, OptionError } from "../errors.ts";
import { isJsonObject, type JsonObject, type JsonValue, parseJson } from "../io/json.ts";
import type { ChatMessage, RawExample, Turns } from "./example.ts";
import { type LocatedRecord, shownKeys } from "./records.ts";

/** Every field that a layout reads: a column is mapped to one of these. */
export const layoutFields: readonly string[] = [
  "text",
  "prompt",
  "completion",
  "system",
  "messages",
  "conversations",
  "chosen",
  "rejected",
  "instruction",
  "input",
  "output",
  "history",
  "label",
  "tools",
];

/** What is understood, for errors and help. */
export const layoutHelp: string =
  '"text"; "prompt" and "completion"; "messages" (role, content); "conversations" (from, value); "instruction" and "output" (Alpaca); "prompt", "chosen" and "rejected"';

/** Turns in one chat. */
const maxMessages = 4096;

/** The roles of ShareGPT and of chat services, as templates name them. */
const roles: Readonly<Record<string, string>> = {
  system: "system",
  developer: "system",
  user: "user",
  human: "user",
  assistant: "assistant",
  gpt: "assistant",
  model: "assistant",
  bot: "assistant",
  chatgpt: "assistant",
  tool: "tool",
  observation: "tool",
};

/**
 * Checks a mapping of columns to fields before any file is read.
 * @throws OptionError when a field is none that a layout has.
 */
export function checkMap(map: Readonly<Record<string, string>>): void {
  const seen = new Map<string, string>();
  for (const [column, field] of Object.entries(map)) {
    if (!layoutFields.includes(field)) {
      throw new OptionError(
        `map: ${JSON.stringify(`${column}=${field}`)} names no known field — fields are ${layoutFields.join(", ")}.`,
        { field },
      );
    }
    const other = seen.get(field);
    if (other !== undefined) {
      throw new OptionError(
        `map: ${JSON.stringify(other)} and ${JSON.stringify(column)} both become ${field} — map one column to a field.`,
        { field },
      );
    }
    seen.set(field, column);
  }
}

type Fail = (what: string) => FormatError;

function show(value: JsonValue | undefined): string {
  if (value === undefined) return "nothing";
  if (typeof value === "string") return JSON.stringify(value.slice(0, 40));
  if (Array.isArray(value)) return "a list";
  return isJsonObject(value) ? "an object" : JSON.stringify(value);
}

function has(record: JsonObject, key: string): boolean {
  return record[key] !== undefined && record[key] !== null;
}

function textOf(record: JsonObject, key: string, fail: Fail): string {
  const value = record[key];
  if (typeof value === "string") return value;
  throw fail(`"${key}" must be a text, got ${show(value)}`);
}

function optionalText(record: JsonObject, key: string, fail: Fail): string {
  return has(record, key) ? textOf(record, key, fail) : "";
}

/** A message's content: a text, or parts of which each is a text. */
function contentOf(message: JsonObject, key: string, fail: Fail): string {
  const value = message[key];
  if (typeof value === "string") return value;
  if (Array.isArray(value)) {
    return (value as readonly JsonValue[])
      .map((part) => {
        if (isJsonObject(part) && part["type"] === "text" && typeof part["text"] === "string") {
          return part["text"];
        }
        const type = isJsonObject(part) ? part["type"] : part;
        throw fail(`a part of a content is ${show(type)} — only parts of type "text" are read`);
      })
      .join("");
  }
  throw fail(`a message's "${key}" must be a text, got ${show(value)}`);
}

function messageOf(value: JsonValue, fail: Fail): ChatMessage {
  if (!isJsonObject(value)) {
    throw fail(`a message must be an object with "role" and "content", got ${show(value)}`);
  }
  const isShareGpt = !has(value, "role") && has(value, "from");
  const name = value[isShareGpt ? "from" : "role"];
  if (typeof name !== "string") {
    throw fail(
      `a message needs "role" and "content", or "from" and "value", got the keys ${shownKeys(value)}`,
    );
  }
  const calls = value["tool_calls"];
  if (name === "function_call" || (Array.isArray(calls) && calls.length > 0)) {
    throw fail("a message calls a tool, which is not understood — write the call as its content");
  }
  if (!Object.hasOwn(roles, name)) {
    throw fail(`a message has the role ${show(name)} — roles are ${Object.keys(roles).join(", ")}`);
  }
  const role = roles[name]!;
  const content = contentOf(value, isShareGpt ? "value" : "content", fail);
  // OpenAI's fine-tuning files say weight 0, axolotl's train false.
  const isSilent = value["weight"] === 0 || value["train"] === false;
  return isSilent ? { role, content, hasLoss: false } : { role, content };
}

/** Columns of a table of messages as rows: `{ from: [...], value: [...] }`, as Parquet may have it. */
function rowsOf(value: JsonValue): JsonValue {
  if (!isJsonObject(value)) return value;
  const columns = Object.entries(value);
  const size = Array.isArray(columns[0]?.[1]) ? columns[0][1].length : 0;
  if (size === 0 || !columns.every(([, list]) => Array.isArray(list) && list.length === size)) {
    return value;
  }
  return Array.from({ length: size }, (_, i) =>
    Object.fromEntries(columns.map(([key, list]) => [key, (list as readonly JsonValue[])[i]!])),
  );
}

function messagesOf(value: JsonValue | undefined, key: string, fail: Fail): ChatMessage[] {
  let list = value;
  // A cell of a CSV file holds the list as JSON.
  if (typeof list === "string" && list.trimStart().startsWith("[")) {
    list = parseJson(list, fail(`"${key}"`).message.replace(/\.$/, ""), { maxDepth: 16 });
  }
  if (list !== undefined) list = rowsOf(list);
  if (!Array.isArray(list)) throw fail(`"${key}" must be a list of messages, got ${show(value)}`);
  if (list.length === 0) throw fail(`"${key}" holds no messages`);
  if (list.length > maxMessages) {
    throw fail(`"${key}" holds ${list.length} messages, at most ${maxMessages} are read`);
  }
  return (list as readonly JsonValue[]).map((item) => messageOf(item, fail));
}

function withSystem(messages: readonly ChatMessage[], system: string): readonly ChatMessage[] {
  if (system === "" || messages[0]?.role === "system") return messages;
  return [{ role: "system", content: system }, ...messages];
}

function chatOf(record: JsonObject, key: string, fail: Fail): RawExample {
  if (Array.isArray(record["tools"]) && record["tools"].length > 0) {
    throw fail('"tools" is not understood — describe the tools in the system message');
  }
  const messages = messagesOf(record[key], key, fail);
  return { kind: "chat", messages: withSystem(messages, optionalText(record, "system", fail)) };
}

function pairOf(record: JsonObject, fail: Fail, keepsLabels: boolean): RawExample {
  const { label } = record as { readonly label?: JsonValue };
  const judged = typeof label === "boolean" ? { label } : {};
  if (typeof label === "boolean" && !keepsLabels) {
    throw fail(
      '"prompt", "completion" and a "label" that judges them (KTO) are not understood — keep those with label true, or make pairs of "chosen" and "rejected"',
    );
  }
  const system = optionalText(record, "system", fail);
  const [isPrompt, isCompletion] = [
    isMessageList(record["prompt"]),
    isMessageList(record["completion"]),
  ];
  if (isPrompt && isCompletion) {
    const before = messagesOf(record["prompt"], "prompt", fail);
    return {
      kind: "chat",
      messages: withSystem(
        [
          ...before.map(({ role, content }) => ({ role, content, hasLoss: false })),
          ...messagesOf(record["completion"], "completion", fail),
        ],
        system,
      ),
      ...judged,
    };
  }
  const prompt = textOf(record, "prompt", fail);
  const completion = textOf(record, "completion", fail);
  return { kind: "pair", prompt, completion, ...(system !== "" && { system }), ...judged };
}

function isMessageList(value: JsonValue | undefined): boolean {
  return Array.isArray(value) || (isJsonObject(value) && rowsOf(value) !== value);
}

/** Alpaca: the instruction, and below it what it is about. Earlier turns make it a chat. */
function alpacaOf(record: JsonObject, fail: Fail): RawExample {
  const instruction = textOf(record, "instruction", fail);
  const input = optionalText(record, "input", fail);
  const prompt = input === "" ? instruction : `${instruction}\n${input}`;
  const completion = textOf(record, "output", fail);
  const system = optionalText(record, "system", fail);
  const history = record["history"];
  if (!Array.isArray(history) || history.length === 0) {
    return { kind: "pair", prompt, completion, ...(system !== "" && { system }) };
  }
  if (history.length > maxMessages / 2) throw fail(`"history" holds ${history.length} turns`);
  const earlier = (history as readonly JsonValue[]).flatMap((turn): ChatMessage[] => {
    const [asked, answered] = Array.isArray(turn) ? (turn as readonly JsonValue[]) : [];
    if (typeof asked !== "string" || typeof answered !== "string") {
      throw fail(`"history" must list pairs of texts, got ${show(turn)}`);
    }
    return [
      { role: "user", content: asked },
      { role: "assistant", content: answered },
    ];
  });
  const last: ChatMessage[] = [
    { role: "user", content: prompt },
    { role: "assistant", content: completion },
  ];
  return { kind: "chat", messages: withSystem([...earlier, ...last], system) };
}

function turnsOf(value: JsonValue | undefined, key: string, fail: Fail): Turns {
  if (typeof value === "string") return value;
  if (isJsonObject(value) && rowsOf(value) === value) return [messageOf(value, fail)];
  return messagesOf(value, key, fail);
}

const isSame = (a: ChatMessage, b: ChatMessage): boolean =>
  a.role === b.role && a.content === b.content;

/**
 * A preference. The prompt may be left out where both answers repeat it: then it is what they begin
 * with alike (as TRL's `extract_prompt` takes it).
 */
function preferenceOf(record: JsonObject, fail: Fail): RawExample {
  const chosen = turnsOf(record["chosen"], "chosen", fail);
  const rejected = turnsOf(record["rejected"], "rejected", fail);
  if (typeof chosen !== typeof rejected) {
    throw fail('"chosen" and "rejected" must both be texts or both be messages');
  }
  const key = ["prompt", "messages", "conversations", "instruction"].find((k) => has(record, k));
  const given = key === undefined ? undefined : givenPrompt(record, key, fail);
  if (typeof chosen === "string" || typeof rejected === "string") {
    if (given !== undefined) {
      return { kind: "preference", prompt: given, chosen, rejected };
    }
    const [a, b] = [chosen as string, rejected as string];
    let end = 0;
    while (end < a.length && a[end] === b[end]) end++;
    // The space belongs to the answer, as tokens begin with one.
    if (end > 0 && a[end - 1] === " ") end--;
    return {
      kind: "preference",
      prompt: a.slice(0, end),
      chosen: a.slice(end),
      rejected: b.slice(end),
    };
  }
  let shared = 0;
  const most = Math.min(chosen.length, rejected.length) - 1;
  while (shared < most && isSame(chosen[shared]!, rejected[shared]!)) shared++;
  const repeated = chosen.slice(0, shared);
  const [answer, other] = [chosen.slice(shared), rejected.slice(shared)];
  let prompt: readonly ChatMessage[] = repeated;
  if (given !== undefined) {
    const turns: readonly ChatMessage[] =
      typeof given === "string" ? [{ role: "user", content: given }] : given;
    // Some sets give the prompt and repeat it in both answers.
    const isRepeated = turns.every((turn) => repeated.some((message) => isSame(turn, message)));
    prompt = isRepeated ? repeated : [...turns, ...repeated];
  }
  if (prompt.length === 0) {
    throw fail('the preference has no "prompt", and "chosen" and "rejected" share no first turns');
  }
  return {
    kind: "preference",
    prompt: withSystem(prompt, optionalText(record, "system", fail)),
    chosen: answer,
    rejected: other,
  };
}

function givenPrompt(record: JsonObject, key: string, fail: Fail): Turns {
  if (key !== "instruction") return turnsOf(record[key], key, fail);
  const input = optionalText(record, "input", fail);
  const instruction = textOf(record, "instruction", fail);
  return input === "" ? instruction : `${instruction}\n${input}`;
}

export interface LayoutOptions {
  /** Whether a pair may have a `label` that judges it; default false: one is refused. */
  readonly keepsLabels?: boolean;
}

/**
 * The example of a record; its layout is told by its fields.
 * @throws FormatError that lists the fields found and those understood.
 */
export function toExample(
  { record, where }: LocatedRecord,
  { keepsLabels = false }: LayoutOptions = {},
): RawExample {
  const fail: Fail = (what) => new FormatError(`${where}: ${what}.`, { path: where });
  const example = detect(record, fail, keepsLabels);
  if (example) return { ...example, where };
  throw fail(
    `the fields ${shownKeys(record)} make no layout that is understood — use ${layoutHelp}, or name your columns with --map column=field`,
  );
}

function detect(record: JsonObject, fail: Fail, keepsLabels: boolean): RawExample | undefined {
  if (has(record, "chosen") && has(record, "rejected")) return preferenceOf(record, fail);
  if (has(record, "messages")) return chatOf(record, "messages", fail);
  if (has(record, "conversations")) return chatOf(record, "conversations", fail);
  if (has(record, "prompt") && has(record, "completion")) return pairOf(record, fail, keepsLabels);
  if (has(record, "instruction") && has(record, "output")) return alpacaOf(record, fail);
  if (has(record, "text")) return { kind: "text", text: textOf(record, "text", fail) };
  return undefined;
}
