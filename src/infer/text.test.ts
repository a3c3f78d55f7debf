import { afterAll, describe, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { loadTokenizer } from "../data/tokenizer.ts";
import { nodeHost } from "../host/node.ts";
import { loadModel } from "../models/folder.ts";
import { Decoder } from "./decoder.ts";
import { type GeneratedText, generateText, generateTexts, streamText } from "./text.ts";

const folder = new URL("../../models/builtin", import.meta.url).pathname;
const { files } = nodeHost();
const { model, params } = await loadModel(files, folder);
const tokenizer = await loadTokenizer(files, folder);
const decoder = new Decoder(model, params, await nodeOrt({ threads: 1 }), { prepack: false });
afterAll(() => decoder.release());

const prompt = "The old man looked at the sea";
const whole = await generateText(decoder, tokenizer, prompt, { maxNewTokens: 24 });

describe("generateText", () => {
  it("gives the text of the tokens", () => {
    expect(whole.finishReason).toBe("length");
    expect(whole.tokens.length).toBe(24);
    expect(whole.promptTokens).toBe(tokenizer.encode(prompt).length);
    expect(whole.text).toBe(tokenizer.decode(whole.tokens));
  });

  it("ends at a stop string inside the text and makes no more tokens than it needs", async () => {
    const at = Math.floor(whole.text.length / 2);
    const stop = whole.text.slice(at, at + 3);
    const cut = await generateText(decoder, tokenizer, prompt, { maxNewTokens: 24, stop: [stop] });
    expect([cut.finishReason, cut.stop]).toEqual(["stop", stop]);
    expect(cut.text).toBe(whole.text.slice(0, whole.text.indexOf(stop)));
    expect([...cut.tokens]).toEqual([...whole.tokens.subarray(0, cut.tokens.length)]);
    const before = tokenizer.decode(cut.tokens.subarray(0, -1));
    expect(before).not.toContain(stop);
    expect(tokenizer.decode(cut.tokens)).toContain(stop);
  });

  it("gives rows of several prompts their own text and end", async () => {
    const pieces = ["", ""];
    const made = await generateTexts(decoder, tokenizer, [prompt, "He said"], {
      maxNewTokens: 12,
      stop: [whole.text.slice(2, 6)],
      onText: (text, row) => {
        pieces[row] += text;
      },
    });
    expect(pieces).toEqual(made.map(({ text }) => text));
    expect(made[0]!.text).toBe(whole.text.slice(0, 2));
    expect(made[1]!.tokens.length).toBeGreaterThan(made[0]!.tokens.length);
  });
});

describe("streamText", () => {
  it("gives the pieces as they come, and the whole as its return value", async () => {
    const stream = streamText(decoder, tokenizer, prompt, { maxNewTokens: 24 });
    const pieces: string[] = [];
    let result: GeneratedText | undefined;
    while (!result) {
      const { done, value } = await stream.next();
      if (done) result = value;
      else pieces.push(value);
    }
    expect(pieces.join("")).toBe(whole.text);
    expect(pieces.length).toBeGreaterThan(3);
    expect(result).toEqual(whole);
  });

  it("ends the generation when its loop is left", async () => {
    let made = 0;
    const onToken = (): void => {
      made++;
    };
    for await (const _ of streamText(decoder, tokenizer, prompt, { maxNewTokens: 200, onToken })) {
      break;
    }
    expect(made).toBeLessThan(20);
  });

  it("ends when the signal comes, and says so", async () => {
    const abort = new AbortController();
    let made = 0;
    const stream = streamText(decoder, tokenizer, prompt, {
      maxNewTokens: 200,
      signal: abort.signal,
      onToken: () => {
        if (++made === 5) abort.abort();
      },
    });
    let next = await stream.next();
    while (!next.done) next = await stream.next();
    expect(next.value.finishReason).toBe("aborted");
    expect(next.value.tokens.length).toBe(5);
    expect(next.value.text).toBe(tokenizer.decode(whole.tokens.subarray(0, 5)));
  });

  it("throws what the decoder refuses", async () => {
    const stream = streamText(decoder, tokenizer, "", {});
    await expect(stream.next()).rejects.toThrow("generate: prompt 0 has no tokens.");
  });
});
