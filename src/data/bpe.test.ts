import { Tokenizer as HfTokenizer } from "@huggingface/tokenizers";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import parity from "../../test/parity/bpe.json" with { type: "json" };
import { type BpeModel, toTokenizerConfig, toTokenizerJson, trainBpe } from "./bpe.ts";

function load(model: BpeModel): HfTokenizer {
  return new HfTokenizer(JSON.parse(toTokenizerJson(model)), JSON.parse(toTokenizerConfig(model)));
}

describe("trainBpe", () => {
  it("learns the merges worked by hand", () => {
    // Words: "low" 3, " lower" 2, " new" 1. Pairs: lo 5, ow 5, "we" 2, er 2, " l" 2, " n" ne ew 1.
    // Ids follow the characters, l (0x6c) before o (0x6f): of lo and ow, lo is first.
    // Then "lo"+w: 3 + 2 = 5. Then we is gone into low+e 2, e+r 2, Ġ+low 2; Ġ is U+0120, above
    // every letter, and "low" is a later id than any byte: e+r (e lowest), Ġ+low (a byte before a
    // merge), and of low+er, Ġlow+er only the latter remains, 2.
    const { vocab, merges } = trainBpe(["low", "low", "low lower lower new"], { vocabSize: 300 });
    expect(merges).toEqual([
      ["l", "o"],
      ["lo", "w"],
      ["e", "r"],
      ["Ġ", "low"],
      ["Ġlow", "er"],
    ]);
    expect(vocab.length).toBe(256 + 5);
    expect(vocab.slice(256)).toEqual(["lo", "low", "er", "Ġlow", "Ġlower"]);
  });

  it("joins runs from the left", () => {
    // Two words of aaaaa: aa counts 8, joined from the left each is aa·aa·a. Then aa·aa and aa·a both
    // count 2, and a has the lower id: aa·aaa.
    expect(trainBpe(["aaaaa", "aaaaa"], { vocabSize: 300 }).merges).toEqual([
      ["a", "a"],
      ["aa", "a"],
      ["aa", "aaa"],
    ]);
  });

  it("stops at the vocabulary's size and at rare pairs", () => {
    const text = ["the cat sat on the mat and the cat ate the rat"];
    expect(trainBpe(text, { vocabSize: 259 }).vocab.length).toBe(259);
    expect(trainBpe(text, { vocabSize: 256 }).merges).toEqual([]);
    expect(trainBpe(text, { vocabSize: 1000, minFrequency: 4 }).merges).toEqual([
      ["a", "t"],
      ["h", "e"],
      ["t", "he"],
    ]);
    expect(trainBpe(text, { vocabSize: 1000, minFrequency: 40 }).merges).toEqual([]);
    expect(trainBpe([], { vocabSize: 1000 }).vocab.length).toBe(256);
  });

  it("never spells a special token, and leaves its text out of the counts", () => {
    const specialTokens = ["<s>", "<s>!", "ab"];
    const text = "ab<s>ab<s>!cd cd <s>".repeat(20);
    const { merges } = trainBpe([text], { vocabSize: 400, specialTokens });
    expect(merges).toEqual([
      ["c", "d"],
      ["Ġ", "cd"],
    ]);
  });

  it("finds what a count from scratch after each merge finds", () => {
    const letters = fc.array(fc.constantFrom("a", "b", "c", " ", "a", "ab"), { maxLength: 40 });
    fc.assert(
      fc.property(fc.array(letters, { maxLength: 4 }), (lists) => {
        const chunks = lists.map((list) => list.join(""));
        const { merges } = trainBpe(chunks, { vocabSize: 270 });
        expect(merges).toEqual(recount(chunks, 270));
      }),
      { seed: 4, numRuns: 300 },
    );
  });

  it("learns what the tokenizers library learns, ids and ties included", () => {
    const model = trainBpe(parity.chunks, parity.options);
    expect(model.merges).toEqual(parity.merges);
    expect(model.vocab).toEqual(parity.vocab);
    expect(JSON.parse(toTokenizerJson(model)).added_tokens).toEqual(parity.addedTokens);
    const tokenizer = load(model);
    for (const { text, ids } of parity.encodings) expect(tokenizer.encode(text).ids).toEqual(ids);
  });

  it("says which option is wrong", () => {
    const cases: [Parameters<typeof trainBpe>[1], string][] = [
      [
        { vocabSize: 256, specialTokens: ["<s>"] },
        "vocabSize must be a whole number from 257 (256 bytes and 1 special tokens) to 1048576, got 256.",
      ],
      [{ vocabSize: 300.5 }, "vocabSize must be a whole number from 256"],
      [{ vocabSize: 300, minFrequency: 0 }, "minFrequency must be a whole number from 1, got 0."],
      [
        { vocabSize: 300, specialTokens: ["a"] },
        'special token "a" is taken — choose texts of two characters or more, each once.',
      ],
      [{ vocabSize: 300, specialTokens: [""] }, 'special token "" is empty'],
      [{ vocabSize: 300, specialTokens: ["<s>", "<s>"] }, 'special token "<s>" is taken'],
      [
        { vocabSize: 300, specialTokens: ["<\ud800>"] },
        'special token "<\\ud800>" has half of a surrogate pair — it has no UTF-8 form.',
      ],
    ];
    for (const [options, sentence] of cases) {
      expect(() => trainBpe([], options)).toThrow(`trainBpe: ${sentence}`);
    }
  });
});

/** The algorithm as its paper states it, for words of letters and spaces. */
function recount(chunks: readonly string[], vocabSize: number): [string, string][] {
  const words = chunks
    .flatMap((chunk) => chunk.match(/ ?\p{L}+|\s+(?!\S)|\s+/gu) ?? [])
    .map((word) => Array.from(word, (c) => (c === " " ? "Ġ" : c)));
  const merges: [string, string][] = [];
  const ids = new Map<string, number>();
  const idOf = (token: string): number => ids.get(token) ?? token.codePointAt(0)!;
  while (ids.size < vocabSize - 256) {
    const counts = new Map<string, number>();
    for (const word of words) {
      for (let i = 1; i < word.length; i++) {
        const key = `${word[i - 1]} ${word[i]}`;
        counts.set(key, (counts.get(key) ?? 0) + 1);
      }
    }
    const best = [...counts]
      .map(([key, count]) => ({ pair: key.split(" ") as [string, string], count }))
      .sort(
        (x, y) =>
          y.count - x.count ||
          idOf(x.pair[0]) - idOf(y.pair[0]) ||
          idOf(x.pair[1]) - idOf(y.pair[1]),
      )[0];
    if (!best || best.count < 2) break;
    const token = best.pair.join("");
    merges.push(best.pair);
    // Above every character of the alphabet.
    if (!ids.has(token)) ids.set(token, 1000 + ids.size);
    for (const word of words) {
      for (let i = 0; i + 1 < word.length; i++) {
        if (word[i] === best.pair[0] && word[i + 1] === best.pair[1]) word.splice(i, 2, token);
      }
    }
  }
  return merges;
}

describe("toTokenizerJson", () => {
  it("gives a tokenizer that returns every text byte for byte", () => {
    const model = trainBpe(parity.chunks, parity.options);
    const tokenizer = load(model);
    fc.assert(
      fc.property(fc.string({ unit: "binary", minLength: 1, maxLength: 60 }), (text) => {
        expect(tokenizer.decode(tokenizer.encode(text).ids)).toBe(text);
      }),
      { seed: 5, numRuns: 1000 },
    );
    const all = String.fromCodePoint(...Array.from({ length: 0x800 }, (_, i) => i));
    expect(tokenizer.decode(tokenizer.encode(all).ids)).toBe(all);
  });

  it("writes each token under its id", () => {
    const model = trainBpe(["10 10 10 20 20"], { vocabSize: 300, specialTokens: ["<s>"] });
    const { model: written } = JSON.parse(toTokenizerJson(model));
    for (const [id, token] of model.vocab.entries()) expect(written.vocab[token]).toBe(id);
    expect(Object.keys(written.vocab).length).toBe(model.vocab.length);
  });
});

describe("toTokenizerConfig", () => {
  it("names the roles of special tokens", () => {
    const model = trainBpe([], { vocabSize: 300, specialTokens: ["<|end|>"] });
    expect(JSON.parse(toTokenizerConfig(model, { eosToken: "<|end|>", maxLength: 512 }))).toEqual({
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      eos_token: "<|end|>",
      model_max_length: 512,
    });
    expect(() => toTokenizerConfig(model, { padToken: "<pad>" })).toThrow(
      'toTokenizerConfig: padToken "<pad>" is not a special token of this model — name it in specialTokens when training.',
    );
  });
});
