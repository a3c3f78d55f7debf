import { beforeAll, describe, expect, it } from "vitest";
import { allowedTokens, crossing, textOf, walk } from "../../test/support/grammar-cases.ts";
import { encodeChatPrompt } from "../data/chat.ts";
import { type ChatTemplate, parseChatTemplate } from "../data/chat-template.ts";
import type { ChatMessage } from "../data/example.ts";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { nodeHost } from "../host/node.ts";
import { parseJson } from "../io/json.ts";
import { Rng } from "../tensor/rng.ts";
import { firstSpecial, Vocabulary } from "./grammar/vocabulary.ts";
import {
  type ChatTool,
  checkTools,
  knowsTools,
  markTokens,
  type ToolChoice,
  toolFormatOf,
  toolFormats,
  toolGrammar,
  withToolsAsText,
} from "./tool-calls.ts";
import { readToolAnswer, ToolStream } from "./tool-stream.ts";

const tools: readonly ChatTool[] = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Weather of a place",
      parameters: {
        type: "object",
        properties: {
          city: { type: "string", maxLength: 8 },
          days: { type: "integer", minimum: 1, maximum: 9 },
        },
        required: ["city"],
        additionalProperties: false,
      },
    },
  },
  { type: "function", function: { name: "now" } },
];

const format = (id: string): (typeof toolFormats)[number] =>
  toolFormats.find((one) => one.id === id)!;

const accepts = (id: string, text: string, choice: ToolChoice, isParallel = true): boolean =>
  toolGrammar(tools, format(id), crossing, { choice, isParallel })!.accepts(text);

const call = '{"name":"get_weather","arguments":{"city":"Oslo"}}';
const now = '{"name": "now", "arguments": {}}';

describe("tools", () => {
  it.each([
    [
      "hermes",
      `<tool_call>\n${call}\n</tool_call>`,
      `<tool_call>\n${call}\n</tool_call>\n<tool_call>\n${now}\n</tool_call>`,
    ],
    ["mistral", `[TOOL_CALLS] [${call}]`, `[TOOL_CALLS][${call}, ${now}]`],
    ["phi", `<|tool_call|>[${call}]<|/tool_call|>`, `<|tool_call|>[${now},${call}]<|/tool_call|>`],
  ])("are called as %s templates do", (id, one, two) => {
    for (const choice of ["required", "auto"] as const) {
      expect([one, two].map((text) => accepts(id, text, choice))).toEqual([true, true]);
      expect([one, two].map((text) => accepts(id, text, choice, false))).toEqual([true, false]);
    }
    expect(accepts(id, "plain text", "required")).toBe(false);
    expect(accepts(id, "plain text", "auto")).toBe(true);
    expect(accepts(id, `Let me see. ${one}`, "auto")).toBe(true);
    expect(accepts(id, one.replace("Oslo", "a name too long"), "auto")).toBe(false);
    expect(accepts(id, one.replace("get_weather", "other"), "auto")).toBe(false);
    expect(accepts(id, one.slice(0, -3), "auto")).toBe(false);
    const named = { type: "function", function: { name: "now" } } as const;
    expect(accepts(id, one, named)).toBe(false);
    expect(accepts(id, one.replace(call, now), named)).toBe(true);
  });

  it.each([
    ["hermes", `<tool_call>${call}</tool_call>`],
    ["phi", `<|tool_call|>[${call}]<|/tool_call|>`],
    ["json", call],
  ])("stand beside JSON of a form, and no other text, as %s templates have them", (id, one) => {
    const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
    const formed = (content: object): boolean[] =>
      [one, '{"name": "Ann"}', '{"city": "Oslo"}', "plain text", `Let me see. ${one}`].map((text) =>
        toolGrammar(tools, format(id), crossing, { content })!.accepts(text),
      );
    expect(formed({ schema: { ...schema, additionalProperties: false } })).toEqual([
      ...[true, true, false, false, false],
    ]);
    expect(formed({})).toEqual([true, true, true, false, false]);
    // To read them, who holds answers to tools tells their names.
    const names = new Set(tools.map((tool) => tool.function.name));
    const read = (text: string): string[] => {
      const stream = new ToolStream(format(id), () => "x", names);
      return [...stream.push(text), ...stream.end()].map((delta) =>
        delta.kind === "call" ? delta.name : delta.text,
      );
    };
    expect(read(one)[0]).toBe("get_weather");
    expect(read('{"name": "Ann", "arguments": 1}').join("")).toBe(
      '{"name": "Ann", "arguments": 1}',
    );
    expect(read('{"sky": {"name": "now"}}').join("")).toBe('{"sky": {"name": "now"}}');
  });

  it.each(["json", "llama3"])("are called by the whole answer as %s templates do", (id) => {
    const own = id === "json" ? call : call.replace("arguments", "parameters");
    expect(accepts(id, own, "required")).toBe(true);
    expect(accepts(id, own, "auto")).toBe(true);
    expect(accepts(id, "text with {braces}", "auto")).toBe(true);
    expect(accepts(id, '{"other": 1}', "auto")).toBe(false);
    expect(accepts(id, `${own} and more`, "auto")).toBe(false);
  });

  it("are called in every walk that the masks allow", () => {
    const rng = new Rng(3);
    let calls = 0;
    for (let i = 0; i < 60; i++) {
      const id = ["hermes", "mistral", "phi", "json", "llama3"][i % 5]!;
      const grammar = toolGrammar(tools, format(id), crossing, { choice: "required" })!;
      const tokens = walk(grammar.start(), crossing, rng, 2000);
      if (!tokens) continue;
      const answer = readToolAnswer(textOf(crossing, tokens), format(id), () => "id");
      expect(answer.text).toBe("");
      expect(answer.calls.length).toBeGreaterThan(0);
      for (const made of answer.calls) {
        calls++;
        const value = parseJson(made.arguments, "arguments") as Record<string, unknown>;
        if (made.name === "now") expect(value).toEqual({});
        else expect(typeof value["city"]).toBe("string");
      }
    }
    expect(calls).toBeGreaterThan(30);
  });

  it("are called by special tokens where the vocabulary has them, and text never holds those", () => {
    const pieces = [...Array.from({ length: 256 }, (_, byte) => [byte]), undefined, undefined];
    const vocabulary = new Vocabulary(
      pieces,
      new Map([
        ["[TOOL_CALLS]", 256],
        ["</s>", 257],
      ]),
    );
    const own = format("mistral");
    expect([...markTokens(own, vocabulary)]).toEqual([[256, "[TOOL_CALLS]"]]);
    expect(vocabulary.spell("[TOOL_CALLS]")).toEqual([firstSpecial + 256]);
    const free = toolGrammar(tools, own, vocabulary)!.start();
    // Any byte, and the special token; the text in letters is only text.
    expect(allowedTokens(free)).toEqual(Array.from({ length: 257 }, (_, id) => id));
    for (const byte of new TextEncoder().encode("[TOOL_CALLS]x")) free.accept(byte);
    expect(free.isComplete()).toBe(true);
    free.accept(256);
    expect(free.isComplete()).toBe(false);
    expect(allowedTokens(free).map((id) => String.fromCharCode(id))).toEqual(["\n", " ", "["]);
    const forced = toolGrammar(tools, own, vocabulary, { choice: "required" })!.start();
    expect(allowedTokens(forced)).toEqual([256]);
  });

  it("are none where none are to be called", () => {
    expect(toolGrammar(tools, format("json"), crossing, { choice: "none" })).toBeUndefined();
    expect(toolGrammar([], format("json"), crossing)).toBeUndefined();
  });

  it.each<[unknown, unknown, string]>([
    [
      [{ type: "function" }],
      "auto",
      'tools[0]: must have the type "function" and a function with a name.',
    ],
    [
      [{ type: "function", function: { name: "a b" } }],
      "auto",
      'tools[0]: the name "a b" must be 1 to 64 letters',
    ],
    [[tools[1], tools[1]], "auto", 'tools[1]: the name "now" is taken already.'],
    [[], "required", "tool_choice: is required, but there are no tools."],
    [
      tools,
      "always",
      "tool_choice: must be none, auto, required, or name one of the tools get_weather, now",
    ],
    [tools, { type: "function", function: { name: "x" } }, "tool_choice: must be none, auto"],
    [Array.from({ length: 129 }, () => tools[0]), "auto", "tools: at most 128 are taken, got 129."],
  ])("are checked: %#", (given, choice, sentence) => {
    expect(() => checkTools(given as ChatTool[], choice as ToolChoice)).toThrow(sentence);
  });

  it("name the tool whose schema cannot be held to", () => {
    const wrong: ChatTool = {
      type: "function",
      function: {
        name: "f",
        strict: true,
        parameters: { type: "object", properties: { a: { uniqueItems: true } } },
      },
    };
    expect(() => toolGrammar([wrong], format("json"), crossing)).toThrow(
      'tool "f": the schema at #/properties/a has "uniqueItems"',
    );
    const { strict: _, ...loose } = wrong.function;
    const grammar = toolGrammar([{ ...wrong, function: loose }], format("json"), crossing)!;
    expect(grammar.unchecked).toEqual(['tool "f" #/properties/a/uniqueItems']);
  });
});

const hermes = `{%- if tools %}{{- '<|im_start|>system\\n<tools>' }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- "\\n</tools>\\nAnswer with <tool_call></tool_call><|im_end|>\\n" }}{%- endif %}
{%- for message in messages %}{%- if message.role == "tool" %}{{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- if message.tool_calls %}{%- for call in message.tool_calls %}{{- '<tool_call>{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) + '}</tool_call>' }}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}`;

const chat: readonly ChatMessage[] = [
  { role: "user", content: "Weather in Oslo?" },
  {
    role: "assistant",
    content: "",
    toolCalls: [{ id: "call_1", name: "get_weather", arguments: { city: "Oslo" } }],
  },
  { role: "tool", content: "4 degrees", toolCallId: "call_1" },
];

describe("chat templates with tools", () => {
  let template: ChatTemplate;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    template = await parseChatTemplate(hermes, "a template");
    tokenizer = await loadTokenizer(nodeHost().files, "models/builtin");
  });

  it("are told of tools, calls and results", () => {
    const text = template.prompt(chat, true, "", tools);
    expect(text).toContain('"name": "get_weather"');
    expect(text).toContain(
      '<|im_start|>assistant\n<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call><|im_end|>',
    );
    expect(text).toContain("<tool_response>4 degrees</tool_response>");
    expect(template.prompt(chat.slice(0, 1), false)).toBe(
      "<|im_start|>user\nWeather in Oslo?<|im_end|>\n",
    );
    const { contents } = template.render(chat, "", true, tools);
    expect(contents!.map(({ message }) => message)).toEqual([0, 2]);
  });

  it("are known by what they write", () => {
    expect(toolFormatOf(hermes).id).toBe("hermes");
    expect(toolFormatOf("{{ '[TOOL_CALLS]' }}").id).toBe("mistral");
    expect(toolFormatOf('{% if tools %}{"name": function name, "parameters": dictionary}').id).toBe(
      "llama3",
    );
    expect(toolFormatOf("{{ messages }}").id).toBe("json");
    expect([knowsTools(hermes), knowsTools("{{ messages }}")]).toEqual([true, false]);
  });

  it("take no special token from what tools say", () => {
    const special = tokenizer.specialTokens[0]!.text;
    const wrong = [{ type: "function", function: { name: "f", description: `a ${special}` } }];
    expect(() => encodeChatPrompt(chat.slice(0, 1), template, tokenizer, "chat", wrong)).toThrow(
      `chat: a tool or a call of one holds ${JSON.stringify(special)}`,
    );
    expect(encodeChatPrompt(chat, template, tokenizer, "chat", tools).length).toBeGreaterThan(50);
  });

  it("that know no tools are told in words", () => {
    const plain = withToolsAsText([{ role: "system", content: "Be brief." }, ...chat], tools);
    expect(plain.map(({ role }) => role)).toEqual(["system", "user", "assistant", "user"]);
    expect(plain[0]!.content).toMatch(/^Be brief\.\n\nYou may call/);
    expect(plain[0]!.content).toContain('"name":"get_weather"');
    expect(plain[2]!.content).toBe('{"name":"get_weather","arguments":{"city":"Oslo"}}');
    expect(plain[3]!.content).toBe("Result of get_weather: 4 degrees");
  });
});
