import { afterAll, describe, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { encodeChatPrompt } from "../data/chat.ts";
import { loadChatTemplate } from "../data/chat-template.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { nodeHost } from "../host/node.ts";
import { loadModel } from "../models/folder.ts";
import { Conversation } from "./conversation.ts";
import { Decoder } from "./decoder.ts";
import { generateText } from "./text.ts";

const folder = new URL("../../models/builtin", import.meta.url).pathname;
const { files } = nodeHost();
const { model, params } = await loadModel(files, folder);
const tokenizer = await loadTokenizer(files, folder);
const template = await loadChatTemplate(files, folder);
const decoder = new Decoder(model, params, await nodeOrt({ threads: 1 }), { prepack: false });
afterAll(() => decoder.release());
const { maxPositions } = model.sizes;
const options = { tokenizer, template, maxPositions };
const stop = ["\nUser:", "\nSystem:"];

describe("Conversation", () => {
  it("answers each turn as the whole chat is continued when it is read anew", async () => {
    const chat = new Conversation(decoder, { ...options, system: "Be brief." });
    const turn = async (text: string): Promise<void> => {
      const before = [...chat.messages, { role: "user", content: text }];
      const reply = await chat.reply(text, { maxNewTokens: 12 });
      const prompt = Int32Array.from(encodeChatPrompt(before, template, tokenizer, "chat"));
      const fresh = await generateText(decoder, tokenizer, prompt, { maxNewTokens: 12, stop });
      expect([reply.text, reply.finishReason]).toEqual([fresh.text, fresh.finishReason]);
      expect(chat.messages).toEqual([...before, { role: "assistant", content: reply.text.trim() }]);
    };
    await turn("Where is the ship?");
    await turn("And the sea?");
    chat.system = "Be long.";
    await turn("And the land?");
    chat.reset();
    expect(chat.messages).toEqual([{ role: "system", content: "Be long." }]);
    await turn("Who are you?");
  });

  it("forgets the oldest turns when the model has no room for them, and says how many", async () => {
    const chat = new Conversation(decoder, { ...options, maxPositions: 96 });
    const long = "one two three four five six seven eight nine ten";
    let dropped = 0;
    for (let i = 0; i < 4; i++) {
      dropped += (await chat.reply(`${i} ${long}`, { maxNewTokens: 8 })).dropped;
    }
    expect(dropped).toBeGreaterThanOrEqual(2);
    expect(chat.messages.length).toBe(8 - dropped);
    expect(chat.messages[0]!.role).toBe("user");
    expect(chat.messages.at(-2)!.content).toBe(`3 ${long}`);
    const kept = [...chat.messages];
    await expect(chat.reply(long.repeat(20))).rejects.toThrow(
      /^chat: the message takes \d+ tokens with what stands around it, the model has 96 positions — shorten it\.$/,
    );
    expect(chat.messages).toEqual(kept);
  });

  it("keeps what was said of an answer that is ended", async () => {
    const chat = new Conversation(decoder, options);
    const abort = new AbortController();
    let made = 0;
    const reply = await chat.reply("Tell me a story.", {
      maxNewTokens: 60,
      signal: abort.signal,
      onToken: () => {
        if (++made === 3) abort.abort();
      },
    });
    expect([reply.finishReason, reply.tokens.length]).toEqual(["aborted", 3]);
    expect(chat.messages.at(-1)).toEqual({ role: "assistant", content: reply.text.trim() });
  });

  it("goes on with another decoder", async () => {
    const chat = new Conversation(decoder, options);
    await chat.reply("Hello", { maxNewTokens: 4 });
    const other = new Decoder(model, params, await nodeOrt({ threads: 1 }), { prepack: false });
    chat.use(other);
    expect((await chat.reply("Again", { maxNewTokens: 4 })).tokens.length).toBeGreaterThan(0);
    await other.release();
  });
});
