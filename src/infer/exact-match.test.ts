import { describe, expect, it } from "vitest";
import { nodeOrt } from "../backend/ort/node.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "../data/bpe.ts";
import { Tokenizer } from "../data/tokenizer.ts";
import { Gpt2 } from "../models/gpt2.ts";
import { Rng } from "../tensor/rng.ts";
import { Decoder } from "./decoder.ts";
import { answerAll } from "./exact-match.ts";

const backend = await nodeOrt({ threads: 1 });
const bpe = trainBpe([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });
const tokenizer = new Tokenizer(
  {
    tokenizer: toTokenizerJson(bpe),
    config: toTokenizerConfig(bpe, { eosToken: "<|endoftext|>" }),
  },
  "tiny",
);

/**
 * A model that after the token at position p says letter p of a text, whatever the tokens are, and
 * the end after the text: blocks add nothing, the position's embedding is ten times that of the
 * letter, and the embedding of each token is a direction of its own.
 */
function reciting(text: string): Decoder {
  const letters = [...tokenizer.encode(text), tokenizer.eosId!];
  const { vocabSize } = tokenizer;
  const model = new Gpt2({ vocabSize, dModel: vocabSize, nLayers: 1, nHeads: 1, maxPositions: 32 });
  const { params } = model.init(new Rng(1));
  for (const [path, tensor] of Object.entries(params)) {
    if (/wte|wpe|c_proj/.test(path)) (tensor.data as Float32Array).fill(0);
  }
  for (let id = 0; id < vocabSize; id++) {
    (params["transformer.wte.weight"]!.data as Float32Array)[id * vocabSize + id] = 1;
  }
  for (let p = 0; p < 32; p++) {
    const id = letters[Math.min(p, letters.length - 1)]!;
    (params["transformer.wpe.weight"]!.data as Float32Array)[p * vocabSize + id] = 10;
  }
  return new Decoder(model, params, backend);
}

describe("answerAll", () => {
  // A prompt of n letters and the template's newline ends at position n, so the answer is the text
  // from its letter n on.
  const text = "abcdef é!";
  const pairs = [
    { prompt: "xxx", completion: "def é!" },
    { prompt: "x", completion: "bcdef é!" },
    { prompt: "xxxxx", completion: "g é!" },
    { prompt: "yyy", completion: "def é" },
    { prompt: "xx", completion: "  cdef é!\n" },
  ];
  const answers = ["def é!", "bcdef é!", "f é!", "def é!", "cdef é!"];

  it("answers in the order of the prompts, and is exact letter for letter, outer blanks apart", async () => {
    const decoder = reciting(text);
    for (const [batchSize, done] of [
      [2, [2, 4, 5]],
      [50, [5]],
    ] as const) {
      const progress: number[] = [];
      const result = await answerAll(decoder, tokenizer, pairs, {
        batchSize,
        onProgress: (count) => progress.push(count),
      });
      expect(result).toEqual(
        pairs.map(({ prompt, completion }, i) => ({
          prompt,
          expected: completion,
          answer: answers[i],
          isExact: [true, true, false, false, true][i],
        })),
      );
      expect(progress).toEqual(done);
    }
    await decoder.release();
  });

  it("asks for eight tokens more than the longest completion, or for as many as are said", async () => {
    const decoder = reciting("abcdefghijklmnopqrstuvwxyz");
    const short = [
      { prompt: "x", completion: "bcd" },
      { prompt: "x", completion: "b" },
    ];
    const answersOf = async (maxNewTokens?: number): Promise<string[]> => {
      const options = maxNewTokens === undefined ? {} : { maxNewTokens };
      const result = await answerAll(decoder, tokenizer, short, options);
      return result.map(({ answer }) => answer);
    };
    expect(await answersOf()).toEqual(["bcdefghijkl", "bcdefghijkl"]);
    expect(await answersOf(1)).toEqual(["b", "b"]);
    await decoder.release();
  });

  it("puts prompts into another template", async () => {
    const decoder = reciting(text);
    const options = { template: "Q {prompt} A" };
    // Five tokens, the last at position 4.
    const [answer] = await answerAll(
      decoder,
      tokenizer,
      [{ prompt: "x", completion: "" }],
      options,
    );
    expect(answer).toMatchObject({ answer: "ef é!", isExact: false });
    await decoder.release();
  });

  it("ends an answer at the tokens that are said", async () => {
    const decoder = reciting(text);
    const [e] = tokenizer.encode("e");
    const pair = { prompt: "xxx", completion: "d" };
    const [answer] = await answerAll(decoder, tokenizer, [pair], { stopIds: [e!] });
    expect(answer).toMatchObject({ answer: "d", isExact: true });
    await decoder.release();
  });

  it("has no answers to no prompts", async () => {
    const decoder = reciting(text);
    expect(await answerAll(decoder, tokenizer, [])).toEqual([]);
    await decoder.release();
  });
});
