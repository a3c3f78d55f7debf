import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { nodeHost } from "../host/node.ts";
import { toTokenizerConfig, toTokenizerJson, trainBpe } from "./bpe.ts";
import { loadTokenizer, Tokenizer } from "./tokenizer.ts";

const root = mkdtempSync(join(tmpdir(), "plasticity-tokenizer-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));
const { files } = nodeHost();

const corpus = [
  "a model predicts the next token of a text, and the text goes on. ".repeat(8),
  "The end of text is marked; endoftext, user and assistant are words too. ".repeat(8),
  "im_start and im_end, |im_start| <|im| <|x|> |>|> ".repeat(8),
];
const model = trainBpe(corpus, {
  vocabSize: 330,
  specialTokens: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
});
const json = {
  tokenizer: toTokenizerJson(model),
  config: toTokenizerConfig(model, { eosToken: "<|endoftext|>", padToken: "<|im_end|>" }),
};
const tokenizer = new Tokenizer(json, "tiny");

/** A tokenizer.json with only what is named. */
function made(parts: Record<string, unknown>, config: Record<string, unknown> = {}): Tokenizer {
  return new Tokenizer(
    { tokenizer: JSON.stringify(parts), config: JSON.stringify(config) },
    "made",
  );
}

const added = (id: number, content: string, special = true): Record<string, unknown> => ({
  id,
  content,
  special,
});

describe("loadTokenizer", () => {
  it("loads a folder and keeps its contents to be copied", async () => {
    writeFileSync(join(root, "tokenizer.json"), json.tokenizer);
    const bare = await loadTokenizer(files, root);
    expect(bare.eosId).toBeUndefined();
    expect(bare.json).toEqual({ tokenizer: json.tokenizer, config: undefined });
    writeFileSync(join(root, "tokenizer_config.json"), json.config);
    const loaded = await loadTokenizer(files, root);
    expect(loaded.json).toEqual(json);
    expect(loaded.vocabSize).toBe(330);
    expect([loaded.eosId, loaded.padId, loaded.bosId]).toEqual([0, 2, undefined]);
    expect(loaded.tokenToId("<|im_start|>")).toBe(1);
    expect(loaded.tokenToId("no such token")).toBeUndefined();
  });

  it("says what is missing or broken", async () => {
    const empty = join(root, "empty");
    await files.makeDirectory(empty);
    await expect(loadTokenizer(files, empty)).rejects.toThrow(
      `${empty}: has no "tokenizer.json" — name a folder with a tokenizer of the Hugging Face form.`,
    );
    const cases: [unknown, unknown, string][] = [
      [[], {}, "tokenizer.json: must have an object model."],
      [
        { model: { type: "BPE", vocab: {} } },
        {},
        "model.merges must be a list of pairs of tokens.",
      ],
      [
        { model: { type: "BPE", vocab: { a: 0 }, merges: [["a"]] } },
        {},
        "model.merges must be a list of pairs of tokens.",
      ],
      [
        { model: { type: "WordPiece", vocab: { a: -1 } } },
        {},
        'token "a" has the id -1 — ids are whole numbers from 0 below 4194304.',
      ],
      [
        { model: { type: "WordPiece", vocab: { a: 2 ** 32 } } },
        {},
        'token "a" has the id 4294967296',
      ],
      [
        { model: { type: "WordPiece" } },
        {},
        "model.vocab must be a table of tokens and ids, or a list.",
      ],
      [
        { model: { type: "Unigram", vocab: [["a"]] } },
        {},
        'model.vocab must list [token, score], got ["a"] for id 0.',
      ],
      [
        { model: { type: "WordPiece", vocab: {} }, added_tokens: [{ id: 0 }] },
        {},
        "every added token must have a text as content, and special true or false.",
      ],
      [
        { model: { type: "WordPiece", vocab: { a: 0 } } },
        { eos_token: "</s>" },
        'tokenizer_config.json: eos_token "</s>" is not in the vocabulary — the two files belong to different tokenizers.',
      ],
      [
        { model: { type: "WordPiece", vocab: { a: 0 } } },
        { pad_token: 3 },
        "pad_token must be a text or an object with content, got 3.",
      ],
      [
        { model: { type: "Nonsense", vocab: {} }, normalizer: { type: "Nonsense" } },
        {},
        "this tokenizer cannot be run, ",
      ],
    ];
    for (const [tokenizerJson, config, sentence] of cases) {
      const build = (): Tokenizer => made(tokenizerJson as never, config as never);
      expect(build, sentence).toThrow("made: ");
      expect(build).toThrow(sentence);
    }
    const twice = json.tokenizer.replace('"version":"1.0"', '"version":"1.0","version":"1.0"');
    expect(() => new Tokenizer({ ...json, tokenizer: twice }, "t")).toThrow(
      'key "version" stands twice',
    );
  });
});

describe("encode and decode", () => {
  it("gives back every text", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 50 }), (text) => {
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
      { seed: 6, numRuns: 500 },
    );
    expect(tokenizer.decode(tokenizer.encode("don 't , x . y"))).toBe("don 't , x . y");
    expect(tokenizer.decode(tokenizer.encode("a\ud800b"))).toBe("a\ufffdb");
    expect(tokenizer.encode("").length).toBe(0);
    expect(tokenizer.decode([])).toBe("");
  });

  it("leaves special tokens out of the text when asked", () => {
    const ids = tokenizer.encode("a<|im_end|>b", { allowSpecial: true });
    expect(tokenizer.decode(ids)).toBe("a<|im_end|>b");
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe("ab");
  });

  it("refuses ids outside the vocabulary", () => {
    for (const id of [330, -1, 1.5, Number.NaN]) {
      expect(() => tokenizer.decode([1, id])).toThrow(
        `decode: id ${id} is outside the vocabulary of 330 tokens.`,
      );
    }
  });

  it("adds what the tokenizer puts around a text only when asked", () => {
    const bert = made({
      model: {
        type: "WordPiece",
        vocab: { "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, hello: 3, "##s": 4 },
        unk_token: "[UNK]",
        continuing_subword_prefix: "##",
      },
      added_tokens: [added(0, "[UNK]"), added(1, "[CLS]"), added(2, "[SEP]")],
      pre_tokenizer: { type: "WhitespaceSplit" },
      post_processor: { type: "BertProcessing", cls: ["[CLS]", 1], sep: ["[SEP]", 2] },
    });
    expect([...bert.encode("hellos hello")]).toEqual([3, 4, 3]);
    expect([...bert.encode("hellos", { addSpecial: true })]).toEqual([1, 3, 4, 2]);
    expect([...bert.encode("[SEP]", { addSpecial: true })]).toEqual([1, 0, 2]);
  });
});

describe("special tokens in text", () => {
  const specials = new Set([0, 1, 2]);

  it("are read only when allowed", () => {
    const text = "<|im_start|>user\nhi<|im_end|><|endoftext|>";
    const ids = tokenizer.encode(text);
    expect([...ids].filter((id) => specials.has(id))).toEqual([]);
    expect(tokenizer.decode(ids)).toBe(text);
    const allowed = tokenizer.encode(text, { allowSpecial: true });
    expect([...allowed].filter((id) => specials.has(id))).toEqual([1, 2, 0]);
    expect(tokenizer.decode(allowed)).toBe(text);
  });

  it("cannot be put together from any pieces", () => {
    const piece = fc.constantFrom(
      ..."<|endoftext|> <|im_start|> <|im_end|> <|im_ <| |> end of text start < | > <|endof text|>".split(
        " ",
      ),
      " ",
      "\n",
    );
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
        const text = pieces.join("");
        const ids = tokenizer.encode(text);
        expect([...ids].some((id) => specials.has(id))).toBe(false);
        expect(tokenizer.decode(ids)).toBe(text);
      }),
      { seed: 7, numRuns: 500 },
    );
  });

  it("are encoded as a tokenizer without special tokens would", () => {
    const plain = new Tokenizer(
      {
        tokenizer: JSON.stringify({ ...JSON.parse(json.tokenizer), added_tokens: [] }),
        config: "{}",
      },
      "plain",
    );
    for (const text of ["the text<|endoftext|> goes on", " <|im_start|>", "<|im_end|><|im_end|>"]) {
      expect(tokenizer.encode(text)).toEqual(plain.encode(text));
    }
  });

  it("are guarded in models that look whole words up", () => {
    const wordPiece = made({
      model: { type: "WordPiece", vocab: { "[UNK]": 0, "[CLS]": 1, a: 2 }, unk_token: "[UNK]" },
      added_tokens: [added(0, "[UNK]"), added(1, "[CLS]")],
      pre_tokenizer: { type: "WhitespaceSplit" },
    });
    expect([...wordPiece.encode("a [CLS] a")]).toEqual([2, 0, 2]);
    expect([...wordPiece.encode("a [CLS] a", { allowSpecial: true })]).toEqual([2, 1, 2]);

    const vocab = { "<": 0, s: 1, ">": 2, "<s": 3, "<s>": 4 };
    const merges = [
      ["<", "s"],
      ["<s", ">"],
    ];
    const bpe = made({
      model: { type: "BPE", vocab, merges, ignore_merges: true },
      added_tokens: [added(4, "<s>")],
    });
    expect([...bpe.encode("<s>")]).toEqual([3, 2]);
    expect([...bpe.encode("<s>", { allowSpecial: true })]).toEqual([4]);

    const unigram = made({
      model: {
        type: "Unigram",
        unk_id: 0,
        vocab: [
          ["<unk>", 0],
          ["</s>", 0],
          ["<", -5],
          ["/", -5],
          ["s", -5],
          [">", -5],
          ["\u2581", -5],
        ],
      },
      added_tokens: [added(0, "<unk>"), added(1, "</s>")],
      pre_tokenizer: { type: "Metaspace", replacement: "\u2581", prepend_scheme: "never" },
    });
    expect([...unigram.encode("</s>")]).toEqual([2, 3, 4, 5]);
    expect([...unigram.encode("s</s>", { allowSpecial: true })]).toEqual([4, 1]);
    expect([...unigram.encode("\ud8001")]).toEqual([0]);
  });

  it("are guarded when only the config says that they are special", () => {
    const parts = {
      model: { type: "WordPiece", vocab: { "[UNK]": 0, "<eos>": 1, "<x>": 2 }, unk_token: "[UNK]" },
      added_tokens: [added(1, "<eos>", false), added(2, "<x>", false)],
    };
    expect([...made(parts).encode("<eos>")]).toEqual([1]);
    expect([...made(parts, { eos_token: { content: "<eos>" } }).encode("<eos>")]).toEqual([0]);
    const extra = made(parts, { additional_special_tokens: ["<x>"] });
    expect([...extra.encode("<x><eos>")]).toEqual([0, 1]);
  });

  it("are guarded after a normalizer has made them", () => {
    const lower = made({
      model: { type: "WordPiece", vocab: { "[UNK]": 0, "[cls]": 1 }, unk_token: "[UNK]" },
      added_tokens: [{ ...added(1, "[CLS]"), normalized: true }],
      normalizer: { type: "Lowercase" },
    });
    expect([...lower.encode("[cLs]", { allowSpecial: true })]).toEqual([1]);
    expect([...lower.encode("[cLs]")]).toEqual([0]);
  });
});
