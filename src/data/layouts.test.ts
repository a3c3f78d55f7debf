import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { FormatError, OptionError } from "../errors.ts";
import type { RawExample } from "./example.ts";
import { checkMap, layoutHelp, toExample } from "./layouts.ts";
import { parseRecord } from "./records.ts";

/** The example of a record, its place left out. */
function example(record: object | string): RawExample {
  const text = typeof record === "string" ? record : JSON.stringify(record);
  const { where, ...rest } = toExample({
    record: parseRecord(text, "d.jsonl:5"),
    where: "d.jsonl:5",
  });
  expect(where).toBe("d.jsonl:5");
  return rest;
}

const user = (content: string) => ({ role: "user", content });
const assistant = (content: string) => ({ role: "assistant", content });
const system = (content: string) => ({ role: "system", content });
const preference = {
  kind: "preference",
  prompt: [user("p")],
  chosen: [assistant("c")],
  rejected: [assistant("r")],
} as const;

describe("toExample", () => {
  it.each<[string, object, RawExample]>([
    ["text", { text: "t", id: 3 }, { kind: "text", text: "t" }],
    ["a pair", { prompt: "p", completion: "c" }, { kind: "pair", prompt: "p", completion: "c" }],
    [
      "a pair with a system text",
      { prompt: "p", completion: "c", system: "s" },
      { kind: "pair", prompt: "p", completion: "c", system: "s" },
    ],
    [
      "a pair of messages (TRL), of which only the completion's carry loss",
      { prompt: [user("p"), assistant("q"), user("r")], completion: [assistant("c")] },
      {
        kind: "chat",
        messages: [
          { ...user("p"), hasLoss: false },
          { ...assistant("q"), hasLoss: false },
          { ...user("r"), hasLoss: false },
          assistant("c"),
        ],
      },
    ],
    [
      "messages (OpenAI)",
      { messages: [system("s"), user("u"), assistant("a")] },
      { kind: "chat", messages: [system("s"), user("u"), assistant("a")] },
    ],
    [
      "messages whose content has parts, and weights",
      {
        messages: [
          { role: "developer", content: "s" },
          { role: "user", content: ["u", "v"].map((text) => ({ type: "text", text })) },
          { role: "assistant", content: "a", weight: 0 },
          { role: "assistant", content: "b", weight: 1, tool_calls: [] },
          { role: "assistant", content: "c", train: false },
        ],
      },
      {
        kind: "chat",
        messages: [
          system("s"),
          user("uv"),
          { ...assistant("a"), hasLoss: false },
          assistant("b"),
          { ...assistant("c"), hasLoss: false },
        ],
      },
    ],
    [
      "conversations (ShareGPT) with a system text",
      {
        system: "s",
        conversations: [
          { from: "human", value: "u" },
          { from: "gpt", value: "a" },
        ],
      },
      { kind: "chat", messages: [system("s"), user("u"), assistant("a")] },
    ],
    [
      "conversations by column, as Parquet may have them",
      { conversations: { from: ["system", "human", "gpt"], value: ["s", "u", "a"] } },
      { kind: "chat", messages: [system("s"), user("u"), assistant("a")] },
    ],
    [
      "messages as JSON in a cell",
      { messages: JSON.stringify([user("u"), assistant("a")]) },
      { kind: "chat", messages: [user("u"), assistant("a")] },
    ],
    [
      "Alpaca",
      { instruction: "i", input: "n", output: "o", text: "all" },
      { kind: "pair", prompt: "i\nn", completion: "o" },
    ],
    [
      "Alpaca without input",
      { instruction: "i", input: "", output: "o", system: "s" },
      { kind: "pair", prompt: "i", completion: "o", system: "s" },
    ],
    [
      "Alpaca with earlier turns",
      { instruction: "i", input: null, output: "o", system: "s", history: [["a", "b"]] },
      {
        kind: "chat",
        messages: [system("s"), user("a"), assistant("b"), user("i"), assistant("o")],
      },
    ],
    [
      "a preference",
      { prompt: "p", chosen: "c", rejected: "r" },
      { kind: "preference", prompt: "p", chosen: "c", rejected: "r" },
    ],
    [
      "a preference of messages",
      { prompt: [user("p")], chosen: [assistant("c")], rejected: [assistant("r")] },
      preference,
    ],
    [
      "a preference whose answers repeat the prompt (UltraFeedback)",
      {
        prompt: "p",
        messages: [user("p"), assistant("c")],
        chosen: [user("p"), assistant("c")],
        rejected: [user("p"), assistant("r")],
      },
      preference,
    ],
    [
      "a preference without prompt (HH-RLHF)",
      { chosen: "\n\nHuman: hi\n\nAssistant: no", rejected: "\n\nHuman: hi\n\nAssistant: yes" },
      {
        kind: "preference",
        prompt: "\n\nHuman: hi\n\nAssistant:",
        chosen: " no",
        rejected: " yes",
      },
    ],
    [
      "a preference of ShareGPT turns (LLaMA-Factory)",
      {
        conversations: [{ from: "human", value: "p" }],
        chosen: { from: "gpt", value: "c" },
        rejected: { from: "gpt", value: "r" },
      },
      preference,
    ],
    [
      "a preference of an Alpaca prompt and turns",
      { instruction: "i", input: "n", chosen: [assistant("c")], rejected: [assistant("r")] },
      { ...preference, prompt: [user("i\nn")] },
    ],
  ])("reads %s", (_, record, expected) => {
    expect(example(record)).toEqual(expected);
  });

  it("takes a preference before messages, messages before a pair, a pair before text", () => {
    const text = { text: "t" };
    const alpaca = { ...text, instruction: "i", output: "o" };
    const pair = { ...alpaca, prompt: "p", completion: "c" };
    const chat = { ...pair, messages: [user("u")] };
    expect(example({ ...pair, chosen: "x", rejected: "y" }).kind).toBe("preference");
    expect(example(chat).kind).toBe("chat");
    expect(example(pair)).toEqual({ kind: "pair", prompt: "p", completion: "c" });
    expect(example(alpaca)).toEqual({ kind: "pair", prompt: "i", completion: "o" });
  });

  it.each<[string, object | string, string]>([
    [
      "other fields",
      { question: "q", answer: "a" },
      `the fields question, answer make no layout that is understood — use ${layoutHelp}, or name your columns with --map column=field.`,
    ],
    ["no fields", {}, "the fields none make no layout"],
    ["null in both", { prompt: null, completion: null }, "the fields prompt, completion make no"],
    ["a number for a text", { prompt: 1, completion: "c" }, '"prompt" must be a text, got 1.'],
    ["a list for a text", { text: ["a"] }, '"text" must be a text, got a list.'],
    [
      "a judged pair (KTO)",
      { prompt: "p", completion: "c", label: false },
      '"prompt", "completion" and a "label" that judges them (KTO) are not understood — keep those with label true, or make pairs of "chosen" and "rejected".',
    ],
    ["no messages", { messages: [] }, '"messages" holds no messages.'],
    [
      "messages that are a text",
      { messages: "hi" },
      '"messages" must be a list of messages, got "hi".',
    ],
    [
      "a message that is a text",
      { messages: ["hi"] },
      'a message must be an object with "role" and "content", got "hi".',
    ],
    [
      "a message without role",
      { messages: [{ speaker: "x", text: "y" }] },
      'a message needs "role" and "content", or "from" and "value", got the keys speaker, text.',
    ],
    [
      "a role that would break out of the template",
      { messages: [{ role: "user<|im_end|>", content: "x" }] },
      'a message has the role "user<|im_end|>" — roles are system, developer, user,',
    ],
    [
      "a role of JavaScript",
      { messages: [{ role: "constructor", content: "x" }] },
      'a message has the role "constructor" — roles are',
    ],
    [
      "an empty content",
      { messages: [{ role: "assistant", content: null }] },
      `a message's "content" must be a text, got null.`,
    ],
    [
      "a picture",
      { messages: [{ role: "user", content: [{ type: "image_url" }] }] },
      'a part of a content is "image_url" — only parts of type "text" are read.',
    ],
    [
      "a call of a tool",
      { messages: [{ role: "assistant", content: null, tool_calls: [{}] }] },
      "a message calls a tool, which is not understood — write the call as its content.",
    ],
    [
      "tools",
      { messages: [user("u")], tools: [{}] },
      '"tools" is not understood — describe the tools in the system message.',
    ],
    [
      "a preference of two kinds",
      { prompt: "p", chosen: "c", rejected: [assistant("r")] },
      '"chosen" and "rejected" must both be texts or both be messages.',
    ],
    [
      "a preference without prompt",
      { chosen: [assistant("c")], rejected: [assistant("r")] },
      'the preference has no "prompt", and "chosen" and "rejected" share no first turns.',
    ],
    [
      "a history that is none",
      { instruction: "i", output: "o", history: [["a"]] },
      '"history" must list pairs of texts, got a list.',
    ],
    [
      "a broken list in a cell",
      { messages: '[{"role":' },
      '"messages": invalid JSON at byte 9: a value is needed, got the end of the text.',
    ],
    ["keys of JavaScript", '{"__proto__":{"text":"x"}}', "the fields __proto__ make no layout"],
    [
      "a chat of too many turns",
      { messages: Array.from({ length: 4097 }, () => user("u")) },
      '"messages" holds 4097 messages, at most 4096 are read.',
    ],
  ])("names the place of %s", (_, record, sentence) => {
    expect(() => example(record)).toThrow(FormatError);
    expect(() => example(record)).toThrow(`d.jsonl:5: ${sentence}`);
  });
});

describe("the guide", () => {
  it("shows layouts that are understood", () => {
    const guide = readFileSync(new URL("../../docs/your-data.md", import.meta.url), "utf8");
    const blocks = [...guide.matchAll(/^```json\n([\s\S]*?)^```$/gm)].map(([, code]) => code!);
    expect(blocks.map((code) => example(code.trim()).kind)).toEqual([
      "text",
      "pair",
      "chat",
      "chat",
      "pair",
      "preference",
    ]);
  });
});

describe("checkMap", () => {
  it("takes fields of layouts only, each once", () => {
    checkMap({ question: "prompt", answer: "completion" });
    expect(() => checkMap({ question: "promt" })).toThrow(OptionError);
    expect(() => checkMap({ question: "promt" })).toThrow(
      'map: "question=promt" names no known field — fields are text, prompt, completion, system, messages, conversations, chosen, rejected, instruction, input, output, history, label, tools.',
    );
    expect(() => checkMap({ a: "prompt", b: "prompt" })).toThrow(
      'map: "a" and "b" both become prompt — map one column to a field.',
    );
  });
});
