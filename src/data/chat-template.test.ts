import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { OptionError } from "../errors.ts";
import { nodeHost } from "../host/node.ts";
import { loadChatTemplate, needTemplate, parseChatTemplate } from "./chat-template.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-template-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();
let count = 0;

async function folderWith(contents: Readonly<Record<string, string>>): Promise<string> {
  const folder = join(root, String(count++));
  await files.makeDirectory(folder);
  for (const [name, text] of Object.entries(contents)) writeFileSync(join(folder, name), text);
  return folder;
}

const hello = [{ role: "user", content: "hi" }];

describe("loadChatTemplate", () => {
  it("takes chat_template.jinja before the config's", async () => {
    const folder = await folderWith({
      "chat_template.jinja": "file {{ messages[0].content }}{{ eos_token }}",
      "tokenizer_config.json": JSON.stringify({ chat_template: "config", eos_token: "<e>" }),
    });
    const template = await loadChatTemplate(files, folder);
    expect(template.prompt(hello, false)).toBe("file hi<e>");
    expect(template.where).toBe(join(folder, "chat_template.jinja"));
  });

  it("takes the config's, of several the default, and tokens given as objects", async () => {
    const one = await folderWith({
      "tokenizer_config.json": JSON.stringify({
        chat_template: "{{ bos_token }}one",
        bos_token: { content: "<b>" },
      }),
    });
    expect((await loadChatTemplate(files, one)).prompt(hello, false)).toBe("<b>one");
    const named = [
      { name: "tool_use", template: "tools" },
      { name: "default", template: "usual" },
    ];
    const several = await folderWith({
      "tokenizer_config.json": JSON.stringify({ chat_template: named }),
    });
    expect((await loadChatTemplate(files, several)).prompt(hello, false)).toBe("usual");
  });

  it("falls back to the plain one", async () => {
    for (const contents of [{}, { "tokenizer_config.json": "{}" }]) {
      const template = await loadChatTemplate(files, await folderWith(contents));
      expect(template.isPlain).toBe(true);
      expect(template.prompt(hello, true)).toBe("User: hi\n\nAssistant:");
    }
  });

  it("refuses a config that names no text", async () => {
    const folder = await folderWith({ "tokenizer_config.json": '{"chat_template": 3}' });
    await expect(loadChatTemplate(files, folder)).rejects.toThrow(
      `${join(folder, "tokenizer_config.json")}: chat_template must be a text, or a list of objects with name and template.`,
    );
  });
});

describe("ChatTemplate", () => {
  it("gives every template the same day", async () => {
    const template = await parseChatTemplate(
      "{{ strftime_now('%d %b %Y %B %m %H:%M:%S %y %% %q') }}",
      "t",
    );
    expect(template.prompt(hello, false)).toBe("26 Jul 2024 July 07 00:00:00 24 % %q");
  });

  it("passes on what the template raises, with the place of the chat", async () => {
    const template = await parseChatTemplate("{{ raise_exception('roles must alternate') }}", "t");
    expect(() => template.render(hello, "d.jsonl:3")).toThrow(
      "d.jsonl:3: the chat template of t fails on these messages: roles must alternate.",
    );
  });

  it.each<[string, string, string]>([
    [
      "runs forever",
      "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
      "it takes more than 1000000 steps",
    ],
    [
      "doubles a text",
      `{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}`,
      "it makes a value of 16777216 characters or items",
    ],
    [
      "asks for a long range",
      "{% for i in range(100000000) %}{% endfor %}",
      "range has 100000000 items",
    ],
  ])("stops a template that %s", async (_, text, sentence) => {
    const template = await parseChatTemplate(text, "t");
    expect(() => template.prompt(hello, false)).toThrow(
      `the chat template of t fails on these messages: ${sentence}`,
    );
  });

  it("refuses templates that are too long, too blank or no Jinja", async () => {
    await expect(parseChatTemplate("a".repeat(2 ** 18 + 1), "t")).rejects.toThrow(
      "t: the chat template has 262145 characters, at most 262144 are read, and no 1024 of white space in a row.",
    );
    await expect(parseChatTemplate(" ".repeat(1024), "t")).rejects.toThrow(
      "t: the chat template has 1024 characters",
    );
    await expect(parseChatTemplate("{% if %}", "t")).rejects.toThrow(
      /^t: the chat template cannot be parsed, .+\.$/,
    );
  });

  it("refuses characters that no text has, since it marks contents by them", async () => {
    const template = await parseChatTemplate("{{ messages[0].content }}", "t");
    expect(() => template.render([{ role: "user", content: "a\ufdd1" }], "d.jsonl:1")).toThrow(
      "d.jsonl:1: a message holds the noncharacter U+FDD1, which no text has — remove it.",
    );
  });

  it("reaches nothing of JavaScript", async () => {
    const template = await parseChatTemplate(
      "{{ messages.constructor }}{{ messages[0].__proto__ }}{{ messages[0].content.constructor }}",
      "t",
    );
    expect(template.prompt(hello, false)).toBe("");
  });

  it("is asked for where chats are given without one", () => {
    expect(() => needTemplate(undefined, "d.jsonl:1")).toThrow(
      new OptionError(
        "d.jsonl:1: is a chat, and no chat template was given — load the model's with loadChatTemplate.",
      ),
    );
  });
});
