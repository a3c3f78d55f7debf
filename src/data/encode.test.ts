import { describe, expect, it } from "vitest";
import parity from "../../test/parity/chat.json" with { type: "json" };
import { parseChatTemplate } from "./chat-template.ts";
import {
  type EncodeExamplesOptions,
  encodeExample,
  encodeExamples,
  encodePreferences,
  questionOf,
} from "./encode.ts";
import type { RawExample } from "./example.ts";
import { Tokenizer } from "./tokenizer.ts";

/** As Llama 2's tokenizer: every text begins with a space, and `<s>` stands before it. */
const llama = new Tokenizer(
  {
    tokenizer: JSON.stringify({
      ...parity.tokenizers.pieces,
      post_processor: {
        type: "TemplateProcessing",
        single: [
          { SpecialToken: { id: "<s>", type_id: 0 } },
          { Sequence: { id: "A", type_id: 0 } },
        ],
        pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
        special_tokens: { "<s>": { id: "<s>", ids: [1], tokens: ["<s>"] } },
      },
    }),
    config: JSON.stringify({ bos_token: "<s>", eos_token: "</s>", unk_token: "<unk>" }),
  },
  "llama",
);
const bytes = new Tokenizer(
  { tokenizer: JSON.stringify(parity.tokenizers.bytes), config: '{"eos_token":"<|im_end|>"}' },
  "bytes",
);
const pair: RawExample = {
  kind: "pair",
  prompt: "What?",
  completion: "Paris",
  system: "Be short.",
};

/** Text of what carries loss and of what does not. */
function parts(
  example: RawExample,
  tokenizer: Tokenizer,
  options: Partial<EncodeExamplesOptions> = {},
): [read: string, learnt: string] {
  const { ids, mask } = encodeExample(example, tokenizer, { maxLength: 512, ...options });
  const from = mask.indexOf(1);
  expect(mask.subarray(from).every((carries) => carries === 1)).toBe(true);
  const before = tokenizer.decode(ids.subarray(0, from));
  return [before, tokenizer.decode(ids).slice(before.length)];
}

describe("encodeExample", () => {
  it("puts a pair's system text before its prompt", () => {
    expect(parts(pair, bytes)).toEqual(["Be short.\n\nWhat?\n", "Paris<|im_end|>"]);
  });

  it("begins texts and pairs with what the tokenizer puts there, without loss", () => {
    const [start, end] = [llama.tokenToId("<s>"), llama.tokenToId("</s>")];
    for (const example of [pair, { kind: "text", text: "Paris" } as const]) {
      const { ids, mask } = encodeExample(example, llama, { maxLength: 512 });
      expect([ids[0], ids.at(-1)]).toEqual([start, end]);
      expect(mask[0]).toBe(0);
      const bare = encodeExample(example, llama, { maxLength: 512, addBeginning: false });
      expect([...bare.ids]).toEqual([...ids.subarray(1)]);
    }
    // The text's first token is predicted from the beginning.
    expect(encodeExample({ kind: "text", text: "a" }, llama, { maxLength: 9 }).mask[1]).toBe(1);
  });

  it("adds no space between prompt and completion where a tokenizer begins texts with one", () => {
    expect(parts(pair, llama)).toEqual(["<s> Be short.\n\nWhat?\n", "Paris</s>"]);
    const { ids } = encodeExample(pair, llama, { maxLength: 512 });
    expect([...ids]).toEqual([
      llama.tokenToId("<s>"),
      ...llama.encode("Be short.\n\nWhat?\nParis"),
      llama.tokenToId("</s>"),
    ]);
  });

  it("gives loss to all of a pair but the beginning where that is asked", () => {
    const { mask } = encodeExample(pair, llama, { maxLength: 512, lossOn: "all" });
    expect([mask[0], mask.indexOf(0, 1)]).toEqual([0, -1]);
  });

  it("renders pairs as chats where that is asked", async () => {
    const { template, roles } = parity.cases[0]!;
    const chat = await parseChatTemplate(template, "chatml", roles as Record<string, string>);
    const options = { maxLength: 512, chat, pairsAsChats: true };
    const { ids, mask } = encodeExample(pair, bytes, options);
    expect(bytes.decode(ids.filter((_, i) => mask[i] === 1))).toBe("Paris<|im_end|>");
    expect(bytes.decode(ids)).toBe(
      "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nParis<|im_end|>\n",
    );
  });

  it("names the chat that a template refuses", async () => {
    const { template, roles } = parity.cases[3]!;
    const chat = await parseChatTemplate(
      template,
      "llama2",
      roles as unknown as Record<string, string>,
    );
    const wrong: RawExample = {
      kind: "chat",
      messages: [{ role: "assistant", content: "a" }],
      where: "d.jsonl:12",
    };
    expect(() => encodeExamples([wrong], llama, { maxLength: 512, chat })).toThrow(
      "d.jsonl:12: the chat template of llama2 fails on these messages: Conversation roles must alternate",
    );
    expect(() => encodeExamples([wrong], llama, { maxLength: 512 })).toThrow(
      "d.jsonl:12: is a chat, and no chat template was given",
    );
  });
});

describe("questionOf", () => {
  it("asks in the tokens that training gave", async () => {
    const { template, roles } = parity.cases[0]!;
    const chat = await parseChatTemplate(template, "chatml", roles as Record<string, string>);
    for (const options of [{}, { template: "Q: {prompt} A:" }, { chat, pairsAsChats: true }]) {
      for (const tokenizer of [bytes, llama]) {
        const question = questionOf(pair, tokenizer, options)!;
        const { ids, mask } = encodeExample(pair, tokenizer, { ...options, maxLength: 512 });
        expect([...question.ids]).toEqual([...ids.subarray(0, mask.indexOf(1))]);
        expect([question.prompt, question.expected]).toEqual(["What?", "Paris"]);
      }
    }
  });

  it("asks nothing of texts and of chats that end otherwise", () => {
    expect(questionOf({ kind: "text", text: "a" }, bytes)).toBeUndefined();
    const messages = [{ role: "user", content: "a" }];
    expect(questionOf({ kind: "chat", messages }, bytes)).toBeUndefined();
  });
});

describe("encodePreferences", () => {
  const preference: RawExample = {
    kind: "preference",
    prompt: "What?",
    chosen: "Paris",
    rejected: "Rome",
  };

  it("gives each answer after the prompt, with loss on the answer", () => {
    const { chosen, rejected } = encodePreferences([preference], bytes, { maxLength: 512 });
    const texts = [chosen[0]!, rejected[0]!].map(({ ids, mask }) => [
      bytes.decode(ids),
      bytes.decode(ids.filter((_, i) => mask[i] === 1)),
    ]);
    expect(texts).toEqual([
      ["What?\nParis<|im_end|>", "Paris<|im_end|>"],
      ["What?\nRome<|im_end|>", "Rome<|im_end|>"],
    ]);
    // Training without preferences takes the chosen answer.
    expect(encodeExamples([preference], bytes, { maxLength: 512 }).examples).toEqual(chosen);
  });

  it("gives no loss to earlier turns of the assistant", async () => {
    const { template, roles } = parity.cases[0]!;
    const chat = await parseChatTemplate(template, "chatml", roles as Record<string, string>);
    const turn = (role: string, content: string) => ({ role, content });
    const chats: RawExample = {
      kind: "preference",
      prompt: [turn("user", "a"), turn("assistant", "b"), turn("user", "c")],
      chosen: [turn("assistant", "d")],
      rejected: [turn("assistant", "e")],
    };
    const { chosen, rejected } = encodePreferences([chats], bytes, { maxLength: 512, chat });
    const learnt = [chosen[0]!, rejected[0]!].map(({ ids, mask }) =>
      bytes.decode(ids.filter((_, i) => mask[i] === 1)),
    );
    expect(learnt).toEqual(["d<|im_end|>", "e<|im_end|>"]);
  });

  it("counts cut pairs, leaves empty ones out, and refuses what is no preference", () => {
    const short = { ...preference, prompt: "", chosen: "a", rejected: "b" };
    const options = { template: "{prompt}", maxLength: 2 };
    const encoded = encodePreferences([preference, short], bytes, options);
    expect([encoded.cut, encoded.empty, encoded.chosen.length]).toEqual([1, 1, 1]);
    expect(() => encodePreferences([preference], bytes, options)).toThrow(
      "data: no token carries loss in any of 1 examples — are the completions empty, or maxLength 2 too short?",
    );
    expect(() => encodePreferences([{ ...pair, where: "d.csv:2" }], bytes, options)).toThrow(
      'd.csv:2: is a pair, a preference is needed — give "prompt", "chosen" and "rejected".',
    );
  });
});
